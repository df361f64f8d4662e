# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Place, pixel size and footprint of a window of a raster. Degrees WGS84 and meters, float64.

A window is (row, column, height, width) in pixels of the raster; the affine maps (column, row) to the CRS, both
counted from the upper left corner of the upper left pixel, as in rasterio. Footprints are polygons in the scene's CRS,
or in WGS84 after RFC 7946: longitude, latitude; cut at ±180°.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
from pyproj import CRS, Geod, Proj, Transformer
from pyproj.exceptions import CRSError, ProjError
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.io import DatasetReader
from rasterio.transform import from_gcps
from shapely import MultiPoint, MultiPolygon, Polygon, box, get_coordinates, snap, union_all
from shapely.affinity import translate

__all__ = (
    'apply', 'footprint', 'footprint_wgs84', 'georeferencing', 'lon_lat', 'outline_wgs84', 'shifted',
    'window_center', 'window_gsd',
)  # fmt: skip

_WGS84 = Geod(ellps='WGS84')

#: How far a projection's scale may be from 1 before it is measured. UTM, state planes and national grids stay within
#: it, so that a 10 m grid counts as 10 m, as in training; Web Mercator at 60° has a scale of 2.
_SCALE_TOLERANCE = 0.01


@functools.lru_cache(maxsize=1024)
def _crs(text: str) -> CRS:
    """A CRS from WKT or a code; a folder of scenes has few of them, and each costs a millisecond."""
    return CRS.from_user_input(text)


def georeferencing(dataset: DatasetReader) -> tuple[CRS | None, Affine, str]:
    """CRS and affine of a raster, from its ground control points if it has no affine of its own.

    Returns:
        The CRS; None if the raster has none, or none that leads to a place on Earth. The affine from pixels to it. And
        what to report: why there is no CRS, unless the file simply has none, or how far the affine is from the ground
        control points if that is more than a pixel.
    """
    crs, transform, report = dataset.crs, dataset.transform, ''
    points, points_crs = dataset.gcps
    if points and (crs is None or transform.is_identity):
        crs = points_crs or crs
        transform, report = _fit(points, geographic=bool(crs and crs.is_geographic))
    if not crs:
        return None, transform, ''
    try:
        known = _crs(crs.to_wkt())
    except CRSError as error:
        return None, transform, f'its CRS is not readable ({error})'
    if problem := _problem(known, transform, dataset.height, dataset.width):
        return None, Affine.identity(), report or problem
    return known, transform, report


def _fit(points: Sequence[GroundControlPoint], geographic: bool) -> tuple[Affine, str]:
    """The affine closest to ground control points, and what to report of it; the identity if there is none."""
    pixels, ground = np.array([(p.col, p.row) for p in points]), np.array([(p.x, p.y) for p in points])
    if not (np.isfinite(pixels).all() and np.isfinite(ground).all()):
        return Affine.identity(), f'its {len(points)} ground control points are not all finite'
    centered = pixels - pixels.mean(axis=0)
    if np.linalg.matrix_rank(centered, tol=1e-6 * max(np.abs(centered).max(), 1)) < 2:
        return Affine.identity(), f'its {len(points)} ground control points lie on one line'
    if geographic:  # one side of ±180°
        ground[:, 0] = ground[0, 0] + (ground[:, 0] - ground[0, 0] + 180) % 360 - 180
    fitted = from_gcps([GroundControlPoint(*p[::-1], *g) for p, g in zip(pixels, ground, strict=True)])
    if fitted.is_degenerate:
        return fitted, ''
    found = np.array([apply(~fitted, x, y) for x, y in ground])
    off = float(np.linalg.norm(found - pixels, axis=1).max())
    report = f'its {len(points)} ground control points are up to {off:.0f} pixels from the affine fitted to them'
    return fitted, report if off > 1 else ''


def _problem(crs: CRS, transform: Affine, height: int, width: int) -> str:
    """Why an affine in a CRS is no place on Earth; empty if it is one."""
    a, b, c, d, e, f = tuple(transform)[:6]
    if not all(map(math.isfinite, (a, b, c, d, e, f))):
        return 'its geotransform is not finite'
    if (a, b, c, d, abs(e), f) == (1, 0, 0, 0, 1, 0):
        return 'it has a CRS but no geotransform'
    if abs(a * e - b * d) <= 1e-12 * (abs(a) + abs(b)) * (abs(d) + abs(e)):
        return 'its geotransform is degenerate: its pixels have no area'
    if _to_wgs84(crs.srs) is None:
        return f'its CRS {crs.name!r} is local, without a way to longitude and latitude'
    if _in_degrees(crs):
        corners = [apply(transform, x, y) for x in (0, width) for y in (0, height)]
        lon, lat = (max(map(abs, values)) for values in zip(*corners, strict=True))
        if lat > 90 + abs(d) + abs(e) or lon > 360 + abs(a) + abs(b):
            return f'its CRS is in degrees, but its corners reach longitude {lon:g} and latitude {lat:g}'
    elif math.isnan(lon_lat(crs, *apply(transform, width / 2, height / 2))[0]):
        return f'its center lies where its CRS {crs.name!r} is not defined'
    return ''


def _in_degrees(crs: CRS) -> bool:
    """Whether coordinates of a CRS are longitude and latitude in degrees."""
    geographic, _, unit = _kind(crs.srs)
    return geographic and math.isclose(unit, math.pi / 180, rel_tol=1e-6)


@functools.lru_cache(maxsize=1024)
def _to_wgs84(text: str) -> Transformer | None:
    """Transformer from a CRS to longitude and latitude; None for a local CRS that has no way there."""
    try:
        return Transformer.from_crs(_crs(text), 'EPSG:4326', always_xy=True)
    except ProjError:
        return None


@functools.lru_cache(maxsize=1024)
def _projection(text: str) -> Proj:
    """The projection of a projected CRS, which knows its scale at a place."""
    return Proj(_crs(text))


@functools.lru_cache(maxsize=1024)
def _kind(text: str) -> tuple[bool, bool, float]:
    """Whether a CRS is geographic, whether it is projected, and the meters in its unit."""
    crs = _crs(text)
    return crs.is_geographic, crs.is_projected, crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0


def apply(transform: Affine, x: float, y: float) -> tuple[float, float]:
    """Map (column, row) to the CRS, by hand, as affine 2 and 3 spell the product differently."""
    return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f


def shifted(transform: Affine, row: float, col: float) -> Affine:
    """Return the affine of a window that begins at a row and a column."""
    x, y = apply(transform, col, row)
    return Affine(transform.a, transform.b, x, transform.d, transform.e, y)


def lon_lat(crs: CRS | None, x: float, y: float) -> tuple[float, float]:
    """Longitude (-180 to 180) and latitude, degrees WGS84, of a place in a CRS; NaN where there is no way to WGS84."""
    transformer = None if crs is None else _to_wgs84(crs.srs)
    if transformer is None:
        return math.nan, math.nan
    lon, lat = transformer.transform(x, y)
    if not (math.isfinite(lon) and math.isfinite(lat) and abs(lat) <= 90):
        return math.nan, math.nan
    return (lon if -180 <= lon <= 180 else (lon + 180) % 360 - 180), lat


def window_center(
    crs: CRS | None, transform: Affine, row: float, col: float, height: float, width: float
) -> tuple[float, float]:
    """Latitude and longitude of a window's center.

    Args:
        crs: CRS of the raster; None for unknown.
        transform: from (column, row) to the CRS.
        row: first row of the window.
        col: first column of the window.
        height: rows of the window.
        width: columns of the window.

    Returns:
        Degrees north and east, WGS84; NaN for unknown.
    """
    lon, lat = lon_lat(crs, *apply(transform, col + width / 2, row + height / 2))
    return lat, lon


def window_gsd(crs: CRS | None, transform: Affine, row: float, col: float, height: float, width: float) -> float:
    """Ground sampling distance of a window: the geometric mean of a pixel's two sides, in meters.

    In a geographic CRS the pixel in the window's center is measured on the ellipsoid (8.98e-5° are 10 m by 7.9 m at
    38° north). In a projected one the affine's columns are measured in the CRS's unit and divided by the projection's
    scale if that is more than 1 % from true.

    Args: as :func:`window_center`.

    Returns:
        Meters per pixel; NaN without a CRS.
    """
    if crs is None:
        return math.nan
    geographic, projected, unit = _kind(crs.srs)
    x, y = col + width / 2, row + height / 2
    if geographic:
        return math.sqrt(math.prod(_ground_distance(crs, transform, x, y, dx, dy) for dx, dy in ((0.5, 0), (0, 0.5))))
    sides = math.hypot(transform.a, transform.d) * math.hypot(transform.b, transform.e)
    gsd = math.sqrt(sides) * unit
    lon, lat = lon_lat(crs, *apply(transform, x, y))
    if not projected or math.isnan(lat):
        return gsd
    scale = math.sqrt(_projection(crs.srs).get_factors(lon, lat).areal_scale)
    return gsd / scale if math.isfinite(scale) and abs(scale - 1) > _SCALE_TOLERANCE else gsd


def _ground_distance(crs: CRS, transform: Affine, x: float, y: float, dx: float, dy: float) -> float:
    """Meters on the ellipsoid between the pixel coordinates (x, y) - (dx, dy) and (x, y) + (dx, dy)."""
    lon1, lat1 = lon_lat(crs, *apply(transform, x - dx, y - dy))
    lon2, lat2 = lon_lat(crs, *apply(transform, x + dx, y + dy))
    return float(_WGS84.inv(lon1, lat1, lon2, lat2)[2])


#: Parts that each side of a window is cut into, as straight edges of a projection are not straight in degrees.
_PARTS = 64

#: Pixels that an edge in WGS84 may lie beside the window's own; where points change less, they are left out.
_TOLERANCE = 0.05

#: Degrees from a pole that count as on it: 0.1 mm.
_AT_POLE = 1e-9


def footprint(transform: Affine, row: float, col: float, height: float, width: float) -> Polygon:
    """A window's outline in the scene's own CRS: rasterio's corners, from the upper left by way of the lower left one.

    Args: as :func:`window_center`.
    """
    return Polygon([apply(transform, x, y) for x, y in _corners(row, col, height, width)])


def footprint_wgs84(
    crs: CRS | None, transform: Affine, row: float, col: float, height: float, width: float
) -> Polygon | MultiPolygon:
    """A window's outline in longitude and latitude, with points along edges that would else be off.

    Args: as :func:`window_center`.

    Returns:
        A polygon in degrees WGS84; two or more if the window crosses the antimeridian; an empty one if the place is
        unknown.
    """
    return outline_wgs84(crs, transform, _corners(row, col, height, width))


def _corners(row: float, col: float, height: float, width: float) -> list[tuple[float, float]]:
    """Corners of a window as (column, row)."""
    return [(col, row), (col, row + height), (col + width, row + height), (col + width, row)]


def outline_wgs84(crs: CRS | None, transform: Affine, corners: list[tuple[float, float]]) -> Polygon | MultiPolygon:
    """Return an outline of pixels, corners as (column, row), in longitude and latitude, as :func:`footprint_wgs84`."""
    transformer = None if crs is None else _to_wgs84(crs.srs)
    if crs is None or transformer is None:
        return Polygon()
    ring, degrees = Polygon([apply(transform, *corner) for corner in corners]), _in_degrees(crs)
    if not degrees and ring.area:
        ring = ring.segmentize(ring.length / 4 / _PARTS)
        ring = snap(ring, _poles(crs.srs), 1e-6 * math.sqrt(abs(transform.determinant)))
    x, y = get_coordinates(ring)[:-1].T
    lon, lat = transformer.transform(x, y)
    if not (np.isfinite([lon, lat]).all() and np.abs(lat).max() <= 90):
        return Polygon()
    if degrees:  # as far east as the file counts
        return _cut_at_antimeridian(Polygon(np.column_stack([lon + 360 * np.round((x - lon) / 360), lat])))
    whole = Polygon(_unwrapped(np.column_stack([lon, lat])))
    pixels = max(Polygon(corners).area, 1)
    side = math.sqrt(whole.area * math.cos(math.radians(lat.mean())) / pixels)  # degrees of latitude per pixel
    return _cut_at_antimeridian(cast(Polygon, whole.simplify(_TOLERANCE * side)))


@functools.lru_cache(maxsize=1024)
def _poles(text: str) -> MultiPoint:
    """The poles in a projected CRS, without those it does not have."""
    transformer = _to_wgs84(text)
    assert transformer is not None
    places = np.column_stack(transformer.transform([0, 0], [90, -90], direction='INVERSE'))
    return MultiPoint(places[np.isfinite(places).all(axis=1)])


def _unwrapped(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """An outline (N, 2), longitudes and latitudes, whose longitudes continue beyond ±180°.

    It is closed along the pole's side of the map if it goes around a pole. At a pole every longitude is the same place,
    so a point there becomes two, with the longitudes of its neighbors.
    """
    (at_pole,) = np.nonzero(np.abs(points[:, 1]) > 90 - _AT_POLE)
    points = np.roll(points, -at_pole[0], axis=0)[len(at_pole) :] if len(at_pole) else np.vstack([points, points[:1]])
    lon, lat = np.unwrap(points[:, 0], period=360), points[:, 1]
    if len(at_pole) or abs(lon[-1] - lon[0]) > 180:
        pole = math.copysign(90, lat.mean())
        lon, lat = np.append(lon, [lon[-1], lon[0]]), np.append(lat, [pole, pole])
    return np.column_stack([lon, lat])


def _cut_at_antimeridian(whole: Polygon) -> Polygon | MultiPolygon:
    """A polygon whose longitudes may go beyond ±180°, with longitudes in -180 to 180."""
    west, _, east, _ = whole.bounds
    if west >= -180 and east <= 180:
        return whole
    parts = [
        translate(whole.intersection(box(turn * 360 - 180, -90, turn * 360 + 180, 90)), xoff=-turn * 360)
        for turn in (-2, -1, 0, 1, 2)
    ]
    return cast(Polygon | MultiPolygon, union_all([p for p in parts if p.area > 0]))
