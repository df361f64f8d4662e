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

from torchgeo_clay.datasets.raster.georeference import apply, in_degrees, lon_lat

__all__ = ('footprint', 'footprint_wgs84')

Point = tuple[float, float]
Ring = npt.NDArray[np.float64]

#: Pixels that a straight edge in WGS84 may lie beside the window's own edge; where it would be more, points are added.
_TOLERANCE = 0.05

#: Parts that an edge is cut into at most.
_MOST = 64

#: Degrees from a pole that count as on it: 0.1 mm.
_AT_POLE = 1e-9


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

    Straight edges of a projection are not straight in degrees: points are added along them where they would be off by
    more than a twentieth of a pixel.

    Args: as :func:`torchgeo_clay.datasets.raster.georeference.window_center`.

    Returns:
        A polygon in degrees WGS84; two or more if the window crosses the antimeridian; an empty one if the place is
        unknown.
    """
    if crs is None:
        return Polygon()
    corners = _corners(row, col, height, width)
    edges = pairwise([*corners, corners[0]])
    points = [point for begin, end in edges for point in _edge(crs, transform, begin, end)]
    if not np.isfinite(points).all():
        return Polygon()
    if in_degrees(crs):
        return _cut_at_antimeridian(np.array([*points, points[0]]))
    return _cut_at_antimeridian(_unwrapped(points))


def _corners(row: float, col: float, height: float, width: float) -> list[tuple[float, float]]:
    """Corners of a window as (column, row)."""
    return [(col, row), (col, row + height), (col + width, row + height), (col + width, row)]


def _edge(crs: CRS, transform: Affine, begin: Point, end: Point) -> list[Point]:
    """Points of an edge in degrees, from its begin up to, but without, its end."""
    degrees = in_degrees(crs)

    def at(share: float) -> Point:
        x, y = apply(transform, *(a + share * (b - a) for a, b in zip(begin, end, strict=True)))
        lon, lat = lon_lat(crs, x, y)
        return (lon + 360 * round((x - lon) / 360) if degrees and math.isfinite(lon) else lon), lat

    line = np.array([at(0), at(0.5), at(1)])
    if not np.isfinite(line).all():
        return [(math.nan, math.nan)]
    if not degrees:
        line[:, 0] = np.unwrap(line[:, 0], period=360)
    line[:, 0] *= math.cos(math.radians(line[:, 1].mean()))
    length, off = math.dist(line[0], line[2]), math.dist(line[1], (line[0] + line[2]) / 2)
    if length == 0:
        return [at(0)]
    pixels = off / length * math.dist(begin, end)
    parts = min(max(1, math.ceil(math.sqrt(pixels / _TOLERANCE) - 1e-9)), _MOST)  # the error falls with their square
    points: list[Point] = []
    for i, ((lon, lat), (after, _)) in enumerate(pairwise(at(i / parts) for i in range(parts + 1))):
        points.append((lon, lat))
        opposite = abs((after - lon) % 360 - 180) < _AT_POLE
        if opposite and abs(lat) < abs(at((i + 0.5) / parts)[1]):  # the edge passes the pole
            points.append((lon, math.copysign(90, lat)))
    return points


def _unwrapped(points: list[Point]) -> Ring:
    """A closed outline (N + 1, 2) whose longitudes continue beyond ±180°.

    At a pole every longitude is the same place, so a point there becomes two, with the longitudes before and after it.
    """
    on_pole = [abs(lat) > 90 - _AT_POLE for _, lat in points]
    if not any(on_pole):
        return _continued(np.array([*points, points[0]]))
    start = next(i for i in range(len(points)) if on_pole[i - 1] and not on_pole[i])
    points, on_pole = points[start:] + points[:start], on_pole[start:] + on_pole[:start]
    pole = math.copysign(90, points[-1][1])
    ring: list[Point] = []
    for i, (lon, lat) in enumerate(points):
        if not on_pole[i]:
            ring.append((lon, lat))
        elif not on_pole[i - 1]:
            after = next(points[j % len(points)][0] for j in range(i, 2 * len(points)) if not on_pole[j % len(points)])
            ring += [(points[i - 1][0], pole), (after, pole)]
    closed = np.array([*ring, ring[0]])
    found = _continued(closed)
    if abs(found[-1, 0] - found[0, 0]) > 180:  # half a turn at the pole, taken to the wrong side
        jump = int(np.argmax(np.abs(np.diff(found[:, 0])))) + 1
        found[jump:, 0] -= found[-1, 0] - found[0, 0]
    return found


def _continued(ring: Ring) -> Ring:
    """An outline without jumps of 360° in longitude."""
    ring[:, 0] = np.unwrap(ring[:, 0], period=360)
    return ring


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
        for turn in (-2, -1, 0, 1, 2)
    ]
    return cast(Polygon | MultiPolygon, union_all([p for p in parts if p.area > 0]))
