# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""How samples of two datasets become one, for ``&`` and ``|``.

TorchGeo's own functions fail on the batch contract: its intersection cannot concatenate scalars such as ``res``, its
union takes the larger of two pixels, which for decibels is the fill value.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from torchgeo_clay.datasets.upstream import Sample

__all__ = ('combine_samples', 'overlay_samples')

# Keys of the place and the grid, which the datasets share: TorchGeo gives both samples the same query.
_SHARED = ('bounds', 'transform', 'res', 'lat', 'lon')


def combine_samples(samples: Iterable[Sample]) -> Sample:
    """Join samples of one place: channels are concatenated, a pixel is valid where it is in all.

    Args:
        samples: of datasets asked for the same place.

    Returns:
        One sample. ``time`` is kept if the samples agree, else NaN: the model sees one date at a time.
    """
    combined: Sample = {}
    for sample in samples:
        for key, value in sample.items():
            if key not in combined:
                combined[key] = value
            elif key == 'valid':
                combined[key] = combined[key] & value
            elif key == 'time':
                combined[key] = (
                    combined[key] if torch.equal(combined[key], value) else torch.full_like(value, torch.nan)
                )
            elif key not in _SHARED:
                combined[key] = torch.cat([combined[key], value])
    return combined


def overlay_samples(samples: Iterable[Sample]) -> Sample:
    """Lay samples of one place over each other: the first valid pixel counts.

    Args:
        samples: of datasets asked for the same place, with images of one shape.

    Returns:
        One sample. ``time`` is that of the samples that gave a pixel if they agree, else NaN.
    """
    overlaid: Sample = {}
    for sample in samples:
        if not overlaid:
            overlaid = dict(sample)
            continue
        if overlaid.get('valid') is None or sample.get('valid') is None:
            overlaid |= {key: value for key, value in sample.items() if key not in overlaid}
            continue
        new = sample['valid'] & ~overlaid['valid']
        if new.any():
            if not overlaid['valid'].any():
                overlaid['time'] = sample['time']
            elif not torch.equal(overlaid['time'], sample['time']):
                overlaid['time'] = torch.full_like(sample['time'], torch.nan)
            if overlaid['image'].shape != sample['image'].shape:
                raise ValueError(
                    f'Expected images of one shape, got {tuple(overlaid["image"].shape)} and '
                    f'{tuple(sample["image"].shape)}. A union is of one sensor with one band list.'
                )
            overlaid['image'] = torch.where(new, sample['image'], overlaid['image'])
            overlaid['valid'] = overlaid['valid'] | new
    return overlaid
