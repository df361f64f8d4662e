# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Dates of one landscape whose crops differ by their calendar alone: T dates, C bands, H = W = size pixels.

Every crop is the same leaves over the same soil. On one date a field is green or bare, which two or three crops have in
common; the dates on which it is green tell it from the others.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from torchgeo_clay.sensors import Sensor
from torchgeo_clay.simulator.landscape import LandCover, make_layout
from torchgeo_clay.simulator.noise import Field
from torchgeo_clay.simulator.places import BIOMES
from torchgeo_clay.simulator.render import optical_image
from torchgeo_clay.simulator.surface import make_surface, mix

__all__ = ('CALENDARS', 'make_crops')

#: Crop → days of the year from which and to which its fields are green; the label is the position, 0 no crop.
CALENDARS: dict[str, tuple[tuple[int, int], ...]] = {
    'no crop': (),
    'winter cereal': ((75, 175),),
    'maize': ((175, 270),),
    'two crops': ((75, 145), (225, 330)),
    'meadow': ((75, 330),),
    'fallow': (),
}

_SLOPE = 6.0  # days of the logistic rise and fall
_SPREAD = 5.0  # days by which fields of a crop differ


def _growth(crop: str, day: NDArray[np.float64]) -> NDArray[np.float64]:
    """Greenness, 0 to 1, of fields of a crop on days of the year."""
    growth = np.zeros_like(day)
    for first, last in CALENDARS[crop]:
        growth += 1 / (1 + np.exp((first - day) / _SLOPE)) / (1 + np.exp((day - last) / _SLOPE))
    return growth


def make_crops(
    sensor: Sensor, dates: Sequence[dt.datetime], size: int, gsd: float, seed: int
) -> tuple[Field, NDArray[np.int64]]:
    """Render a landscape of fields on several dates.

    Args:
        sensor: optical.
        dates: UTC.
        size: height and width, pixels.
        gsd: meters per pixel.
        seed: of the landscape.

    Returns:
        Reflectance (T, C, size, size), and the label of each pixel (size, size), a position in :data:`CALENDARS`.
    """
    rng = np.random.default_rng((seed, 0))
    layout = make_layout(rng, BIOMES[0], gsd, size)
    count, names = int(layout.fields.max()) + 1, list(CALENDARS)
    crop = rng.integers(1, len(names), count)
    shift, vigor, light = rng.normal(0, _SPREAD, count), rng.uniform(0.6, 0.95, count), rng.uniform(0, 1, count)
    fields = layout.label == LandCover.CROPS
    images = []
    for number, date in enumerate(dates):
        day = date.timetuple().tm_yday + shift
        surface = make_surface(np.random.default_rng((seed, 1)), layout, 0.6, BIOMES[0].relief, gsd)
        green = vigor * np.select([crop == i for i in range(len(names))], [_growth(name, day) for name in names])
        leaf, sand = (np.asarray(value)[layout.fields] for value in (green, 0.5 * light * (1 - green)))
        shares = surface.shares.copy()
        mix(shares, fields, leaf=leaf, sand=sand, dark_soil=1 - leaf - sand)
        clear = np.zeros((size, size), dtype=np.float32)
        images.append(
            optical_image(np.random.default_rng((seed, 2, number)), sensor, replace(surface, shares=shares), clear)
        )
    return np.stack(images), np.where(fields, crop[layout.fields], 0)
