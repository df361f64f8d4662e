# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Series of chips of one simulated landscape of fields. T dates, C bands, H = W = patch_size pixels."""

from __future__ import annotations

import datetime as dt
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torchgeo.datasets import NonGeoDataset

from torchgeo_clay.datasets.plotting import show, true_color
from torchgeo_clay.datasets.simulated import Split
from torchgeo_clay.datasets.upstream import Sample
from torchgeo_clay.sensors import get_sensor
from torchgeo_clay.simulator.crops import CALENDARS, make_crops

__all__ = ('SyntheticCrops',)

_SENSOR = get_sensor('sentinel-2-l2a')
_SIZE, _GSD, _YEAR, _PLACE = 512, 10.0, 2021, (49.0, 3.0)  # pixels, meters, degrees
_SHARES: dict[Split, tuple[float, float]] = {'train': (0, 0.6), 'val': (0.6, 0.8), 'test': (0.8, 1)}


@functools.lru_cache(maxsize=2)
def _landscape(dates: tuple[str, ...], seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[float, ...]]:
    """Images (T, C, H, W) in digital numbers, labels (H, W), and seconds UTC of the whole landscape."""
    days = [dt.datetime.fromisoformat(f'{_YEAR}-{day}T10:30:00+00:00') for day in dates]
    images, label = make_crops(_SENSOR, days, _SIZE, _GSD, seed)
    return np.rint(images * 10000), label, tuple(day.timestamp() for day in days)


class SyntheticCrops(NonGeoDataset):
    """Dates of one simulated landscape seen by Sentinel-2, with the crop of each pixel to predict.

    Samples hold ``image`` (T, C, H, W), digital numbers, ``mask`` (H, W) int64, a position in :attr:`classes`, ``time``
    (T,) seconds UTC, ``lat``, ``lon``, ``res``. Dates under clouds are missing, so that T varies. The landscape is cut
    from west to east into training, validation and test.
    """

    classes = tuple(CALENDARS)
    bands = _SENSOR.band_names

    def __init__(
        self,
        split: Split = 'train',
        dates: Sequence[str] = ('03-25', '05-05', '06-15', '07-25', '09-05', '10-15'),
        patch_size: int = 32,
        cloudy: float = 0.2,
        seed: int = 0,
    ) -> None:
        """Initialize a new SyntheticCrops instance.

        Args:
            split: ``train``, ``val`` or ``test``.
            dates: month and day of the images.
            patch_size: pixels per side of a chip.
            cloudy: share of a chip's dates that are missing; at least one is left.
            seed: of the landscape and the clouds.
        """
        self.images, self.label, self.times = _landscape(tuple(dates), seed)
        left, right = (round(share * _SIZE) for share in _SHARES[split])
        self.corners = [
            (row, column)
            for row in range(0, _SIZE - patch_size + 1, patch_size)
            for column in range(left, right - patch_size + 1, patch_size)
        ]
        self.patch_size, self.cloudy, self.seed = patch_size, cloudy, seed

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.corners)

    def __getitem__(self, index: int) -> Sample:
        """Cut a chip, as the class describes it."""
        row, column = self.corners[index]
        rng = np.random.default_rng((self.seed, 3, row, column))
        clear = rng.random(len(self.times)) >= self.cloudy
        clear[rng.integers(len(self.times))] = True
        window = (..., slice(row, row + self.patch_size), slice(column, column + self.patch_size))
        return {
            'image': torch.from_numpy(self.images[window][clear]),
            'mask': torch.from_numpy(self.label[window]),
            'time': torch.tensor(self.times, dtype=torch.float64)[torch.from_numpy(clear)],
            'lat': torch.tensor(_PLACE[0]),
            'lon': torch.tensor(_PLACE[1]),
            'res': torch.tensor(_GSD),
        }

    def plot(self, sample: Sample) -> Figure:
        """Plot a chip's dates in true color, its mask and its prediction."""
        times = sample['time'].tolist() if 'time' in sample else [math.nan] * len(sample['image'])
        dates = ['' if math.isnan(time) else f'{dt.datetime.fromtimestamp(time, dt.UTC):%m-%d}' for time in times]
        images = [true_color(image, _SENSOR) for image in sample['image']]
        pictures = list(zip(dates, images, strict=True))
        maps = [(name, sample[name]) for name in ('mask', 'prediction') if name in sample]
        look: dict[str, Any] = {'vmin': 0, 'vmax': len(self.classes) - 1, 'cmap': 'tab10', 'interpolation': 'nearest'}
        return show([*pictures, *maps], side=2.4, **look)
