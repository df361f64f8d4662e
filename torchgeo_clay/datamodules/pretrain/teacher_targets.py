# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A teacher's targets of chips: computed before training, kept on disk, read with the samples.

Only chips that are never cropped have one target: that of the chip as stored, while training flips it; see
docs/pretraining.md. Shapes: n or B chips, C bands, H = W = patch_size pixels, T width of the teacher.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm  # type: ignore[import-untyped]

from torchgeo_clay.datamodules.pretrain.datamodule import ClayPretrainDataModule
from torchgeo_clay.datamodules.pretrain.dataset import PretrainDataset, pad_patch
from torchgeo_clay.datamodules.pretrain.regions import READ_ERRORS, Region, SensorScenes, read_patch
from torchgeo_clay.datamodules.pretrain.scan import ChipScenes
from torchgeo_clay.datasets import SceneError
from torchgeo_clay.models.teacher import TEACHER_SIZE, resize_for_teacher, teacher_rgb
from torchgeo_clay.models.weights import tensor_digest
from torchgeo_clay.sensors import Sensor
from torchgeo_clay.writers.atomic import atomic

__all__ = ('ChipTargets', 'TargetStore', 'attach_targets', 'chip_key', 'teach')

#: A part of the store is written after this number of chips or seconds, the most that a killed run loses.
PART_CHIPS = 4096
PART_SECONDS = 60.0

_KEY = 16  # bytes


def chip_key(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> bytes:
    """A key of a chip that differs from those of all other chips, and changes with its pixels.

    It is made from the name, relative to ``root`` so that moving the data changes nothing, and the file's checksum of
    its pixels: a chip that is copied or compressed again keeps its key, one with other pixels has another.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo('pixels.npy')
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SceneError(f'{os.fspath(path)}: not readable as a chip (.npz): {error}') from error
    name = Path(os.path.relpath(path, root)).as_posix()
    return blake2b(f'{name}\n{entry.CRC}\n{entry.file_size}'.encode(), digest_size=_KEY).digest()


@lru_cache(maxsize=128)
def _open_part(path: str) -> Any:
    """A part, memory-mapped, once per process; parts never change."""
    return safe_open(path, framework='pt')


class TargetStore:
    """Targets of chips by key, in a folder that grows part by part.

    A part is a ``.safetensors`` file of up to some thousand chips, ``key`` (n, 16) uint8 and ``target`` (n, T) float32,
    whole or absent, and never changed. So a killed run resumes with what was computed, several processes write and
    read at once, and what is read is mapped into memory.

    Attributes:
        folder: the folder.
        about: what all its targets have in common, the teacher and how chips are shown to it; every part repeats it.
    """

    def __init__(self, folder: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        """Initialize a new TargetStore instance; nothing is read or written."""
        self.folder = Path(folder)
        self.about: dict[str, Any] = json.loads(json.dumps(about))  # as it is read back

    def write(self, keys: Sequence[bytes], targets: Tensor) -> None:
        """Add a part: n keys of :func:`chip_key`, and the teacher's outputs (n, T) in their order."""
        if targets.ndim != 2 or len(targets) != len(keys):
            raise ValueError(
                f'teacher: expected a vector for each of {len(keys)} chips, (B, T), got {tuple(targets.shape)}. Take '
                'one that pools its features.'
            )
        if not torch.isfinite(targets).all():
            raise ValueError(
                'teacher: expected finite numbers, got NaN or infinity. Are its weights whole? If so, train with '
                'precision 32-true.'
            )
        key = torch.frombuffer(bytearray(b''.join(keys)), dtype=torch.uint8).view(-1, _KEY)
        with atomic(self.folder / f'{uuid.uuid4().hex}.safetensors') as partial:
            save_file({'key': key, 'target': targets.float()}, partial, {'about': json.dumps(self.about)})

    def find(self, keys: Iterable[bytes]) -> dict[bytes, tuple[str, int]]:
        """Search all parts that exist now: key → its part and row, of the keys that have a target.

        A part that is damaged, or of another teacher or chips shown in another way, raises.
        """
        parts = sorted(str(path) for path in self.folder.glob('*.safetensors') if path.name[0] != '.')
        places = {key: (part, row) for part in parts for row, key in enumerate(self._read_keys(part))}
        return {key: places[key] for key in keys if key in places}

    def read(self, part: str, row: int) -> Tensor:
        """One chip's target, (T,) float32, by its place from :meth:`find`."""
        target: Tensor = _open_part(part).get_slice('target')[row]
        return target.clone()  # else the part would stay in memory as long as the target does

    def _read_keys(self, path: str) -> list[bytes]:
        """Read a part's keys; raise if it belongs to another store."""
        try:
            with safe_open(path, framework='pt') as file:
                keys: list[bytes] = [row.tobytes() for row in file.get_tensor('key').numpy()]
                found = json.loads(file.metadata()['about'])
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise ValueError(
                f'teacher_targets: expected targets in {path}, got a damaged file or another one ({error}). Remove it: '
                'its targets are then computed again.'
            ) from error
        if differing := [name for name in {**self.about, **found} if self.about.get(name) != found.get(name)]:
            said = '; '.join(f'{name} {self.about.get(name)!r}, got {found.get(name)!r}' for name in differing)
            raise ValueError(
                f'teacher_targets: {path} holds other targets: expected {said}. Give another folder, or move the file '
                'away to have its targets computed.'
            )
        return keys


class ChipTargets:
    """The targets of some chips of a list of files.

    Attributes:
        store: where they are, or will be.
        files: paths of the chips.
        root: folder that their names are relative to.
        keys: position of a chip in ``files`` → its key, of those that have targets.
    """

    def __init__(
        self, store: TargetStore, files: Sequence[str], root: str | os.PathLike[str], chips: Iterable[int]
    ) -> None:
        """Initialize a new ChipTargets instance; :meth:`refresh` looks for targets."""
        self.store, self.files, self.root = store, files, root
        self.keys = {chip: chip_key(files[chip], root) for chip in chips}
        self._where: dict[bytes, tuple[str, int]] = {}

    def refresh(self) -> list[int]:
        """Look for targets, and return the positions of the chips that have none yet."""
        self._where = self.store.find(self.keys.values())
        return [chip for chip, key in self.keys.items() if key not in self._where]

    def __getitem__(self, chip: int) -> Tensor:
        """A chip's target, (T,) float32; SceneError if its pixels have changed since the start, or it has none."""
        path = self.files[chip]
        key = chip_key(path, self.root)
        if key != self.keys.get(chip):
            raise SceneError(
                f"{path}: the chip's pixels are not those its teacher's target was computed of: it has changed since "
                'the run began. Start the run again, which computes the target again.'
            )
        if key not in self._where:
            raise SceneError(f"{path}: has no teacher's target, as the chip could not be read when they were computed.")
        return self.store.read(*self._where[key])


@torch.inference_mode()
def teach(teacher: nn.Module, image: Tensor, sensor: Sensor) -> Tensor:
    """A teacher's targets of chips: (B, T) float32.

    Args:
        teacher: from RGB (B, 3, 518, 518) to (B, T), in eval mode.
        image: (B, C, H, W) normalized, not flipped.
        sensor: its bands are the image's; raises without rgb bands.
    """
    target: Tensor = teacher(resize_for_teacher(teacher_rgb(image, sensor)))
    return target.float()


@dataclass(frozen=True)
class _SensorChips:
    """The chips of one sensor that need targets."""

    name: str
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
    reasons = {path: why for sample in samples for path, why in sample.get('reasons', {}).items()}
    images = {name: torch.stack([sample[name] for sample in good]) for name in ('image', 'valid') if good}
    return {**images, 'chips': [sample['chip'] for sample in good], 'reasons': reasons}


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
        sensor = source.sensor
        teacher_rgb(torch.zeros(1, len(sensor), 1, 1), sensor)  # raises for a sensor without rgb bands
        shown = {  # all that a target depends on
            **about,
            'sensor': sensor.name,
            'bands of chips': source.chips.all_bands,
            'bands': source.chips.bands,
            'rgb': sensor.rgb,
            'mean': sensor.mean,
            'std': sensor.std,
            'scale': sensor.scale,
            'to_db': source.chips.to_db,
            'patch_size': data.patch_size,
            'teacher_size': TEACHER_SIZE,
        }
        teacher = re.sub(r'[^\w.-]+', '-', shown['teacher'])
        fingerprint = sha256(repr(sorted(shown.items())).encode()).hexdigest()[:12]
        place = folder / f'{teacher}-{shown["sha256"][:12]}' / f'{name}-{fingerprint}'
        by_chip = {region.scene: region for region in regions}
        targets = ChipTargets(TargetStore(place, shown), source.chips.files, data.root, by_chip)
        yield _SensorChips(name, source, by_chip, targets)


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
    part: dict[bytes, Tensor] = {}
    began = time.monotonic()
    hidden = None if trainer.is_global_zero else True  # None for shown on a terminal only
    for number, batch in enumerate(tqdm(loader, desc=f'{of.name}: teacher targets', disable=hidden, leave=False), 1):
        reasons |= batch['reasons']
        if batch['chips']:
            image, valid = (batch[name].to(trainer.strategy.root_device) for name in ('image', 'valid'))
            with trainer.precision_plugin.forward_context():  # normalized and in the precision of training
                targets = teach(teacher, of.source.sensor.normalize(image, valid), of.source.sensor).cpu()
            part |= zip([of.targets.keys[chip] for chip in batch['chips']], targets, strict=True)
        full = len(part) >= PART_CHIPS or time.monotonic() - began > PART_SECONDS
        if part and (full or number == len(loader)):
            of.targets.store.write(list(part), torch.stack(list(part.values())))
            part, began = {}, time.monotonic()
    return reasons


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
