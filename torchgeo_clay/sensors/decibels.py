# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Linear power to decibels, by one rule for scenes, chips and wrapped datasets."""

from __future__ import annotations

import torch
from torch import Tensor

from torchgeo_clay.sensors.sensor import Sensor

__all__ = ('check_to_db', 'to_decibels')

#: Power of no return, from the release's data module: -100 dB.
_LEAST_POWER = 1e-10


def check_to_db(sensor: Sensor, to_db: bool) -> None:
    """Raise for decibels of a sensor that is not in decibels.

    Args:
        sensor: the sensor.
        to_db: the user's option.

    Raises:
        ValueError: for an optical sensor.
    """
    if to_db and sensor.scale != 'db':
        raise ValueError(
            f'to_db: expected a sensor whose statistics are in decibels, such as sentinel-1-rtc, got {sensor.name}, '
            'which is linear. Leave to_db out.'
        )


def to_decibels(power: Tensor) -> Tensor:
    """Convert linear power to 10·log10(power); zero or less becomes -100 dB, NaN stays.

    Args:
        power: of any shape, floating point.
    """
    return 10 * torch.log10(torch.where(power <= 0, _LEAST_POWER, power))
