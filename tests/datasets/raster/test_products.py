# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Products known by tags and names, as their agencies write them."""

import pytest

from torchgeo_clay.datasets.raster.detection import (
    boa_offset,
    hls,
    processing_baseline,
    reflectance_tags,
    tm_band_names,
)


@pytest.mark.parametrize(
    ('tags', 'name', 'expected'),
    [
        ({}, 'HLS.S30.T38PMB.2022145T072619.v2.0.tif', 'S30'),
        ({}, 'HLS.L30.T14RNV.2020289T165958.v2.0.B04.tif', 'L30'),
        ({}, 'HLS_L30_texas_224px.tif', 'L30'),
        ({'LEVEL': 'HLS L30 v2.0 NBAR surface reflectance'}, 'a.tif', 'L30'),
        ({'SHORTNAME': 'HLSS30'}, 'a.tif', 'S30'),
        ({'HLS_PROCESSING_TIME': '2022', 'SPACECRAFT_NAME': 'Sentinel-2B'}, 'a.tif', 'S30'),
        ({'HLS_PROCESSING_TIME': '2022', 'SENSOR': 'OLI_TIRS'}, 'a.tif', 'L30'),
        ({'SENSOR': 'Sentinel-2 MSI'}, 'S2A_MSIL2A_20221005T115411_N0400_R023_T29UNU.tif', None),
        ({}, 'challs30.tif', None),
    ],
)
def test_hls(tags, name, expected):
    assert hls(tags, f'/hls.l30/{name}') == expected


ETM = ('B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7')
NAMES = ('blue', 'green', 'red', 'nir08', 'swir16', 'thermal', 'swir22')


@pytest.mark.parametrize(
    ('tags', 'name'),
    [
        ({'SPACECRAFT_ID': 'LANDSAT_7', 'SENSOR_ID': 'ETM'}, 'a.tif'),
        ({'SENSOR': 'Landsat 5 TM'}, 'a.tif'),
        ({}, 'LT05_L2SP_214066_19990805_20200918_02_T1.tif'),
        ({}, 'LE07_L1TP_214066_19990805_20200918_02_T1.tif'),
        ({}, 'LT50310332011123PAC01.tif'),
    ],
)
def test_band_numbers_of_tm(tags, name):
    assert tm_band_names(ETM, tags, name) == NAMES
    assert tm_band_names(('SR_B1', 'SR_B7', 'QA_PIXEL', None), tags, name) == ('blue', 'swir22', 'QA_PIXEL', None)


@pytest.mark.parametrize(
    ('tags', 'name'),
    [({'SENSOR': 'Landsat 8 OLI/TIRS'}, 'a.tif'), ({}, 'LC08_L2SP_008059_20191201_20200825_02_T1.tif'), ({}, 'TM.tif')],
)
def test_band_numbers_of_oli_stay(tags, name):
    assert tm_band_names(ETM, tags, name) == ETM


@pytest.mark.parametrize(
    ('tags', 'name', 'baseline', 'offset'),
    [
        ({'PROCESSING_BASELINE': '04.00'}, 'a.tif', 4.0, -1000),
        ({'PROCESSING_BASELINE': '4.0'}, 'a.tif', 4.0, -1000),
        ({'S2:PROCESSING_BASELINE': '05.11'}, 'a.tif', 5.11, -1000),
        ({}, 'S2A_MSIL2A_20221005T115411_N0400_R023_T29UNU_20221005T180000.tif', 4.0, -1000),
        ({}, 'S2A_MSIL2A_20170729T154911_N0205_R054_T19UDP_20170729T154949.tif', 2.05, 0),
        ({}, 'S2B_MSIL2A_20230525T072619_N0509_R049_T38PMB_20230525T092234.SAFE/IMG_DATA/B02.jp2', 5.09, -1000),
        ({'PRODUCT_URI': 'S2B_MSIL2A_20230525T072619_N0509_R049_T38PMB_20230525T092234.SAFE'}, 'a.tif', 5.09, -1000),
        ({'REFLECTANCE_OFFSET_DN': '0'}, 'S2A_MSIL2A_20221005T115411_N0400_R023.tif', 4.0, 0),
        ({'BOA_ADD_OFFSET_B2': '-1000'}, 'a.tif', None, -1000),
        ({'PROCESSING_BASELINE': '05.09', 'EARTHSEARCH:BOA_OFFSET_APPLIED': 'True'}, 'a.tif', 5.09, 0),
        ({'PROCESSING_BASELINE': '05.09', 'COLLECTION': 'COPERNICUS/S2_SR_HARMONIZED'}, 'a.tif', 5.09, 0),
        ({'PROCESSING_BASELINE': 'unknown'}, 'S2A_MSIL2A_20170729T154911_N9999_R054.tif', 99.99, None),
    ],
)
def test_baselines(tags, name, baseline, offset):
    assert processing_baseline(tags, name) == baseline
    found = boa_offset(tags, name)
    assert (None if found is None else found[0]) == offset


def test_reflectance_tags():
    assert reflectance_tags({'REFLECTANCE_SCALE': '0.0001'}) == (1e-4, 0)
    assert reflectance_tags({'REFLECTANCE_SCALE': '0.0001', 'REFLECTANCE_OFFSET_DN': '-1000'}) == (1e-4, -0.1)
    assert reflectance_tags({'REFLECTANCE_SCALE': 'nan'}) is reflectance_tags({'REFLECTANCE_OFFSET_DN': '0'}) is None
