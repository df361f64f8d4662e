# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The encoder and a training step, beside the released model's own code with random weights."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import timm
import torch
from measuring import Row, Way, compare, matmul_peak
from torch import nn
from torch.optim import AdamW

REPO = Path(__file__).resolve().parents[2]
TEACHER = 'vit_large_patch14_reg4_dinov2.lvd142m'
SENSOR = 'sentinel-2-l2a'


def load_reference() -> ModuleType | None:
    """The released code; None where `make reference` could not fetch it."""
    sys.path[:0] = [str(REPO / '.cache/reference'), str(REPO / 'tests/parity')]
    precision = torch.get_float32_matmul_precision()
    try:
        module = importlib.import_module('src.model')
    except ModuleNotFoundError as error:
        print(f'without the reference, which is not there ({error}): run make reference')
        return None
    finally:
        torch.set_float32_matmul_precision(precision)  # importing it sets another
    return module


def inputs(batch: int, pixels: int, device: torch.device) -> dict[str, Any]:
    """A normalized batch of Sentinel-2 with all its metadata."""
    from torchgeo_clay.sensors import get_sensor

    sensor = get_sensor(SENSOR)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, len(sensor), pixels, pixels, generator=generator)
    time, latlon = torch.randn(2, batch, 4, generator=generator).clamp(-1, 1)
    return {
        'x': x.to(device),
        'time': time.to(device),
        'latlon': latlon.to(device),
        'gsd': torch.full((batch,), 10.0, device=device),
        'waves': torch.tensor(sensor.wavelengths, device=device),
    }


def encoder(size: str, batch: int, pixels: int, rounds: int, device: torch.device, low: bool) -> list[Row]:
    """The class token of a batch: the reference, ours, ours folded, and folded in bfloat16 with weights cast once."""
    from torchgeo_clay import models
    from torchgeo_clay.tasks.embedding import cast_matmuls

    data = inputs(batch, pixels, device)
    codes = data['gsd'], data['time'], data['latlon']
    clay = getattr(models, f'clay_{size}_patch8')().eval().to(device)
    folded = clay.fold(SENSOR)
    half = cast_matmuls(clay.fold(SENSOR), torch.bfloat16)
    on_gpu, reference = device.type == 'cuda', load_reference()
    their_dtype = torch.bfloat16 if on_gpu else torch.float32

    def run(call: Way, dtype: torch.dtype) -> Way:
        def way() -> object:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                return call()

        return way

    ways: dict[str, tuple[Way, torch.dtype]] = {}
    if reference is not None:
        theirs = their_encoder(reference, size).to(device)
        cube = {
            'pixels': data['x'],
            'time': data['time'],
            'latlon': data['latlon'],
            'gsd': torch.tensor(10.0),
            'waves': data['waves'],
        }
        ways[f'reference, {short(their_dtype)}'] = (lambda: theirs(cube), their_dtype)
    ways[f'Clay, {short(their_dtype)}'] = (lambda: clay(data['x'], data['waves'], *codes), their_dtype)
    if not on_gpu:
        ways['folded, float32'] = (lambda: folded(data['x'], *codes), torch.float32)
    if on_gpu or low:
        ways['folded, bfloat16, weights cast once'] = (lambda: half(data['x'], *codes), torch.bfloat16)
    if on_gpu:
        compiled = torch.compile(half)
        ways['the same, compiled'] = (lambda: compiled(data['x'], *codes), torch.bfloat16)
    peaks = {dtype: matmul_peak(device, dtype) for dtype in {dtype for _, dtype in ways.values()}}
    for dtype, peak in peaks.items():
        print(f'matmul peak, {short(dtype)}: {peak:.3g} TFLOP/s')
    return compare(
        'encoder',
        {name: run(call, dtype) for name, (call, dtype) in ways.items()},
        batch,
        rounds,
        device,
        peaks={name: peaks[dtype] for name, (_, dtype) in ways.items()},
    )


def short(dtype: torch.dtype) -> str:
    """A dtype's name."""
    return str(dtype).removeprefix('torch.')


def their_encoder(reference: ModuleType, size: str) -> nn.Module:
    """The released encoder, without masking and in order."""
    from pair import TinyTeacher, their_autoencoder

    theirs = their_autoencoder(reference, size, TinyTeacher()).encoder
    theirs.mask_ratio, theirs.shuffle = 0.0, False
    return theirs.eval()


def training(size: str, batch: int, pixels: int, rounds: int, device: torch.device) -> list[Row]:
    """A whole training step, teacher at 518 pixels and AdamW included; ours also with the teacher's answers cached."""
    from torchgeo_clay import models
    from torchgeo_clay.models.teacher import teacher_rgb
    from torchgeo_clay.sensors import get_sensor
    from torchgeo_clay.tasks.optim import published

    data, sensor = inputs(batch, pixels, device), get_sensor(SENSOR)
    teacher = timm.create_model(TEACHER, pretrained=False, num_classes=0).to(device)
    low = torch.bfloat16 if device.type == 'cuda' else torch.float32
    ours = getattr(models, f'clay_mae_{size}_patch8')(teacher=teacher).to(device).train()
    optimizer, _ = published(ours)
    answer = torch.randn(batch, teacher.num_features, device=device)
    reference, ways = load_reference(), {}

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, call: Way) -> Way:
        def way() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=low == torch.bfloat16):
                loss = call()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return way

    if reference is not None:
        from pair import their_autoencoder

        theirs = their_autoencoder(reference, size, teacher).to(device).train()
        cube = {'pixels': data['x'], 'time': data['time'], 'latlon': data['latlon'], 'platform': [sensor.name]}
        their_optimizer = AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-5, fused=True)

        def released() -> object:
            with mock.patch('random.random', return_value=0.9):  # no bands dropped
                return theirs(cube)[0]

        ways['reference'] = step(theirs, their_optimizer, released)
    codes = data['waves'], data['gsd'], data['time'], data['latlon']
    ways['ClayMAE'] = step(ours, optimizer, lambda: ours(data['x'], *codes, rgb=teacher_rgb(data['x'], sensor)).loss)
    ways['ClayMAE, teacher targets cached'] = step(
        ours, optimizer, lambda: ours(data['x'], *codes, teacher_target=answer).loss
    )
    if device.type == 'cuda':
        compiled = torch.compile(ours)
        ways['ClayMAE, compiled'] = step(
            ours, optimizer, lambda: compiled(data['x'], *codes, rgb=teacher_rgb(data['x'], sensor)).loss
        )
    peak = matmul_peak(device, low)
    print(f'matmul peak, {short(low)}: {peak:.3g} TFLOP/s')
    return compare('training', ways, batch, rounds, device, peaks=dict.fromkeys(ways, peak))
