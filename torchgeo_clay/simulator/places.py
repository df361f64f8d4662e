# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Place and time of the synthetic scenes: biomes, real places (degrees), CRS, UTC dates."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin

from torchgeo_clay.sensors import Sensor

__all__ = ('BIOMES', 'Biome', 'Setting', 'make_setting')

LatLon = tuple[float, float]


@dataclass(frozen=True)
class Biome:
    """A kind of landscape. Each share is of the area left by the classes before it, in the order below.

    Attributes:
        name: part of the scene's file name.
        snow: share of the scene, the highest ground.
        water: share of the scene, the lowest ground.
        built: share of towns.
        forest: share of woods.
        crops: share of fields.
        bare: share of bare soil; the rest is grass.
        cloud: share of the scene under clouds, on average.
        relief: contrast of hill shading, 0 to 1.
        places: latitudes and longitudes to choose from.
    """

    name: str
    snow: float
    water: float
    built: float
    forest: float
    crops: float
    bare: float
    cloud: float
    relief: float
    places: tuple[LatLon, ...]


#: Scene i has biome i modulo 8, so that every sensor has every biome.
BIOMES: tuple[Biome, ...] = (
    Biome('farmland', 0, 0.02, 0.03, 0.14, 0.92, 0.1, 0.02, 0.1, ((42.0, -93.5), (49.0, 3.0), (-34.5, -60.5))),
    Biome('coast', 0, 0.45, 0.10, 0.30, 0.40, 0.1, 0.03, 0.3, ((-36.9, 175.6), (43.4, -4.4), (-23.9, -46.5))),
    Biome('town', 0, 0.06, 0.60, 0.20, 0.40, 0.1, 0.02, 0.1, ((52.0, 5.1), (-33.8, 150.9), (35.2, -80.8))),
    Biome('woods', 0, 0.10, 0.02, 0.80, 0.20, 0.0, 0.03, 0.3, ((61.5, 25.0), (-3.5, -60.5), (45.8, -71.5))),
    Biome('mountains', 0.22, 0.02, 0.01, 0.40, 0.05, 0.4, 0.0, 0.9, ((46.5, 8.5), (-43.6, 170.3), (51.2, -116.0))),
    Biome('desert', 0, 0.03, 0.03, 0.02, 0.20, 0.8, 0.0, 0.4, ((32.7, -114.2), (25.5, 30.0), (-23.6, 134.0))),
    Biome('lakes', 0, 0.28, 0.03, 0.50, 0.45, 0.0, 0.04, 0.2, ((53.8, 21.6), (47.0, -94.5), (-38.7, 176.1))),
    Biome('savanna', 0, 0.04, 0.02, 0.25, 0.30, 0.15, 0.03, 0.2, ((-2.5, 34.8), (-16.2, 133.1), (13.2, -9.8))),
)

# NAIP is flown over the United States and LINZ over New Zealand, so their scenes lie there, in the order of BIOMES.
_UNITED_STATES: tuple[LatLon, ...] = (
    (41.9, -93.4), (33.9, -78.2), (39.9, -83.0), (44.1, -73.9),
    (39.5, -106.2), (33.2, -113.6), (46.9, -94.3), (38.4, -96.5),
)  # fmt: skip
_NEW_ZEALAND: tuple[LatLon, ...] = (
    (-43.8, 171.8), (-36.9, 175.6), (-43.5, 172.6), (-41.6, 172.3),
    (-43.9, 170.1), (-39.2, 175.7), (-38.1, 176.4), (-40.4, 175.9),
)  # fmt: skip
_NATIONAL: Mapping[str, tuple[LatLon, ...]] = {'naip': _UNITED_STATES, 'linz': _NEW_ZEALAND}

# The grid of the MODIS land products: a sphere of 6371007.181 m.
_SINUSOIDAL = '+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs'


@dataclass(frozen=True)
class Setting:
    """Place and time of one scene.

    Attributes:
        biome: the kind of landscape.
        lat, lon: degrees north and east of the center, WGS84.
        time: acquisition, UTC, whole seconds.
        crs: of the raster.
        transform: of the raster, meters.
    """

    biome: Biome
    lat: float
    lon: float
    time: dt.datetime
    crs: CRS
    transform: Affine

    @property
    def season(self) -> float:
        """Greenness of the vegetation, 0 in deep winter to 1 in high summer; always green near the equator."""
        swing = min(abs(self.lat) / 45, 1.0)
        peak = 200 if self.lat >= 0 else 200 - 182.5
        day = self.time.timetuple().tm_yday
        return 1 - swing * 0.5 * (1 - math.cos(2 * math.pi * (day - peak) / 365.25))

    @property
    def sun(self) -> float:
        """Sine of the sun's elevation, not under 0.3: scenes of a lower sun are not used."""
        day, hour = self.time.timetuple().tm_yday, self.time.hour + self.time.minute / 60 + self.lon / 15
        tilt = math.radians(-23.44) * math.cos(2 * math.pi * (day + 10) / 365.25)
        phi, angle = math.radians(self.lat), math.radians(15 * (hour - 12))
        height = math.sin(phi) * math.sin(tilt) + math.cos(phi) * math.cos(tilt) * math.cos(angle)
        return max(height, 0.3)


def _crs(sensor: Sensor, lat: float, lon: float) -> CRS:
    """The CRS in which the sensor's product is delivered; UTM of the place for all but MODIS, NAIP (NAD83) and LINZ."""
    zone = int((lon + 180) // 6) + 1
    if sensor.name == 'modis':
        return CRS.from_string(_SINUSOIDAL)
    if sensor.name == 'linz':
        return CRS.from_epsg(2193)
    if sensor.name == 'naip':
        return CRS.from_epsg(26900 + zone)
    return CRS.from_epsg((32600 if lat >= 0 else 32700) + zone)


def _local_time(rng: np.random.Generator, sensor: Sensor, lat: float) -> dt.datetime:
    """Local solar time: satellites pass at their hour, aircraft fly at noon in the growing season."""
    year, day = int(rng.integers(2017, 2024)), int(rng.integers(0, 365))
    hour = 10.5 + rng.uniform(-0.4, 0.4)
    if sensor.scale == 'db':
        hour = (5.9, 17.9)[rng.integers(2)] + rng.uniform(-0.2, 0.2)
    elif sensor.name in _NATIONAL:
        day = int(rng.integers(130, 260)) if lat >= 0 else int(rng.integers(300, 430)) % 365
        hour = rng.uniform(10.5, 14.5)
    return dt.datetime(year, 1, 1) + dt.timedelta(days=day, seconds=int(hour * 3600))


def make_setting(rng: np.random.Generator, sensor: Sensor, index: int, size: int) -> Setting:
    """Choose place, date and grid of scene number ``index``, which decides the biome, of ``size`` pixels per side."""
    biome = BIOMES[index % len(BIOMES)]
    if sensor.name in _NATIONAL:
        lat, lon = _NATIONAL[sensor.name][index % len(BIOMES)]
    else:
        lat, lon = biome.places[(index // len(BIOMES) + int(rng.integers(3))) % len(biome.places)]
    lat, lon = lat + rng.uniform(-0.2, 0.2), lon + rng.uniform(-0.2, 0.2)
    time = _local_time(rng, sensor, lat) - dt.timedelta(seconds=round(lon / 15 * 3600))
    crs = _crs(sensor, lat, lon)
    x, y = Transformer.from_crs('EPSG:4326', crs, always_xy=True).transform(lon, lat)
    half, step = size * sensor.gsd / 2, sensor.gsd
    left, top = round((x - half) / step) * step, round((y + half) / step) * step
    return Setting(biome, lat, lon, time.replace(tzinfo=dt.UTC), crs, from_origin(left, top, step, step))
