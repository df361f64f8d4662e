# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Chips listed in a CSV file with their labels. Shapes: C bands, H × W pixels, K values."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torchgeo.datasets import NonGeoDataset

from torchgeo_clay.datasets.plotting import show, true_color
from torchgeo_clay.datasets.raster.dataset import SensorRaster
from torchgeo_clay.datasets.raster.files import open_raster
from torchgeo_clay.datasets.upstream import Sample
from torchgeo_clay.sensors import Sensor

__all__ = ('ChipTable',)


class ChipTable(NonGeoDataset):
    """Chips of one sensor, of one size, listed in a CSV file with a row per chip.

    Columns of the file are ``path``, relative to ``root``, and one of

    * ``label``: the name of a class, or its number from 0
    * ``value``, or ``value_NAME`` for each of several: numbers, empty for unknown
    * ``mask``: the path of a raster of classes, of the chip's size, relative to ``root``

    and optionally ``split``: ``train``, ``val`` or ``test``. Bands, place, date, GSD and no-data pixels of a chip are
    those of its file, see :class:`~torchgeo_clay.datasets.SensorRaster`.

    Attributes:
        rows: the file's rows whose chips can be read.
        raster: the chips.
        classes: names of the classes, sorted, or their numbers; empty without ``label``.
        target: ``label``, ``value``, ``mask``, or an empty string without any.
    """

    def __init__(
        self,
        csv: str | os.PathLike[str],
        root: str | os.PathLike[str],
        sensor: str | Sensor,
        bands: Sequence[str] | None = None,
        **reading: Any,
    ) -> None:
        """Initialize a new ChipTable instance.

        Args:
            csv: the file.
            root: folder of the paths in it.
            sensor: name of a sensor, a YAML file, or a sensor.
            bands: names or aliases of the bands wanted, in the order wanted; None for all of the sensor's.
            **reading: options of :class:`~torchgeo_clay.datasets.SensorRaster`, such as ``scale`` and ``gsd``.

        Raises:
            ValueError: for columns that are missing or contradict each other, files that are missing, chips of several
                sizes, or if no chip can be read.
        """
        rows = pd.read_csv(csv, dtype={'path': str, 'label': str, 'mask': str, 'split': str})
        self.values = [name for name in rows.columns if name == 'value' or name.startswith('value_')]
        found = [name for name in ('label', 'mask') if name in rows] + (['value'] if self.values else [])
        if 'path' not in rows or len(found) > 1:
            raise ValueError(
                f'{csv}: expected the columns path and one of label, value (or value_NAME) and mask, got '
                f'{", ".join(rows.columns)}.'
            )
        self.target = found[0] if found else ''
        for column in ('path', *(['mask'] if self.target == 'mask' else [])):
            rows[column] = [os.path.join(root, str(path)) for path in rows[column]]
            missing = [path for path in rows[column] if not Path(path).is_file()]
            if missing:
                raise ValueError(
                    f'{csv}: {len(missing)} of {len(rows)} files are missing, first {missing[0]}. Give root=, the '
                    'folder of its paths.'
                )
        self.raster = SensorRaster(list(rows['path']), sensor, bands, **reading)
        self.sensor = self.raster.sensor
        position = {scene.path: i for i, scene in enumerate(self.raster.scenes)}
        self.rows = rows[rows['path'].isin(position)].reset_index(drop=True)  # the others are named by SensorRaster
        self._scenes = [position[path] for path in self.rows['path']]
        sizes = Counter((self.raster.scenes[i].height, self.raster.scenes[i].width) for i in self._scenes)
        if len(sizes) > 1:
            listed = ', '.join(f'{h} x {w} ({n})' for (h, w), n in sizes.most_common(5))
            raise ValueError(
                f'{csv}: expected chips of one size, got {listed}. Cut them to one, or make a file for each.'
            )
        self.classes = self._classes(csv) if self.target == 'label' else ()

    def _classes(self, csv: str | os.PathLike[str]) -> tuple[str, ...]:
        """Names of the classes: those of the file, sorted, or the numbers from 0 to the largest."""
        labels = self.rows['label']
        if labels.isna().any():
            first = self.rows['path'][labels.isna()].iloc[0]
            raise ValueError(
                f'{csv}: expected a label in each row, got none for {first}. Give it one, or drop its row.'
            )
        if labels.str.fullmatch(r'\d+').all():
            self.rows['label'] = labels.astype(int).astype(str)  # 01 is 1
            return tuple(map(str, range(labels.astype(int).max() + 1)))
        return tuple(sorted(set(labels)))

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """Read a chip.

        Args:
            index: position in :attr:`rows`.

        Returns:
            As :meth:`SensorRaster.patch` returns it, and ``label``, an int64 class or (K,) float32 values, or ``mask``
            (H, W) int64.

        Raises:
            SceneError: if the chip is not readable, or has changed.
            ValueError: for a mask of another size.
        """
        row, scene = self.rows.iloc[index], self.raster.scenes[self._scenes[index]]
        sample = self.raster.patch(self._scenes[index], 0, 0, (scene.height, scene.width))
        sample['image'] = sample['image'].float()
        if self.target == 'label':
            sample['label'] = torch.tensor(self.classes.index(row['label']))
        elif self.target == 'value':
            values = torch.tensor(row[self.values].to_numpy(np.float32))
            sample['label'] = values if len(values) > 1 else values[0]
        elif self.target == 'mask':
            with open_raster(row['mask']) as file:
                mask = file.read(1)
            if mask.shape != (scene.height, scene.width):
                raise ValueError(f'{row["mask"]}: expected {scene.height} x {scene.width} pixels, got {mask.shape}.')
            sample['mask'] = torch.from_numpy(mask.astype(np.int64))
        return sample

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot a chip in true color, with its mask and what was predicted, if any."""
        pictures: list[tuple[str, Any]] = []
        titles = []
        for key in ('label', 'mask', 'prediction'):
            if (value := sample.get(key)) is None:
                continue
            if value.ndim >= 2:
                pictures.append((key if show_titles else '', value))
            else:
                known = self.classes and value.numel() == 1
                titles.append(f'{key}: {self.classes[int(value)] if known else value.tolist()}')
        title = '\n'.join(titles or ['image']) if show_titles else ''
        return show([(title, true_color(sample['image'], self.sensor)), *pictures], suptitle)
