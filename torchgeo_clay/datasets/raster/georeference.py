# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Where a window of a raster lies and how large its pixels are. Degrees WGS84 and metres, float64.

A window is (row, column, height, width) in pixels of the raster; the affine maps (column, row) to the CRS, both
counted from the upper left corner of the upper left pixel, as in rasterio.
"""

from __future__ import annotations

import functools
import math

from pyproj import CRS, Geod, Proj, Transformer
from pyproj.exceptions import ProjError
from rasterio import Affine
from rasterio.io import DatasetReader
from rasterio.transform import from_gcps

__all__ = ('apply', 'georeferencing', 'lon_lat', 'shifted', 'window_center', 'window_gsd')

_WGS84 = Geod(ellps='WGS84')

#: How far a projection's scale may be from 1 before it is measured. UTM, state planes and national grids stay within
#: it, so that a 10 m grid counts as 10 m, as in training; Web Mercator at 60° has a scale of 2.
_SCALE_TOLERANCE = 0.01


@functools.lru_cache(maxsize=1024)
def _crs(text: str) -> CRS:
    """A CRS from WKT or a code; a folder of scenes has few of them, and each costs a millisecond."""
    return CRS.from_user_input(text)


def georeferencing(dataset: DatasetReader) -> tuple[CRS | None, Affine]:
    """CRS and affine of a raster, from its ground control points where it has no affine of its own.

    Args:
        dataset: an open raster.

    Returns:
        The CRS, None if the raster has none, and the affine from pixels to it.
    """
    crs, transform = dataset.crs, dataset.transform
    points, points_crs = dataset.gcps
    if points and (crs is None or transform.is_identity):
        crs, transform = points_crs or crs, from_gcps(points)
    return (_crs(crs.to_wkt()) if crs else None), transform


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
    """Whether a CRS is geographic, whether it is projected, and the metres in its unit."""
    crs = _crs(text)
    return crs.is_geographic, crs.is_projected, crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0


def apply(transform: Affine, x: float, y: float) -> tuple[float, float]:
    """The affine of (column, row), by hand, as affine 2 and 3 spell the product differently.

    Args:
        transform: from (column, row) to the CRS.
        x: column, counted from the left edge.
        y: row, counted from the upper edge.

    Returns:
        Easting and northing, or longitude and latitude.
    """
    return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f


def shifted(transform: Affine, row: float, col: float) -> Affine:
    """The affine of a window that begins at a row and a column.

    Args:
        transform: from (column, row) of the raster to the CRS.
        row: first row of the window.
        col: first column of the window.
    """
    x, y = apply(transform, col, row)
    return Affine(transform.a, transform.b, x, transform.d, transform.e, y)


def lon_lat(crs: CRS | None, x: float, y: float) -> tuple[float, float]:
    """Longitude and latitude of a place in a CRS.

    Args:
        crs: the CRS; None for unknown.
        x: easting or longitude, in the CRS's unit.
        y: northing or latitude, in the CRS's unit.

    Returns:
        Degrees east (-180 to 180) and north, WGS84; NaN where there is no CRS, or no way from it to WGS84.
    """
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
    """Latitude and longitude of a window's centre.

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
    """Ground sampling distance of a window: the geometric mean of a pixel's two sides, in metres.

    In a geographic CRS the pixel in the window's centre is measured on the ellipsoid (8.98e-5° are 10 m by 7.9 m at
    38° north). In a projected one the affine's columns are measured in the CRS's unit, and the projection's scale is
    taken off where it is more than 1 % from true.

    Args:
        crs: CRS of the raster; None for unknown.
        transform: from (column, row) to the CRS.
        row: first row of the window.
        col: first column of the window.
        height: rows of the window.
        width: columns of the window.

    Returns:
        Metres per pixel; NaN where there is no CRS.
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
    """Metres on the ellipsoid between the pixel coordinates (x, y) - (dx, dy) and (x, y) + (dx, dy)."""
    lon1, lat1 = lon_lat(crs, *apply(transform, x - dx, y - dy))
    lon2, lat2 = lon_lat(crs, *apply(transform, x + dx, y + dy))
    return float(_WGS84.inv(lon1, lat1, lon2, lat2)[2])
