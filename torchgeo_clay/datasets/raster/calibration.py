# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""From a file's numbers to its sensor's units: the user's word, else the file's tags, product and values.

Shapes: C bands, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from torchgeo_clay.datasets.raster.detection import boa_offset, hls, reflectance_tags
from torchgeo_clay.datasets.raster.files import SceneError
from torchgeo_clay.sensors import Sensor
from torchgeo_clay.sensors.plausibility import check_to_db, check_units, to_decibels

__all__ = ('RAW', 'Calibration', 'Declared', 'calibrate', 'check_numbers')

#: Reflectance = DN · scale + offset, of the products that Clay was trained on.
_REFLECTANCE = {
    'sentinel-2-l2a': (1e-4, 0.0),
    'planetscope-sr': (1e-4, 0.0),
    'modis': (1e-4, 0.0),
    'landsat-c2l1': (2e-5, -0.1),
    'landsat-c2l2-sr': (2.75e-5, -0.2),
}

#: HLS: the sensor of each part, and the name of a band that only the other part has.
_HLS = {'S30': ('sentinel-2-l2a', ()), 'L30': ('landsat-c2l2-sr', ('B08', 'B8', 'B8A', 'B12'))}

#: Darkest digital numbers of Sentinel-2 below which an offset of +1000 cannot be in them.
_OFFSET_FREE = 500


@dataclass(frozen=True)
class Calibration:
    """A file's numbers in its sensor's units: x · scale + offset, then 10·log10 if ``to_db``.

    Attributes:
        scale: factor, one per band or one for all.
        offset: summand, one per band or one for all.
        to_db: whether the result is linear power that the sensor has in decibels.
        reason: what the file says of its numbers, where that and not the user decided.
    """

    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    to_db: bool = False
    reason: str = ''

    @property
    def changes(self) -> bool:
        """Whether any value changes."""
        return self.to_db or set(self.scale) != {1.0} or set(self.offset) != {0.0}

    def __str__(self) -> str:
        """What is done and why, for the log."""
        if not self.reason or not self.changes:
            return f'{self.reason}: taken as it is' if self.reason else ''
        scale, offset = (f'{v[0]:g}' + ('' if len(set(v)) == 1 else ' …') for v in (self.scale, self.offset))
        return f'{self.reason}: converted by {scale} * x + {offset}'

    def __call__(self, pixels: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        """Convert pixels.

        Reflectance below zero after an offset is physical (noise over dark water) and kept.

        Args:
            pixels: (C, H, W).
            valid: (1, H, W); pixels that are not stay 0.

        Returns:
            (C, H, W), float32 if anything changes, else the pixels themselves.
        """
        if not self.changes:
            return pixels
        # float64 in between: a float32 sum of large integers and offsets would round twice
        values = pixels * np.reshape(self.scale, (-1, 1, 1)) + np.reshape(self.offset, (-1, 1, 1))
        if self.to_db:
            values = to_decibels(torch.from_numpy(values)).numpy()
        return np.where(valid, values, 0).astype(np.float32)


#: The file's numbers as they are.
RAW = Calibration()


@dataclass(frozen=True)
class Declared:
    """What a file declares of its numbers.

    Attributes:
        path: the file.
        tags: its tags.
        descriptions: of all its bands.
        scales: GDAL's scale of the bands that are read.
        offsets: GDAL's offset of the bands that are read.
    """

    path: str
    tags: Mapping[str, str]
    descriptions: Sequence[str | None]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]

    @property
    def has_scale(self) -> bool:
        """Whether GDAL knows a scale or an offset."""
        return set(self.scales) != {1.0} or set(self.offsets) != {0.0}


def check_numbers(**options: float | None) -> None:
    """Check the user's scale and offset.

    Args:
        **options: each by its name; None to ask the file.

    Raises:
        ValueError: for numbers that are not finite, and a scale of zero.
    """
    for name, value in options.items():
        if value is not None and not (abs(value) < 1e30 and (value or name != 'scale')):
            raise ValueError(f'{name}: expected a finite number{" other than 0" * (name == "scale")}, got {value}.')


def calibrate(
    declared: Declared,
    sensor: Sensor,
    sample: tuple[npt.NDArray[Any], npt.NDArray[np.bool_]],
    scale: float | None = None,
    offset: float | None = None,
    to_db: bool = False,
) -> tuple[Calibration, list[str]]:
    """Find out how a file's numbers become its sensor's.

    Args:
        declared: what the file declares.
        sensor: the sensor, with the bands that are read.
        sample: pixels (C, 1, N) of the file, and which are valid (1, 1, N).
        scale: factor given by the user; with ``offset`` None the file decides.
        offset: summand given by the user.
        to_db: whether the numbers are linear power.

    Returns:
        The calibration, and what speaks against its result: sentences for the user.

    Raises:
        SceneError: if the file's product is another sensor's.
        ValueError: for decibels of an optical sensor.
    """
    check_to_db(sensor, to_db)
    part = hls(declared.tags, declared.path)
    if part is not None:
        _check_hls(part, declared, sensor)
    remarks: list[str] = []
    if scale is None and offset is None:
        found, remarks = _by_file(declared, sensor, sample, part)
    else:
        found = Calibration((float(1 if scale is None else scale),), (float(offset or 0),))
    found = replace(found, to_db=to_db)
    problem = _problem(found, sensor, sample)
    return found, [*remarks, *([problem] if problem else [])]


def _problem(
    calibration: Calibration, sensor: Sensor, sample: tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]
) -> str | None:
    """What speaks against a calibration."""
    pixels, valid = sample
    if pixels.dtype.itemsize == 1 and not calibration.changes and sensor.scale == 'linear' and min(sensor.mean) > 500:
        return (
            f'{sensor.name}: expected values around {min(sensor.mean):g} to {max(sensor.mean):g}, got 8 bits. '
            'Is it a picture, or level 1 of Landsat 4, 5 or 7? Give a product with digital numbers of 16 bits.'
        )
    values = calibration(pixels, valid)
    return check_units(torch.from_numpy(values.astype(np.float64)), sensor, torch.from_numpy(valid))


def _check_hls(part: str, declared: Declared, sensor: Sensor) -> None:
    """Raise where a file of HLS is read as another sensor's, or its bands are not its part's."""
    right, foreign = _HLS[part]
    if sensor.name in _REFLECTANCE and sensor.name != right:
        raise SceneError(
            f'expected {sensor.name}, got HLS {part} by its tags and name, whose bands are those of {right}: give '
            f'sensor={right!r}.'
        )
    if strange := [d for d in declared.descriptions if d in foreign]:
        raise SceneError(f'expected the bands of HLS {part} by its tags and name, got {", ".join(strange)}. Rename it.')


def _by_file(
    declared: Declared,
    sensor: Sensor,
    sample: tuple[npt.NDArray[Any], npt.NDArray[np.bool_]],
    part: str | None,
) -> tuple[Calibration, list[str]]:
    """The calibration that the file itself asks for."""
    wanted = _declared_reflectance(declared, sensor, part, _are_fractions(*sample))
    if sensor.name == 'sentinel-2-l2a' and part is None:
        return _sentinel2(declared, sensor, sample, wanted)
    if wanted is None:
        if not declared.has_scale or sensor.name in _REFLECTANCE:
            return RAW, []
        wanted = Calibration(declared.scales, declared.offsets, reason=_scale_text(declared))
    if not wanted.changes:
        return (wanted if part else RAW), []
    if _problem(wanted, sensor, sample) is not None and _problem(RAW, sensor, sample) is None:
        return RAW, [f'its numbers are {sensor.name} already, so that {wanted.reason} is not applied.']
    return wanted, []


def _scale_text(declared: Declared) -> str:
    """GDAL's scale and offset, for a message."""
    return f'its scale {declared.scales[0]:g} and offset {declared.offsets[0]:g}'


def _are_fractions(pixels: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> bool:
    """Whether values are reflectance from 0 to 1, whatever tags of digital numbers they still carry."""
    values = pixels[:, valid[0]]
    return bool(values.size and np.abs(values).max() <= 2 and (values != np.round(values)).any())


def _declared_reflectance(declared: Declared, sensor: Sensor, part: str | None, fractions: bool) -> Calibration | None:
    """The way by reflectance from the file's numbers to the sensor's; None where nothing tells the reflectance."""
    if sensor.name not in _REFLECTANCE or (fractions and part is None):
        return None
    tagged = reflectance_tags(declared.tags)
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    if fractions:
        scales, offsets, reason = (1.0,), (0.0,), 'reflectance from 0 to 1'
    elif declared.has_scale:
        scales, offsets, reason = declared.scales, declared.offsets, _scale_text(declared)
    elif tagged is not None:
        scales, offsets = (tagged[0],), (tagged[1],)
        reason = f'REFLECTANCE_SCALE={tagged[0]:g} with an offset of {tagged[1]:g}'
    elif part is not None:
        scales, offsets, reason = (1e-4,), (0.0,), 'reflectance times 10000'
    else:
        return None
    factor, summand = _REFLECTANCE[sensor.name]
    scale = tuple(_neat(s / factor, 1.0) for s in scales)
    offset = tuple(_neat((o - summand) / factor, 0.0) for o in offsets)
    return Calibration(scale, offset, reason=f'HLS {part}, {reason}' if part else reason)


def _neat(value: float, neutral: float) -> float:
    """A number as it is, but neutral where only rounding makes the difference."""
    return neutral if abs(value - neutral) < 1e-5 else value


def _sentinel2(
    declared: Declared,
    sensor: Sensor,
    sample: tuple[npt.NDArray[Any], npt.NDArray[np.bool_]],
    wanted: Calibration | None,
) -> tuple[Calibration, list[str]]:
    """Sentinel-2's scale, and its offset of +1000 by tag, name or processing baseline, where the values agree."""
    found = wanted or RAW
    said = boa_offset(declared.tags, declared.path)
    if said is not None and set(found.offset) == {0.0}:
        found = replace(found, offset=(said[0],), reason=f'{found.reason}, {said[1]}'.lstrip(', '))
    if not found.changes:
        return RAW, []
    pixels, valid = sample
    unshifted = replace(found, offset=(0.0,))
    values = unshifted(pixels, valid)[:, valid[0]]
    if values.size and set(found.offset) != {0.0}:
        darkest = float(np.percentile(values, 0.1, axis=1).min())
        if darkest < _OFFSET_FREE:
            return unshifted, [
                f'{found.reason} asks for an offset of {found.offset[0]:g}, but its values go down to {darkest:g}, so '
                'that the offset is off already: taken as they are. To take it off give offset=.'
            ]
    if _problem(found, sensor, sample) is not None and _problem(RAW, sensor, sample) is None:
        return RAW, [f'its numbers are {sensor.name} already, so that {found.reason} is not applied.']
    return found, []
