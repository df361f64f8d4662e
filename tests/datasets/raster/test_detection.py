# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Which sensor a file is of, from its folder, tags and bands."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from torchgeo_clay.datasets import SceneError
from torchgeo_clay.datasets.raster.detection import detect_sensor

S2 = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')


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


def test_the_folder_decides(write_raster: Callable[..., Path]) -> None:
    assert detect_sensor(write_raster('linz/x.tif', pixels(3), ('R', 'G', 'B'))).name == 'linz'


@pytest.mark.parametrize(
    ('descriptions', 'tags', 'candidates'),
    [
        (('R', 'G', 'B', 'N'), {}, 'naip.*satellogic'),
        (S2, {'SENSOR': 'Sentinel-2', 'LEVEL': 'L1C'}, 'candidates: none'),
        (('VV', 'VH'), {'SENSOR': 'Sentinel-1', 'LEVEL': 'GRD sigma0'}, 'candidates: none'),
        (S2, {}, 'landsat.*sentinel-2-l2a'),
        (('SCL',), {'SENSOR': 'Sentinel-2', 'LEVEL': 'L2A'}, 'candidates: none'),
        (('lc', None), {}, 'candidates: none'),
    ],
)
def test_what_can_not_be_told_is_an_error(
    write_raster: Callable[..., Path], descriptions: tuple[str | None, ...], tags: dict[str, str], candidates: str
) -> None:
    path = write_raster(pixels=pixels(len(descriptions)), descriptions=descriptions, tags=tags)
    with pytest.raises(SceneError, match=f'(?s){path}.*{candidates}.*Give sensor='):
        detect_sensor(path)


def test_a_file_that_is_no_raster(tmp_path: Path) -> None:
    (tmp_path / 'x.tif').write_text('no')
    with pytest.raises(SceneError, match='not readable as a raster'):
        detect_sensor(tmp_path / 'x.tif')


@pytest.mark.real_data
def test_real_scenes(real_data: Path) -> None:
    expected = {
        'sentinel2/terramesh_38D_378R_2_3_s2l2a.tif': 'sentinel-2-l2a',
        'sentinel1/terramesh_38D_378R_2_3_s1rtc.tif': 'sentinel-1-rtc',
        'naip/m_3211605_ne_11_060_20200415_crop.tif': 'naip',
        'modis/MOD09A1_A2017193_h18v04_crop.tif': 'modis',
        'landsat/LC08_L2SP_008059_20191201_C2L2_overview_crop.tif': 'landsat-c2l2-sr',
        'landsat/L8_L1_Elkton_VA_30m.tif': 'landsat-c2l1',
    }
    for name, sensor in expected.items():
        assert detect_sensor(real_data / name).name == sensor
    for name in (
        'landsat/HLS_L30_texas_224px.tif',
        'sentinel2/terramesh_38D_378R_2_3_s2l1c.tif',
        'sentinel1/sen1floods11_Spain_7370579_s1grd.tif',
    ):
        with pytest.raises(SceneError, match='can not be told'):
            detect_sensor(real_data / name)
