# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""BioMassters, an image of a month or a series of months per sample. T months, C bands, H = W = 256 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from matplotlib.figure import Figure
from torchgeo.datasets import BioMassters

from torchgeo_clay.datasets.upstream import Path, Sample

__all__ = ('BioMasstersMonths',)


class BioMasstersMonths(BioMassters):
    """TorchGeo's BioMassters with the images of some months of one satellite.

    Samples hold ``image_S1`` or ``image_S2`` (C, H, W) int32 and, in the ``train`` split, ``label`` (1, H, W) float32,
    above-ground biomass. Images that are missing, as Sentinel-2's of many winter months are, are no samples. The year
    is not published, so that months have no time.
    """

    def __init__(
        self,
        root: Path = 'data',
        split: Literal['train', 'test'] = 'train',
        sensor: Literal['S1', 'S2'] = 'S2',
        months: Sequence[str] | None = None,
        target_scale: float = 1.0,
        as_time_series: bool = False,
    ) -> None:
        """Initialize a new BioMasstersMonths instance.

        Args:
            root: folder of the data.
            split: ``train``, or ``test``, whose biomass is not published.
            sensor: the satellite.
            months: English names of the months, such as ``June``; None for all.
            target_scale: factor on the biomass, tonnes per hectare: 0.01 for hundreds of tonnes.
            as_time_series: whether a sample is the images of all months of a chip, (T, C, H, W).
        """
        if not target_scale > 0:
            raise ValueError(f'target_scale: expected a positive number, got {target_scale}.')
        super().__init__(root, split, [sensor], as_time_series)
        self.target_scale = target_scale
        if months is not None:
            known = list(dict.fromkeys(self.df['month']))
            if isinstance(months, str) or (unknown := sorted(set(months) - set(known))):
                wrong = repr(months) if isinstance(months, str) else ', '.join(unknown)
                raise ValueError(f'months: expected a list of months out of {", ".join(known)}, got {wrong}.')
            self.df = self.df[self.df['month'].isin(months)].copy()
        self.df['num_index'] = self.df.groupby(['chip_id'] if as_time_series else ['chip_id', 'month']).ngroup()

    @property
    def chips(self) -> list[str]:
        """The place that each sample is of, which those of several months share."""
        return [str(chip) for chip in self.df.sort_values('num_index').drop_duplicates('num_index')['chip_id']]

    def __getitem__(self, index: int) -> Sample:
        """Read a sample, as the class describes it."""
        sample = super().__getitem__(index)
        if 'label' in sample:
            sample['label'] = sample['label'] * self.target_scale
        return sample

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot a sample."""
        maps = {k: v.reshape(1, *v.shape[-2:]) for k, v in sample.items() if k in ('label', 'prediction')}
        return super().plot({**sample, **maps}, show_titles, suptitle)
