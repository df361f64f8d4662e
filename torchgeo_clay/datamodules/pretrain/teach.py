# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Compute a teacher's targets of chips before training. Shapes: B chips, C bands, H = W = patch_size, T width.

Only chips that are never cropped have one target: that of the chip as stored, while training flips it; see
docs/pretraining.md.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm  # type: ignore[import-untyped]

from torchgeo_clay.datamodules.pretrain.datamodule import ClayPretrainDataModule
from torchgeo_clay.datamodules.pretrain.dataset import PretrainDataset, pad_patch
from torchgeo_clay.datamodules.pretrain.regions import READ_ERRORS, Region, SensorScenes, read_patch
from torchgeo_clay.datamodules.pretrain.scan import ChipScenes
from torchgeo_clay.datamodules.pretrain.teacher_targets import ChipTargets, TargetStore
from torchgeo_clay.models.teacher import TEACHER_SIZE, resize_for_teacher, teacher_rgb
from torchgeo_clay.models.weights.files import tensor_digest
from torchgeo_clay.sensors import Sensor

__all__ = ('attach_targets', 'teach')

#: A part of the store is written when it has this many chips or took this many seconds: a killed run loses no more.
PART_CHIPS = 4096
PART_SECONDS = 60.0

_TENSORS = ('image', 'valid')


@torch.inference_mode()
def teach(teacher: nn.Module, image: Tensor, sensor: Sensor) -> Tensor:
    """A teacher's targets of chips.

    Args:
        teacher: from RGB (B, 3, 518, 518) to (B, T), in eval mode.
        image: (B, C, H, W) normalized, not flipped.
        sensor: its bands are the image's.

    Returns:
        (B, T) float32.

    Raises:
        ValueError: for a sensor without rgb bands.
    """
    target: Tensor = teacher(resize_for_teacher(teacher_rgb(image, sensor)))
    return target.float()


@dataclass(frozen=True)
class _SensorChips:
    """The chips of one sensor that need targets."""

    name: str
    sensor: Sensor
    source: ChipScenes
    regions: Mapping[int, Region]
    targets: ChipTargets


class _Chips(Dataset[dict[str, Any]]):
    """Whole chips, not flipped, padded as for training; the reason for each that cannot be read."""

    def __init__(self, of: _SensorChips, chips: Sequence[int], patch_size: int) -> None:
        self.of, self.chips, self.patch_size = of, chips, patch_size

    def __len__(self) -> int:
        return len(self.chips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        chip = self.chips[index]
        region = self.of.regions[chip]
        try:
            sample = read_patch(self.of.source, region, 0, 0, self.patch_size)
        except READ_ERRORS as error:
            return {'reasons': {region.path: str(error)}}
        image, valid = pad_patch(sample['image'], sample['valid'], self.patch_size)
        return {'image': image.to(torch.float32), 'valid': valid, 'chip': chip}


def _collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of the chips that could be read, and why others could not."""
    good = [sample for sample in samples if 'image' in sample]
    batch: dict[str, Any] = {name: torch.stack([sample[name] for sample in good]) for name in _TENSORS if good}
    reasons = {path: why for sample in samples for path, why in sample.get('reasons', {}).items()}
    return {**batch, 'chips': [sample['chip'] for sample in good], 'reasons': reasons}


def attach_targets(data: ClayPretrainDataModule, folder: str | os.PathLike[str], teacher: nn.Module, name: str) -> str:
    """Give each chip of a datamodule its teacher's target, and compute those that are not in the store yet.

    Samples then have ``teacher_target`` (T,), and batches (B, T). Collective: call on every rank after ``data.setup``;
    each computes a part, on its own device.

    Args:
        data: set up, with a trainer.
        folder: the store; each teacher and each way to show chips to it has a folder of its own in it.
        teacher: see :func:`teach`; it is moved to the trainer's device.
        name: name of the teacher.

    Returns:
        SHA-256 of the teacher's weights.

    Raises:
        ValueError: before anything is computed, if there are rasters, chips larger than a patch, or a sensor without
            rgb bands; afterwards, if more chips than ``max_failures`` have no target.
    """
    trainer = data.trainer
    assert trainer is not None
    digest = tensor_digest(teacher.state_dict())
    about = {'teacher': name, 'sha256': digest, 'precision': str(trainer.precision)}
    sensors = list(_sensor_chips(data, Path(folder), about))
    missing = [of.targets.refresh() for of in sensors]
    trainer.strategy.barrier()  # all have looked before any writes
    if any(missing):
        teacher.to(trainer.strategy.root_device).eval().requires_grad_(False)
    reasons: dict[str, str] = {}
    for of, chips in zip(sensors, missing, strict=True):
        count = len(of.regions)
        rank_zero_info(f'{of.name}: teacher targets of {count - len(chips)} of {count} chips are in {folder}')
        reasons |= _compute(data, of, chips[trainer.global_rank :: trainer.world_size], teacher)
    trainer.strategy.barrier()
    _check_complete(sensors, reasons, data.max_failures)
    for of in sensors:
        of.source.targets = of.targets
    return digest


def _sensor_chips(data: ClayPretrainDataModule, folder: Path, about: Mapping[str, Any]) -> Iterator[_SensorChips]:
    """The chips of each sensor, checked."""
    datasets = [d for d in (data.train_dataset, data.val_dataset) if isinstance(d, PretrainDataset)]
    for name in sorted({name for dataset in datasets for name in dataset.scenes}):
        parts = [dataset.scenes[name] for dataset in datasets if name in dataset.scenes]
        regions = [region for part in parts for region in part.regions]
        source = _only_source(name, parts[0], regions, data.patch_size)
        sensor = data.selected[name]
        teacher_rgb(torch.zeros(1, len(sensor), 1, 1), sensor)  # raises for a sensor without rgb bands
        shown = {**about, **_shown(source, data.patch_size)}
        teacher = re.sub(r'[^\w.-]+', '-', shown['teacher'])
        fingerprint = sha256(repr(sorted(shown.items())).encode()).hexdigest()[:12]
        place = folder / f'{teacher}-{shown["sha256"][:12]}' / f'{name}-{fingerprint}'
        by_chip = {region.scene: region for region in regions}
        targets = ChipTargets(TargetStore(place, shown), source.chips.files, data.root, by_chip)
        yield _SensorChips(name, sensor, source, by_chip, targets)


def _only_source(name: str, scenes: SensorScenes, regions: Sequence[Region], patch_size: int) -> ChipScenes:
    """The chips of a sensor, if there is nothing else and none is cropped."""
    chips = [source for source in scenes.sources if isinstance(source, ChipScenes)]
    if len(chips) != 1 or len(scenes.sources) != 1:
        rasters = sum(not region.path.lower().endswith('.npz') for region in regions)
        raise ValueError(
            f'teacher_targets: expected chips (.npz), which are the same in every epoch, got {rasters} rasters in the '
            f'folder {name}, of which patches are drawn at random. Leave the folder out with sensors=, or train with '
            'teacher_targets=null, where the teacher looks at every patch.'
        )
    for region in regions:
        if max(region.height, region.width) > patch_size:
            raise ValueError(
                f'teacher_targets: expected chips of at most patch_size={patch_size} pixels per side, which are never '
                f'cropped, got {region.height} x {region.width}: {region.path}. Give '
                f'patch_size={-(-max(region.height, region.width) // 8) * 8}, or train with teacher_targets=null.'
            )
    return chips[0]


def _shown(source: ChipScenes, patch_size: int) -> dict[str, Any]:
    """All that a teacher's view of a chip depends on."""
    chips, sensor = source.chips, source.sensor
    return {
        'sensor': sensor.name,
        'bands of chips': chips.all_bands,
        'bands': chips.bands,
        'rgb': sensor.rgb,
        'mean': sensor.mean,
        'std': sensor.std,
        'scale': sensor.scale,
        'to_db': chips.to_db,
        'patch_size': patch_size,
        'teacher_size': TEACHER_SIZE,
    }


def _compute(
    data: ClayPretrainDataModule, of: _SensorChips, chips: Sequence[int], teacher: nn.Module
) -> dict[str, str]:
    """Compute targets of chips and write them, part by part; path and reason of those that cannot be read."""
    trainer = data.trainer
    assert trainer is not None
    loader = DataLoader(
        _Chips(of, chips, data.patch_size),
        batch_size=data.batch_size,
        num_workers=data.num_workers if chips else 0,
        collate_fn=_collate,
        generator=torch.Generator(),  # else it takes a number from the global generator
    )
    reasons: dict[str, str] = {}
    part: list[tuple[bytes, Tensor]] = []
    began = time.monotonic()
    hidden = None if trainer.is_global_zero else True  # None for shown on a terminal only
    for batch in tqdm(loader, desc=f'{of.name}: teacher targets', disable=hidden, leave=False):
        reasons |= batch['reasons']
        if batch['chips']:
            keys = [of.targets.keys[chip] for chip in batch['chips']]
            part += zip(keys, _targets(data, of, batch, teacher), strict=True)
        if len(part) >= PART_CHIPS or time.monotonic() - began > PART_SECONDS:
            _write(of, part)
            part, began = [], time.monotonic()
    _write(of, part)
    return reasons


def _write(of: _SensorChips, part: Sequence[tuple[bytes, Tensor]]) -> None:
    """Write a part, unless it is empty."""
    if part:
        keys, targets = zip(*part, strict=True)
        of.targets.store.write(keys, torch.stack(targets))


def _targets(data: ClayPretrainDataModule, of: _SensorChips, batch: Mapping[str, Any], teacher: nn.Module) -> Tensor:
    """The targets of a batch, normalized as for training and in the run's precision: (B, T) on the host."""
    trainer = data.trainer
    assert trainer is not None
    device = trainer.strategy.root_device
    image, valid = (batch[name].to(device) for name in _TENSORS)
    with trainer.precision_plugin.forward_context():
        return teach(teacher, of.sensor.normalize(image, valid), of.sensor).cpu()


def _check_complete(sensors: Sequence[_SensorChips], reasons: Mapping[str, str], most: int) -> None:
    """Warn of chips without a target, and raise if there are more than may fail."""
    missing = [of.source.chips.files[chip] for of in sensors for chip in of.targets.refresh()]
    lines = [f'{path}: {reasons.get(path, "left to another process of this run")}' for path in missing[:10]]
    if len(missing) > most:
        raise ValueError(
            f'teacher_targets: expected a target for every chip but max_failures={most}, {len(missing)} have none. '
            'Remove the chips that are damaged; if the run has several machines, give a folder on a disk that they '
            'share.\n  ' + '\n  '.join(lines)
        )
    if missing:
        rank_zero_warn('\n  '.join([f'{len(missing)} chips have no teacher target and are passed over:', *lines]))
