# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Patches of scenes by key: everything random about a patch is drawn from (seed, epoch, sensor, index).

Probabilities of the augmentation are those the release was trained with (module ``src.model`` of claymodel 1.5.0). The
release also hides bands and flips in validation, which is not done here.

Shapes: B samples, C bands, H = W = patch_size, L = (H / 8)·(W / 8) patches of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from torchgeo_clay.datamodules.pretrain.plan import PatchKey, rng_of
from torchgeo_clay.datamodules.pretrain.regions import READ_ERRORS, Region, SensorScenes, read_patch, windows_with_data
from torchgeo_clay.datasets import SceneError
from torchgeo_clay.models.clay import PATCH_SIZE

__all__ = ('PretrainDataset', 'collate', 'pad_patch')

FLIP = 0.5
HIDE_METADATA = 0.2
HIDE_ALL_BANDS = 0.1
HIDE_HALF_THE_BANDS = 0.2

#: Places tried in a scene before another is tried, scenes tried for a sample, and patches read for a sample.
TRIES = 4
SCENES = 16
READS = 16


class PretrainDataset(Dataset[dict[str, Any]]):
    """Random patches for training, or the patches side by side for validation."""

    def __init__(
        self,
        scenes: Mapping[str, SensorScenes],
        patch_size: int,
        *,
        train: bool,
        seed: int = 0,
        min_valid: float = 0.5,
        patches_per_scene: int | None = None,
    ) -> None:
        """Initialize a new PretrainDataset instance; for validation this looks at each window once.

        Args:
            scenes: the scenes of each sensor.
            train: whether patches are drawn at random and augmented.
            patch_size, seed, min_valid, patches_per_scene: as ``ClayPretrainDataModule``.
        """
        self.scenes, self.patch_size, self.train = dict(scenes), patch_size, train
        self.seed, self.min_valid = seed, min_valid
        self._last: dict[str, np.ndarray] = {}
        self._windows: dict[str, np.ndarray] = {}
        for name, part in self.scenes.items():
            if train:
                counts = [patches_per_scene or region.count(patch_size) for region in part.regions]
                self._last[name] = np.cumsum(counts)
            elif len(windows := windows_with_data(part, patch_size, min_valid)):
                self._windows[name] = windows

    @property
    def sizes(self) -> dict[str, int]:
        """Number of samples an epoch holds of each sensor."""
        if self.train:
            return {name: int(last[-1]) for name, last in self._last.items()}
        return {name: len(windows) for name, windows in self._windows.items()}

    def __len__(self) -> int:
        """Number of samples of all sensors."""
        return sum(self.sizes.values())

    def __getitem__(self, key: PatchKey) -> dict[str, Any]:
        """Read the sample of a key.

        Args:
            key: see :class:`~torchgeo_clay.datamodules.pretrain.plan.PatchKey`.

        Returns:
            ``image`` (C, H, W) in the sensor's units; ``valid`` (1, H, W) bool; ``wavelength`` (C,); ``res``, ``lat``,
            ``lon``, ``time`` (); ``band_mask`` (C,) bool; ``noise`` (L,); ``index`` (); ``sensor``, a string;
            ``path``, the file it was read from; ``counts``, False where the key's is, or where another window stands
            in for one of validation that cannot be read or has lost its data; ``failures``, (path, reason) of the
            scenes that could not be read. A sample that does not count has no valid pixel.
        """
        failures: dict[str, str] = {}
        sample = self._train_sample(key, failures) if self.train else self._val_sample(key, failures)
        sample['band_mask'] = torch.ones(sample['image'].shape[0], dtype=torch.bool)
        if self.train:
            self._augment(sample, key)
        else:
            sample['noise'] = self._noise(rng_of('validation', self.seed, key.sensor, 0, key.number))
        sample['image'], sample['valid'] = pad_patch(sample['image'], sample['valid'], self.patch_size)
        sample['counts'] = key.counts and sample.get('counts', True)
        sample['valid'] = sample['valid'] & sample['counts']
        more = {'sensor': key.sensor, 'failures': list(failures.items())}
        return {**sample, 'index': torch.tensor(key.number), **more}

    def _noise(self, rng: np.random.Generator) -> Tensor:
        """Noise of the mask: (L,) float32 in [0, 1)."""
        return torch.from_numpy(rng.random((self.patch_size // PATCH_SIZE) ** 2, dtype=np.float32))

    def _read(
        self, part: SensorScenes, region: Region, row: int, col: int, failures: dict[str, str]
    ) -> dict[str, Any] | None:
        """Read a patch; None if its scene cannot be read, now or before."""
        if region.path in failures:
            return None
        try:
            return read_patch(part.sources[region.source], region, row, col, self.patch_size)
        except READ_ERRORS as error:
            failures[region.path] = f'{type(error).__name__}: {error}'
            return None

    def _train_sample(self, key: PatchKey, failures: dict[str, str]) -> dict[str, Any]:
        """The first patch with enough data of at most ``READS``, else the best; the scenes that fail are noted."""
        part = self.scenes[key.sensor]
        best, best_share, reads = {}, -1.0, 0
        for region, row, col in self._places(key):
            if best_share > 0 and (best_share >= self.min_valid or reads >= READS):
                break
            if reads >= READS and (row, col) != region.anchor:
                continue
            if (sample := self._read(part, region, row, col, failures)) is None:
                continue
            reads += 1
            share = sample['valid'].float().mean().item()
            if share > best_share:
                best, best_share = sample, share
        if not best:
            raise SceneError(f'{key.sensor}: none of the scenes tried can be read: {failures}')
        return best

    def _places(self, key: PatchKey) -> Iterator[tuple[Region, int, int]]:
        """Random places in the scene of a key, then in other scenes; at last the places known to hold data."""
        part, rng = self.scenes[key.sensor], rng_of('place', self.seed, key.sensor, key.epoch, key.number)
        position = int(np.searchsorted(self._last[key.sensor], key.number % self.sizes[key.sensor], side='right'))
        shares = None if part.weights is None else np.array(part.weights) / sum(part.weights)
        if shares is not None:
            position = int(rng.choice(len(part), p=shares))
        tried = []
        for _ in range(SCENES):
            region = part.regions[position]
            tried.append(region)
            rows, cols = (max(side - self.patch_size, 0) + 1 for side in (region.height, region.width))
            for _ in range(min(TRIES, rows * cols)):
                yield region, int(rng.integers(rows)), int(rng.integers(cols))
            position = (position + 1) % len(part) if shares is None else int(rng.choice(len(part), p=shares))
        for region in tried:
            yield region, *region.anchor

    def _val_sample(self, key: PatchKey, failures: dict[str, str]) -> dict[str, Any]:
        """The window of a key, or one that stands in for it; the scenes that fail are noted."""
        part, windows = self.scenes[key.sensor], self._windows[key.sensor]
        tried: set[str] = set()
        for number in chain([key.number], range(len(windows))):
            position, row, col = windows[number].tolist()
            region = part.regions[position]
            if len(tried) == SCENES:
                break
            tried.add(region.path)
            if (sample := self._read(part, region, row, col, failures)) is not None:
                return {**sample, 'counts': number == key.number and bool(sample['valid'].any())}
        raise SceneError(f'{key.sensor}: none of the scenes tried can be read: {failures}')

    def _augment(self, sample: dict[str, Any], key: PatchKey) -> None:
        """Flip, hide metadata and bands, and add the mask's noise, in place.

        The draws are always the same number in the same order, so that none depends on what another came out as.
        """
        rng = rng_of('augmentation', self.seed, key.sensor, key.epoch, key.number)
        bands = sample['image'].shape[0]
        flip_rows, flip_cols, metadata, band = rng.random(4)
        half = rng.permutation(bands)[: bands // 2]
        sample['noise'] = self._noise(rng)
        dims = [dim for dim, draw in ((1, flip_rows), (2, flip_cols)) if draw < FLIP]
        for name in ('image', 'valid'):
            sample[name] = torch.flip(sample[name], dims)
        if metadata < HIDE_METADATA:
            for name in ('lat', 'lon', 'time'):
                sample[name] = torch.full_like(sample[name], torch.nan)
        if not torch.isnan(sample['lat']).item():  # bands are hidden in samples with a place only
            if band < HIDE_ALL_BANDS:
                sample['band_mask'][:] = False
            elif band < HIDE_ALL_BANDS + HIDE_HALF_THE_BANDS:
                sample['band_mask'][half] = False


def pad_patch(image: Tensor, valid: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Pad image (C, h, w) with zeros and valid (1, h, w) with False, below and on the right, to (…, H, W)."""
    margins = (0, patch_size - image.shape[2], 0, patch_size - image.shape[1])
    if not any(margins):
        return image, valid
    return torch.nn.functional.pad(image, margins), torch.nn.functional.pad(valid, margins)


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack samples of one sensor into a batch.

    Args:
        samples: see :meth:`PretrainDataset.__getitem__`.

    Returns:
        The tensors of the samples that count stacked (of the first sample where none does), ``sensor`` as a string,
        ``paths`` of the files, ``counted``, how many samples count, and ``failures`` of all as one list. Images of
        different dtypes, as scenes of one sensor may have, become float32.
    """
    used = [sample for sample in samples if sample['counts']] or samples[:1]
    if len({sample['image'].dtype for sample in used}) > 1:
        used = [{**sample, 'image': sample['image'].float()} for sample in used]
    tensors = [{name: value for name, value in sample.items() if isinstance(value, Tensor)} for sample in used]
    names = ('bbox_xyxy', 'label', 'mask') if 'bbox_xyxy' in used[0] else ()
    objects = {name: [sample.pop(name) for sample in tensors] for name in names}  # their number differs by image
    return {
        **default_collate(tensors),
        **objects,
        'sensor': used[0]['sensor'],
        'paths': [sample['path'] for sample in used],
        'counted': sum(sample['counts'] for sample in samples),
        'failures': list(dict.fromkeys(chain.from_iterable(sample['failures'] for sample in samples))),
    }
