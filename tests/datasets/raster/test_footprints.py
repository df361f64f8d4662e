# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Footprints against rasterio and PROJ."""

import math
from typing import Any

import numpy as np
import pytest
import rasterio.windows
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS
from rasterio import Affine
from rasterio.transform import from_origin
from rasterio.warp import transform as warp
from rasterio.windows import Window

from torchgeo_clay.datasets.raster.georeference import footprint, footprint_wgs84

C, S = math.cos(math.radians(27)), math.sin(math.radians(27))
GRIDS = {
    'utm': ('EPSG:32629', from_origin(600_000, 5_900_000, 60, 60)),
    'geographic': ('EPSG:4326', from_origin(-1.5, 38.5, 8.98e-5, 8.98e-5)),
    'rotated': ('EPSG:32611', Affine(0.6 * C, 0.6 * S, 5e5, 0.6 * S, -0.6 * C, 36e5)),
    'sinusoidal': (
        CRS.from_proj4('+proj=sinu +R=6371007.181 +units=m'),
        from_origin(1_000_000, 5_300_000, 463.3127, 463.3127),
    ),
}


def on(transform: Affine, points: Any) -> np.ndarray:
    """The affine of points (N, 2)."""
    matrix = np.array(tuple(transform)[:9]).reshape(3, 3)
    return np.column_stack([points, np.ones(len(points))]) @ matrix[:2].T


def in_pixels(transform: Affine, points: Any) -> np.ndarray:
    return on(~transform, points)


WINDOWS = st.tuples(st.integers(-50, 3000), st.integers(-50, 3000), st.integers(8, 512), st.integers(8, 512))


@pytest.mark.parametrize('name', GRIDS)
@given(window=WINDOWS)
def test_in_the_scenes_crs_it_is_rasterios_window(name: str, window: tuple[int, int, int, int]) -> None:
    transform = GRIDS[name][1]
    row, col, height, width = window
    found = footprint(transform, *window)
    there = rasterio.windows.transform(Window(col, row, width, height), transform)
    corners = on(there, [(0, 0), (0, height), (width, height), (width, 0)])
    pixels = in_pixels(transform, found.exterior.coords[:-1])
    np.testing.assert_allclose(pixels, in_pixels(transform, corners), rtol=0, atol=1e-6)
    if name != 'rotated':
        bounds = rasterio.windows.bounds(Window(col, row, width, height), transform)
        np.testing.assert_allclose(found.bounds, bounds, rtol=0, atol=1e-6 * transform.a)


@pytest.mark.parametrize('name', GRIDS)
@given(window=WINDOWS)
def test_in_degrees_its_corners_are_rasterios(name: str, window: tuple[int, int, int, int]) -> None:
    crs, transform = GRIDS[name]
    row, col, height, width = window
    found = footprint_wgs84(CRS.from_user_input(crs), transform, *window)
    assert found.is_valid
    corners = [(col, row), (col, row + height), (col + width, row + height), (col + width, row)]
    # back to pixels by rasterio: each corner is among the points
    lon, lat = np.array(found.exterior.coords).T
    x, y = warp('EPSG:4326', CRS.from_user_input(crs).to_wkt(), lon, lat)
    pixels = in_pixels(transform, np.column_stack([x, y]))
    for corner in corners:
        away = np.abs(pixels - corner).max(axis=1)
        assert away.min() < 1e-6


@pytest.mark.parametrize('name', GRIDS)
def test_in_degrees_its_edges_stay_beside_the_windows(name: str) -> None:
    crs, transform = GRIDS[name]
    found = footprint_wgs84(CRS.from_user_input(crs), transform, 100, 200, 256, 256)
    edge = found.exterior.segmentize(found.exterior.length / 2000)
    lon, lat = np.array(edge.coords).T
    x, y = warp('EPSG:4326', CRS.from_user_input(crs).to_wkt(), lon, lat)
    window = shapely.box(200, 100, 456, 356).exterior
    points = shapely.points(in_pixels(transform, np.column_stack([x, y])))
    assert max(window.distance(p) for p in points) < 0.1


def test_no_crs_is_no_place() -> None:
    found = footprint_wgs84(None, Affine.identity(), 0, 0, 8, 8)
    assert found.is_empty
    assert found.geom_type == 'Polygon'


def test_a_window_that_crosses_the_antimeridian_is_cut() -> None:
    crs, transform = CRS.from_epsg(32701), from_origin(0, 8_000_000, 1000, 1000)  # UTM 1 south begins at 180° west
    found = footprint_wgs84(crs, transform, 0, 100, 200, 200)
    assert found.geom_type == 'MultiPolygon'
    assert found.is_valid
    parts = sorted(found.geoms, key=lambda p: p.bounds[0])
    assert len(parts) == 2
    assert parts[0].bounds[0] == -180
    assert parts[1].bounds[2] == 180
    assert found.bounds[0] >= -180
    assert found.bounds[2] <= 180
    # as large as the window where nothing is cut, a zone further east
    same = footprint_wgs84(CRS.from_epsg(32702), transform, 0, 100, 200, 200)
    assert same.geom_type == 'Polygon'
    assert math.isclose(found.area, same.area, rel_tol=1e-9)


def test_longitudes_from_0_to_360() -> None:
    transform = from_origin(179, 1, 0.01, 0.01)
    found = footprint_wgs84(CRS.from_epsg(4326), transform, 0, 0, 200, 200)
    assert found.geom_type == 'MultiPolygon'
    assert math.isclose(found.area, 4, rel_tol=1e-9)
    east = footprint_wgs84(CRS.from_epsg(4326), from_origin(190, 1, 0.01, 0.01), 0, 0, 200, 200)
    assert east.geom_type == 'Polygon'
    np.testing.assert_allclose(east.bounds, (-170, -1, -168, 1), atol=1e-9)


def test_a_window_around_a_pole() -> None:
    found = footprint_wgs84(CRS.from_epsg(3995), from_origin(-1000, 1000, 10, 10), 0, 0, 200, 200)
    assert found.is_valid
    assert found.bounds[0] == -180
    assert found.bounds[2] == 180
    assert found.bounds[3] == 90


POLES = {3413: 90, 3995: 90, 3031: -90}


@pytest.mark.parametrize('code', POLES)
@given(row=st.integers(-64, 0), col=st.integers(-64, 0), height=st.integers(8, 64), width=st.integers(8, 64))
def test_windows_at_a_pole_are_valid_and_as_large_as_on_the_map(
    code: int, row: int, col: int, height: int, width: int
) -> None:
    transform = from_origin(0, 0, 1000, 1000)  # the pole is the corner of four pixels
    found = footprint_wgs84(CRS.from_epsg(code), transform, row, col, height, width)
    assert found.is_valid
    # an equal-area sum over longitude and the sine of latitude, which no library does for a polygon with a pole
    equal_area = CRS.from_proj4('+proj=cea +ellps=WGS84')
    lat = math.copysign(1, POLES[code])
    flat = shapely.transform(
        found.segmentize(0.05), lambda p: np.column_stack(warp('EPSG:4326', equal_area.to_wkt(), *p.T))
    )
    assert lat * found.centroid.y > 0
    true = height * width * 1e6
    scale = {3413: 0.97, 3995: 0.97, 3031: 0.972}[code]  # of these projections at the pole, per side
    assert flat.area == pytest.approx(true / scale**2, rel=0.02)


def test_a_corner_and_an_edge_on_the_pole() -> None:
    crs, transform = CRS.from_epsg(3995), from_origin(0, 0, 1000, 1000)
    corner = footprint_wgs84(crs, transform, 0, 0, 16, 16)
    edge = footprint_wgs84(crs, transform, 0, -16, 16, 32)
    for found, span in ((corner, 90), (edge, 180)):
        assert found.is_valid
        assert found.bounds[3] == 90
        west, _, east, _ = found.bounds
        assert east - west == pytest.approx(span, abs=1e-6)
    whole = footprint_wgs84(crs, transform, -16, -16, 32, 32)
    quarters = [footprint_wgs84(crs, transform, row, col, 16, 16) for row in (-16, 0) for col in (-16, 0)]
    assert sum(q.area for q in quarters) == pytest.approx(whole.area, rel=1e-3)
    assert all(q.is_valid for q in quarters)


def test_wide_windows_in_degrees() -> None:
    found = footprint_wgs84(CRS.from_epsg(4326), from_origin(-180, 90, 1, 1), 0, 0, 180, 360)
    assert found.equals(shapely.box(-180, -90, 180, 90))
    half = footprint_wgs84(CRS.from_epsg(4326), from_origin(0, 90, 1, 1), 0, 0, 180, 256)
    assert half.area == pytest.approx(256 * 180)


def test_half_of_the_world_in_mercator() -> None:
    side = 20037508.342789244
    found = footprint_wgs84(CRS.from_epsg(3857), from_origin(0, side / 2, side / 256, side / 256), 0, 0, 256, 256)
    assert found.is_valid
    np.testing.assert_allclose(found.bounds, (0, -66.51326, 180, 66.51326), atol=1e-4)
