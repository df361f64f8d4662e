# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Whether an image can be in its sensor's units, judged by its raw values.

Shapes: B samples, C bands, H rows, W columns. The rules are made to be silent on snow, water, cloud and desert that
are right, so silence is no proof; a message always names what was expected, what was got and the remedy.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgeo_clay.sensors import Sensor

__all__ = ('UnitsCheck', 'check_units')

#: Pixels that are looked at, spread evenly over the image.
_SAMPLE = 1 << 16
#: Fewer valid pixels than this say nothing about percentiles.
_ENOUGH = 64
#: Pixels from which on a scene may be expected to hold something dark.
_FAIR_AREA = 100 * 100


@dataclass(frozen=True)
class _Values:
    """Raw values of the valid pixels.

    Attributes:
        bands: (C, N) float64.
        whole: whether all values are whole numbers.
    """

    bands: Tensor
    whole: bool

    @property
    def low(self) -> float:
        """Smallest value."""
        return float(self.bands.min())

    @property
    def high(self) -> float:
        """Largest value."""
        return float(self.bands.max())

    @property
    def median(self) -> float:
        """Median over all bands."""
        return float(self.bands.median())

    @property
    def negative(self) -> float:
        """Share of values below zero."""
        return self.below(0)

    def below(self, limit: float) -> float:
        """Share of values below a limit."""
        return float((self.bands < limit).double().mean())

    def percentile(self, percent: float) -> Tensor:
        """(C,) percentile per band."""
        return torch.quantile(self.bands, percent / 100, dim=1)

    def __str__(self) -> str:
        """The range, for a message."""
        return f'values from {self.low:g} to {self.high:g}'


def _valid_values(image: Tensor, valid: Tensor | None) -> _Values | None:
    """The values to judge by: pixels that are valid and finite in all bands, and not 0 in all of them."""
    bands = image.movedim(-3, 0)
    usable = torch.isfinite(bands).all(0) & (bands != 0).any(0)
    if valid is not None:
        sides = image.shape[image.ndim - valid.ndim :]
        if valid.ndim > image.ndim or any(v not in (1, i) for v, i in zip(valid.shape, sides, strict=True)):
            raise ValueError(
                f'valid: expected a mask like {tuple(image.shape)} or 1s for it, got {tuple(valid.shape)}.'
            )
        usable &= torch.broadcast_to(valid.bool(), image.shape).movedim(-3, 0).all(0)
    bands = bands[:, usable]
    count = bands.shape[1]
    if count < _ENOUGH:
        return None
    if count > _SAMPLE:
        bands = bands[:, torch.linspace(0, count - 1, _SAMPLE, dtype=torch.float64, device=bands.device).long()]
    bands = bands.double()
    return _Values(bands, whole=bool((bands == bands.round()).all()))


def check_units(image: Tensor, sensor: Sensor, valid: Tensor | None = None) -> str | None:
    """Say what is wrong when an image can't be in its sensor's units.

    Looks for reflectance from 0 to 1 or 8-bit values where digital numbers are expected, 16-bit numbers where 8 bits
    are, decibels in place of linear values and the reverse, an image that is normalised already, reflectance × 10000
    in place of Landsat Collection 2, and the offset of +1000 in Sentinel-2 scenes since January 2022.

    Args:
        image: (C, H, W) or (B, C, H, W) raw values of one sensor, on the host (the values are looked at).
        sensor: the sensor, with the image's bands in the image's order.
        valid: broadcastable to ``image``, where it holds data. Pixels that are not finite in some band or 0 in every
            band are left out anyway.

    Returns:
        A message that names the mistake and its remedy, or None where nothing speaks against the units.

    Raises:
        ValueError: if the image has not three or four dimensions, or not the sensor's number of bands, or ``valid``
            does not fit it.
    """
    if image.ndim not in (3, 4) or image.shape[-3] != len(sensor):
        raise ValueError(
            f'image: expected (C, H, W) or (B, C, H, W) with C = {len(sensor)}, the bands of {sensor.name} '
            f'({", ".join(sensor.band_names)}), got {tuple(image.shape)}. Choose bands with Sensor.select.'
        )
    values = _valid_values(image, valid)
    if values is None:
        return None
    problem = _db_problem(values) if sensor.scale == 'db' else _linear_problem(values, sensor)
    return None if problem is None else f'{sensor.name}: {problem}'


def _db_problem(values: _Values) -> str | None:
    """What speaks against decibels."""
    if values.negative < 0.01:
        first = 'calibrate the digital numbers to backscatter, then ' if values.high > 1000 else ''
        return (
            f'expected decibels, which are mostly negative, got {values}. Is it linear power? '
            f'Then {first}read it with to_db=True.'
        )
    if values.median < -60:
        return (
            f'expected decibels of some -40 to 10, got {values}, median {values.median:g}. Were decibels converted '
            'a second time? Then read it without to_db=True.'
        )
    return None


def _linear_problem(values: _Values, sensor: Sensor) -> str | None:
    """What speaks against the units of a sensor whose statistics are of linear values."""
    if min(sensor.mean) < 20:
        return None  # a user's own sensor in units near 1 or around 0: no rule below is meant for it
    expected = f'expected values around {min(sensor.mean):g} to {max(sensor.mean):g}, got {values}'
    if values.negative > 0.9:
        return f'{expected}. Is it in decibels? Read it as a sensor with scale db, or undo it: 10 ** (x / 10).'
    if values.negative > 0.05 and values.low > -20 and values.high < 20:
        return f'{expected}. Is it normalised already? Give raw values: they are normalised per sensor later.'
    if not values.whole and values.negative < 0.05 and float(values.percentile(99.9).max()) <= 2:
        unit = 255 if _is_8_bit(sensor) else 10000
        return f"{expected}. Is it reflectance from 0 to 1? Give the product's own numbers, such as {unit} times it."
    if _is_8_bit(sensor):
        if 1 - values.below(256) > 0.01:
            return f'{expected}. Is it in 16 bits? Rescale to 0..255, as {sensor.name} is delivered in 8 bits.'
    elif min(sensor.mean) > 500 and _looks_8_bit(values):
        return f'{expected}. Is it a picture of 8 bits? Give the digital numbers of the product instead.'
    return _product_problem(values, sensor, expected)


def _is_8_bit(sensor: Sensor) -> bool:
    """Whether the sensor's statistics are of 8-bit numbers."""
    return all(mean + 3 * std < 300 for mean, std in zip(sensor.mean, sensor.std, strict=True))


def _looks_8_bit(values: _Values) -> bool:
    """Whether whole numbers fill the range up to 255 in every band.

    Clear water, as digital numbers, stays under 255 as well, but is far darker in some band than in another.
    """
    means = values.bands.mean(1)
    return (
        values.whole
        and values.low >= 0
        and 200 <= values.high <= 255
        and float(means.min()) >= 30
        and float(means.max() / means.min()) < 2.5
    )


def _product_problem(values: _Values, sensor: Sensor, expected: str) -> str | None:
    """What speaks against one product of an agency, by the way it codes reflectance."""
    if sensor.name.startswith('landsat-c2') and values.below(5000) > 0.5:
        # USGS, Landsat Collection 2: reflectance is DN · 2e-5 - 0.1 at level 1 and DN · 2.75e-5 - 0.2 at level 2.
        return (
            f'{expected}. Collection 2 codes reflectance 0 as 5000 (level 1) or 7273 (level 2). Is it reflectance '
            'times 10000, as in HLS or Collection 1? Convert it: (x / 10000 + 0.2) / 2.75e-5 is level 2.'
        )
    if sensor.name == 'sentinel-2-l2a' and (floor := _offset_floor(values, sensor)) is not None:
        return (
            f'no band goes below {floor:.0f}, where dark surfaces are near 0. Does the scene carry the offset of +1000 '
            '(processing baseline 04.00, since January 2022)? Then read it with offset=-1000.'
        )
    return None


def _offset_floor(values: _Values, sensor: Sensor) -> float | None:
    """The darkest band's floor if it looks like the offset of +1000, else None.

    Water, shadow or dense forest is dark in some band nearly everywhere, and the offset puts it near 1000. Snow is
    bright in all visible bands, cloud in all bands: to judge takes short-wave infrared and a fair area.
    """
    visible, infrared = min(sensor.wavelengths) < 0.7, max(sensor.wavelengths) > 1.5
    if not (visible and infrared and values.bands.shape[1] >= _FAIR_AREA):
        return None
    floors = values.percentile(0.1)
    floor = float(floors.min())
    return floor if 880 <= floor <= 1150 and int((floors <= 1250).sum()) >= 3 else None


class UnitsCheck:
    """Warns once per sensor when an image can't be in the sensor's units.

    Looks at the first images of each sensor only: a stream of images costs nothing after that.

    Args:
        limit: images, or batches, that are looked at per sensor.
    """

    def __init__(self, limit: int = 32) -> None:
        """Start with no sensor seen."""
        self.limit = limit
        self._seen: dict[str, int] = {}

    def __call__(self, image: Tensor, sensor: Sensor, valid: Tensor | None = None) -> None:
        """Look at raw values and warn if need be.

        Args:
            image: see :func:`check_units`.
            sensor: see :func:`check_units`.
            valid: see :func:`check_units`.

        Raises:
            ValueError: as :func:`check_units` does.
        """
        seen = self._seen.get(sensor.name, 0)
        if seen >= self.limit:
            return
        message = check_units(image, sensor, valid)
        self._seen[sensor.name] = seen + 1 if message is None else self.limit
        if message is not None:
            warnings.warn(message, UserWarning, stacklevel=2)
