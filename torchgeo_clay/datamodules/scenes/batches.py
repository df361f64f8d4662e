# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Batches of a plan, read from scenes. Shapes: B samples, C bands, H = W = chip."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from torchgeo_clay.datamodules.scenes.work import Unit
from torchgeo_clay.datasets import SceneError, SensorRaster

__all__ = ('BatchLoader', 'ChipBatches')


class ChipBatches(Dataset[dict[str, Any]]):
    """Whole batches by number.

    A batch follows the contract of :mod:`torchgeo_clay.conditioning`, raw and in the dtype of the files (float32 where
    those differ), and says of which windows it is too: ``unit``, B positions in the units; ``corner``, B upper left
    corners (row, column); ``empty``, the units of windows left out as no pixel of theirs holds data; ``failed``, (unit,
    reason) of windows that could not be read. Where no window is left, B is 0 for these, and the image is one without
    data.
    """

    def __init__(
        self,
        rasters: Mapping[str, SensorRaster],
        units: Sequence[Unit],
        plan: Sequence[Sequence[tuple[int, int]]],
        chip: int,
    ) -> None:
        """Initialise.

        Args:
            rasters: name of a sensor → its scenes.
            units: the units.
            plan: of :func:`torchgeo_clay.datamodules.scenes.work.batches`.
            chip: pixels per side.
        """
        self.rasters, self.units, self.plan, self.chip = dict(rasters), list(units), list(plan), chip

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.plan)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a batch.

        Args:
            index: of the batch.
        """
        samples: list[dict[str, Any]] = []
        batch: dict[str, Any] = {'unit': [], 'corner': [], 'empty': [], 'failed': []}
        for place, window in self.plan[index]:
            unit = self.units[place]
            row, col = unit.corners[window]
            try:
                sample = self.rasters[unit.sensor].patch(unit.scene, row, col, (self.chip, self.chip))
            except SceneError as error:
                batch['failed'].append((place, str(error)))
                continue
            if not sample['valid'].any():
                batch['empty'].append(place)
                continue
            samples.append(sample)
            batch['unit'].append(place)
            batch['corner'].append((row, col))
        if len({sample['image'].dtype for sample in samples}) > 1:  # else they stay as small as they are in the files
            samples = [{**sample, 'image': sample['image'].float()} for sample in samples]
        sensor = self.units[self.plan[index][0][0]].sensor
        return {**batch, **(default_collate(samples) if samples else self._nothing(sensor)), 'sensor': sensor}

    def _nothing(self, name: str) -> dict[str, Any]:
        """A batch of no window: one image without data, as not every model takes none at all. Nothing is made of it."""
        sensor, side = self.rasters[name].sensor, self.chip
        return {
            'image': torch.zeros(1, len(sensor), side, side),
            'valid': torch.zeros(1, 1, side, side, dtype=torch.bool),
            'wavelength': torch.tensor([sensor.wavelengths]),
            'res': torch.tensor([sensor.gsd]),
            **{key: torch.full((1,), math.nan, dtype=torch.float64) for key in ('lat', 'lon', 'time')},
        }


class BatchLoader:
    """Yields the batches of a plan.

    It holds a DataLoader and is none, so that Lightning leaves the sampling alone, whatever
    ``use_distributed_sampler``: the plan is of this rank already.
    """

    def __init__(self, dataset: ChipBatches, num_workers: int = 0) -> None:
        """Initialise.

        Args:
            dataset: the batches.
            num_workers: worker processes; 0 to read in this one.
        """
        self.dataset, self.num_workers = dataset, num_workers

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches in order."""
        yield from DataLoader(
            self.dataset, batch_size=None, num_workers=self.num_workers, pin_memory=torch.cuda.is_available()
        )
