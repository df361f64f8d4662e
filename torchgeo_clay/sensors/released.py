# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The sensors of Clay v1.5's training metadata: GSD in meters, wavelengths in µm, statistics in the sensors' units."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from torchgeo_clay.sensors.sensor import Band, Sensor, suggest

__all__ = ('SENSORS', 'get_sensor', 'sensor_table')


def _bands(*rows: tuple[Any, ...]) -> tuple[Band, ...]:
    """Make bands from rows of name, wavelength µm, mean, std, aliases."""
    return tuple(Band(name, wavelength, mean, std, tuple(aliases)) for name, wavelength, mean, std, *aliases in rows)


_RGB = ('red', 'green', 'blue')

# Numbers: configs/metadata.yaml of the Clay repository, in the order of the training data. Aliases: the agencies' band
# names as TorchGeo's datasets, STAC's common names and the products' own files write them. Landsat's are those of OLI
# (Landsat 8 and 9), on which Clay was trained: TM and ETM+ number other bands alike, so give their bands by name.
_SENTINEL_2_L2A = Sensor(
    'sentinel-2-l2a', 10, rgb=_RGB, bands=_bands(
        ('blue', 0.493, 1105, 1809, 'B02', 'B2'),
        ('green', 0.56, 1355, 1757, 'B03', 'B3'),
        ('red', 0.665, 1552, 1888, 'B04', 'B4'),
        ('rededge1', 0.704, 1887, 1870, 'B05', 'B5', 'red edge 1'),
        ('rededge2', 0.74, 2422, 1732, 'B06', 'B6', 'red edge 2'),
        ('rededge3', 0.783, 2630, 1697, 'B07', 'B7', 'red edge 3'),
        ('nir', 0.842, 2743, 1742, 'B08', 'B8'),
        ('nir08', 0.865, 2785, 1648, 'B8A', 'B08A', 'narrow nir'),
        ('swir16', 1.61, 2388, 1470, 'B11', 'swir1'),
        ('swir22', 2.19, 1835, 1379, 'B12', 'swir2'),
    ),
)  # fmt: skip
_PLANETSCOPE_SR = Sensor(
    'planetscope-sr', 5, rgb=_RGB, bands=_bands(
        ('coastal_blue', 0.443, 1720, 747, 'coastal'),
        ('blue', 0.49, 1715, 698, 'B'),
        ('green_i', 0.531, 1913, 739, 'green i', 'greeni'),
        ('green', 0.565, 2088, 768, 'G'),
        ('yellow', 0.61, 2274, 849, 'Y'),
        ('red', 0.665, 2290, 868, 'R'),
        ('rededge', 0.705, 2613, 849, 'red edge', 'RE'),
        ('nir', 0.865, 3970, 914, 'N'),
    ),
)  # fmt: skip
_LANDSAT_C2L1 = Sensor(
    'landsat-c2l1', 30, rgb=_RGB, bands=_bands(
        ('red', 0.65, 10678, 6025, 'B4', 'B04'),
        ('green', 0.56, 10563, 5411, 'B3', 'B03'),
        ('blue', 0.48, 11083, 5468, 'B2', 'B02'),
        ('nir08', 0.86, 14792, 6746, 'B5', 'B05', 'nir'),
        ('swir16', 1.6, 12276, 5897, 'B6', 'B06', 'swir1'),
        ('swir22', 2.2, 10114, 4850, 'B7', 'B07', 'swir2'),
    ),
)  # fmt: skip
_LANDSAT_C2L2_SR = Sensor(
    'landsat-c2l2-sr', 30, rgb=_RGB, bands=_bands(
        ('red', 0.65, 13705, 9578, 'SR_B4', 'B4', 'B04'),
        ('green', 0.56, 13310, 9408, 'SR_B3', 'B3', 'B03'),
        ('blue', 0.48, 12474, 10144, 'SR_B2', 'B2', 'B02'),
        ('nir08', 0.86, 17801, 8277, 'SR_B5', 'B5', 'B05', 'nir'),
        ('swir16', 1.6, 14615, 5300, 'SR_B6', 'B6', 'B06', 'swir1'),
        ('swir22', 2.2, 12701, 4522, 'SR_B7', 'B7', 'B07', 'swir2'),
    ),
)  # fmt: skip
_NAIP = Sensor(
    'naip', 1.0, rgb=_RGB, bands=_bands(
        ('red', 0.65, 110.16, 47.23, 'R'),
        ('green', 0.56, 115.41, 39.82, 'G'),
        ('blue', 0.48, 98.15, 35.43, 'B'),
        ('nir', 0.842, 139.04, 49.86, 'N'),
    ),
)  # fmt: skip
_LINZ = Sensor(
    'linz', 0.5, rgb=_RGB, bands=_bands(
        ('red', 0.635, 89.96, 41.83, 'R'),
        ('green', 0.555, 99.46, 36.96, 'G'),
        ('blue', 0.465, 89.51, 31.45, 'B'),
    ),
)  # fmt: skip
_SENTINEL_1_RTC = Sensor(
    'sentinel-1-rtc', 10, scale='db', bands=_bands(
        ('vv', 3.5, -12.113, 8.314, 'gamma0_vv'),
        ('vh', 4.0, -18.673, 8.017, 'gamma0_vh'),
    ),
)  # fmt: skip
_MODIS = Sensor(
    'modis', 500, loss_scale=0.1, rgb=('sur_refl_b01', 'sur_refl_b04', 'sur_refl_b03'), bands=_bands(
        ('sur_refl_b01', 0.645, 1072, 1643, 'b01', 'b1', 'Nadir_Reflectance_Band1', 'red', 'b01_620_670'),
        ('sur_refl_b02', 0.858, 1624, 1878, 'b02', 'b2', 'Nadir_Reflectance_Band2', 'nir', 'b02_841_876'),
        ('sur_refl_b03', 0.469, 931, 1449, 'b03', 'b3', 'Nadir_Reflectance_Band3', 'blue', 'b03_459_479'),
        ('sur_refl_b04', 0.555, 1023, 1538, 'b04', 'b4', 'Nadir_Reflectance_Band4', 'green', 'b04_545_565'),
        ('sur_refl_b05', 1.24, 1599, 1763, 'b05', 'b5', 'Nadir_Reflectance_Band5', 'b05_1230_1250'),
        ('sur_refl_b06', 1.64, 1404, 1618, 'b06', 'b6', 'Nadir_Reflectance_Band6', 'b06_1628_1652'),
        ('sur_refl_b07', 2.13, 1051, 1396, 'b07', 'b7', 'Nadir_Reflectance_Band7', 'b07_2105_2155'),
    ),
)  # fmt: skip
_SATELLOGIC = Sensor(
    'satellogic-MSI-L1D', 1.0, rgb=_RGB, bands=_bands(
        ('red', 0.64, 1451.54, 995.48, 'R'),
        ('green', 0.545, 1456.54, 771.29, 'G'),
        ('blue', 0.48, 1543.22, 708.86, 'B'),
        ('nir', 0.825, 2132.68, 1236.71, 'N'),
    ),
)  # fmt: skip

#: The sensors of Clay v1.5's training metadata, by name. Read-only; pass a :class:`Sensor` wherever a name is taken.
SENSORS: Mapping[str, Sensor] = MappingProxyType({s.name: s for s in (
    _SENTINEL_2_L2A, _PLANETSCOPE_SR, _LANDSAT_C2L1, _LANDSAT_C2L2_SR, _NAIP, _LINZ, _SENTINEL_1_RTC, _MODIS,
    _SATELLOGIC,
)})  # fmt: skip


def get_sensor(sensor: str | os.PathLike[str] | Sensor) -> Sensor:
    """Return a sensor by name or from a YAML file; a :class:`Sensor` is returned as given.

    Args:
        sensor: a name of :data:`SENSORS`, a path to a ``.yaml`` (see :meth:`Sensor.from_yaml`), or a sensor.

    Raises:
        ValueError: for an unknown name; the message suggests the nearest.
    """
    if isinstance(sensor, Sensor):
        return sensor
    name = os.fspath(sensor)
    if name in SENSORS:
        return SENSORS[name]
    if name.endswith(('.yaml', '.yml')):
        return Sensor.from_yaml(name)
    raise ValueError(
        f'Unknown sensor {name!r}.{suggest(name, list(SENSORS))} Known: {", ".join(SENSORS)}; '
        'or describe your own in a .yaml and give its path.'
    )


def sensor_table(sensors: Iterable[Sensor] | None = None) -> str:
    """Format sensors as a Markdown table, a row per band.

    Args:
        sensors: the sensors to list; None for :data:`SENSORS`.
    """
    rows = [
        '| sensor | gsd [m] | band | wavelength [µm] | mean | std | also known as |',
        '|---|---|---|---|---|---|---|',
    ]
    for s in SENSORS.values() if sensors is None else sensors:
        for i, b in enumerate(s.bands):
            head = f'{s.name} | {s.gsd:g}' if i == 0 else ' | '
            rows.append(f'| {head} | {b.name} | {b.wavelength:g} | {b.mean:g} | {b.std:g} | {", ".join(b.aliases)} |')
    return '\n'.join(rows)
