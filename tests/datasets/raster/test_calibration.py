# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A file's numbers in its sensor's units: by tags, products and values, with a word about each file."""

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from torchgeo_clay.datasets import SceneError, SensorRaster, scan_scene
from torchgeo_clay.sensors import get_sensor

S2, L2, L1, S1, MODIS = (
    get_sensor(name) for name in ('sentinel-2-l2a', 'landsat-c2l2-sr', 'landsat-c2l1', 'sentinel-1-rtc', 'modis')
)
RNG = np.random.default_rng(3)


def reflectance(sensor, shape=(80, 80)):
    """Reflectance of land with some water: (C, H, W), from 0.005 on."""
    land = 0.05 + 0.25 * RNG.random((len(sensor), *shape))
    land[:, :20] = 0.005 + 0.02 * RNG.random((len(sensor), 20, shape[1]))
    return land


@pytest.fixture
def write(write_raster):
    """Write the bands of a sensor, with GDAL's scale and offset."""

    def write(sensor, pixels, name='scene.tif', tags=None, scale=None, offset=None):
        grid = from_origin(500_000, 4_600_000, sensor.gsd, sensor.gsd)
        path = write_raster(name, pixels, descriptions=[b.names[1] for b in sensor.bands], tags=tags, transform=grid)
        if scale is not None:
            with rasterio.open(path, 'r+') as file:
                file.scales, file.offsets = (scale,) * len(sensor), (offset or 0,) * len(sensor)
        return path

    return write


def image(path, sensor, **options):
    raster = SensorRaster(path, sensor, **options)
    return raster.patch(0, 0, 0, (80, 80))['image'].numpy()


@pytest.mark.parametrize(
    ('tags', 'name', 'scale', 'offset'),
    [
        ({'REFLECTANCE_SCALE': '0.0001', 'REFLECTANCE_OFFSET_DN': '-1000'}, 'a.tif', None, None),
        ({'REFLECTANCE_OFFSET_DN': '-1000'}, 'a.tif', None, None),
        ({'PROCESSING_BASELINE': '05.09'}, 'a.tif', None, None),
        ({}, 'S2A_MSIL2A_20221005T115411_N0400_R023_T29UNU_20221005T180000.tif', None, None),
        ({}, 'a.tif', 1e-4, -0.1),
    ],
)
def test_the_offset_of_sentinel_2_is_taken_off_per_file_and_said(write, caplog, tags, name, scale, offset):
    numbers = (reflectance(S2) * 10000).round()
    old = write(S2, numbers.astype(np.uint16), 'S2A_MSIL2A_20170729T154911_N0205_R054_T19UDP_20170729T154949.tif')
    new = write(S2, (numbers + 1000).astype(np.uint16), name, tags, scale, offset)
    raster = SensorRaster([old, new], S2)
    for i in range(2):
        np.testing.assert_array_equal(raster.patch(i, 0, 0, (80, 80))['image'].numpy(), numbers)
    assert f'converted by 1 * x + -1000: {new}' in caplog.text
    assert old.name not in caplog.text.partition('converted')[2].partition('\n')[0]


@pytest.mark.parametrize('tags', [{'PROCESSING_BASELINE': '05.09'}, {'REFLECTANCE_OFFSET_DN': '-1000'}])
def test_an_offset_that_is_off_already_is_not_taken_off_twice(write, tags):
    numbers = (reflectance(S2) * 10000).astype(np.uint16)
    with pytest.warns(UserWarning, match=r'scene\.tif: .*the offset is off already'):
        np.testing.assert_array_equal(image(write(S2, numbers, tags=tags), S2), numbers)
    np.testing.assert_array_equal(
        image(write(S2, numbers, tags={**tags, 'COLLECTION': 'S2_SR_HARMONIZED'}), S2), numbers
    )


def test_what_the_user_says_counts(write, caplog):
    numbers = (reflectance(S2) * 10000 + 1000).astype(np.uint16)
    path = write(S2, numbers, tags={'PROCESSING_BASELINE': '04.00'})
    np.testing.assert_array_equal(image(path, S2, offset=-1000), numbers.astype(np.float32) - 1000)
    with pytest.warns(UserWarning, match=r'scene\.tif: .*offset=-1000'):
        assert image(path, S2, offset=0).dtype == np.uint16
    assert 'converted' not in caplog.text
    fractions = write(S2, reflectance(S2).astype(np.float32), 'fractions.tif')
    with pytest.warns(UserWarning, match=r'fractions\.tif: .*expected values .* in bands blue, .* scale=10000'):
        image(fractions, S2)
    assert 50 <= image(fractions, S2, scale=10000).min() < image(fractions, S2, scale=10000).max() <= 3000


@pytest.mark.parametrize(
    ('sensor', 'factor', 'summand'), [(L2, 2.75e-5, -0.2), (L1, 2e-5, -0.1), (MODIS, 1e-4, 0), (S2, 1e-4, 0)]
)
def test_scale_tags_lead_to_the_sensors_units(write, caplog, sensor, factor, summand):
    share = reflectance(sensor)
    same = write(sensor, ((share - summand) / factor).round().astype(np.uint16), 'same.tif', None, factor, summand)
    assert image(same, sensor).dtype == np.uint16
    assert 'converted' not in caplog.text
    path = write(sensor, (share * 20000).round().astype(np.int16), 'other.tif', None, 5e-5)
    np.testing.assert_allclose(image(path, sensor), (share - summand) / factor, atol=2e-4 / factor)
    assert f'converted by {5e-5 / factor:g} * x' in caplog.text


def test_scaled_decibels(write, caplog):
    decibels = -25 + 15 * RNG.random((2, 80, 80))
    path = write(S1, (decibels * 100).round().astype(np.int16), scale=0.01)
    np.testing.assert_allclose(image(path, S1), decibels, atol=0.01)
    assert 'its scale 0.01 and offset 0: converted by 0.01 * x' in caplog.text


def test_scale_tags_that_lead_elsewhere_are_not_applied(write):
    numbers = (reflectance(S2) * 10000).astype(np.uint16)
    with pytest.warns(
        UserWarning, match=r'scene\.tif: its numbers are sentinel-2-l2a already, so that its scale 1e-08'
    ):
        np.testing.assert_array_equal(image(write(S2, numbers, scale=1e-8), S2), numbers)


def test_hls_of_landsat_is_converted(write, caplog):
    share = reflectance(L2)
    path = write(L2, (share * 10000).round().astype(np.int16), 'HLS.L30.T14RNV.2020289T165958.v2.0.tif')
    np.testing.assert_allclose(image(path, L2), (share + 0.2) / 2.75e-5, atol=5)
    assert 'HLS L30, reflectance times 10000: converted by 3.63636 * x + 7272.73' in caplog.text


def test_hls_of_sentinel_2_is_on_its_scale(write, caplog):
    numbers = (reflectance(S2) * 10000).astype(np.int16)
    tags = {'HLS_PROCESSING_TIME': '2022-05-27', 'SPACECRAFT_NAME': 'Sentinel-2B', 'PROCESSING_BASELINE': '4.0'}
    np.testing.assert_array_equal(image(write(S2, numbers, tags=tags), S2), numbers)
    assert 'HLS S30, reflectance times 10000: taken as it is' in caplog.text


def test_hls_of_the_other_part_is_refused(write):
    numbers = (reflectance(S2) * 10000).astype(np.int16)
    path = write(S2, numbers, 'HLS.S30.T38PMB.2022145T072619.v2.0.tif')
    with pytest.raises(SceneError, match=r"HLS S30 .* give sensor='sentinel-2-l2a'"):
        scan_scene(path, L2, ['red', 'green', 'blue'])
    path = write(S2, numbers, 'HLS.L30.T38PMB.2022145T072619.v2.0.tif')
    with pytest.raises(SceneError, match=r"HLS L30 .* give sensor='landsat-c2l2-sr'"):
        scan_scene(path, S2)
    with pytest.raises(SceneError, match=r'expected the bands of HLS L30 .* got B08, B8A, B12'):
        scan_scene(path, L2, ['red', 'green', 'blue'])


def test_band_numbers_of_etm(write_raster):
    pixels = np.arange(1, 8, dtype=np.uint16)[:, None, None] * np.full((1, 40, 50), 1000, np.uint16) + 6000
    names = ('B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7')
    path = write_raster('LE07_L1TP_214066_19990805_20200918_02_T1.tif', pixels, names)
    assert scan_scene(path, L1).band_indexes == (3, 2, 1, 4, 5, 7)
    path = write_raster('LC08_L1TP_214066_20190805_20200918_02_T1.tif', pixels, names)
    assert scan_scene(path, L1).band_indexes == (4, 3, 2, 5, 6, 7)


def test_reflectance_that_still_carries_the_tags_of_digital_numbers(write, caplog):
    share = reflectance(L2).astype(np.float32)
    path = write(L2, share, tags={'REFLECTANCE_SCALE': '0.0001'}, scale=1e-4)
    with pytest.warns(
        UserWarning, match=r'scene\.tif: .*from 0 to 1\? Then read it with scale=36363\.6 and offset=7272'
    ):
        np.testing.assert_array_equal(image(path, L2), share)
    np.testing.assert_allclose(image(path, L2, scale=36363.6, offset=7272.73), (share + 0.2) / 2.75e-5, rtol=1e-5)
    path = write(L2, share, 'HLS.L30.T14RNV.2020289T165958.v2.0.tif')
    np.testing.assert_allclose(image(path, L2), (share + 0.2) / 2.75e-5, rtol=1e-5)
    assert 'HLS L30, reflectance from 0 to 1: converted by 36363.6 * x + 7272.73' in caplog.text
