# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Rendering of a landscape by a sensor: (C, H, W) in the sensor's own units, with label and target."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from torchgeo_clay.sensors import SENSORS, Sensor
from torchgeo_clay.simulator.landscape import LandCover, make_layout
from torchgeo_clay.simulator.noise import Cells, Field, fractal, soften
from torchgeo_clay.simulator.places import BIOMES, Setting, make_setting
from torchgeo_clay.simulator.surface import Surface, backscatter, cloud_reflectance, make_surface, reflectance

__all__ = ('Scene', 'Units', 'make_scene')

_LOOKS = 9  # speckle: looks of a multi-looked Sentinel-1 product after terrain correction
_CLEAR_SKY = 3.0  # scenes of a finer GSD are narrower than a cloud, so they have neither clouds nor snow


@dataclass(frozen=True)
class Units:
    """Storage units of a sensor: stored = gain · measured + offset, per band.

    Attributes:
        gain: (C,) or one.
        offset: (C,) or one.
        dtype: of the raster; integers are rounded and clipped to 1 and their maximum, as 0 is nodata for most.
        air: whether values are at the top of the atmosphere, path radiance included.
        sun: whether values depend on the sun's elevation, as in Landsat's level 1.
    """

    gain: NDArray[np.float64] | float
    offset: NDArray[np.float64] | float
    dtype: str
    air: bool = False
    sun: bool = False


_UNITS: Mapping[str, Units] = {
    'sentinel-2-l2a': Units(10000, 0, 'uint16'),
    'planetscope-sr': Units(10000, 0, 'uint16'),
    'modis': Units(10000, 0, 'int16'),
    'satellogic-MSI-L1D': Units(10000, 0, 'uint16', air=True),
    'landsat-c2l1': Units(1 / 2e-5, 0.1 / 2e-5, 'uint16', air=True, sun=True),
    'landsat-c2l2-sr': Units(1 / 2.75e-5, 0.2 / 2.75e-5, 'uint16'),
    'sentinel-1-rtc': Units(1, 0, 'float32'),
}
_DISPLAY = frozenset({'naip', 'linz'})  # 8-bit pictures without a radiometric scale


@dataclass(frozen=True)
class Scene:
    """One simulated acquisition.

    Attributes:
        setting: place, time, CRS and transform.
        image: (C, H, W) in the sensor's units and dtype.
        label: (H, W) uint8, :class:`LandCover`.
        target: (H, W) float32, green vegetation cover as the sensor sees it, 0 to 1.
        houses: (H, W) number of the house from 1 on, 0 elsewhere.
    """

    setting: Setting
    image: np.ndarray
    label: np.ndarray
    target: Field
    houses: Cells


def make_scene(sensor: Sensor, index: int, size: int, seed: int) -> Scene:
    """Simulate a sensor's acquisition number ``index``, ``size`` pixels per side; equal arguments, equal scenes."""
    rng = np.random.default_rng((seed, zlib.crc32(sensor.name.encode()), index))
    setting, measured, label, target, houses = _measure(rng, sensor, index, size)
    units = _units_of(sensor)
    image = measured * np.reshape(units.gain, (-1, 1, 1)) + np.reshape(units.offset, (-1, 1, 1))
    if units.dtype != 'float32':
        image = np.clip(np.rint(image), 1, np.iinfo(units.dtype).max)
    return Scene(setting, image.astype(units.dtype), label, target, houses)


@lru_cache(maxsize=64)
def _units_of(sensor: Sensor) -> Units:
    """The units of a sensor.

    The products of :data:`torchgeo_clay.sensors.SENSORS` have their agency's. NAIP, LINZ and a user's
    own sensors have no radiometric scale: their reflectance (or backscatter in dB) is mapped linearly, per band, so
    that mean and standard deviation over a fixed set of simulated scenes, one per biome, are those of the sensor.
    """
    known = sensor.name in SENSORS and set(sensor.bands) <= set(SENSORS[sensor.name].bands)
    if known and sensor.name in _UNITS:
        return _UNITS[sensor.name]
    rng = np.random.default_rng(zlib.crc32(sensor.name.encode()))
    samples = [_measure(rng, sensor, index, 128)[1].reshape(len(sensor), -1) for index in range(len(BIOMES))]
    sample = np.concatenate(samples, axis=1).astype(np.float64)
    gain = np.array(sensor.std) / sample.std(axis=1)
    offset = np.array(sensor.mean) - gain * sample.mean(axis=1)
    return Units(gain, offset, 'uint8' if known and sensor.name in _DISPLAY else 'float32')


def _measure(
    rng: np.random.Generator, sensor: Sensor, index: int, size: int
) -> tuple[Setting, Field, NDArray[np.uint8], Field, Cells]:
    """Setting, reflectance or backscatter in dB (C, H, W), label, target and houses of a scene."""
    setting = make_setting(rng, sensor, index, size)
    biome, optical = setting.biome, sensor.scale != 'db'
    layout = make_layout(rng, biome, sensor.gsd, size)
    label = layout.label
    if sensor.gsd < _CLEAR_SKY:
        label[label == LandCover.SNOW] = LandCover.SOIL
    surface = make_surface(rng, layout, setting.season, biome.relief, sensor.gsd)
    if not optical:
        return setting, _radar(rng, sensor, surface), label, surface.green, surface.houses
    cloudy = sensor.gsd >= _CLEAR_SKY and (index + index // len(BIOMES)) % 2 == 1  # every second scene
    cloud = _clouds(rng, size, 2 * biome.cloud if cloudy else 0.0)
    image = optical_image(rng, sensor, surface, cloud)
    if (units := _UNITS.get(sensor.name)) is not None and units.air:
        image = _through_air(image, sensor, setting.sun if units.sun else 1.0)
    label = np.where(cloud > 0.5, np.uint8(LandCover.CLOUD), label)
    return setting, image, label, surface.green * (1 - cloud), surface.houses


def _clouds(rng: np.random.Generator, size: int, share: float) -> Field:
    """Opacity of the clouds (H, W), 0 to 1, above one half on the given share of the scene."""
    if not share:
        return np.zeros((size, size), dtype=np.float32)
    field = fractal(rng, size, 3.2)
    return np.clip(0.5 + (field - np.quantile(field, 1 - share)) / 0.5, 0, 1).astype(np.float32)


def optical_image(rng: np.random.Generator, sensor: Sensor, surface: Surface, cloud: Field) -> Field:
    """Surface reflectance (C, H, W) through clouds, blurred by the optics, with noise."""
    ground = np.tensordot(reflectance(sensor.wavelengths), surface.shares, axes=1) * surface.brightness
    shift = max(2, cloud.shape[0] // 24)
    shadow = 1 - 0.55 * np.roll(cloud, (shift, -shift), axis=(0, 1))
    white = cloud_reflectance(sensor.wavelengths)[:, None, None]
    image = soften(ground * shadow * (1 - cloud) + white * cloud * (0.75 + 0.35 * cloud))
    # Residual aerosol after correction; it varies by scene and falls with wavelength.
    wavelengths = np.array(sensor.wavelengths, dtype=np.float32)[:, None, None]
    image += np.float32(rng.uniform(0, 0.045)) * (0.5 / wavelengths) ** 1.5
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return np.maximum(image + noise * (0.0015 + 0.008 * image), 1e-4)


def _through_air(image: Field, sensor: Sensor, sun: float) -> Field:
    """Add path radiance, strongest in the blue, and the sun's elevation (its sine, 1 if corrected)."""
    air = 0.055 * (0.45 / np.array(sensor.wavelengths, dtype=np.float32)[:, None, None]) ** 4
    return (0.94 * image + air) * np.float32(sun)


def _radar(rng: np.random.Generator, sensor: Sensor, surface: Surface) -> Field:
    """Backscatter (C, H, W) in dB: mixed and speckled as power, then converted to dB."""
    power = np.tensordot(backscatter(sensor.wavelengths), surface.shares, axes=1)
    power = soften(power * np.sqrt(surface.brightness))
    speckle = rng.standard_gamma(_LOOKS, power.shape, dtype=np.float32) / _LOOKS
    return (10 * np.log10(np.maximum(power * speckle, 1e-5))).astype(np.float32)
