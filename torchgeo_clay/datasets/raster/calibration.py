# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""From a file's numbers to its sensor's units: the user's word, else the file's tags, product and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from rasterio.io import DatasetReader

from torchgeo_clay.datasets.raster.detection import boa_offset, hls, reflectance_tags
from torchgeo_clay.datasets.raster.files import SceneError
from torchgeo_clay.datasets.raster.validity import Pixels, Valid
from torchgeo_clay.sensors import Sensor
from torchgeo_clay.sensors.plausibility import check_to_db, check_units, to_decibels

__all__ = ('RAW', 'Calibration', 'calibrate')

#: Pixels (C, 1, N) of a file, and which are valid (1, 1, N).
Sample = tuple[Pixels, Valid]

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
    """A file's numbers in its sensor's units: x · scale + offset (one per band or one for all), then decibels.

    Attributes:
        scale: factors.
        offset: summands.
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

    def __call__(self, pixels: Pixels, valid: Valid) -> Pixels:
        """Convert pixels (C, H, W) to float32, 0 where not ``valid`` (1, H, W); themselves if nothing changes.

        Reflectance below zero after an offset is physical (noise over dark water) and kept.
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


def calibrate(
    dataset: DatasetReader,
    path: str,
    bands: Sequence[int],
    sensor: Sensor,
    sample: Sample,
    scale: float | None = None,
    offset: float | None = None,
    to_db: bool = False,
) -> tuple[Calibration, list[str]]:
    """Find out how a file's numbers become its sensor's.

    Args:
        dataset: the file, open.
        path: its path.
        bands: the bands that are read, from 1.
        sensor: the sensor, with these bands.
        sample: pixels of these bands.
        scale: as :func:`~torchgeo_clay.datasets.scan_scene`, like offset and to_db.
        offset: summand.
        to_db: whether the numbers are linear power.

    Returns:
        The calibration, and what speaks against its result: sentences for the user.

    Raises:
        SceneError: if the file's product is another sensor's.
        ValueError: for decibels of an optical sensor.
    """
    check_to_db(sensor, to_db)
    tags = dataset.tags()
    part = hls(tags, path)
    if part is not None:
        _check_hls(part, dataset.descriptions, sensor)
    if scale is None and offset is None:
        scales, offsets = (tuple(values[i - 1] for i in bands) for values in (dataset.scales, dataset.offsets))
        tagged = Calibration(scales, offsets, reason=f'its scale {scales[0]:g} and offset {offsets[0]:g}')
        found, remark = _by_file(tags, path, tagged, sensor, sample, part)
    else:
        found, remark = Calibration((float(1 if scale is None else scale),), (float(offset or 0),)), ''
    found = replace(found, to_db=to_db)
    return found, [text for text in (remark, _problem(found, sensor, sample)) if text]


def _problem(calibration: Calibration, sensor: Sensor, sample: Sample) -> str | None:
    """What speaks against a calibration."""
    pixels, valid = sample
    if pixels.dtype.itemsize == 1 and not calibration.changes and sensor.scale == 'linear' and min(sensor.mean) > 500:
        return (
            f'{sensor.name}: expected values around {min(sensor.mean):g} to {max(sensor.mean):g}, got 8 bits. '
            'Is it a picture, or level 1 of Landsat 4, 5 or 7? Give a product with digital numbers of 16 bits.'
        )
    values = calibration(pixels, valid)
    return check_units(torch.from_numpy(values.astype(np.float64)), sensor, torch.from_numpy(valid))


def _check_hls(part: str, descriptions: Sequence[str | None], sensor: Sensor) -> None:
    """Raise where a file of HLS is read as another sensor's, or its bands are not its part's."""
    right, foreign = _HLS[part]
    if sensor.name in _REFLECTANCE and sensor.name != right:
        raise SceneError(
            f'expected {sensor.name}, got HLS {part} by its tags and name, whose bands are those of {right}: give '
            f'sensor={right!r}.'
        )
    if strange := [d for d in descriptions if d in foreign]:
        raise SceneError(f'expected the bands of HLS {part} by its tags and name, got {", ".join(strange)}. Rename it.')


def _by_file(
    tags: Mapping[str, str], path: str, tagged: Calibration, sensor: Sensor, sample: Sample, part: str | None
) -> tuple[Calibration, str]:
    """The calibration that the file itself asks for, given GDAL's scale and offset, and what to remark of it."""
    if sensor.name not in _REFLECTANCE:
        wanted = tagged if tagged.changes else RAW
    else:
        wanted = _by_reflectance(tags, tagged, sensor, part, _are_fractions(*sample))
    if sensor.name == 'sentinel-2-l2a' and part is None:
        wanted, remark = _without_offset(tags, path, sample, wanted)
        if remark:
            return wanted, remark
    if not wanted.changes:
        return (wanted if part else RAW), ''
    if _problem(wanted, sensor, sample) is not None and _problem(RAW, sensor, sample) is None:
        return RAW, f'its numbers are {sensor.name} already, so that {wanted.reason} is not applied.'
    return wanted, ''


def _are_fractions(pixels: Pixels, valid: Valid) -> bool:
    """Whether values are reflectance from 0 to 1, whatever tags of digital numbers they still carry."""
    values = pixels[:, valid[0]]
    return bool(values.size and np.abs(values).max() <= 2 and (values != np.round(values)).any())


def _by_reflectance(
    tags: Mapping[str, str], tagged: Calibration, sensor: Sensor, part: str | None, fractions: bool
) -> Calibration:
    """The way by reflectance from the file's numbers to the sensor's; RAW where nothing tells the reflectance."""
    written = reflectance_tags(tags)
    if fractions:
        reflectance = Calibration(reason='reflectance from 0 to 1')
    elif tagged.changes:
        reflectance = tagged
    elif written is not None:
        reason = f'REFLECTANCE_SCALE={written[0]:g} with an offset of {written[1]:g}'
        reflectance = Calibration(written[:1], written[1:], reason=reason)
    else:
        reflectance = Calibration((1e-4,), reason='reflectance times 10000')
    if part is None and (fractions or not (tagged.changes or written)):
        return RAW
    factor, summand = _REFLECTANCE[sensor.name]
    scale = tuple(_neat(s / factor, 1.0) for s in reflectance.scale)
    offset = tuple(_neat((o - summand) / factor, 0.0) for o in reflectance.offset)
    return Calibration(scale, offset, reason=f'HLS {part}, {reflectance.reason}' if part else reflectance.reason)


def _neat(value: float, neutral: float) -> float:
    """A number as it is, but neutral where only rounding makes the difference."""
    return neutral if abs(value - neutral) < 1e-5 else value


def _without_offset(tags: Mapping[str, str], path: str, sample: Sample, found: Calibration) -> tuple[Calibration, str]:
    """Take off Sentinel-2's offset of +1000 by tag, name or processing baseline, unless the values are against it."""
    said = boa_offset(tags, path)
    if said is not None and set(found.offset) == {0.0}:
        found = replace(found, offset=(said[0],), reason=f'{found.reason}, {said[1]}'.lstrip(', '))
    unshifted = replace(found, offset=(0.0,))
    pixels, valid = sample
    if set(found.offset) == {0.0} or not valid.any():
        return found, ''
    darkest = float(np.percentile(unshifted(pixels, valid)[:, valid[0]], 0.1, axis=1).min())
    if darkest >= _OFFSET_FREE:
        return found, ''
    return unshifted, (
        f'{found.reason} asks for an offset of {found.offset[0]:g}, but its values go down to {darkest:g}, so that the '
        'offset is off already: taken as they are. To take it off give offset=.'
    )
