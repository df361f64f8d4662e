# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Removal of a dataset's normalization from its augmentation.

kornia's color transforms expect values from 0 to 1 and clip others, so an augmentation with such transforms gets pixels
divided by one number, and its result is multiplied by it.
"""

from __future__ import annotations

import kornia.augmentation as K
import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import nn

from torchgeo_clay.sensors import Sensor

__all__ = ('find_normalizations', 'intensity_scale', 'replace_normalizations')


def find_normalizations(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Find normalizations in a module: the parent, the child's name and the child of each.

    Args:
        module: an augmentation; kornia's and torchvision's classes named Normalize are found.
    """
    return [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child).__name__ == 'Normalize'
    ]


def intensity_scale(module: nn.Module, sensor: Sensor) -> float:
    """Return the divisor of an augmentation's pixels, for its color transforms.

    Args:
        module: the augmentation.
        sensor: with the image's bands.

    Returns:
        1 without color transforms; else 255 for a sensor of 8 bits, and for others the mean plus 3 standard deviations
        of the brightest band.
    """
    changes = [
        m for m in module.modules() if isinstance(m, IntensityAugmentationBase2D) and type(m).__name__ != 'Normalize'
    ]
    if not changes:
        return 1.0
    high = max(mean + 3 * std for mean, std in zip(sensor.mean, sensor.std, strict=True))
    return 255.0 if 20 < high < 300 else max(high, 1.0)


def replace_normalizations(module: nn.Module, scale: float) -> None:
    """Replace each normalization by a division by one number.

    Args:
        module: the augmentation, which is changed.
        scale: the number.
    """
    for parent, name, child in find_normalizations(module):
        keepdim = bool(getattr(child, 'keepdim', False))  # set by its container; masks lose or gain an axis otherwise
        setattr(parent, name, K.Normalize(torch.tensor(0.0), torch.tensor(scale), keepdim=keepdim))
