# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Real files whose values or validity once went wrong without a word."""

import os
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import rasterio.warp

from torchgeo_clay.datamodules import SceneDataModule
from torchgeo_clay.datasets import SensorRaster, scan_scene
from torchgeo_clay.sensors import get_sensor

pytestmark = pytest.mark.real_data


def only(folder, pattern='*.tif'):
    (path,) = folder.rglob(pattern)
    return path


def read(path, sensor, **options):
    """A scene's pixels and which are valid."""
    raster = SensorRaster(path, sensor, **options)
    sample = raster.patch(0, 0, 0, (raster.scenes[0].height, raster.scenes[0].width))
    return sample['image'].numpy(), sample['valid'][0].numpy()


UNITS = {
    'landsat-c2l2-sr/LS5_TM_NBAR_19920323.tif': r'expected values around .* in bands red, .* HLS or Collection 1',
    'sentinel-2-l2a/reflectance_0_to_1.tif': r'expected values around .* in bands blue, .* scale=10000',
    'sentinel-1-rtc/linear_power.tif': r'expected decibels around .* in bands vv, vh\. .* to_db=True',
}


@pytest.mark.parametrize('name', UNITS)
@pytest.mark.parametrize('way', [lambda path, sensor: SensorRaster(path, sensor), lambda path, sensor: predict(path)])
def test_wrong_units_are_named_per_scene(cases, name, way):
    path = cases / '1-units' / name
    with pytest.warns(UserWarning, match=rf'(?s){path.name}: .*{UNITS[name]}'):
        way(path, path.parent.name)


def predict(path, **options):
    """Look at a scene as prediction does."""
    data = SceneDataModule(str(path), chip=64, **options)
    data.setup('predict')
    return data


def test_the_remedies_are_right(cases):
    units = cases / '1-units'
    path = units / 'sentinel-2-l2a/reflectance_0_to_1.tif'
    with rasterio.open(path) as file:
        expected = file.read() * 10000
    np.testing.assert_allclose(read(path, 'sentinel-2-l2a', scale=10000)[0], expected, rtol=1e-6)
    path = units / 'sentinel-1-rtc/linear_power.tif'
    with rasterio.open(path) as file:
        expected = 10 * np.log10(file.read())
    np.testing.assert_allclose(read(path, 'sentinel-1-rtc', to_db=True)[0], expected, rtol=1e-5)
    path = units / 'landsat-c2l2-sr/LS5_TM_NBAR_19920323.tif'
    converted = read(path, 'landsat-c2l2-sr', scale=3.63636, offset=7272.73)[0]
    with rasterio.open(path) as file:
        reflectance = file.read([3, 2, 1, 4, 5, 6]) * 1e-4
    np.testing.assert_allclose(converted * 2.75e-5 - 0.2, reflectance, atol=1e-4)


_SEEN = """
import sys
from torchgeo_clay.datasets import SensorRaster
for path in sys.argv[1:]:
    raster = SensorRaster(path, 'linz')
    scene = raster.scenes[0]
    sample = raster.patch(0, 0, 0, (scene.height, scene.width))
    print(int(sample['valid'].sum()), round(float(sample['lat']), 6), round(float(sample['lon']), 6))
"""


def test_what_lies_beside_a_file_is_seen_as_torchgeos_command_runs(cases):
    paths = [str(cases / '2-sidecars/linz' / name) for name in ('hro_extmask.tif', 'worldfile.png')]
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', _SEEN, *paths],
        env={**os.environ, 'GDAL_DISABLE_READDIR_ON_OPEN': 'EMPTY_DIR'}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for path, line in zip(paths, run.stdout.splitlines(), strict=True):
        with rasterio.open(path) as file:
            valid = (file.dataset_mask() > 0).sum()
            x, y = file.transform @ (file.width / 2, file.height / 2)
            ((lon,), (lat,)) = rasterio.warp.transform(file.crs, 'EPSG:4326', [x], [y])
        assert [float(value) for value in line.split()] == pytest.approx([valid, lat, lon], abs=2e-6)
        assert valid < file.width * file.height or path.endswith('.png')


def test_etm_has_its_own_band_numbers(cases):
    path = only(cases / '4-landsat-tm')
    scene = scan_scene(path, get_sensor('landsat-c2l1'))
    with rasterio.open(path) as file:
        names = [file.descriptions[i - 1] for i in scene.band_indexes]
    assert dict(zip(scene.sensor.band_names, names, strict=True)) == {
        'red': 'B3', 'green': 'B2', 'blue': 'B1', 'nir08': 'B4', 'swir16': 'B5', 'swir22': 'B7',
    }  # fmt: skip
    assert any('level 1 of Landsat 4, 5 or 7' in remark for remark in scene.remarks)


@pytest.mark.filterwarnings('ignore:.*please check:UserWarning')
def test_zeros_outside_the_swath_are_no_data(cases):
    path = only(cases / '7-zero-fill')
    with rasterio.open(path) as file:
        expected = (file.read() != 0).any(axis=0)
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(read(path, 'sentinel-2-l2a')[1], expected)


@pytest.mark.filterwarnings('ignore:.*please check:UserWarning')
@pytest.mark.parametrize(('sensor', 'bands'), [('linz', None), ('naip', ['red', 'green', 'blue'])])
def test_alpha_is_a_mask(cases, sensor, bands):
    path = only(cases / '8-colorinterp')
    pixels, valid = read(path, sensor, bands=bands)
    with rasterio.open(path) as file:
        whole = file.read()
    np.testing.assert_array_equal(valid, whole[3] > 0)
    np.testing.assert_array_equal(pixels, np.where(valid, whole[:3], 0))


def test_alpha_is_no_infrared(cases):
    with pytest.raises(ValueError, match=r'rgba\.tif: .*nir'):
        SensorRaster(only(cases / '8-colorinterp'), 'naip')


@pytest.mark.parametrize('sensor', ['sentinel-2-l2a', None])
def test_hls_is_told_apart(cases, sensor, caplog):
    path = only(cases / '9-hls')
    data = predict(path, sensor=sensor)
    assert list(data.rasters) == ['sentinel-2-l2a']
    assert f'HLS S30, its scale 0.0001 and offset 0: taken as it is: {path}' in caplog.text
    with rasterio.open(path) as file:
        sample = data.rasters['sentinel-2-l2a'].patch(0, 0, 0, (48, 48))
        np.testing.assert_array_equal(sample['image'].numpy(), file.read())


def test_hls_of_landsat_is_converted(real_data, caplog):
    path = real_data / 'landsat/HLS_L30_texas_224px.tif'
    pixels, valid = read(path, 'landsat-c2l2-sr', bands=['red', 'nir08'])
    assert f'converted by 3.63636 * x + 7272.73: {path}' in caplog.text
    with rasterio.open(path) as file:
        reflectance = file.read([4, 5]) * 1e-4
    np.testing.assert_allclose((pixels * 2.75e-5 - 0.2)[:, valid], reflectance[:, valid], atol=1e-5)


def test_the_baseline_of_a_real_scene(real_data, caplog):
    path = real_data / 'sentinel2/S2A_MSIL2A_20221005T115411_N0400_T29UNU_60m_crop.tif'
    pixels, valid = read(path, 'sentinel-2-l2a', bands=['red', 'swir16'])
    with rasterio.open(path) as file:
        expected = file.read([4, 10]).astype(np.float32) - 1000
    np.testing.assert_array_equal(pixels, np.where(valid, expected, 0))
    assert f'converted by 1 * x + -1000: {path}' in caplog.text
