# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What covers the ground: materials with their reflectance (0.4-2.5 µm) and backscatter (C band, dB), and their shares.

The numbers are typed approximations of the textbook shapes (chlorophyll absorption and red edge, leaf water at 1.4-2.5
µm, rising soil line, water's near-infrared absorption, snow's drop beyond 1 µm), not measurements: they make classes
separable as in real imagery, and are no reference for anything else. Within a class the mixture varies by parcel,
season and fractal noise, and classes share materials (a fallow field is soil, a garden is grass), so that they are
separable, but not by a threshold. Shapes: C bands, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchgeo_clay.simulator.landscape import LandCover, Layout, grow
from torchgeo_clay.simulator.noise import Cells, Field, Mask, borders, fractal

__all__ = (
    'Material',
    'Surface',
    'backscatter',
    'cloud_reflectance',
    'make_surface',
    'mix',
    'reflectance',
)


class Material(IntEnum):
    """Pure materials; a pixel is a mixture of them."""

    CLEAR_WATER = 0
    TURBID_WATER = 1
    LEAF = 2
    CANOPY = 3
    STRAW = 4
    DARK_SOIL = 5
    SAND = 6
    CONCRETE = 7
    ASPHALT = 8
    TILE = 9
    SNOW = 10


# µm, reflectance of each material in the order of :class:`Material`, and of a thick water cloud.
_REFLECTANCE = np.array((
    (0.40, 0.045, 0.050, 0.030, 0.015, 0.070, 0.040, 0.120, 0.160, 0.060, 0.060, 0.930, 0.68),
    (0.45, 0.045, 0.065, 0.035, 0.020, 0.090, 0.050, 0.160, 0.200, 0.070, 0.070, 0.940, 0.68),
    (0.49, 0.042, 0.080, 0.040, 0.022, 0.110, 0.060, 0.200, 0.220, 0.075, 0.080, 0.940, 0.68),
    (0.55, 0.035, 0.120, 0.095, 0.050, 0.160, 0.080, 0.270, 0.250, 0.085, 0.110, 0.930, 0.68),
    (0.60, 0.018, 0.110, 0.060, 0.032, 0.200, 0.100, 0.330, 0.270, 0.090, 0.210, 0.920, 0.68),
    (0.67, 0.010, 0.080, 0.040, 0.025, 0.240, 0.130, 0.380, 0.290, 0.100, 0.290, 0.900, 0.68),
    (0.70, 0.008, 0.070, 0.120, 0.070, 0.260, 0.140, 0.400, 0.290, 0.100, 0.300, 0.890, 0.68),
    (0.74, 0.006, 0.040, 0.360, 0.250, 0.280, 0.160, 0.420, 0.300, 0.105, 0.310, 0.870, 0.68),
    (0.78, 0.005, 0.035, 0.450, 0.320, 0.300, 0.170, 0.430, 0.300, 0.110, 0.320, 0.860, 0.68),
    (0.86, 0.004, 0.025, 0.480, 0.340, 0.340, 0.200, 0.450, 0.310, 0.115, 0.340, 0.800, 0.67),
    (1.00, 0.002, 0.012, 0.490, 0.340, 0.380, 0.230, 0.480, 0.320, 0.120, 0.360, 0.660, 0.66),
    (1.24, 0.001, 0.004, 0.440, 0.290, 0.430, 0.280, 0.520, 0.330, 0.135, 0.380, 0.350, 0.62),
    (1.65, 0.001, 0.002, 0.270, 0.150, 0.420, 0.310, 0.550, 0.340, 0.150, 0.400, 0.080, 0.50),
    (2.20, 0.001, 0.002, 0.120, 0.065, 0.300, 0.270, 0.500, 0.320, 0.150, 0.380, 0.050, 0.40),
    (2.50, 0.000, 0.000, 0.060, 0.030, 0.220, 0.220, 0.440, 0.290, 0.140, 0.340, 0.030, 0.32),
))  # fmt: skip

# Co-polarized and cross-polarized gamma0, dB, in that order too. Walls and pavement make corners: a bright town.
_BACKSCATTER = np.array((
    (-23.0, -19.0, -10.5, -8.0, -12.0, -11.5, -17.0, -2.0, -15.0, 0.0, -14.0),
    (-30.0, -27.0, -17.0, -13.5, -19.5, -21.0, -27.0, -11.0, -23.0, -9.0, -21.5),
), dtype=np.float32)  # fmt: skip

# Clay's tokens are 3.5 for VV and 4.0 for VH; values nearer to the second are cross-polarized.
_CROSS_POLARIZED = 3.75


def reflectance(wavelengths: Sequence[float]) -> NDArray[np.float32]:
    """Reflectance of the materials, (C, materials), interpolated linearly at wavelengths in µm, the ends repeated."""
    known, *materials, _ = _REFLECTANCE.T
    return np.stack([np.interp(wavelengths, known, values) for values in materials], axis=1).astype(np.float32)


def cloud_reflectance(wavelengths: Sequence[float]) -> NDArray[np.float32]:
    """Reflectance of a thick cloud, (C,), at wavelengths in µm."""
    return np.interp(wavelengths, _REFLECTANCE[:, 0], _REFLECTANCE[:, -1]).astype(np.float32)


def backscatter(wavelengths: Sequence[float]) -> NDArray[np.float32]:
    """Radar backscatter of the materials, (C, materials) linear gamma0, by Clay's tokens: 3.5 for VV, 4.0 for VH."""
    cross = np.array(wavelengths) > _CROSS_POLARIZED
    return 10 ** (_BACKSCATTER[cross.astype(int)] / 10)


# Strength of the grain (tree crowns, tussocks, waves) by class, where a pixel resolves it; LandCover's order.
_GRAIN = np.array([0.03, 0.40, 0.12, 0.07, 0.10, 0.10, 0.03], dtype=np.float32)


@dataclass(frozen=True)
class Surface:
    """Optical properties of the ground.

    Attributes:
        shares: (materials, H, W) shares of the materials, in :class:`Material`'s order.
        brightness: (H, W) factor on the reflectance: hill shading, crowns and their shadows, plough lines.
        green: (H, W) share of green vegetation, 0 to 1.
        houses: (H, W) number of the house from 1 on, 0 elsewhere.
    """

    shares: Field
    brightness: Field
    green: Field
    houses: Cells


def mix(shares: Field, where: Mask, **parts: NDArray[np.floating[Any]] | float) -> None:
    """Set the mixture of some pixels; parts are material names in lower case, normalized to sum to 1."""
    columns = {Material[name.upper()]: np.broadcast_to(part, where.shape)[where] for name, part in parts.items()}
    total = sum(columns.values())
    shares[:, where] = 0
    for material, column in columns.items():
        shares[material, where] = column / total


def _crops(rng: np.random.Generator, shares: Field, layout: Layout, season: float, patchy: Field) -> None:
    """Fields: each parcel has a crop with its own calendar, vigour and soil; some lie fallow."""
    count = int(layout.fields.max()) + 1
    kind, vigour, soil = rng.random((3, count), dtype=np.float32)
    summer, winter = season**1.5, np.clip(4 * season * (1 - season), 0, 1)  # winter cereals ripen before high summer
    growth = np.select([kind < 0.15, kind < 0.45], [0.05, 0.15 + 0.8 * winter], 0.1 + 0.9 * summer) * (
        0.6 + 0.4 * vigour
    )
    straw = np.where(kind < 0.45, 0.4, 0.1)
    leaf = np.clip(growth[layout.fields] * (1 + 0.15 * patchy), 0, 1)
    bare, light = 1 - leaf, np.clip(soil[layout.fields] + 0.15 * patchy, 0, 1)
    dry = bare * straw[layout.fields]
    crops = layout.label == LandCover.CROPS
    mix(
        shares, crops, leaf=leaf, straw=dry, dark_soil=(bare - dry) * (1 - 0.5 * light), sand=(bare - dry) * 0.5 * light
    )
    mix(shares, crops & layout.hedges, canopy=0.3 + 0.3 * season, straw=0.3, dark_soil=0.2)


def _town(rng: np.random.Generator, shares: Field, layout: Layout, season: float, gsd: float) -> Cells:
    """Towns: streets around blocks of houses and gardens; mixed at coarse resolution. Return the houses."""
    count = int(layout.buildings.max()) + 1
    kind = rng.uniform(size=count)[layout.buildings]
    garden = kind < 0.3
    if gsd < 6:  # plots are wide enough to resolve a house within its garden
        garden |= grow(borders(layout.buildings), round(min(2 / gsd, 4)))
    town = layout.label == LandCover.BUILT_UP
    mix(
        shares,
        town,
        tile=0.8 * (kind < 0.65) + 0.1,
        concrete=0.9 * (kind >= 0.65) + 0.05,
        asphalt=0.5 * (kind > 0.85) + 0.05,
    )
    mix(shares, town & garden, leaf=0.2 + 0.4 * season, canopy=0.3, straw=0.25, dark_soil=0.1, concrete=0.15)
    street = town & (layout.streets | layout.roads)
    mix(shares, street, asphalt=0.8, concrete=0.15, straw=0.1)
    plots = layout.buildings.astype(np.int64) * (int(layout.blocks.max()) + 1) + layout.blocks
    numbers = np.unique(plots, return_inverse=True)[1].reshape(plots.shape) + 1
    return np.where(town & ~garden & ~street, numbers, 0)


def _wild(rng: np.random.Generator, shares: Field, layout: Layout, season: float, patchy: Field) -> None:
    """Water, woods, grass, soil and snow."""
    size = patchy.shape[0]
    slow = fractal(rng, size, 3.5)
    turbid = np.clip(0.35 + 0.25 * slow + 0.35 * layout.elevation, 0.03, 1)  # shallow water is the brighter
    mix(shares, layout.label == LandCover.WATER, clear_water=1 - turbid, turbid_water=turbid)
    evergreen = np.clip(0.6 + 0.3 * slow, 0.2, 1)
    crown = np.clip(0.9 * (evergreen + (1 - evergreen) * season) + 0.05 * patchy, 0.1, 0.97)
    mix(shares, layout.label == LandCover.FOREST, canopy=crown * 0.85, leaf=crown * 0.15, straw=1 - crown)
    green = np.clip((0.25 + 0.6 * season) * (0.85 + 0.25 * slow) + 0.08 * patchy, 0.05, 0.95)
    mix(shares, layout.label == LandCover.GRASS, leaf=green, straw=0.75 * (1 - green), dark_soil=0.25 * (1 - green))
    light = np.clip(0.6 + 0.25 * slow + 0.12 * patchy, 0.05, 1)
    mix(shares, layout.label == LandCover.SOIL, sand=light, dark_soil=1 - light + 0.05, straw=0.1)
    pack = np.clip(0.9 + 0.12 * patchy, 0.4, 1)
    mix(shares, layout.label == LandCover.SNOW, snow=pack, dark_soil=1 - pack)


def _brightness(rng: np.random.Generator, layout: Layout, relief: float, gsd: float) -> Field:
    """Hill shading, grain and plough lines."""
    size = layout.label.shape[0]
    down, right = np.gradient(layout.elevation)
    slope = right - down
    shading = 1 + 0.35 * relief * slope / slope.std()
    shading[layout.label == LandCover.WATER] = 1
    period = max(2.5, 7 / gsd)  # a tree's crown, or its remainder in the pixel
    grain = fractal(rng, size, 1, shortest=period / 2, longest=2 * period) * _GRAIN[layout.label]
    resolved = 1.0 if gsd <= 3 else 0.4
    texture = 1 + resolved * grain + 0.04 * fractal(rng, size, 2.5)
    if gsd <= 3:
        lines = 0.07 * np.cos(2 * np.pi * layout.across * gsd / 5)  # tramlines, every 5 m
        texture += np.where(layout.label == LandCover.CROPS, lines, 0)
    return (np.clip(shading, 0.4, 1.35) * np.clip(texture, 0.3, 1.8)).astype(np.float32)


def make_surface(rng: np.random.Generator, layout: Layout, season: float, relief: float, gsd: float) -> Surface:
    """Cover a layout with materials; season is 0 in deep winter to 1 in high summer, relief a contrast, 0 to 1."""
    size = layout.label.shape[0]
    shares = np.zeros((len(Material), size, size), dtype=np.float32)
    patchy = fractal(rng, size, 1.8)
    _wild(rng, shares, layout, season, patchy)
    _crops(rng, shares, layout, season, patchy)
    houses = _town(rng, shares, layout, season, gsd)
    green = shares[Material.LEAF] + shares[Material.CANOPY]
    return Surface(shares, _brightness(rng, layout, relief, gsd), green, houses)
