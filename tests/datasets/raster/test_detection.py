# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Which sensor a file is of, from its folder, tags and bands."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from torchgeo_clay.datasets import SceneError, SensorRaster, scan_scene
from torchgeo_clay.datasets.raster.detection import sensor_of
from torchgeo_clay.datasets.raster.files import open_raster
from torchgeo_clay.sensors import SENSORS, Sensor

S2 = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')


def detect_sensor(path: Path) -> Sensor:
    with open_raster(path) as file:
        return sensor_of(file, path)[0]


def pixels(count: int) -> np.ndarray:
    return np.ones((count, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ('descriptions', 'tags', 'sensor'),
    [
        (('R', 'G', 'B', 'N'), {'SENSOR': 'NAIP'}, 'naip'),
        (S2, {'SENSOR': 'Sentinel-2A MSI', 'LEVEL': 'L2A'}, 'sentinel-2-l2a'),
        (('VV', 'VH'), {'SENSOR': 'Sentinel-1 SAR C', 'LEVEL': 'GRD RTC gamma0'}, 'sentinel-1-rtc'),
        (('VV', 'VH'), {}, 'sentinel-1-rtc'),
    ],
)
def test_from_tags_and_bands(
    write_raster: Callable[..., Path], descriptions: tuple[str, ...], tags: dict[str, str], sensor: str
) -> None:
    path = write_raster(pixels=pixels(len(descriptions)), descriptions=descriptions, tags=tags)
    assert detect_sensor(path).name == sensor


@pytest.mark.real_data
def test_a_photograph_with_alpha_is_aerial(cases: Path, tmp_path: Path) -> None:
    """A drone's image of red, green, blue and alpha is read, with its mask; the assumption is a remark."""
    (source,) = (cases / '8-colorinterp').rglob('*rgba*.tif')
    path = tmp_path / 'drone.tif'
    shutil.copy(source, path)
    scene = scan_scene(path)
    assert (scene.sensor.name, scene.band_indexes) == ('linz', (1, 2, 3))
    assert 'taken as linz; give sensor=' in scene.remarks[0]
    sample = SensorRaster([path], scene.sensor).patch(0, 0, 0, (scene.height, scene.width))
    with rasterio.open(source) as file:
        np.testing.assert_array_equal(sample['valid'][0], file.read(4) > 0)
        np.testing.assert_array_equal(sample['image'], np.where(file.read(4) > 0, file.read((1, 2, 3)), 0))
    infrared = tmp_path / 'survey_cir.tif'
    shutil.copy(source, infrared)
    with pytest.raises(SceneError, match='its sensor cannot be determined'):
        scan_scene(infrared)


def test_the_folder_decides(write_raster: Callable[..., Path]) -> None:
    assert detect_sensor(write_raster('linz/x.tif', pixels(3), ('R', 'G', 'B'))).name == 'linz'


@pytest.mark.parametrize(
    ('name', 'descriptions', 'tags', 'reason'),
    [
        ('x.tif', ('R', 'G', 'B', 'N'), {}, 'candidates: naip, satellogic-MSI-L1D; give sensor='),
        ('x.tif', S2, {'SENSOR': 'Sentinel-2', 'LEVEL': 'L1C'}, "sentinel-2-l2a is excluded, as .* say 'l1c'"),
        ('S2A_MSIL1C_20220105.tif', S2, {}, "sentinel-2-l2a is excluded, as .* say 'l1c'"),
        ('x.tif', ('VV', 'VH'), {'SENSOR': 'Sentinel-1', 'LEVEL': 'GRD sigma0'}, "as its tags or name say 'grd'"),
        ('S1A_IW_GRDH_1SDV_20230809T020729.tif', ('VV', 'VH'), {}, "as its tags or name say 'grdh'"),
        ('x.tif', ('SCL',), {'SENSOR': 'Sentinel-2', 'LEVEL': 'L2A'}, 'is of sentinel-2-l2a, but no band matches'),
        ('x.tif', ('lc', None), {}, r'bands \(lc, \(unnamed\)\); give sensor='),
        ('x.tif', ('B02', 'B04', 'B8A'), {}, 'is of sentinel-2-l2a, but bands green, .*nir, .* are missing.*too'),
        ('x.tif', S2[:6], {}, 'candidates: landsat-c2l1, landsat-c2l2-sr; give'),
        ('x.tif', tuple(f'B{i}' for i in range(1, 8)), {}, 'candidates: landsat-c2l1, landsat-c2l2-sr; give'),
    ],
)  # fmt: skip
def test_what_cannot_be_determined_is_an_error(
    write_raster: Callable[..., Path],
    name: str,
    descriptions: tuple[str | None, ...],
    tags: dict[str, str],
    reason: str,
) -> None:
    path = write_raster(name, pixels(len(descriptions)), descriptions, tags)
    with pytest.raises(SceneError, match=reason) as caught:
        detect_sensor(path)
    assert 'candidates: none' not in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'descriptions', 'sensor'),
    [
        ('x.tif', S2, 'sentinel-2-l2a'),
        ('x.tif', (*(f'B0{i}' for i in range(1, 10)), 'B8A', 'B11', 'B12'), 'sentinel-2-l2a'),
        ('x.tif', ('R', 'G', 'B'), 'linz'),
        ('x.tif', tuple(f'Nadir_Reflectance_Band{i}' for i in range(1, 8)), 'modis'),
        ('m_3211605_ne_11_060_20200415.tif', ('R', 'G', 'B', 'N'), 'naip'),
        ('LE07_L2SP_1_20200415.tif', tuple(f'SR_B{i}' for i in (1, 2, 3, 4, 5, 7)), 'landsat-c2l2-sr'),
        ('LT05_L1TP_1_20000415.tif', tuple(f'B{i}' for i in (1, 2, 3, 4, 5, 7)), 'landsat-c2l1'),
    ],
)
def test_from_names_alone(
    write_raster: Callable[..., Path], name: str, descriptions: tuple[str, ...], sensor: str
) -> None:
    size = {'modis': 500, 'linz': 0.5, 'naip': 0.6}.get(sensor, 10)
    path = write_raster(name, pixels(len(descriptions)), descriptions, transform=from_origin(5e5, 46e5, size, size))
    assert detect_sensor(path).name == sensor


def test_a_gsd_far_from_the_sensors_excludes_it(write_raster: Callable[..., Path]) -> None:
    path = write_raster(pixels=pixels(3), descriptions=('R', 'G', 'B'), transform=from_origin(5e5, 46e5, 118, 118))
    with pytest.raises(SceneError, match=r'linz is excluded, as its GSD is far from 0\.5 m; give sensor='):
        detect_sensor(path)


def test_scanning_names_the_file(write_raster: Callable[..., Path]) -> None:
    path = write_raster()
    with pytest.raises(SceneError, match=rf'^{path}: its sensor cannot be determined'):
        scan_scene(path)


@pytest.mark.parametrize(
    ('tags', 'remark'),
    [
        ({'SENSOR': 'Sentinel-2', 'LEVEL': 'L1C'}, "its tags or name say 'l1c', which the data of sen"),
        ({'SENSOR': 'NAIP'}, 'its tags, name or bands speak of naip, not of sentinel-2-l2a'),
        ({'SENSOR': 'Sentinel-2', 'LEVEL': 'L2A'}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_another_product_than_the_sensors_is_reported(
    write_raster: Callable[..., Path], tags: dict[str, str], remark: str | None
) -> None:
    values = np.full((10, 8, 8), 1500, np.uint16)
    scene = scan_scene(write_raster(pixels=values, descriptions=S2, tags=tags), SENSORS['sentinel-2-l2a'])
    found = [r for r in scene.remarks if 'tags' in r]
    assert len(found) == (remark is not None)
    assert all(r.startswith(remark or '') for r in found)


@pytest.mark.real_data
def test_level_1_of_one_sensor_in_the_folder_of_another_is_reported(real_data: Path) -> None:
    (path,) = (real_data / 'sentinel2').glob('terramesh_*_s2l1c.tif')  # its B05 and B06 are red edge, not infrared
    remarks = scan_scene(path, SENSORS['landsat-c2l2-sr']).remarks
    assert 'its tags, name or bands speak of sentinel-2-l2a, not of landsat-c2l2-sr' in remarks


@pytest.mark.real_data
def test_real_scenes(real_data: Path) -> None:
    expected = {
        'sentinel2/terramesh_38D_378R_2_3_s2l2a.tif': 'sentinel-2-l2a',
        'sentinel1/terramesh_38D_378R_2_3_s1rtc.tif': 'sentinel-1-rtc',
        'naip/m_3211605_ne_11_060_20200415_crop.tif': 'naip',
        'modis/MOD09A1_A2017193_h18v04_crop.tif': 'modis',
        'landsat/LC08_L2SP_008059_20191201_C2L2_overview_crop.tif': 'landsat-c2l2-sr',
        'landsat/L8_L1_Elkton_VA_30m.tif': 'landsat-c2l1',
        'landsat/HLS_L30_texas_224px.tif': 'landsat-c2l2-sr',
    }
    for name, sensor in expected.items():
        assert detect_sensor(real_data / name).name == sensor
    for name in (
        'sentinel2/terramesh_38D_378R_2_3_s2l1c.tif',
        'sentinel1/sen1floods11_Spain_7370579_s1grd.tif',
    ):
        with pytest.raises(SceneError, match='is excluded, as its tags'):
            detect_sensor(real_data / name)
