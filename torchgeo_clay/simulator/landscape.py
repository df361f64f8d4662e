# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Land-cover classes, and the layout of a synthetic landscape: which class lies where, H = W = size pixels.

Terrain is fractal and looks alike at every scale; built objects have a size in meters. So coasts, woods and snow are
drawn in pixels, and parcels, blocks and roads in meters as long as the sensor can resolve them: at least 16 pixels a
field and at most a third of the scene. At MODIS' 500 m the "fields" are therefore farming districts of 8 km, and at
LINZ' 0.5 m they are gardens and paddocks of some 40 m.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from torchgeo_clay.simulator.noise import Cells, Field, Mask, average, borders, fractal, parcels, winding
from torchgeo_clay.simulator.places import Biome

__all__ = (
    'CLASSES',
    'LandCover',
    'LandCoverClass',
    'Layout',
    'grow',
    'make_layout',
)


class LandCover(IntEnum):
    """Label values, uint8, without a background or an ignored value."""

    WATER = 0
    FOREST = 1
    GRASS = 2
    CROPS = 3
    SOIL = 4
    BUILT_UP = 5
    SNOW = 6
    CLOUD = 7


@dataclass(frozen=True)
class LandCoverClass:
    """One land-cover class.

    Attributes:
        name: in legends.
        color: red, green, blue, 0 to 255.
    """

    name: str
    color: tuple[int, int, int]


#: The classes, by label value. A bare field is still crops, so a model has to learn the season.
CLASSES: tuple[LandCoverClass, ...] = (
    LandCoverClass('water', (28, 107, 160)),
    LandCoverClass('forest', (26, 94, 43)),
    LandCoverClass('grass', (150, 190, 90)),
    LandCoverClass('crops', (230, 200, 70)),
    LandCoverClass('soil', (165, 120, 80)),
    LandCoverClass('built-up', (200, 50, 50)),
    LandCoverClass('snow', (235, 245, 255)),
    LandCoverClass('cloud', (160, 160, 160)),
)


_FIELD, _BLOCK, _BUILDING = 400.0, 90.0, 18.0  # lengths in meters


@dataclass(frozen=True)
class Layout:
    """The ground plan; all arrays are (size, size).

    Attributes:
        label: uint8, a :class:`LandCover` per pixel, without clouds.
        elevation: height, zero mean and unit variance.
        fields: number of the farm parcel.
        across: coordinate across the parcels, pixels; plough lines run along it.
        hedges: borders of the farm parcels.
        streets: streets between blocks.
        blocks: number of the block between streets.
        buildings: number of the building plot.
        roads: country roads, part of the class built-up.
    """

    label: np.ndarray
    elevation: Field
    fields: Cells
    across: Field
    hedges: Mask
    streets: Mask
    blocks: Cells
    buildings: Cells
    roads: Mask


def _share(score: Field, share: float, free: Mask) -> Mask:
    """Select the given share of the pixels of ``free``, those with the highest scores."""
    if share <= 0 or not free.any():
        return np.zeros_like(free)
    return free & (score >= np.quantile(score[free], 1 - share))


def grow(mask: Mask, steps: int) -> Mask:
    """Dilate a mask by a number of pixels to all four sides."""
    mask = mask.copy()
    for _ in range(steps):
        wide = mask.copy()
        wide[1:] |= mask[:-1]
        wide[:-1] |= mask[1:]
        wide[:, 1:] |= mask[:, :-1]
        wide[:, :-1] |= mask[:, 1:]
        mask = wide
    return mask


def make_layout(rng: np.random.Generator, biome: Biome, gsd: float, size: int) -> Layout:
    """Draw a ground plan of ``size`` pixels per side with a biome's shares of the classes."""
    elevation = fractal(rng, size, 3.4)
    fields, across = parcels(rng, size, float(np.clip(_FIELD / gsd, 16, size / 3)))
    blocks, _ = parcels(rng, size, float(np.clip(_BLOCK / gsd, 7, size / 3)), aspect=1.4)
    buildings, _ = parcels(rng, size, float(np.clip(_BUILDING / gsd, 3, size / 6)), aspect=1.2)
    roads = winding(rng, size, 0.02) < max(0.7, 4 / gsd)
    label = np.full((size, size), LandCover.GRASS, dtype=np.uint8)
    scores = _scores(rng, size, elevation, fields, blocks)
    for cover, share in (
        (LandCover.SNOW, biome.snow),
        (LandCover.WATER, biome.water),
        (LandCover.BUILT_UP, biome.built),
        (LandCover.FOREST, biome.forest),
        (LandCover.CROPS, biome.crops),
        (LandCover.SOIL, biome.bare),
    ):
        label[_share(scores[cover], share, label == LandCover.GRASS)] = cover
    if biome.water > 0.2:  # a beach: the ground just above the water
        label[_share(-elevation, 0.05, ~np.isin(label, (LandCover.WATER, LandCover.BUILT_UP)))] = LandCover.SOIL
    roads &= ~np.isin(label, (LandCover.WATER, LandCover.SNOW))
    label[roads] = LandCover.BUILT_UP
    if biome.name != 'mountains':
        river = winding(rng, size, 0.12) < rng.uniform(0.8, 2.0) * max(1.5, 3 / gsd**0.5)
        label[river & (label != LandCover.SNOW)] = LandCover.WATER
    streets = grow(borders(blocks), round(min(3 / gsd, 6)))
    return Layout(label, elevation, fields, across, borders(fields), streets, blocks, buildings, roads)


def _scores(
    rng: np.random.Generator, size: int, elevation: Field, fields: Cells, blocks: Cells
) -> dict[LandCover, Field]:
    """Score each class per pixel: snow and rock are high, water and towns low, fields follow parcels."""
    damp = fractal(rng, size, 2.8)
    return {
        LandCover.SNOW: elevation + 0.15 * fractal(rng, size, 2, longest=size / 8),
        LandCover.WATER: -elevation,
        LandCover.BUILT_UP: average(fractal(rng, size, 3.6) - 0.3 * elevation, blocks),
        LandCover.FOREST: 0.8 * damp + 0.4 * elevation + 0.6 * average(damp, fields),
        LandCover.CROPS: average(fractal(rng, size, 3) - 0.4 * elevation, fields),
        LandCover.SOIL: 0.7 * elevation - damp,
    }
