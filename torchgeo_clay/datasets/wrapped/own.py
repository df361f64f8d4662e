# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A sensor made from a dataset's own band names and wavelengths, µm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchgeo_clay.datasets.wrapped.channels import channels_of, leaf_of, wavelengths_of
from torchgeo_clay.sensors import Band, Sensor

__all__ = ('OWN', 'own_sensor')

#: Value of ``sensor`` that requests it.
OWN = 'dataset'

Statistics = Tensor | Sequence[float] | float


def own_sensor(
    dataset: Dataset[Any], mean: Statistics | None, std: Statistics | None, gsd: float | None = None
) -> Sensor:
    """Make a sensor from a dataset's own band names and wavelengths, for instruments that are not in the table.

    Args:
        dataset: with wavelengths, such as TorchGeo's HySpecNet11k.
        mean: of each channel, or one for all, in the dataset's units.
        std: likewise the standard deviation.
        gsd: nominal meters per pixel; None for 1, as each sample has its own.

    Returns:
        The sensor, named like the dataset's class, with the channels in the dataset's order.

    Raises:
        ValueError: if the dataset lacks wavelengths, or the statistics are missing or do not fit.
    """
    leaf, _ = leaf_of(dataset)
    name, channels = type(leaf).__name__, channels_of(dataset)
    wavelengths = wavelengths_of(dataset) or {}
    if channels is None or any(c not in wavelengths for c in channels):
        raise ValueError(
            f'sensor={OWN!r}: {name} lacks wavelengths of its channels. Name a sensor, or describe one in '
            'a YAML file and give its path.'
        )
    values = []
    for what, given in (('mean', mean), ('std', std)):
        tensor = torch.as_tensor(float('nan') if given is None else given, dtype=torch.float64).flatten()
        if tensor.isnan().any() or tensor.numel() not in (1, len(channels)):
            raise ValueError(
                f'sensor={OWN!r}: expected {what} of {name}, one number or {len(channels)}, got {given}. Compute it on '
                f'the training split and give {what}=[…].'
            )
        values.append(tensor.expand(len(channels)).tolist())
    bands = tuple(Band(c, wavelengths[c], m, s) for c, m, s in zip(channels, *values, strict=True))
    rgb = tuple(map(str, getattr(leaf, 'rgb_bands', None) or ()))
    return Sensor(name.lower(), gsd or 1.0, bands, rgb if len(rgb) == 3 and set(rgb) <= set(channels) else ())
