# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The sample of pixels that a scene is judged by."""

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling

from torchgeo_clay.datasets import SceneError, scan_scene
from torchgeo_clay.datasets.raster.validity import Validity, check_complete, read_sample
from torchgeo_clay.sensors import get_sensor

LINZ = get_sensor('linz')
TILES = {'tiled': True, 'blockxsize': 256, 'blockysize': 256}


@pytest.fixture
def large(write_raster):
    """Write 1300 x 1400 pixels whose first band counts 100 x 100 squares; the left half holds no data."""

    def write(**profile):
        rows, cols = np.indices((1300, 1400)) // 100
        squares = (1 + rows * 14 + cols).astype(np.uint8)
        squares[:, :700] = 0
        return write_raster(pixels=np.stack([squares] * 3), descriptions=('R', 'G', 'B'), compress='deflate', **profile)

    return write


@pytest.mark.parametrize('profile', [TILES, {}, {**TILES, 'interleave': 'band'}])
def test_blocks_all_over_a_large_scene(large, profile):
    with rasterio.open(large(**profile)) as file:
        pixels, valid = read_sample(file, (3, 1), Validity((0.0, 0.0)), 'uint8')
    assert pixels.shape == (2, 1, valid.shape[2])
    assert 1000 < valid.shape[2] <= 1 << 15
    assert valid.all()
    assert len(np.unique(pixels)) > 30  # of 91 squares with data
    assert pixels.min() > 0


def test_overviews_of_a_large_scene(large):
    path = large()
    with rasterio.open(path, 'r+') as file:
        file.build_overviews([4], Resampling.nearest)
    with rasterio.open(path) as file:
        pixels, _ = read_sample(file, (1,), Validity((0.0,)), 'uint8')
    assert len(np.unique(pixels)) == 91


def test_a_scene_without_data(write_raster):
    path = write_raster(pixels=np.zeros((3, 40, 50), np.uint8), descriptions=('R', 'G', 'B'), nodata=0)
    with rasterio.open(path) as file:
        check_complete(file)
        assert read_sample(file, (1, 2, 3), Validity((0.0,) * 3), 'uint8')[0].shape == (3, 1, 0)
    assert not any('expected' in remark for remark in scan_scene(path, LINZ).remarks)


def test_a_block_that_is_damaged(write_raster):
    pixels = np.random.default_rng(0).integers(1, 255, (3, 300, 300)).astype(np.uint8)
    path = write_raster(pixels=pixels, descriptions=('R', 'G', 'B'), compress='deflate')
    content = bytearray(path.read_bytes())
    content[50_000:100_000] = bytes(50_000)
    path.write_bytes(content)
    with pytest.raises(SceneError, match=r'scene\.tif: not readable at rows \d+ to \d+, .* truncated or damaged'):
        scan_scene(path, LINZ)
