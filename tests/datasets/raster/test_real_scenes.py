# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Crops of real acquisitions: what their notes say, and what rasterio reads."""

import math
from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform as rasterio_transform

from torchgeo_clay.datasets import SensorRaster, scan_scene
from torchgeo_clay.sensors import get_sensor

pytestmark = pytest.mark.real_data

SCENES = {
    'sentinel2/terramesh_282D_485L_3_3_s2l2a.tif': ('sentinel-2-l2a', 10, (2021, 7, 23, 13, 22, 41)),
    'sentinel2/sen1floods11_Spain_7370579_s2l1c.tif': ('sentinel-2-l2a', math.sqrt(10 * 7.87), (2019, 9, 18, 12)),
    'sentinel1/terramesh_609U_541L_3_0_s1rtc.tif': ('sentinel-1-rtc', 10, (2020, 1, 11, 23, 27, 23)),
    'landsat/LC08_L2SP_008059_20191201_C2L2_overview_crop.tif': ('landsat-c2l2-sr', 449.2, (2019, 12, 1, 12)),
    'landsat/L8_L1_Elkton_VA_30m.tif': ('landsat-c2l1', 29.895, None),
    'naip/m_3211605_ne_11_060_20200415_crop.tif': ('naip', 0.6, (2020, 4, 15, 12)),
    'naip/NAIP_VA_sherando_3707801_ne.tif': ('naip', 1, None),
    'modis/MOD09A1_A2017193_h18v04_crop.tif': ('modis', 463.31, (2017, 7, 15, 12)),
    'aerial_rgb/NL_25cm_epsg28992_crop.tif': ('linz', 0.25, None),
    'aerial_rgb/NZ_coromandel_2m_nztm.tif': ('linz', 2, None),  # '2011 (file date)' is no date
    'multisensor_worldcereal/00002806639B424A_s2l2a_20180802.tif': ('sentinel-2-l2a', 10, (2018, 8, 2, 10, 59, 38)),
}


@pytest.mark.parametrize('name', SCENES)
def test_place_gsd_and_date(real_data, name):
    sensor, gsd, when = SCENES[name]
    scene = scan_scene(real_data / name, get_sensor(sensor))
    whole = (0, 0, scene.height, scene.width)
    with rasterio.open(real_data / name) as file:
        x, y = file.transform @ (file.width / 2, file.height / 2)
        (lon,), (lat,) = rasterio_transform(file.crs, 'EPSG:4326', [x], [y])
    assert scene.place(*whole) == pytest.approx((lat, lon), abs=1e-6)
    assert scene.gsd(*whole) == pytest.approx(gsd, rel=2e-3)
    expected = math.nan if when is None else datetime(*when, tzinfo=UTC).timestamp()
    assert scene.time == pytest.approx(expected, nan_ok=True)


def test_the_60_m_scene_is_read_as_such(real_data):
    path = real_data / 'sentinel2/S2A_MSIL2A_20221005T115411_N0400_T29UNU_60m_crop.tif'
    with pytest.raises(ValueError, match='bands nir of sentinel-2-l2a are missing'):
        scan_scene(path, get_sensor('sentinel-2-l2a'))
    dataset = SensorRaster(path, 'sentinel-2-l2a', ['red', 'B8A', 'B12'], offset=-1000)
    sample = dataset.patch(0, 100, 50, (64, 64))
    assert sample['res'] == 60
    assert sample['time'] == datetime(2022, 10, 5, 11, 54, 11, tzinfo=UTC).timestamp()
    with rasterio.open(path) as file:
        expected = file.read([4, 8, 11], window=((100, 164), (50, 114))).astype(np.float32) - 1000
    np.testing.assert_array_equal(sample['image'].numpy(), np.where(sample['valid'], expected, 0))


def test_infrared_called_alpha_masks_nothing(real_data):
    dataset = SensorRaster(real_data / 'naip', 'naip')
    assert len(dataset) == 4
    for i, scene in enumerate(dataset.scenes):
        assert dataset.patch(i, 0, 0, (scene.height, scene.width))['valid'].all()


def test_masks_and_labels_beside_scenes_are_left_out_by_name(real_data):
    with pytest.warns(UserWarning, match=r'modis: left out 1 of 2 files:\n.*state\.tif: no band matches'):
        dataset = SensorRaster(real_data / 'modis', 'modis')
    sample = dataset.patch(0, 0, 0, (256, 256))
    assert sample['valid'].sum() <= 73 * 66
    with rasterio.open(dataset.scenes[0].path) as file:
        whole = file.read(masked=True)
    np.testing.assert_array_equal(sample['valid'][0, :73, :66], ~np.ma.getmaskarray(whole).any(axis=0))
    np.testing.assert_array_equal(sample['image'][:, :73, :66], whole.filled(0))
