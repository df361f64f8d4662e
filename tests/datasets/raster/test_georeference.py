# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

import math
from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Geod
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin
from rasterio.warp import transform as rasterio_transform

from torchgeo_clay.datasets import SceneError, SensorRaster, scan_scene
from torchgeo_clay.datasets.raster.georeference import apply, lon_lat, window_center, window_gsd
from torchgeo_clay.sensors import get_sensor

NAIP = get_sensor('naip')


@pytest.mark.parametrize('code', [32630, 32736, 2193, 28992, 3857, 4326, 2264, 5070])
def test_place_is_rasterios(code):
    crs = CRS(code)
    area = crs.area_of_use
    lon, lat = (area.west + area.east) / 2 + 0.3, (area.south + area.north) / 2 - 0.2
    (x,), (y,) = rasterio_transform('EPSG:4326', f'EPSG:{code}', [lon], [lat])
    step = 1e-4 if crs.is_geographic else 10
    found = window_center(crs, from_origin(x - 50 * step, y + 20 * step, step, step), 10, 40, 20, 20)
    assert found == pytest.approx((lat, lon), abs=1e-7)


def test_place_is_in_float64():
    crs, transform = CRS(32760), from_origin(562990.25, 5690260.25, 0.1, 0.1)
    lat, lon = window_center(crs, transform, 0, 0, 1, 1)
    lat2, lon2 = window_center(crs, transform, 0, 1, 1, 1)
    assert Geod(ellps='WGS84').inv(lon, lat, lon2, lat2)[2] == pytest.approx(0.1, rel=1e-3)


def test_without_a_crs_or_a_way_to_wgs84_the_place_is_unknown():
    local = CRS.from_wkt(
        'ENGCRS["site",EDATUM["none"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'
    )
    for crs in (None, local):
        assert all(math.isnan(v) for v in lon_lat(crs, 1.0, 2.0))
    assert math.isnan(window_gsd(None, Affine.identity(), 0, 0, 1, 1))
    assert window_gsd(local, from_origin(0, 0, 2, 2), 0, 0, 1, 1) == 2


def test_longitude_is_wrapped():
    assert lon_lat(CRS(4326), 200.0, 10.0) == pytest.approx((-160.0, 10.0))
    assert lon_lat(CRS(4326), 10.0, 95.0) == pytest.approx((math.nan, math.nan), nan_ok=True)


@pytest.mark.parametrize(
    ('code', 'size', 'gsd'),
    [
        (32630, (10, 10), 10), (32630, (0.6, 0.6), 0.6), (32630, (20, 5), 10),  # metres, not square: geometric mean
        (2264, (10, 10), 10 * 1200 / 3937),  # US survey feet
        (2222, (10, 10), 10 * 0.3048),  # international feet
    ],
)  # fmt: skip
def test_gsd_of_projected_grids_is_in_metres(code, size, gsd):
    crs = CRS(code)
    area = crs.area_of_use
    lon, lat = (area.west + area.east) / 2, (area.south + area.north) / 2
    (x,), (y,) = rasterio_transform('EPSG:4326', f'EPSG:{code}', [lon], [lat])
    assert window_gsd(crs, from_origin(x, y, *size), 0, 0, 8, 8) == pytest.approx(gsd, rel=1e-12)


def test_gsd_of_web_mercator_is_measured():
    (x,), (y,) = rasterio_transform('EPSG:4326', 'EPSG:3857', [10], [60])
    assert window_gsd(CRS(3857), from_origin(x, y, 10, 10), 0, 0, 1, 1) == pytest.approx(5, rel=0.01)


@pytest.mark.parametrize('lat', [0, 38, -60, 80])
def test_gsd_of_geographic_grids_is_measured_on_the_ellipsoid(lat):
    step, geod = 8.98e-5, Geod(ellps='WGS84')
    east = geod.inv(5 - step / 2, lat, 5 + step / 2, lat)[2]
    north = geod.inv(5, lat - step / 2, 5, lat + step / 2)[2]
    found = window_gsd(CRS(4326), from_origin(5 - 50 * step, lat + 50 * step, step, step), 0, 0, 100, 100)
    assert found == pytest.approx(math.sqrt(east * north), rel=1e-6)


def test_gsd_at_38_degrees_north_is_between_10_and_7_9():
    assert window_gsd(CRS(4326), from_origin(0, 38, 8.98e-5, 8.98e-5), 0, 0, 1, 1) == pytest.approx(
        math.sqrt(10 * 7.9), rel=5e-3
    )


@given(st.floats(0, 360), st.floats(0.1, 100), st.floats(0.1, 100))
def test_gsd_does_not_turn_with_the_grid(angle, width, height):
    transform = Affine.translation(500_000, 4_600_000) @ Affine.rotation(angle) @ Affine.scale(width, -height)
    assert window_gsd(CRS(32630), transform, 0, 0, 1, 1) == pytest.approx(math.sqrt(width * height))


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_apply_is_rasterios_xy(x, y):
    transform = Affine.translation(500_000, 4_600_000) @ Affine.rotation(30) @ Affine.scale(10, -10)
    assert apply(transform, x, y) == pytest.approx(transform @ (x, y))


def test_ground_control_points_give_place_and_gsd(write_raster):
    north_up = from_origin(500_000, 4_600_000, 10, 10)
    points = [GroundControlPoint(r, c, *(north_up @ (c, r))) for r, c in ((0, 0), (0, 50), (40, 0), (40, 50))]
    path = write_raster(crs=None, transform=None, gcps=(points, rasterio.CRS.from_epsg(32630)))
    scene = scan_scene(path, NAIP)
    assert tuple(scene.transform) == pytest.approx(tuple(north_up))
    assert scene.gsd(0, 0, 40, 50) == pytest.approx(10)
    (lon,), (lat,) = rasterio_transform('EPSG:32630', 'EPSG:4326', [500_250], [4_599_800])
    assert scene.place(0, 0, 40, 50) == pytest.approx((lat, lon), abs=1e-7)


def test_rotated_grids_keep_place_and_gsd(write_raster):
    transform = Affine.translation(500_000, 4_600_000) @ Affine.rotation(33) @ Affine.scale(10, -10)
    path = write_raster(transform=transform)
    scene = scan_scene(path, NAIP)
    with rasterio.open(path) as file:
        x, y = file.xy(9.5, 19.5)  # rasterio counts from the pixel's centre
    (lon,), (lat,) = rasterio_transform('EPSG:32630', 'EPSG:4326', [x], [y])
    assert scene.place(0, 0, 20, 40) == pytest.approx((lat, lon), abs=1e-9)
    assert scene.gsd(0, 0, 20, 40) == pytest.approx(10)
    assert np.isfinite(scene.place(-100, -100, 8, 8)).all()


LOCAL = 'LOCAL_CS["site",UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
UTM = rasterio.CRS.from_epsg(32630)


def gcps(points, crs=UTM):
    return {'crs': None, 'transform': None, 'gcps': ([GroundControlPoint(*p) for p in points], crs)}


@pytest.mark.parametrize(
    ('profile', 'reason'),
    [
        ({'transform': None}, 'it has a CRS but no geotransform'),
        ({'transform': Affine(1, 0, 0, 0, -1, 0)}, 'no geotransform'),
        ({'transform': Affine(0, 0, 500_000, 0, 0, 4_600_000)}, 'its pixels have no area'),
        ({'transform': Affine(10, 10, 500_000, 10, 10, 4_600_000)}, 'its pixels have no area'),
        ({'transform': Affine(math.nan, 0, 500_000, 0, -10, 4_600_000)}, 'not finite'),
        ({'transform': Affine(10, 0, math.inf, 0, -10, 4_600_000)}, 'not finite'),
        ({'crs': rasterio.CRS.from_wkt(LOCAL)}, "its CRS 'site' is local"),
        ({'crs': 'EPSG:4326'}, 'in degrees, but its corners reach longitude 500500 and latitude 4.6e'),
        ({'transform': from_origin(5e8, 4_600_000, 10, 10)}, "its center lies where its CRS"),
        (gcps([(0, 0, 500_000, 4_600_000)]), 'its 1 ground control points lie on one line'),
        (gcps([(i, i, 500_000 + i, 4_600_000 - i) for i in range(9)]), 'its 9 ground control points lie on one line'),
        (gcps([(r, c, 5e5, 46e5) for r, c in ((0, 0), (0, 50), (40, 0))]), 'its pixels have no area'),
        (gcps([(r, c, math.nan, 46e5) for r, c in ((0, 0), (0, 50), (40, 0))]), 'are not all finite'),
    ],
)  # fmt: skip
def test_no_place_on_earth_is_as_no_crs(write_raster, profile, reason):
    path = write_raster(**profile)
    with pytest.raises(SceneError, match=rf'scene\.tif: .*{reason}.*, so there are no meters: give gsd='):
        scan_scene(path, NAIP)
    scene = scan_scene(path, NAIP, gsd=10)
    assert scene.crs is None
    assert all(math.isnan(v) for v in scene.place(0, 0, 8, 8))
    assert reason.split(' ')[0] in scene.remarks[0]
    good = write_raster('good.tif')
    with pytest.warns(UserWarning, match='left out 1 of 2 files'):
        assert [s.path for s in SensorRaster([path, good], 'naip').scenes] == [str(good)]


def test_global_grids_of_pixel_centers_are_places(write_raster):
    path = write_raster(crs='EPSG:4326', transform=from_origin(-180.5, 90.5, 7.22, 4.525))
    assert scan_scene(path, NAIP).crs is not None


def test_control_points_across_the_antimeridian(write_raster):
    points = [(r, c, (179.9 + 0.01 * c + 180) % 360 - 180, 10 - 0.01 * r) for r in (0, 20, 40) for c in (0, 25, 50)]
    scene = scan_scene(write_raster(**gcps(points, rasterio.CRS.from_epsg(4326))), NAIP)
    assert tuple(scene.transform)[:6] == pytest.approx((0.01, 0, 179.9, 0, -0.01, 10))
    assert scene.place(0, 0, 40, 50) == pytest.approx((9.8, -179.85))
    assert not [r for r in scene.remarks if 'control points' in r]


def test_control_points_off_the_affine_are_reported(write_raster):
    points = [
        (r, c, 500_000 + 10 * c + (300 if r == c == 40 else 0), 4_600_000 - 10 * r) for r in (0, 40) for c in (0, 40)
    ]
    scene = scan_scene(write_raster(**gcps(points)), NAIP)
    assert '4 ground control points are up to 5 pixels from the affine' in scene.remarks[0]
    with pytest.warns(UserWarning, match=r'naip: please check\n  .*scene\.tif: its 4 ground control points'):
        SensorRaster(scene.path, 'naip')


def test_a_window_larger_than_the_scene_has_the_place_and_gsd_of_the_scene(write_raster):
    path = write_raster(crs='EPSG:4326', transform=from_origin(10, 60, 0.001, 0.001), pixels=np.ones((4, 40, 50), 'u1'))
    scene = scan_scene(path, NAIP)
    assert scene.inside(0, 0, 256, 256) == (0, 0, 40, 50)
    assert scene.place(0, 0, 256, 256) == scene.place(0, 0, 40, 50) == pytest.approx((59.98, 10.025))
    assert scene.gsd(0, 0, 256, 256) == scene.gsd(0, 0, 40, 50)
    assert scene.inside(-8, 45, 16, 16) == (0, 45, 8, 5)


def test_a_gsd_far_from_the_sensors_is_reported(write_raster):
    linz = get_sensor('linz')
    path = write_raster(
        pixels=np.ones((3, 8, 8), 'u1'), descriptions=('R', 'G', 'B'), transform=from_origin(5e5, 46e5, 118, 118)
    )
    with pytest.warns(UserWarning, match=r"pixels measure 118 m, far from linz's 0\.5 m"):
        SensorRaster(path, linz)


@pytest.mark.real_data
def test_a_crs_without_a_geotransform_is_refused(cases):
    (path,) = (cases / '5-no-transform').rglob('*.tif')
    with pytest.raises(SceneError, match=r'has a CRS but no geotransform.*gsd='):
        scan_scene(path, get_sensor('sentinel-2-l2a'))
    assert math.isnan(scan_scene(path, get_sensor('sentinel-2-l2a'), gsd=10).place(0, 0, 8, 8)[0])


@pytest.mark.real_data
def test_ground_range_images_of_sentinel_1_have_place_hour_and_reports(cases):
    (path,) = (cases / '6-s1-grd').rglob('*.tiff')
    scene = scan_scene(path, get_sensor('sentinel-1-rtc'), ['vh'])
    with rasterio.open(path) as file:
        points, crs = file.gcps
    assert scene.crs == crs
    pixels, ground = [(p.col, p.row, 1) for p in points], [(p.x, p.y) for p in points]
    fitted = np.linalg.lstsq(pixels, ground)[0].T.ravel()
    assert tuple(scene.transform)[:6] == pytest.approx(tuple(fitted), rel=1e-6, abs=1e-9)
    assert scene.time == datetime(2023, 8, 9, 2, 7, 29, tzinfo=UTC).timestamp()
    assert any(r.startswith("its tags or name say 'grd'") for r in scene.remarks)
    assert any('expected decibels' in r for r in scene.remarks)


@pytest.mark.real_data
def test_modis_smaller_than_a_chip_has_its_own_center(real_data):
    scene = scan_scene(real_data / 'modis/MOD09A1_A2017193_h18v04_crop.tif', get_sensor('modis'))
    with rasterio.open(scene.path) as file:
        x, y = file.transform @ (file.width / 2, file.height / 2)
        (lon,), (lat,) = rasterio_transform(file.crs, 'EPSG:4326', [x], [y])
    assert scene.place(0, 0, 256, 256) == pytest.approx((lat, lon), abs=1e-6)
