# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Footprints of windows as polygons, in the scene's CRS or in WGS84 (RFC 7946: longitude, latitude; cut at ±180°)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt
from pyproj import CRS
from rasterio import Affine
from shapely import MultiPolygon, Polygon, box, union_all
from shapely.affinity import translate

from torchgeo_clay.datasets.raster.georeference import apply, lon_lat

__all__ = ('footprint', 'footprint_wgs84')

Ring = npt.NDArray[np.float64]

#: Pixels that a straight edge in WGS84 may lie beside the window's own edge; where it would be more, points are added.
_TOLERANCE = 0.05

#: Parts that an edge is cut into at most.
_MOST = 64


def footprint(transform: Affine, row: float, col: float, height: float, width: float) -> Polygon:
    """A window's outline in the scene's own CRS, whose corners are rasterio's.

    Args:
        transform: from (column, row) to the CRS.
        row: first row of the window.
        col: first column of the window.
        height: rows of the window.
        width: columns of the window.

    Returns:
        A polygon of four corners, from the upper left one on by way of the lower left one.
    """
    return Polygon([apply(transform, x, y) for x, y in _corners(row, col, height, width)])


def footprint_wgs84(
    crs: CRS | None, transform: Affine, row: float, col: float, height: float, width: float
) -> Polygon | MultiPolygon:
    """A window's outline in longitude and latitude.

    Straight edges of a projection are not straight in degrees: where they would be off by more than a twentieth of a
    pixel, points are added along them.

    Args:
        crs: of the scene; None for unknown.
        transform: from (column, row) to the CRS.
        row: first row of the window.
        col: first column of the window.
        height: rows of the window.
        width: columns of the window.

    Returns:
        A polygon in degrees WGS84; two or more where the window crosses the antimeridian; an empty one where the place
        is unknown.
    """
    ring = _ring_wgs84(crs, transform, _corners(row, col, height, width))
    if not np.isfinite(ring).all():
        return Polygon()
    return _cut_at_antimeridian(ring)


def _corners(row: float, col: float, height: float, width: float) -> list[tuple[float, float]]:
    """Corners of a window as (column, row)."""
    return [(col, row), (col, row + height), (col + width, row + height), (col + width, row)]


def _ring_wgs84(crs: CRS | None, transform: Affine, corners: list[tuple[float, float]]) -> Ring:
    """The outline in degrees, longitudes going on beyond ±180° where they have to: (N + 1, 2), closed."""
    if crs is None:
        return np.full((1, 2), math.nan)
    points: list[tuple[float, float]] = []
    for begin, end in pairwise([*corners, corners[0]]):
        points += _edge(crs, transform, begin, end)
    ring = np.array([*points, points[0]])
    ring[:, 0] = np.unwrap(ring[:, 0], period=360)
    return ring


def _edge(
    crs: CRS, transform: Affine, begin: tuple[float, float], end: tuple[float, float]
) -> list[tuple[float, float]]:
    """Points of an edge in degrees, from its begin up to, but without, its end."""

    def at(share: float) -> tuple[float, float]:
        x, y = (a + share * (b - a) for a, b in zip(begin, end, strict=True))
        return lon_lat(crs, *apply(transform, x, y))

    line = np.array([at(0), at(0.5), at(1)])
    line[:, 0] = np.unwrap(line[:, 0], period=360)
    length, off = math.dist(line[0], line[2]), math.dist(line[1], (line[0] + line[2]) / 2)
    if not math.isfinite(length) or length == 0:
        return [at(0)]
    pixels = off / length * math.dist(begin, end)
    parts = min(max(1, math.ceil(math.sqrt(pixels / _TOLERANCE) - 1e-9)), _MOST)  # the error falls with their square
    return [at(i / parts) for i in range(parts)]


def _cut_at_antimeridian(ring: Ring) -> Polygon | MultiPolygon:
    """A polygon with longitudes in -180 to 180 of an outline (N + 1, 2) that may go beyond."""
    turns, points = round((ring[-1, 0] - ring[0, 0]) / 360), ring[:-1]
    if turns:  # the outline goes around a pole: close it along the pole's side of the map
        pole = math.copysign(90, ring[:, 1].mean())
        points = np.vstack([ring, [[ring[-1, 0], pole], [ring[0, 0], pole]]])
    whole = Polygon(points)
    if points[:, 0].min() >= -180 and points[:, 0].max() <= 180:
        return whole
    parts = [
        translate(whole.intersection(box(turn * 360 - 180, -90, turn * 360 + 180, 90)), xoff=-turn * 360)
        for turn in (-1, 0, 1)
    ]
    return cast(Polygon | MultiPolygon, union_all([p for p in parts if p.area > 0]))
