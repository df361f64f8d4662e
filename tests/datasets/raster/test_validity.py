# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Which pixels are data, against GDAL's own masks."""

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from torchgeo_clay.datasets import SceneError, SensorRaster, scan_scene
from torchgeo_clay.datasets.raster.dataset import read_window
from torchgeo_clay.sensors import get_sensor

NAIP, LINZ, S2 = (get_sensor(name) for name in ('naip', 'linz', 'sentinel-2-l2a'))
RGB = ('red', 'green', 'blue')
RNG = np.random.default_rng(7)


def read(path, sensor=NAIP, bands=None, **options):
    """All pixels of a scene, and which are valid (H, W)."""
    scene = scan_scene(path, sensor, bands, **options)
    with rasterio.open(path) as file:
        pixels, valid = read_window(file, scene, 0, 0, scene.height, scene.width)
    return pixels, valid[0]


@pytest.mark.parametrize(('dtype', 'nodata'), [('uint8', 0), ('uint8', 255), ('uint16', 0)])
def test_nodata_is_no_data_where_all_bands_have_it(write_raster, dtype, nodata):
    whole = RNG.integers(1, 200, (4, 40, 50)).astype(dtype)
    whole[2, 4, 6] = whole[:, 10, 20] = nodata
    path = write_raster(pixels=whole, nodata=nodata, photometric='MINISBLACK')
    pixels, valid = read(path)
    assert np.argwhere(~valid).tolist() == [[10, 20]]
    np.testing.assert_array_equal(pixels, np.where(valid, whole, 0))
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(valid, file.dataset_mask() > 0)


def test_all_bands_of_the_sensor_count_also_those_not_asked_for(write_raster):
    whole = np.full((4, 8, 8), 5, np.uint8)
    whole[0, 2, 2] = whole[:, 4, 4] = 0
    path = write_raster(pixels=whole, nodata=0)
    assert np.argwhere(~read(path, bands=['red'])[1]).tolist() == [[4, 4]]


@pytest.mark.parametrize(('dtype', 'nodata'), [('int16', -28672), ('uint16', 65535), ('float32', -9999)])
def test_a_fill_value_that_is_no_measurement_counts_in_any_band(write_raster, dtype, nodata):
    whole = RNG.integers(1, 120, (4, 40, 50)).astype(dtype)
    whole[2, 4, 6] = whole[:, 10, 20] = nodata
    pixels, valid = read(write_raster(pixels=whole, nodata=nodata, photometric='MINISBLACK'))
    assert np.argwhere(~valid).tolist() == [[4, 6], [10, 20]]
    assert not pixels[:, 4, 6].any()


@pytest.mark.parametrize('sensor', ['sentinel-2-l2a', 'landsat-c2l1', 'landsat-c2l2-sr'])
def test_untagged_zeros_of_swaths_are_no_data(write_raster, sensor):
    sensor = get_sensor(sensor)
    whole = RNG.integers(6000, 9000, (len(sensor), 40, 50)).astype(np.uint16)
    whole[:, :10] = 0
    whole[1, 20:] = 0
    valid = read(write_raster(pixels=whole, descriptions=sensor.band_names), sensor)[1]
    np.testing.assert_array_equal(valid, np.arange(40)[:, None].repeat(50, 1) >= 10)


def test_zeros_of_other_sensors_are_data_until_nodata_says_otherwise(write_raster):
    whole = RNG.integers(1, 200, (4, 40, 50)).astype(np.uint8)
    whole[:, :10] = 0
    path = write_raster(pixels=whole)
    with pytest.warns(UserWarning, match=r'scene\.tif: 25\.0 % of the pixels are 0 in all bands .* give nodata=0'):
        assert SensorRaster(path, 'naip').patch(0, 0, 0, (40, 50))['valid'].all()
    assert read(path, nodata=0)[1].sum() == 30 * 50
    for nodata in (float('nan'), 'nan'):
        assert SensorRaster(path, 'naip', nodata=nodata).patch(0, 0, 0, (40, 50))['valid'].all()


def test_undeclared_fill_is_named(write_raster):
    sensor = get_sensor('modis')
    whole = RNG.integers(500, 3000, (7, 40, 50)).astype(np.int16)
    whole[:, :3] = -28672
    path = write_raster(pixels=whole, descriptions=sensor.band_names, transform=from_origin(5e5, 4.6e6, 463, 463))
    assert any('give nodata=-28672' in remark for remark in scan_scene(path, sensor).remarks)
    assert scan_scene(path, sensor, nodata=-28672).remarks == ()


@pytest.mark.parametrize('inside', [True, False])
def test_a_mask_in_the_file_or_beside_it(write_raster, inside):
    mask = np.full((40, 50), 255, np.uint8)
    mask[:5] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside):
        path = write_raster(mask=mask)
    assert path.with_name('scene.tif.msk').exists() is not inside
    # as TorchGeo's command sets it, which hides what lies beside a file
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN='EMPTY_DIR'):
        valid = SensorRaster(path, 'naip').patch(0, 0, 0, (40, 50))['valid']
    np.testing.assert_array_equal(valid[0].numpy(), mask > 0)


@pytest.mark.parametrize('count', [4, 5])
@pytest.mark.parametrize('nodata', [None, 255])
def test_alpha_masks_wherever_it_is(write_raster, count, nodata):
    whole = RNG.integers(1, 200, (count, 40, 50)).astype(np.uint8)
    whole[-1] = 255
    whole[-1, :7] = 0
    whole[:-1, 39] = 255
    colors = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined, ColorInterp.alpha]
    names = [*RGB, 'nir', None]
    del colors[3 : 8 - count], names[3 : 8 - count]
    path = write_raster(pixels=whole, descriptions=names, nodata=nodata, photometric='RGB')
    with rasterio.open(path, 'r+') as file:
        file.colorinterp = colors
    sensor = NAIP if count == 5 else LINZ
    scene = scan_scene(path, sensor)
    assert count not in scene.band_indexes
    expected = whole[-1] > 0
    expected[39] = nodata is None
    np.testing.assert_array_equal(read(path, sensor)[1], expected)


def test_infrared_called_alpha_masks_nothing(write_raster):
    whole = np.full((4, 8, 8), 5, np.uint8)
    whole[3, 0] = 0  # dark water in infrared
    path = write_raster(pixels=whole, photometric='RGB', alpha='YES')
    assert read(path)[1].all()
    assert read(path, bands=RGB)[1].all()


def test_values_that_no_sensor_measures(write_raster):
    whole = RNG.random((2, 40, 50)).astype(np.float32) * -20
    whole[1, 3, 3] = -3.4028235e38
    path = write_raster(pixels=whole, descriptions=('VV', 'VH'))
    with pytest.raises(SceneError, match=r'scene\.tif: .*band 2 holds -3.4028235e\+38.* give nodata=-3.4028235e\+38'):
        scan_scene(path, get_sensor('sentinel-1-rtc'))
    assert (~read(path, get_sensor('sentinel-1-rtc'), nodata=-3.4028235e38)[1]).sum() == 1
