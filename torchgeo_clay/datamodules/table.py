# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Chips listed in a CSV file, for training. Shapes: B chips, C bands, H × W pixels."""

from __future__ import annotations

import os
import zlib
from typing import Any

import kornia.augmentation as K
import torch
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, Subset, default_collate

from torchgeo_clay.datamodules.common import MetadataDataModule, check_at_least, check_precision, check_share
from torchgeo_clay.datamodules.workers import seeded
from torchgeo_clay.datamodules.wrapped.datamodule import SensorCollate
from torchgeo_clay.datasets.table import ChipTable
from torchgeo_clay.sensors import Sensor

__all__ = ('ChipTableDataModule',)

_SPLITS = ('train', 'val', 'test')


class ChipTableDataModule(MetadataDataModule):
    """Chips of one sensor in a folder, with classes, values or masks in a CSV file; see :class:`ChipTable`.

    Splits are those of the file's column ``split``. Without it each path is drawn into one by its digest, so that it
    stays there when rows are added. Training chips are flipped.

    Example::

        data:
          class_path: torchgeo_clay.datamodules.ChipTableDataModule
          init_args: {csv: labels.csv, root: chips, sensor: sentinel-2-l2a, batch_size: 16}
    """

    def __init__(
        self,
        csv: str,
        root: str,
        sensor: str | Sensor,
        bands: list[str] | None = None,
        val_share: float = 0.2,
        test_share: float = 0.2,
        batch_size: int = 16,
        num_workers: int = 0,
        **reading: Any,
    ) -> None:
        """Initialize a new ChipTableDataModule instance.

        Args:
            csv: the file.
            root: folder of the paths in it.
            sensor: name of a sensor, a YAML file, or a sensor.
            bands: the sensor's bands wanted; None for all.
            val_share: share of the chips that validate, for a file without the column ``split``.
            test_share: likewise, of those that test.
            batch_size: chips per batch.
            num_workers: worker processes that read.
            **reading: options of :class:`~torchgeo_clay.datasets.SensorRaster`, such as ``scale`` and ``gsd``.

        Raises:
            ValueError: for an argument that is out of range.
        """
        super().__init__(ChipTable, batch_size, num_workers)
        check_at_least(1, batch_size=batch_size)
        check_at_least(0, num_workers=num_workers)
        check_share(1, val_share=val_share, test_share=test_share, train_share=1 - val_share - test_share)
        self.arguments = (csv, root, sensor, bands)
        self.reading, self.shares = reading, (1 - val_share - test_share, val_share)
        self.flips = K.AugmentationSequential(
            K.RandomHorizontalFlip(), K.RandomVerticalFlip(), data_keys=None, keepdim=True
        )
        self.table: ChipTable | None = None

    def setup(self, stage: str) -> None:
        """Read the file, look at its chips, and split them.

        Raises:
            ValueError: see :class:`ChipTable`; for another name of a split.
        """
        check_precision(self.trainer)
        if self.table is None:
            self.table = ChipTable(*self.arguments, **self.reading)
            self.mean, self.std = (torch.tensor(v) for v in (self.table.sensor.mean, self.table.sensor.std))
        names = self._splits(self.table)
        for split in _SPLITS:
            setattr(self, f'{split}_dataset', Subset(self.table, [i for i, name in enumerate(names) if name == split]))
        counts = ', '.join(f'{names.count(split)} {split}' for split in _SPLITS)
        classes = f'; classes: {", ".join(self.table.classes)}' if self.table.classes else ''
        rank_zero_info(f'{self.arguments[0]}: {counts}{classes}')

    def _splits(self, table: ChipTable) -> list[str]:
        """The split of each row."""
        if 'split' in table.rows:
            names = list(table.rows['split'])
            if wrong := sorted({str(name) for name in names if name not in _SPLITS}):
                raise ValueError(f'{self.arguments[0]}: expected split train, val or test, got {", ".join(wrong)}.')
            return names
        train, val = self.shares
        drawn = [zlib.crc32(os.path.basename(path).encode()) / 2**32 for path in table.rows['path']]
        return ['train' if x < train else 'val' if x < train + val else 'test' for x in drawn]

    def _loader(self, split: str) -> DataLoader[Any]:
        """The loader of a split."""
        assert self.table is not None
        dataset = self.table if split == 'predict' else self._valid_attribute(f'{split}_dataset')
        collate = SensorCollate(default_collate, self.table.sensor.name)
        return DataLoader(
            dataset,
            self.batch_size,
            shuffle=split == 'train',
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=seeded,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of the chips that train, in random order."""
        return self._loader('train')

    def val_dataloader(self) -> DataLoader[Any]:
        """The loader of the chips that validate."""
        return self._loader('val')

    def test_dataloader(self) -> DataLoader[Any]:
        """The loader of the chips that test."""
        return self._loader('test')

    def predict_dataloader(self) -> DataLoader[Any]:
        """The loader of all chips."""
        return self._loader('predict')

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Flip training chips, normalize on the device, and add ``selection``, the sensor with the images' bands."""
        assert self.table is not None
        sensor = self.table.sensor
        if self.trainer is not None and self.trainer.training:
            moved = {key: batch[key] for key in ('image', 'mask') if key in batch}
            moved = self.flips({**moved, 'mask_valid': batch['valid'].float()})
            batch = {**batch, **moved, 'valid': moved.pop('mask_valid') > 0.5}
        return {**batch, 'image': sensor.normalize(batch['image'], batch['valid']), 'selection': sensor}

    def plot(self, *args: Any, **kwargs: Any) -> Figure:
        """Plot a sample, see :meth:`ChipTable.plot`."""
        assert self.table is not None
        return self.table.plot(*args, **kwargs)
