# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Whether training goes the same way as the released code's, and compiled the same way as eager.

Run it as ``python tests/benchmarks/drift.py [--steps N] [--size SIZE]``. All runs begin with the same weights and see
the same batches and masks, with plain AdamW at one rate. The last one, eager with its weights moved by one unit in the
last place, shows how far rounding alone carries two runs apart. On a GPU it is bfloat16.
"""

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from cases_model import load_reference
from torch import Tensor, nn
from torch.optim import AdamW

from torchgeo_clay.models.teacher import teacher_rgb
from torchgeo_clay.sensors import get_sensor

SENSOR = get_sensor('naip')


def losses(model: nn.Module, call: Callable[..., Tensor], steps: int, device: str) -> list[float]:
    """Train on random smooth images and note each step's loss."""
    generator = torch.Generator().manual_seed(1)
    model = model.to(device).train()
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4, weight_decay=0.05, fused=True)
    found = []
    for _ in range(steps):
        coarse, noise = torch.randn(8, 4, 8, 8, generator=generator), torch.rand(8, 64, generator=generator)
        time, latlon = torch.randn(2, 8, 4, generator=generator).clamp(-1, 1).to(device)
        x = nn.functional.interpolate(coarse, (64, 64), mode='bicubic').to(device)
        with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
            loss = call(x, time, latlon, noise.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.detach())
    return [v.item() for v in found]


def runs(size: str, steps: int, device: str) -> dict[str, list[float]]:
    """Losses of every way to train; the first is ours, eager."""
    reference = load_reference()
    if reference is None:
        raise SystemExit('run make reference first')
    from pair import Pair

    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(reference, size, Path(folder))
        ours = pair.autoencoder()
    waves, gsd = torch.tensor(SENSOR.wavelengths, device=device), torch.full((8,), SENSOR.gsd, device=device)

    def with_us(model: nn.Module, run: nn.Module) -> list[float]:
        def call(x: Tensor, time: Tensor, latlon: Tensor, noise: Tensor) -> Tensor:
            return run(x, waves, gsd, time, latlon, noise=noise, rgb=teacher_rgb(x, SENSOR)).loss

        return losses(model, call, steps, device)

    def released(x: Tensor, time: Tensor, latlon: Tensor, noise: Tensor) -> Tensor:
        with mock.patch('torch.randn', return_value=noise), mock.patch('random.random', return_value=0.9):
            return pair.theirs({'pixels': x, 'time': time, 'latlon': latlon, 'platform': [SENSOR.name]})[0]

    eager, second, moved = (copy.deepcopy(ours) for _ in range(3))
    with torch.no_grad():
        for p in moved.parameters():
            p.copy_(torch.nextafter(p, torch.full_like(p, torch.inf)))
    return {
        'ours': with_us(eager, eager),
        'the released code': losses(pair.theirs, released, steps, device),
        'ours, compiled': with_us(second, torch.compile(second)),
        'ours, moved by one unit in the last place': with_us(moved, moved),
    }


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=200)
    parser.add_argument('--size', default='tiny')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    found = runs(args.size, args.steps, args.device)
    ours = found.pop('ours')
    print(f'ours: {ours[0]:.5f} to {ours[-1]:.5f} in {args.steps} steps')
    report = {}
    for name, run in found.items():
        apart = [abs(a - b) / a for a, b in zip(ours, run, strict=True)]
        report[name] = {'first': apart[0], 'after 20': max(apart[:20]), 'after all': max(apart)}
        print(f'{name}: {apart[0]:.1e} apart at first, {max(apart[:20]):.1e} within 20 steps, {max(apart):.1e} in all')
    print(json.dumps(report))


if __name__ == '__main__':
    main()
