# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

import multiprocessing
import subprocess
import sys
import threading
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS
from rasterio.transform import from_origin
from rasterio.warp import transform as rasterio_transform
from rasterio.warp import transform_bounds

from torchgeo_clay.datasets import SceneError, scan_scene
from torchgeo_clay.datasets.raster.dataset import read_window, read_window_on_grid
from torchgeo_clay.datasets.raster.files import Handles
from torchgeo_clay.sensors import get_sensor

NAIP = get_sensor('naip')
RNG = np.random.default_rng(7)


def read(path, *window, bands=None, **options):
    scene = scan_scene(path, NAIP, bands, **options)
    with rasterio.open(path) as file:
        return read_window(file, scene, *window)


@pytest.fixture(scope='module')
def reusable(tmp_path_factory):
    """A tiled file of 40 x 50 pixels, its bands out of order, and its pixels in order."""
    pixels = RNG.integers(0, 3000, (4, 40, 50)).astype(np.uint16)
    path = tmp_path_factory.mktemp('reading') / 'scene.tif'
    grid = {'crs': 'EPSG:32630', 'transform': from_origin(5e5, 4.6e6, 10, 10), 'height': 40, 'width': 50}
    with rasterio.open(path, 'w', count=4, dtype='uint16', tiled=True, blockxsize=16, blockysize=16, **grid) as file:
        file.write(pixels[[3, 0, 1, 2]])
        file.descriptions = ('nir', 'red', 'green', 'blue')
    return scan_scene(path, NAIP), pixels


@settings(max_examples=60, deadline=None)
@given(st.integers(-60, 60), st.integers(-60, 60), st.integers(1, 70), st.integers(1, 70))
def test_windows_are_slices_of_the_whole(reusable, row, col, height, width):
    scene, whole = reusable
    margin = 140
    padded = np.pad(whole, ((0, 0), (margin, margin), (margin, margin)))
    inside = np.pad(np.ones((1, 40, 50), bool), ((0, 0), (margin, margin), (margin, margin)))
    window = np.s_[:, margin + row : margin + row + height, margin + col : margin + col + width]
    with rasterio.open(scene.path) as file:
        pixels, valid = read_window(file, scene, row, col, height, width)
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, padded[window])
    np.testing.assert_array_equal(valid, inside[window])


@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'uint16', 'int32', 'float32', 'float64'])
@pytest.mark.parametrize('profile', [{}, {'tiled': True, 'blockxsize': 16, 'blockysize': 16, 'compress': 'deflate'}])
def test_pixels_keep_dtype_and_value(write_raster, dtype, profile):
    whole = RNG.integers(1, 120, (4, 40, 50)).astype(dtype)
    path = write_raster(pixels=whole, **profile)
    pixels, valid = read(path, 3, 5, 20, 30)
    assert pixels.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(pixels, whole[:, 3:23, 5:35])
    assert valid.all()
    assert valid.shape == (1, 20, 30)


def test_bands_are_read_in_the_order_asked(write_raster):
    path = write_raster()
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(read(path, 0, 0, 40, 50, bands=['nir', 'green'])[0], file.read([4, 2]))


@pytest.mark.parametrize('nodata', [None, np.nan])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_invalid(write_raster, nodata, value):
    whole = RNG.random((4, 40, 50)).astype(np.float32)
    whole[1, 7, 9] = value
    pixels, valid = read(write_raster(pixels=whole, nodata=nodata), 0, 0, 40, 50)
    assert np.isfinite(pixels).all()
    assert (~valid).sum() == 1
    assert not valid[0, 7, 9]


def test_offset_is_added_to_valid_pixels_only(write_raster):
    whole = RNG.integers(900, 5000, (4, 8, 8)).astype(np.uint16)
    whole[:, 0, 0] = 0
    pixels, valid = read(write_raster(pixels=whole, nodata=0), -1, 0, 9, 8, offset=-1000)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels[:, 1:], np.where(valid[:, 1:], whole.astype(np.float32) - 1000, 0))
    assert pixels.min() < 0  # below zero is physical
    assert not pixels[:, 0].any()


def test_power_becomes_decibels(write_raster):
    whole = np.array([1.0, 0.1, 0.0, -0.5, np.nan, 20.0], np.float32).reshape(1, 2, 3).repeat(2, 0)
    path = write_raster(pixels=whole, descriptions=('VV', 'VH'))
    scene = scan_scene(path, get_sensor('sentinel-1-rtc'), to_db=True)
    with rasterio.open(path) as file:
        pixels, valid = read_window(file, scene, 0, 0, 2, 3)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[0].ravel(), [0, -10, -100, -100, 0, 13.0103], rtol=1e-6)
    assert valid.ravel().tolist() == [True, True, True, True, False, True]


@pytest.mark.parametrize('size', [(0, 8), (8, -1)])
def test_empty_windows_are_refused(write_raster, size):
    with pytest.raises(ValueError, match='at least 1 x 1'):
        read(write_raster(), 0, 0, *size)


def test_a_file_spoilt_after_scanning_is_named(write_raster):
    path = write_raster(compress='deflate', pixels=RNG.integers(0, 255, (4, 300, 300)).astype(np.uint8))
    scene = scan_scene(path, NAIP)
    content = bytearray(path.read_bytes())
    content[100_000:300_000] = bytes(200_000)
    path.write_bytes(content)
    with rasterio.open(path) as file, pytest.raises(SceneError, match=r'scene\.tif: not readable at rows 100 to 200'):
        read_window(file, scene, 100, 0, 100, 300)


@pytest.mark.parametrize('code', [32630, 32629, 4326, 3857])
def test_another_grid_gets_the_value_of_its_place(write_raster, code):
    # a plane, whose bilinear interpolation is known: 10 more per row and per column, counted at pixel centres
    plane = (np.add.outer(np.arange(120), np.arange(150)) * 10 + 500).astype(np.uint16)[None].repeat(4, 0)
    path = write_raster(pixels=plane)
    scene = scan_scene(path, NAIP)
    left, bottom, right, top = transform_bounds('EPSG:32630', f'EPSG:{code}', 500_305, 4_599_205, 500_905, 4_599_705)
    transform = from_origin(left, top, (right - left) / 30, (top - bottom) / 25)
    with rasterio.open(path) as file:
        pixels, valid = read_window_on_grid(file, scene, CRS(code), transform, 25, 30)
    rows, cols = np.mgrid[:25, :30]
    x, y = rasterio.transform.xy(transform, rows.ravel(), cols.ravel())
    x, y = map(np.array, rasterio_transform(f'EPSG:{code}', 'EPSG:32630', x, y))
    expected = ((x - 500_005) / 10 + (4_599_995 - y) / 10) * 10 + 500
    assert valid.all()
    # GDAL's warper is allowed an eighth of a pixel, in rows and in columns
    np.testing.assert_allclose(pixels[0].ravel(), expected, atol=2.5)


def test_another_grid_knows_what_is_valid(write_raster):
    whole = np.full((4, 40, 50), 7, np.uint8)
    whole[:, :, :20] = 0
    path = write_raster(pixels=whole, nodata=0)
    scene = scan_scene(path, NAIP)
    with rasterio.open(path) as file:
        grid = from_origin(500_003, 4_600_000, 10, 10)
        pixels, valid = read_window_on_grid(file, scene, CRS(32630), grid, 40, 80)
        far = read_window_on_grid(file, scene, CRS(32630), from_origin(0, 0, 10, 10), 4, 4)
    assert not valid[0, :, :19].any()
    assert valid[0, :, 21:49].all()
    assert not valid[0, :, 51:].any()
    assert set(np.unique(pixels[:, valid[0]])) == {7}  # no fill value is mixed in
    assert not far[1].any()


def test_handles_are_bounded(write_raster):
    paths = [str(write_raster(f'{i}.tif')) for i in range(5)]
    handles = Handles(limit=2)
    first = handles(paths[0])
    assert handles(paths[0]) is first
    handles(paths[1])
    handles(paths[0])
    handles(paths[2])
    assert len(handles) == 2
    assert handles(paths[0]) is first  # the least recently used went
    handles.close()
    assert first.closed
    assert len(handles) == 0
    with pytest.raises(ValueError, match='limit'):
        Handles(limit=0)


def test_handles_do_not_travel(write_raster):
    path = str(write_raster())
    handles = Handles()
    mine = handles(path)
    assert len(ForkingPickler.loads(ForkingPickler.dumps(handles))) == 0
    others = []
    thread = threading.Thread(target=lambda: others.append(handles(path)))
    thread.start()
    thread.join()
    assert others[0] is not mine


def _in_child(handles, path, mine, queue):
    before = len(handles)
    opened = handles(path)
    queue.put((before, opened is mine, int(opened.read(1)[0, 0])))


@pytest.mark.filterwarnings('ignore:.*multi-threaded, use of fork:DeprecationWarning')
def test_a_forked_worker_opens_its_own(write_raster):
    path = str(write_raster())
    handles = Handles()
    mine = handles(path)
    context = multiprocessing.get_context('fork')
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(handles, path, mine, queue))
    child.start()
    child.join(60)
    assert queue.get() == (0, False, int(mine.read(1)[0, 0]))


def test_nothing_is_open_when_the_interpreter_ends(write_raster):
    script = (
        'import atexit, sys\n'
        'open_files = []\n'
        'atexit.register(lambda: print([file.closed for file in open_files]))\n'  # registered first, called last
        'from torchgeo_clay.datasets.raster.files import Handles\n'
        'handles, gone = Handles(), Handles()\n'
        'open_files += [handles(sys.argv[1]), gone(sys.argv[1])]\n'
        'del gone\n'
        'print(*[file.closed for file in open_files])\n'
    )
    run = subprocess.run([sys.executable, '-c', script, write_raster()], capture_output=True, text=True, check=True)
    assert run.stdout.split('\n')[:2] == ['False True', '[True, True]']
    assert run.stderr == ''
