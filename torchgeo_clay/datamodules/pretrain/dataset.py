# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Patches of scenes by key: everything random about a patch is drawn from (seed, epoch, sensor, index).

Shapes: B samples, C bands, H = W = patch_size, L = (H / 8)·(W / 8) patches of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from rasterio.errors import RasterioError
from torch import Tensor
from torch.utils.data import Dataset

from torchgeo_clay.datamodules.pretrain.augmentation import draw_chance, draw_noise
from torchgeo_clay.datamodules.pretrain.plan import PatchKey, rng_of
from torchgeo_clay.datamodules.pretrain.regions import Region, SensorScenes

__all__ = ('MODEL_PATCH', 'READ_ERRORS', 'PretrainDataset', 'collate', 'place_patch')

#: Pixels per side of the model's patches.
MODEL_PATCH = 8

#: What reading a broken file raises: rasterio's errors, the system's, and zipfile's and NumPy's for chips.
READ_ERRORS = (RasterioError, OSError, ValueError, EOFError)

#: Places tried in a scene before another is tried, and scenes tried for one sample.
TRIES = 4
SCENES = 16

#: A region, row and column in it, and the share of pixels with data that is enough for those looked at before.
Place = tuple[Region, int, int, float]


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
        """Initialise.

        Args:
            scenes: the scenes of each sensor.
            patch_size: pixels per side, a multiple of 8.
            train: whether patches are drawn at random and augmented.
            seed: seed of the run.
            min_valid: share of pixels with data below which a patch is replaced by another.
            patches_per_scene: patches drawn of a scene in an epoch; None for as many as lie side by side in it.
        """
        self.scenes, self.patch_size, self.train = dict(scenes), patch_size, train
        self.seed, self.min_valid = seed, min_valid
        self._last: dict[str, np.ndarray] = {}
        for name, part in self.scenes.items():
            counts = [r.count(patch_size) for r in part.regions]
            if train and patches_per_scene is not None:
                counts = [patches_per_scene] * len(counts)
            self._last[name] = np.cumsum(counts)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of samples an epoch holds of each sensor."""
        return {name: int(last[-1]) for name, last in self._last.items()}

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
            ``path``, the file it was read from; ``counts``, the key's; ``failures``, (path, reason) of the scenes that
            could not be read and were replaced. A sample that does not count has no valid pixel.

        Raises:
            OSError: if none of the scenes tried can be read.
            ValueError: if none of the scenes tried has a valid pixel.
        """
        sample, failures = self._first_good(key)
        if self.train:
            self._augment(sample, key)
        else:
            sample['band_mask'] = torch.ones(sample['image'].shape[0], dtype=torch.bool)
            noise = draw_noise(rng_of('validation', self.seed, key.sensor, 0, key.number), self._tokens)
            sample['noise'] = torch.from_numpy(noise)
        sample['image'], sample['valid'] = place_patch(sample['image'], sample['valid'], self.patch_size)
        if not key.counts:
            sample['valid'] = torch.zeros_like(sample['valid'])
        more = {'sensor': key.sensor, 'counts': key.counts, 'failures': failures}
        return {**sample, 'index': torch.tensor(key.number), **more}

    @property
    def _tokens(self) -> int:
        """Number of patches of the model, L."""
        return (self.patch_size // MODEL_PATCH) ** 2

    def _first_good(self, key: PatchKey) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """The first candidate with enough data, else the best of them, and the scenes that failed on the way."""
        part = self.scenes[key.sensor]
        failures: dict[str, str] = {}
        best, best_share = None, 0.0
        for region, row, col, enough in self._training_places(key) if self.train else self._validation_places(key):
            if best_share > 0 and best_share >= enough:
                break
            if region.path in failures:
                continue
            try:
                sample = self.read(part, region, row, col)
            except READ_ERRORS as error:
                failures[region.path] = f'{type(error).__name__}: {error}'
                continue
            share = sample['valid'].float().mean().item()
            if share > best_share:
                best, best_share = sample, share
        if best is None and failures:
            raise OSError(f'{key.sensor}: none of the scenes tried can be read: {failures}')
        if best is None:
            raise ValueError(
                f'{key.sensor}: expected data in the scenes, found no valid pixel where sample {key} lies.'
            )
        return best, list(failures.items())

    def read(self, part: SensorScenes, region: Region, row: int, col: int) -> dict[str, Any]:
        """Read a patch of a region, smaller than a patch if the region is; what is not finite is not valid."""
        size = (min(self.patch_size, region.height), min(self.patch_size, region.width))
        sample = dict(part.sources[region.source].patch(region.scene, region.top + row, region.left + col, size))
        if sample['image'].is_floating_point():  # integers are finite, and looking takes as long as reading them
            finite = torch.isfinite(sample['image'])
            sample['image'] = torch.where(finite, sample['image'], 0)
            sample['valid'] = sample['valid'] & finite.all(dim=0, keepdim=True)
        return {**sample, 'path': region.path}

    def _training_places(self, key: PatchKey) -> Iterator[Place]:
        """Random places in the scene of a key, then in other scenes; at last all of it, until one has any data."""
        part, rng = self.scenes[key.sensor], rng_of('place', self.seed, key.sensor, key.epoch, key.number)
        first = int(np.searchsorted(self._last[key.sensor], key.number % self.sizes[key.sensor], side='right'))
        shares = None if part.weights is None else np.array(part.weights) / sum(part.weights)
        if shares is not None:
            first = int(rng.choice(len(part), p=shares))
        position = first
        for hop in range(1, SCENES + 1):
            region = part.regions[position]
            rows, cols = (max(side - self.patch_size, 0) + 1 for side in (region.height, region.width))
            for _ in range(min(TRIES, rows * cols)):
                yield region, int(rng.integers(rows)), int(rng.integers(cols)), self.min_valid
            position = (first + hop) % len(part) if shares is None else int(rng.choice(len(part), p=shares))
        for row, col in part.regions[first].cover(self.patch_size):
            yield part.regions[first], row, col, 0.0

    def _validation_places(self, key: PatchKey) -> Iterator[Place]:
        """The window of a key, then those after it."""
        regions, last = self.scenes[key.sensor].regions, self._last[key.sensor]
        size = self.sizes[key.sensor]
        for index in islice(chain(range(key.number, size), range(key.number)), TRIES * SCENES):
            position = int(np.searchsorted(last, index, side='right'))
            windows = regions[position].windows(self.patch_size)
            row, col = windows[index - int(last[position])]  # counted from the scene's end
            yield regions[position], row, col, self.min_valid

    def _augment(self, sample: dict[str, Any], key: PatchKey) -> None:
        """Flip, hide metadata and bands, and add the mask's noise, in place."""
        rng = rng_of('augmentation', self.seed, key.sensor, key.epoch, key.number)
        chance = draw_chance(rng, sample['image'].shape[0], self._tokens)
        dims = [dim for dim, flip in ((1, chance.flip_rows), (2, chance.flip_cols)) if flip]
        for name in ('image', 'valid'):
            sample[name] = torch.flip(sample[name], dims)
        if chance.hide_metadata:
            for name in ('lat', 'lon', 'time'):
                sample[name] = torch.full_like(sample[name], torch.nan)
        keep = torch.from_numpy(chance.keep)
        has_place = not torch.isnan(sample['lat']).item()
        sample['band_mask'] = keep if has_place else torch.ones_like(keep)
        sample['noise'] = torch.from_numpy(chance.noise)


def place_patch(image: Tensor, valid: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Pad a patch that is smaller than it should be, below and on the right.

    Args:
        image: (C, h, w).
        valid: (1, h, w) bool.
        patch_size: H = W.

    Returns:
        Image (C, H, W), padded with zeros, and valid (1, H, W), padded with False.
    """
    rows, cols = image.shape[1:]
    if (rows, cols) == (patch_size, patch_size):
        return image, valid
    padded = image.new_zeros(image.shape[0], patch_size, patch_size)
    padded_valid = valid.new_zeros(1, patch_size, patch_size)
    padded[:, :rows, :cols] = image
    padded_valid[:, :rows, :cols] = valid
    return padded, padded_valid


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack samples of one sensor into a batch.

    Args:
        samples: see :meth:`PretrainDataset.__getitem__`.

    Returns:
        The tensors stacked, ``sensor`` as a string, ``paths`` of the files, ``counted``, how many samples count, and
        ``failures`` as one list. Images of different dtypes, as scenes of one sensor may have, become float32.
    """
    images = [sample['image'] for sample in samples]
    if len({image.dtype for image in images}) > 1:
        images = [image.to(torch.float32) for image in images]
    batch: dict[str, Any] = {
        name: torch.stack([sample[name] for sample in samples])
        for name, value in samples[0].items()
        if isinstance(value, Tensor) and name != 'image'
    }
    failures = list(dict.fromkeys(chain.from_iterable(sample['failures'] for sample in samples)))
    batch['paths'] = [sample['path'] for sample in samples]
    batch['counted'] = sum(sample['counts'] for sample in samples)
    return {'image': torch.stack(images), **batch, 'sensor': samples[0]['sensor'], 'failures': failures}
