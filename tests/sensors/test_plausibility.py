# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Units: silence on right acquisitions, a message with the remedy on wrong ones."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torch import Tensor

from torchgeo_clay.sensors import SENSORS, Band, Sensor, get_sensor
from torchgeo_clay.sensors.plausibility import UnitsCheck, check_units

S2, S1, NAIP, LANDSAT = (SENSORS[n] for n in ('sentinel-2-l2a', 'sentinel-1-rtc', 'naip', 'landsat-c2l2-sr'))

RIGHT = {
    'sentinel-2-l2a': ['sentinel2/terramesh_*_s2l2a.tif', 'sentinel2/bigearthnet_*.tif', 'multisensor*/*_s2l2a_*.tif'],
    'sentinel-1-rtc': ['sentinel1/*.tif', 'labelled/sen1floods11/*_s1.tif', 'multisensor*/*_s1grd_*.tif'],
    'naip': ['naip/*.tif', 'labelled/chesapeake_naip/*naip*.tif'],
    'linz': ['aerial_rgb/*.tif'],
    'modis': ['modis/*_crop.tif'],
    'landsat-c2l2-sr': ['landsat/LC08_L2SP_*_crop.tif'],
    'landsat-c2l1': ['landsat/L8_L1_Elkton_VA_30m.tif'],
}
OFFSET_SCENE = 'sentinel2/S2A_MSIL2A_20221005T115411_N0400_T29UNU_60m_crop.tif'


def read(path: Path, name: str) -> tuple[Tensor, Sensor, Tensor]:
    """The bands of a raster that a sensor knows, as (image, sensor of these bands, valid)."""
    sensor = get_sensor(name)
    with rasterio.open(path) as raster:
        found = {sensor.find(d): i for i, d in enumerate(raster.descriptions, 1) if d and sensor.find(d) is not None}
        order = sorted(found)
        indexes = [found[i] for i in order]
        image, valid = raster.read(indexes).astype('float32'), raster.read_masks(indexes) > 0
    chosen = sensor.select([sensor.band_names[i] for i in order])
    return torch.from_numpy(image), chosen, torch.from_numpy(valid)


def right_files(root: Path) -> list[tuple[str, Path]]:
    return [(name, path) for name, patterns in RIGHT.items() for p in patterns for path in sorted(root.glob(p))]


@pytest.mark.real_data
@pytest.mark.filterwarnings('ignore:Dataset has no geotransform:rasterio.errors.NotGeoreferencedWarning')  # Chesapeake
def test_silent_on_every_right_acquisition_and_its_chips(real_data: Path) -> None:
    # Snow, open water, forest, towns, cloud; whole and in chips of 64 and 112 pixels.
    files = right_files(real_data)
    assert {name for name, _ in files} == set(RIGHT)
    assert len(files) > 30
    for name, path in files:
        image, sensor, valid = read(path, name)
        assert check_units(image, sensor, valid) is None, path.name
        for size in (64, 112):
            for row in range(0, image.shape[1] - size + 1, size):
                for column in range(0, image.shape[2] - size + 1, size):
                    window = (..., slice(row, row + size), slice(column, column + size))
                    assert check_units(image[window], sensor, valid[window]) is None, (path.name, row, column)


@pytest.mark.real_data
def test_reflectance_in_place_of_digital_numbers(real_data: Path) -> None:
    for path in sorted(real_data.glob('sentinel2/terramesh_*_s2l2a.tif')):
        image, sensor, _ = read(path, S2.name)
        assert 'Is it reflectance from 0 to 1?' in (check_units(image / 10000, sensor) or ''), path.name
        if image.flatten(1).quantile(0.999, dim=1).max() <= 10000:  # snow goes beyond 100 %
            assert 'in percent? Then read it with scale=100.' in (check_units(image / 100, sensor) or ''), path.name
    image, sensor, _ = read(next(real_data.glob('naip/*.tif')), 'naip')
    assert 'scale=255' in (check_units(image / 255, sensor) or '')


@pytest.mark.real_data
def test_offset_of_the_60_m_scene(real_data: Path) -> None:
    image, sensor, valid = read(real_data / OFFSET_SCENE, S2.name)
    message = check_units(image, sensor, valid)
    assert message is not None
    assert 'offset=-1000' in message
    assert check_units(image - 1000, sensor, valid) is None
    assert 'offset=0' in (check_units(image - 2000, sensor, valid) or '')
    # Nodata of 0, unmarked, must not hide it.
    padded = torch.nn.functional.pad(image, (0, 50))
    assert 'offset=-1000' in (check_units(padded, sensor) or '')


@pytest.mark.real_data
def test_offset_of_every_scene_of_60_pixels(real_data: Path) -> None:
    files = [path for name, path in right_files(real_data) if name == S2.name]
    assert len(files) == 6
    for path in files:
        image, sensor, valid = read(path, S2.name)
        assert 'offset=-1000' in (check_units(image + 1000, sensor, valid) or ''), path.name


@pytest.mark.real_data
def test_linear_power_and_a_second_logarithm(real_data: Path) -> None:
    for path in sorted(real_data.glob('sentinel1/*.tif')):
        decibels, sensor, _ = read(path, S1.name)
        assert 'to_db=True' in (check_units(10 ** (decibels / 10), sensor) or ''), path.name
        again = 10 * torch.log10(decibels.clamp(min=1e-10))
        assert 'without to_db=True' in (check_units(again, sensor) or ''), path.name


@pytest.mark.real_data
def test_other_products_of_landsat(real_data: Path) -> None:
    for pattern in ('landsat/HLS_L30_texas_224px.tif', 'multisensor*/*_l8sr_*.tif'):
        for path in real_data.glob(pattern):
            image, sensor, valid = read(path, LANDSAT.name)
            assert 'HLS' in (check_units(image, sensor, valid) or ''), path.name
            converted = (image / 10000 + 0.2) / 2.75e-5
            assert check_units(converted, sensor, valid) is None, path.name


@pytest.mark.real_data
def test_a_sensor_in_the_place_of_another(real_data: Path) -> None:
    aerial, _, _ = read(real_data / 'aerial_rgb/NL_25cm_epsg28992_crop.tif', 'linz')
    rgb = S2.select(['red', 'green', 'blue'])
    assert 'picture of 8 bits' in (check_units(aerial, rgb) or '')
    decibels, _, _ = read(next(real_data.glob('sentinel1/*.tif')), S1.name)
    assert 'Is it in decibels?' in (check_units(decibels, S2.select(['red', 'nir'])) or '')
    image, _, _ = read(next(real_data.glob('sentinel2/terramesh_38D*_s2l2a.tif')), S2.name)
    assert 'Is it in 16 bits?' in (check_units(image[[2, 1, 0, 6]], NAIP) or '')
    assert 'Is it in 16 bits?' in (check_units(image[[2, 1, 0]], SENSORS['linz']) or '')


def drawn(sensor: Sensor, shape: tuple[int, ...] = (64, 64), seed: int = 0) -> Tensor:
    """Values with the sensor's statistics, (C, *shape)."""
    generator = np.random.default_rng(seed)
    columns = (-1,) + (1,) * len(shape)
    noise = generator.standard_normal((len(sensor), *shape)).clip(-1, 3) * 0.5
    return torch.from_numpy(np.reshape(sensor.mean, columns) + np.reshape(sensor.std, columns) * noise)


@pytest.mark.parametrize('name', SENSORS)
def test_silent_on_each_sensors_own_statistics(name: str) -> None:
    assert check_units(drawn(SENSORS[name]), SENSORS[name]) is None


@pytest.mark.parametrize('name', [n for n, s in SENSORS.items() if s.scale == 'linear'])
def test_reflectance_normalized_and_decibels_for_each_linear_sensor(name: str) -> None:
    sensor = SENSORS[name]
    image = drawn(sensor)
    mean, std = (torch.tensor(v)[:, None, None] for v in (sensor.mean, sensor.std))
    assert 'reflectance from 0 to 1' in (check_units(image / image.max(), sensor) or '')
    assert 'normalized already' in (check_units((image - mean) / std, sensor) or '')
    assert 'decibels' in (check_units(-image / image.max() * 30, sensor) or '')


def test_message_names_sensor_and_range() -> None:
    message = check_units(drawn(S2) / 10000, S2)
    assert message is not None
    assert message.startswith('sentinel-2-l2a: expected values around 1105 to 2785, got values from 0.0')
    assert 'in bands blue, green, red, rededge1, rededge2, rededge3, nir, nir08, swir16, swir22. Is it' in message


def test_digital_numbers_of_radar_ask_for_calibration() -> None:
    image = torch.linspace(1, 3000, 2 * 64 * 64).reshape(2, 64, 64)
    assert 'calibrate' in (check_units(image, S1) or '')


def test_batches_integers_and_a_stray_nan() -> None:
    image = (drawn(S2) / 10000).float()
    image[:, 0, 0] = torch.nan
    assert check_units(torch.stack([image] * 3), S2) == check_units(image, S2) is not None
    # 0 and 1 as integers are dark pixels (clipped to 1), not reflectance.
    assert check_units(torch.ones(10, 64, 64, dtype=torch.int16), S2) is None


@pytest.mark.parametrize('shape', [(64, 64), (1, 64, 64), (10, 64, 64)])
def test_only_valid_pixels_count(shape: tuple[int, ...]) -> None:
    image = drawn(S2) / 10000
    image[:, :32] = -9999
    valid = torch.ones(shape, dtype=torch.bool)
    assert 'reflectance' not in (check_units(image, S2, valid) or '')
    valid[..., :32, :] = False
    assert 'reflectance' in (check_units(image, S2, valid) or '')
    batch = torch.stack([valid.expand(1, 64, 64) if valid.ndim == 2 else valid] * 2)
    assert 'reflectance' in (check_units(torch.stack([image, image]), S2, batch) or '')
    assert check_units(image, S2, torch.zeros(shape, dtype=torch.bool)) is None


def test_a_mask_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r'expected a mask like \(2, 10, 64, 64\).*got \(2, 64, 64\)'):
        check_units(torch.zeros(2, 10, 64, 64), S2, torch.ones(2, 64, 64))


def test_one_band_in_other_units_is_named() -> None:
    image = drawn(S2)
    image[3] /= 10000
    message = check_units(image, S2)
    assert message is not None
    assert re.match(
        r'sentinel-2-l2a: expected values around 1887, got values from 0\.\d+ to 0\.\d+ in band rededge1\. Is', message
    )


def test_desert_carries_no_offset() -> None:
    image = torch.linspace(0, 300, 64 * 64).reshape(1, 64, 64) + torch.tensor(
        [1100.0, 2100, 3100, 3400, 3600, 3700, 3800, 3900, 4900, 4400]
    ).reshape(10, 1, 1)
    assert check_units(image, S2) is None
    assert 'offset=-1000' in (check_units(image.clamp(max=1400), S2) or '')


def test_an_own_sensor_near_one_is_left_alone() -> None:
    own = Sensor('mine', 1, (Band('ndvi', 0.8, 0.4, 0.3),))
    assert check_units(torch.rand(1, 64, 64) - 0.5, own) is None


@pytest.mark.parametrize('shape', [(9, 64, 64), (64, 64), (2, 11, 64, 64)])
def test_bands_must_be_those_of_the_sensor(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r'C = 10, the bands of sentinel-2-l2a .* got \('):
        check_units(torch.zeros(shape), S2)


def test_warns_once_per_source() -> None:
    check = UnitsCheck()
    wrong = drawn(S2) / 10000
    with pytest.warns(UserWarning, match='sentinel-2-l2a: .*reflectance'):
        check(wrong, S2)
    with pytest.warns(UserWarning, match=r'scene\.tif: .*reflectance'):
        check(wrong, S2, source='scene.tif')
    with pytest.warns(UserWarning, match='naip: '):
        check(drawn(NAIP) / 255, NAIP)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check(wrong, S2)
        check(wrong[:3], S2.select(['blue', 'green', 'red']))


def test_stops_looking_after_the_first_images() -> None:
    check = UnitsCheck(limit=2)
    for _ in range(2):
        check(drawn(S2), S2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check(drawn(S2) / 10000, S2)


def test_landsat_converted_twice() -> None:
    """Digital numbers of Collection 2 under the name of HLS, say."""
    sensor = get_sensor('landsat-c2l2-sr')
    numbers = torch.linspace(7300, 25000, 6 * 64 * 64).reshape(6, 64, 64).round()
    assert check_units(numbers, sensor) is None
    message = check_units(numbers * 3.63636 + 7272.73, sensor)
    assert message is not None
    assert 'converted a second time' in message
