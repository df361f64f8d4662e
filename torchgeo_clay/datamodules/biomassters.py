# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""BioMassters, for which TorchGeo has a dataset and no datamodule."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Subset
from torchgeo.datamodules import NonGeoDataModule

from torchgeo_clay.datamodules.common import check_share
from torchgeo_clay.datasets.biomassters import BioMasstersMonths

__all__ = ('BioMasstersDataModule',)


class BioMasstersDataModule(NonGeoDataModule):
    """Months of BioMassters, to be wrapped in :class:`~torchgeo_clay.datamodules.SensorDataModule`.

    The biomass of the official test split is not published, so that the chips of the official training split are dealt
    out, at random, to training, validation and test: all months of a chip to the same. What is predicted is the
    official test split.
    """

    def __init__(
        self,
        batch_size: int = 32,
        val_split: float = 0.1,
        test_split: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
        **kwargs: Any,
    ) -> None:
        """Initialize a new BioMasstersDataModule instance.

        Args:
            batch_size: samples per batch.
            val_split: share of the chips that validate.
            test_split: share of the chips that test.
            seed: of the split.
            num_workers: worker processes per loader.
            **kwargs: of :class:`~torchgeo_clay.datasets.BioMasstersMonths`.

        Raises:
            ValueError: for shares out of range.
        """
        super().__init__(BioMasstersMonths, batch_size, num_workers, **kwargs)
        check_share(1 - 1e-9, val_split=val_split, test_split=test_split)
        self.val_split, self.test_split, self.seed = val_split, test_split, seed

    def setup(self, stage: str) -> None:
        """Set up datasets.

        Raises:
            ValueError: if no chip is left to train on.
        """
        if stage == 'predict':
            self.predict_dataset = BioMasstersMonths(split='test', **self.kwargs)
            return
        dataset = BioMasstersMonths(split='train', **self.kwargs)
        chips = sorted(set(dataset.chips))
        val, test = round(self.val_split * len(chips)), round(self.test_split * len(chips))
        if val + test >= len(chips):
            raise ValueError(
                f'Expected chips to train on, got {len(chips)} in all, of which {val} would validate and {test} test. '
                'Lower val_split and test_split.'
            )
        generator = torch.Generator().manual_seed(self.seed)
        order = [chips[i] for i in torch.randperm(len(chips), generator=generator).tolist()]
        parts = {'val': set(order[:val]), 'test': set(order[val : val + test]), 'train': set(order[val + test :])}
        for name, wanted in parts.items():
            subset = Subset(dataset, [i for i, chip in enumerate(dataset.chips) if chip in wanted])
            setattr(self, f'{name}_dataset', subset)
