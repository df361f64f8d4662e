# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Crops of one simulated landscape, offline."""

from __future__ import annotations

from typing import Any

import kornia.augmentation as K
from torchgeo.datamodules import NonGeoDataModule

from torchgeo_clay.datasets.simulated_crops import SyntheticCrops

__all__ = ('SyntheticCropsDataModule',)


class SyntheticCropsDataModule(NonGeoDataModule):
    """Series of :class:`SyntheticCrops`, for :class:`~torchgeo_clay.datamodules.SensorDataModule` to wrap."""

    def __init__(self, batch_size: int = 16, num_workers: int = 0, **kwargs: Any) -> None:
        """Initialize a new SyntheticCropsDataModule instance.

        Args:
            batch_size: samples per batch.
            num_workers: worker processes per loader.
            **kwargs: of :class:`SyntheticCrops`.
        """
        super().__init__(SyntheticCrops, batch_size, num_workers, **kwargs)
        flips = (K.RandomHorizontalFlip(p=0.5), K.RandomVerticalFlip(p=0.5))
        self.train_aug = K.AugmentationSequential(*flips, data_keys=None, keepdim=True)

    def setup(self, stage: str) -> None:
        """Set up datasets; the chips of the test are predicted."""
        for name, split in (('train', 'train'), ('val', 'val'), ('test', 'test'), ('predict', 'test')):
            setattr(self, f'{name}_dataset', SyntheticCrops(split, **self.kwargs))  # type: ignore[arg-type]
