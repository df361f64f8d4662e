# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Takes a dataset's normalisation out of its augmentation and puts the sensor's after it.

Shapes: B samples, T dates, C bands, H rows, W columns. kornia's changes of colour expect values from 0 to 1, and cut
off what is not, so an augmentation that has them gets the pixels divided by one number and the result multiplied by it.
"""

from __future__ import annotations

import kornia.augmentation as K
import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import nn

from torchgeo_clay.sensors import Sensor

__all__ = ('find_normalizations', 'intensity_scale', 'replace_normalizations')


def find_normalizations(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Where a module normalises, however deep: the parent, the child's name and the child.

    Args:
        module: an augmentation. Counted are kornia's and torchvision's classes by the name of Normalize.
    """
    return [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child).__name__ == 'Normalize'
    ]


def intensity_scale(module: nn.Module, sensor: Sensor) -> float:
    """What an augmentation's pixels are divided by, for its changes of colour.

    Args:
        module: the augmentation.
        sensor: with the image's bands.

    Returns:
        1 if it changes no colours; else 255 for a sensor of 8 bits, and for others what 3 standard deviations above
        the mean come to in the brightest band.
    """
    changes = [
        m for m in module.modules() if isinstance(m, IntensityAugmentationBase2D) and type(m).__name__ != 'Normalize'
    ]
    if not changes:
        return 1.0
    high = max(mean + 3 * std for mean, std in zip(sensor.mean, sensor.std, strict=True))
    return 255.0 if 20 < high < 300 else max(high, 1.0)


def replace_normalizations(module: nn.Module, scale: float) -> None:
    """Put a division by one number in the place of each normalisation.

    Args:
        module: the augmentation, which is changed.
        scale: the number. Where there is no normalisation there is no division.
    """
    for parent, name, child in find_normalizations(module):
        keepdim = bool(
            getattr(child, 'keepdim', False)
        )  # set by the container it is in; masks lose or gain a side else
        setattr(parent, name, K.Normalize(torch.tensor(0.0), torch.tensor(scale), keepdim=keepdim))
