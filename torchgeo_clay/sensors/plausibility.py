# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Whether values can be a sensor's, in its units, and decibels of linear power."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgeo_clay.sensors.sensor import Sensor

__all__ = ('UnitsCheck', 'check_numbers', 'check_to_db', 'check_units', 'to_decibels')

#: Power of no return, from the release's data module: -100 dB.
_LEAST_POWER = 1e-10


def check_numbers(**options: float | None) -> None:
    """Raise ValueError for a scale or offset that is not finite, and a scale of zero; None asks the file."""
    for name, value in options.items():
        if value is not None and not (abs(value) < 1e30 and (value or name != 'scale')):
            raise ValueError(f'{name}: expected a finite number{" other than 0" * (name == "scale")}, got {value}.')


def check_to_db(sensor: Sensor, to_db: bool) -> None:
    """Raise ValueError for the option ``to_db`` of a sensor that is not in decibels."""
    if to_db and sensor.scale != 'db':
        raise ValueError(
            f'to_db: expected a sensor whose statistics are in decibels, such as sentinel-1-rtc, got {sensor.name}, '
            'which is linear. Leave to_db out.'
        )


def to_decibels(power: Tensor) -> Tensor:
    """Convert linear power, of any shape, to 10·log10(power); zero or less becomes -100 dB, NaN stays."""
    return 10 * torch.log10(torch.where(power <= 0, _LEAST_POWER, power))


#: USGS, Landsat Collection 2: reflectance is DN · 2e-5 - 0.1 at level 1 and DN · 2.75e-5 - 0.2 at level 2.
_LANDSAT = {'landsat-c2l1': 'scale=50000 and offset=5000', 'landsat-c2l2-sr': 'scale=36363.6 and offset=7272.73'}
#: Pixels that are looked at, spread evenly over the image.
_SAMPLE = 1 << 15
#: Fewer valid pixels than this say nothing about percentiles.
_ENOUGH = 64
#: Valid pixels from which on a scene may be expected to hold something dark.
_FAIR_AREA = 60 * 60


@dataclass(frozen=True)
class _Values:
    """Raw values of the valid pixels.

    Attributes:
        sensor: the sensor, with the bands of the values.
        bands: (C, N) float64.
    """

    sensor: Sensor
    bands: Tensor

    def percentile(self, percent: float) -> Tensor:
        """(C,) percentile per band."""
        rank = max(1, min(self.bands.shape[1], round(percent / 100 * self.bands.shape[1])))
        return self.bands.kthvalue(rank, dim=1).values

    def below(self, limit: float) -> Tensor:
        """(C,) share of values below a limit per band."""
        return (self.bands < limit).double().mean(1)

    @property
    def whole(self) -> Tensor:
        """(C,) whether all values of a band are whole numbers."""
        return (self.bands == self.bands.round()).all(1)

    @property
    def is_8_bit(self) -> bool:
        """True if the sensor's statistics are of 8-bit numbers."""
        return all(mean + 3 * std < 300 for mean, std in zip(self.sensor.mean, self.sensor.std, strict=True))

    def message(self, bands: Tensor, remedy: str) -> str:
        """Name the bands, the values expected, the values found, and the remedy."""
        chosen = [i for i, wrong in enumerate(bands.tolist()) if wrong]
        names = ', '.join(self.sensor.band_names[i] for i in chosen)
        means = sorted(self.sensor.mean[i] for i in chosen)
        around = f'{means[0]:g}' if means[0] == means[-1] else f'{means[0]:g} to {means[-1]:g}'
        unit = 'decibels' if self.sensor.scale == 'db' else 'values'
        low, high = self.bands[chosen].aminmax()
        return (
            f'{self.sensor.name}: expected {unit} around {around}, got values from {low:g} to {high:g} in '
            f'{"band" if len(chosen) == 1 else "bands"} {names}. {remedy}'
        )


def check_units(image: Tensor, sensor: Sensor, valid: Tensor | None = None) -> str | None:
    """Describe why an image cannot be in its sensor's units.

    Looks for reflectance from 0 to 1 or 8-bit values where digital numbers are expected, 16-bit numbers where 8 bits
    are, decibels in place of linear values and the reverse, an image that is normalized already, reflectance × 10000
    in place of Landsat Collection 2, and Sentinel-2's offset of +1000 since January 2022, left on or taken off twice.

    Args:
        image: (C, H, W) or (B, C, H, W) raw values of one sensor, on the host.
        sensor: the sensor, with the image's bands in the image's order.
        valid: broadcastable to ``image``, where it holds data. Pixels that are not finite in some band or 0 in every
            band are left out anyway.

    Returns:
        A message that names the bands, the mistake and its remedy, or None if the units are plausible.

    Raises:
        ValueError: if the image has not three or four dimensions, or not the sensor's number of bands, or ``valid``
            does not fit it.
    """
    if image.ndim not in (3, 4) or image.shape[-3] != len(sensor):
        raise ValueError(
            f'image: expected (C, H, W) or (B, C, H, W) with C = {len(sensor)}, the bands of {sensor.name} '
            f'({", ".join(sensor.band_names)}), got {tuple(image.shape)}. Choose bands with Sensor.select.'
        )
    bands = _valid_values(image, valid)
    if bands.shape[1] < _ENOUGH:
        return None
    values = _Values(sensor, bands)
    if sensor.scale == 'db':
        return _db_problem(values)
    if min(sensor.mean) < 20:
        return None  # a user's own sensor in units near 1 or around 0: no rule is meant for it
    return _linear_problem(values) or _product_problem(values)


def _valid_values(image: Tensor, valid: Tensor | None) -> Tensor:
    """Collect the pixels to judge by, (C, N) float64: valid, finite in all bands, not 0 in all of them."""
    bands = image.movedim(-3, 0)
    usable = torch.isfinite(bands).all(0) & (bands != 0).any(0)
    if valid is not None:
        sides = image.shape[image.ndim - valid.ndim :]
        if valid.ndim > image.ndim or any(v not in (1, i) for v, i in zip(valid.shape, sides, strict=True)):
            raise ValueError(
                f'valid: expected a mask like {tuple(image.shape)} or 1s for it, got {tuple(valid.shape)}.'
            )
        usable &= torch.broadcast_to(valid.bool(), image.shape).movedim(-3, 0).all(0)
    places = usable.flatten().nonzero()[:, 0]
    if len(places) > _SAMPLE:
        places = places[torch.linspace(0, len(places) - 1, _SAMPLE, dtype=torch.float64).long()]
    return bands.flatten(1)[:, places].double()


def _db_problem(values: _Values) -> str | None:
    """Describe a problem of decibels, if any."""
    if (positive := values.below(0) < 0.01).any():
        calibrate = 'calibrate the digital numbers to backscatter, then ' if values.bands.max() > 1000 else ''
        return values.message(positive, f'Is it linear power? Then {calibrate}read it with to_db=True.')
    if (low := values.percentile(50) < -60).any():
        return values.message(low, 'Were decibels converted a second time? Then read it without to_db=True.')
    return None


def _linear_problem(values: _Values) -> str | None:
    """Describe a problem of linear units, if any."""
    every = torch.ones(len(values.bands), dtype=torch.bool)
    negative, top = values.below(0), values.percentile(99.9)
    if negative.mean() > 0.9:
        return values.message(every, 'Is it in decibels? Read it as a sensor with scale db, or take 10 ** (x / 10).')
    if negative.mean() > 0.05 and values.bands.abs().max() < 20:
        return values.message(every, 'Is it normalized already? Give raw values: they are normalized per sensor later.')
    highest = torch.tensor(values.sensor.mean, dtype=torch.float64).div(1000).clamp_min(2)
    fractions = ~values.whole & (negative < 0.05) & (top <= highest)
    if fractions.any():
        scale = 'scale=255' if values.is_8_bit else _LANDSAT.get(values.sensor.name, 'scale=10000')
        return values.message(fractions, f'Is it reflectance from 0 to 1? Then read it with {scale}.')
    if min(values.sensor.mean) > 500 and bool((~values.whole & (negative < 0.05) & (top <= 100)).all()):
        return values.message(every, 'Is it reflectance in percent? Then read it with scale=100.')
    if values.is_8_bit and (wide := 1 - values.below(256) > 0.01).any():
        return values.message(
            wide, f'Is it in 16 bits? {values.sensor.name} is delivered in 8 bits: rescale to 0..255 with scale=.'
        )
    if min(values.sensor.mean) > 500 and _looks_8_bit(values):
        return values.message(every, 'Is it a picture of 8 bits? Give the digital numbers of the product instead.')
    return None


def _looks_8_bit(values: _Values) -> bool:
    """Return True if whole numbers fill the range up to 255 in every band.

    Clear water, as digital numbers, stays under 255 as well, but is far darker in some band than in another.
    """
    (low, high), means = values.bands.aminmax(), values.bands.mean(1)
    return bool(
        values.whole.all() and low >= 0 and 200 <= high <= 255 and means.min() >= 30 and means.max() / means.min() < 2.5
    )


def _product_problem(values: _Values) -> str | None:
    """Describe a problem of one agency's product, by its coding of reflectance, if any."""
    name = values.sensor.name
    if name.startswith('landsat-c2') and (low := values.below(5000)).mean() > 0.5:
        return values.message(
            low > 0.5,
            'Collection 2 codes reflectance 0 as 5000 (level 1) or 7273 (level 2). Is it reflectance times 10000, as '
            'in HLS or Collection 1? For level 2 read it with scale=3.63636 and offset=7272.73.',
        )
    if name.startswith('landsat-c2') and (wide := 1 - values.below(65536) > 0.01).any():
        return values.message(
            wide,
            'Collection 2 has 16 bits. Were its numbers converted a second time? Then read it with scale=1, offset=0.',
        )
    if name == 'sentinel-2-l2a':
        if (twice := values.below(-400) > 0.01).any():
            return values.message(twice, 'Is an offset of -1000 taken off twice? Then read it with offset=0.')
        floors = values.percentile(0.1)
        if _carries_offset(values, floors):
            return values.message(
                floors == floors.min(),
                f'No band goes below {floors.min():.0f}, where dark surfaces are near 0. Does the scene carry the '
                'offset of +1000 (processing baseline 04.00, since January 2022)? Then read it with offset=-1000.',
            )
    return None


def _carries_offset(values: _Values, floors: Tensor) -> bool:
    """Return True if the darkest values of the darkest band lie near +1000 or somewhat above.

    Water, shadow or forest is dark in some band nearly everywhere, and the offset puts it at 1000 to 1400. Snow is dark
    in short-wave infrared, desert in blue alone, cloud is brighter in all bands: to judge takes all of these bands.
    """
    wavelengths = torch.tensor(values.sensor.wavelengths)
    blue, infrared = wavelengths < 0.52, wavelengths > 1.5
    if not (blue.any() and infrared.any() and values.bands.shape[1] >= _FAIR_AREA):
        return False
    desert = floors[~blue].min() - floors[blue].min() > 900
    return bool(850 <= floors.min() <= 1450) and not desert


class UnitsCheck:
    """Check the first images of each source, such as a dataset or a file, and warns once per source.

    Args:
        limit: number of images, or batches, checked per source.
    """

    def __init__(self, limit: int = 32) -> None:
        """Initialize a new UnitsCheck instance."""
        self.limit = limit
        self._seen: Counter[str] = Counter()

    def __call__(self, image: Tensor, sensor: Sensor, valid: Tensor | None = None, source: str = '') -> None:
        """Check raw values and warn of a problem.

        Args: as :func:`check_units`, and ``source``, a name that begins the message; '' for the sensor.
        """
        key = source or sensor.name
        if self._seen[key] >= self.limit:
            return
        message = check_units(image, sensor, valid)
        self._seen[key] += 1 if message is None else self.limit
        if message is not None:
            warnings.warn(f'{source}: {message}' if source else message, stacklevel=2)
