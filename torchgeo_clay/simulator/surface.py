# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Ground cover: shares of materials, (materials, H, W), summing to 1, from the classes of a layout.

Within a class the mixture varies by parcel, season and fractal noise, and classes share materials (a fallow field is
soil, a garden is grass), so that they are separable, but not by a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchgeo_clay.simulator.classes import LandCover
from torchgeo_clay.simulator.landscape import Layout, grow
from torchgeo_clay.simulator.noise import Field, Mask, borders, fractal
from torchgeo_clay.simulator.spectra import Material

__all__ = ('Surface', 'make_surface')

# Strength of the grain (tree crowns, tussocks, waves) by class, where a pixel resolves it; LandCover's order.
_GRAIN = np.array([0.03, 0.40, 0.12, 0.07, 0.10, 0.10, 0.03], dtype=np.float32)


@dataclass(frozen=True)
class Surface:
    """Optical properties of the ground.

    Attributes:
        shares: (materials, H, W) shares of the materials, in :class:`Material`'s order.
        brightness: (H, W) factor on the reflectance: hill shading, crowns and their shadows, plough lines.
        green: (H, W) share of green vegetation, 0 to 1.
    """

    shares: Field
    brightness: Field
    green: Field


def _mix(shares: Field, where: Mask, **parts: NDArray[np.floating[Any]] | float) -> None:
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
    _mix(
        shares, crops, leaf=leaf, straw=dry, dark_soil=(bare - dry) * (1 - 0.5 * light), sand=(bare - dry) * 0.5 * light
    )
    _mix(shares, crops & layout.hedges, canopy=0.3 + 0.3 * season, straw=0.3, dark_soil=0.2)


def _town(rng: np.random.Generator, shares: Field, layout: Layout, season: float, gsd: float) -> None:
    """Towns: streets around blocks of houses and gardens; mixed at coarse resolution."""
    count = int(layout.buildings.max()) + 1
    kind = rng.uniform(size=count)[layout.buildings]
    garden = kind < 0.3
    if gsd < 6:  # plots are wide enough to resolve a house within its garden
        garden |= grow(borders(layout.buildings), round(min(2 / gsd, 4)))
    town = layout.label == LandCover.BUILT_UP
    _mix(
        shares,
        town,
        tile=0.8 * (kind < 0.65) + 0.1,
        concrete=0.9 * (kind >= 0.65) + 0.05,
        asphalt=0.5 * (kind > 0.85) + 0.05,
    )
    _mix(shares, town & garden, leaf=0.2 + 0.4 * season, canopy=0.3, straw=0.25, dark_soil=0.1, concrete=0.15)
    _mix(shares, town & (layout.streets | layout.roads), asphalt=0.8, concrete=0.15, straw=0.1)


def _wild(rng: np.random.Generator, shares: Field, layout: Layout, season: float, patchy: Field) -> None:
    """Water, woods, grass, soil and snow."""
    size = patchy.shape[0]
    slow = fractal(rng, size, 3.5)
    turbid = np.clip(0.35 + 0.25 * slow + 0.35 * layout.elevation, 0.03, 1)  # shallow water is the brighter
    _mix(shares, layout.label == LandCover.WATER, clear_water=1 - turbid, turbid_water=turbid)
    evergreen = np.clip(0.6 + 0.3 * slow, 0.2, 1)
    crown = np.clip(0.9 * (evergreen + (1 - evergreen) * season) + 0.05 * patchy, 0.1, 0.97)
    _mix(shares, layout.label == LandCover.FOREST, canopy=crown * 0.85, leaf=crown * 0.15, straw=1 - crown)
    green = np.clip((0.25 + 0.6 * season) * (0.85 + 0.25 * slow) + 0.08 * patchy, 0.05, 0.95)
    _mix(shares, layout.label == LandCover.GRASS, leaf=green, straw=0.75 * (1 - green), dark_soil=0.25 * (1 - green))
    light = np.clip(0.6 + 0.25 * slow + 0.12 * patchy, 0.05, 1)
    _mix(shares, layout.label == LandCover.SOIL, sand=light, dark_soil=1 - light + 0.05, straw=0.1)
    pack = np.clip(0.9 + 0.12 * patchy, 0.4, 1)
    _mix(shares, layout.label == LandCover.SNOW, snow=pack, dark_soil=1 - pack)


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
    """Cover a layout with materials.

    Args:
        rng: source of randomness.
        layout: the ground plan.
        season: 0 in deep winter to 1 in high summer.
        relief: contrast of the hill shading, 0 to 1.
        gsd: meters per pixel.
    """
    size = layout.label.shape[0]
    shares = np.zeros((len(Material), size, size), dtype=np.float32)
    patchy = fractal(rng, size, 1.8)
    _wild(rng, shares, layout, season, patchy)
    _crops(rng, shares, layout, season, patchy)
    _town(rng, shares, layout, season, gsd)
    green = shares[Material.LEAF] + shares[Material.CANOPY]
    return Surface(shares, _brightness(rng, layout, relief, gsd), green)
