# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_clay.datasets.raster.dates import UNKNOWN, acquisition, from_name, from_tags, parse_time


def utc(*when):
    return datetime(*when, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ('text', 'when'),
    [
        ('2022-10-05T11:54:11', (2022, 10, 5, 11, 54, 11)),
        ('2022-10-05T11:54:11Z', (2022, 10, 5, 11, 54, 11)),
        ('2022-10-05 11:54', (2022, 10, 5, 11, 54)),
        ('2022-10-05T11:54:11.5000000Z', (2022, 10, 5, 11, 54, 11, 500000)),
        ('2022-10-05T23:30:00-02:00', (2022, 10, 6, 1, 30)),
        ('2022-10-05T23:30:00+0530', (2022, 10, 5, 18, 0)),
        ('2020:04:15 09:30:00', (2020, 4, 15, 9, 30)),
        ('2020/04/15', (2020, 4, 15, 12)),
        ('20221005T115411', (2022, 10, 5, 11, 54, 11)),
        ('20200415', (2020, 4, 15, 12)),
        (' 2019-12-01 ', (2019, 12, 1, 12)),
        ('2017-07-12/2017-07-19', (2017, 7, 15, 12)),
        ('2017-07-12 / 2017-07-20', (2017, 7, 16, 12)),
        ('2020/04/15/2020/04/17', (2020, 4, 16, 12)),
        ('2020-04-15T09:00:00Z/2020-04-15T09:00:10Z', (2020, 4, 15, 9, 0, 5)),
        ('2021-07-09T17:04:02.2Z; 2021-07-09T17:04:26.2Z', (2021, 7, 9, 17, 4, 14, 200000)),  # HLS L30 on two rows
        ('20190715143000', (2019, 7, 15, 14, 30)),
        ('2019-07-15T143000', (2019, 7, 15, 14, 30)),
        ('2022-10-05t11:54:11z', (2022, 10, 5, 11, 54, 11)),
        ('2022-10-05 11:54:11 UTC', (2022, 10, 5, 11, 54, 11)),
        ('2022-10-05T00:00:00Z', (2022, 10, 5)),
        ('20221005000000', (2022, 10, 5)),
    ],
)
def test_parses_dates(text, when):
    assert parse_time(text).time == utc(*when)


@pytest.mark.parametrize(
    'text',
    [
        '', '2014', '2011 (file date)', 'NEON AOP', '2020-04', '2020-13-01', '2020-02-30', '2020-04-15T25:00:00',
        '2020-04-15T09:61:00', '2020-04-15 maybe', '0001-01-01', '9999-12-31', '2020-01-01/2020-12-31',
        '2020-04-15/2020-04-01', '2020-04-15/soon', '1970-01-01', '1970-01-01T00:00:00Z',
    ],
)  # fmt: skip
def test_unknown_is_nan(text):
    assert parse_time(text) == UNKNOWN or math.isnan(parse_time(text).time)
    assert not parse_time(text).known


def test_says_whether_the_hour_is_known():
    assert parse_time('2020-04-15T09:00').has_hour
    assert parse_time('2020-04-15T00:00').has_hour
    assert from_name('scene_20200415T000000.tif').has_hour
    assert not parse_time('2020-04-15').has_hour
    assert not parse_time('2020-04-15T00:00:00/2020-04-15T23:59:59').has_hour
    assert not parse_time('2017-07-12/2017-07-19').has_hour


def test_spans_what_is_known():
    day, composite = parse_time('2020-04-15'), parse_time('2017-07-12/2017-07-19')
    assert (day.start, round(day.stop)) == (utc(2020, 4, 15), utc(2020, 4, 16))
    assert (composite.start, round(composite.stop)) == (utc(2017, 7, 12), utc(2017, 7, 20))


@given(
    st.datetimes(datetime(1850, 1, 1), datetime(2050, 12, 30)),
    st.integers(-14 * 60, 14 * 60),
    st.sampled_from(['seconds', 'milliseconds', 'microseconds']),
)
def test_parses_what_datetime_writes(when, minutes, precision):
    zoned = when.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    text = zoned.isoformat(timespec=precision)
    if '1850' <= text[:4] <= '2050':
        assert parse_time(text).time == pytest.approx(datetime.fromisoformat(text).timestamp(), abs=2e-6)


@given(st.text(max_size=30))
def test_parsing_never_fails(text):
    parse_time(text)
    from_name(text)


@pytest.mark.parametrize(
    ('name', 'when'),
    [
        ('S2A_MSIL2A_20221005T115411_N0400_R023_T29UNU_20221005T153455.tif', (2022, 10, 5, 11, 54, 11)),
        ('S1A_IW_20221204T161641_DVR_RTC30_G_gpuned_1AE1_VV.tif', (2022, 12, 4, 16, 16, 41)),
        ('LC08_L2SP_008059_20191201_20200825_02_T1_SR_B4.TIF', (2019, 12, 1, 12)),
        ('LC80080592019335LGN00_B4.TIF', (2019, 12, 1, 12)),
        ('MOD09A1.A2017193.h18v04.006.2017202035511.tif', (2017, 7, 15, 12)),  # the middle of eight days
        ('MCD43A4.A2017006.h21v11.006.2017018074804.tif', (2017, 1, 6, 12)),
        ('MOD09A1_A2017193_h18v04_crop.tif', (2017, 7, 15, 12)),
        ('HLS.L30.T14RNT.2021190T170402.v2.0.B04.tif', (2021, 7, 9, 17, 4, 2)),
        ('m_3211605_ne_11_060_20200415_crop.tif', (2020, 4, 15, 12)),
        ('m_2015506_ne_04_1_20130102.tif', (2013, 1, 2, 12)),
        ('20180602_171513_0f43_3B_AnalyticMS.tif', (2018, 6, 2, 17, 15, 13)),
        ('scene_2020-04-15.tif', (2020, 4, 15, 12)),
        ('2020_04_15_scene.tif', (2020, 4, 15, 12)),
        ('99999999_20200415.tif', (2020, 4, 15, 12)),
        ('IMG_20190715_143000.jpg', (2019, 7, 15, 14, 30)),
        ('PXL_20210715_143000123.jpg', (2021, 7, 15, 14, 30)),
        ('DJI_20230715143000_0001_D.tif', (2023, 7, 15, 14, 30)),
        ('field_2019-07-15T143000.tif', (2019, 7, 15, 14, 30)),
        ('field_2019-07-15T14-30-00Z.tif', (2019, 7, 15, 14, 30)),
        ('s1a-iw-grd-vh-20230809t020729-20230809t020754-049792-05fce6-002.tiff', (2023, 8, 9, 2, 7, 29)),
        ('tile_20200415_000123.tif', (2020, 4, 15, 12)),  # a number, no clock
        ('m_3211605_ne_11_060_20200415_20200901.tif', (2020, 4, 15, 12)),  # acquired and processed
        ('OPERA_L2_RTC-S1_T124-264305-IW1_20230301T171302Z_20230902T050101Z_S1A_30.tif', (2023, 3, 1, 17, 13, 2)),
        (
            'S2A_OPER_PRD_MSIL1C_PDMC_20160929T122153_R008_V20160828T100557_20160828T100557.tif',
            (2016, 8, 28, 10, 5, 57),
        ),
        ('AST_L1T_00305032000040446_20150409135350_78838.tif', (2000, 5, 3, 4, 4, 46)),
        ('median_20200601_20200615.tif', (2020, 6, 8, 12)),
        ('median_2020-06-01_to_2020-06-15.tif', (2020, 6, 8, 12)),
    ],
)
def test_finds_the_acquisition_in_a_name(name, when):
    assert from_name(f'/somewhere/19990101/{name}').time == utc(*when)


@pytest.mark.parametrize(
    'name',
    [
        'NAIP_VA_sherando_3707801_ne.tif', 'T32TQM.tif', 'scene_2014.tif', '00002806639B424A.tif', 'A2017366.tif',
        'median_20200101_20201231.tif', 'S2_20200101T000000_20201231T235959_median.tif', '2020-01-01--2020-12-31.tif',
        'S2A_OPER_MSI_L1C_TL_SGS__20160828T154230_A006180_T32TQM_B04.tif',
    ],
)  # fmt: skip
def test_names_without_a_date_are_unknown(name):
    assert not from_name(name).known


def test_the_folder_of_a_product_dates_its_files():
    safe = 'S1A_S1_GRDH_1SDV_20230809T020729_20230809T020754_049792_05FCE6_1175'
    assert from_name(f'/data/{safe}/measurement/s1-vh.tiff').time == utc(2023, 8, 9, 2, 7, 29)
    assert not from_name('/data/20190101/s1-vh.tiff').known


@pytest.mark.real_data
def test_sentinel_1_has_the_hour_of_acquisition(cases):
    (path,) = (cases / '6-s1-grd').rglob('*.tiff')
    with rasterio.open(path) as file:
        assert file.tags()['TIFFTAG_DATETIME'] == '2023:08:09 08:09:24'
        assert acquisition(file.tags(), path)[0].time == utc(2023, 8, 9, 2, 7, 29)


def test_tags_go_before_the_name():
    found, report = acquisition({'DATETIME': '2020-01-02T03:04:05'}, 'scene_20190101.tif')
    assert found.time == utc(2020, 1, 2, 3, 4, 5)
    assert '2020-01-02, its name 2019-01-01' in report
    assert acquisition({'DATETIME': '2014'}, 'scene_20190101.tif') == (from_name('scene_20190101.tif'), '')


def test_the_name_adds_the_hour_of_the_same_day():
    assert acquisition({'DATETIME': '2020-01-02'}, 'scene_20200102T030405.tif')[0].time == utc(2020, 1, 2, 3, 4, 5)


def test_when_the_file_was_written_is_not_its_acquisition():
    tags = {'TIFFTAG_DATETIME': '2020:04:15 09:30:00'}
    assert not acquisition(tags, 'scene.tif')[0].known
    assert acquisition(tags, 'scene_20200415.tif')[0].time == utc(2020, 4, 15, 12)


def test_a_long_interval_in_tags_is_not_replaced_by_its_start():
    tags = {'START_DATETIME': '2020-01-01', 'END_DATETIME': '2020-12-31'}
    assert not acquisition(tags, 'composite_20200101.tif')[0].known


@pytest.mark.parametrize(
    ('tags', 'when'),
    [
        ({'ACQUISITION_DATE': '2020-04-15'}, (2020, 4, 15, 12)),
        ({'acquisition_date': '2020-04-15'}, (2020, 4, 15, 12)),
        ({'DATE_ACQUIRED': '2019-12-01', 'SCENE_CENTER_TIME': '15:03:21.1234567Z'}, (2019, 12, 1, 15, 3, 21, 123457)),
        ({'DATE_ACQUIRED': '2019-12-01'}, (2019, 12, 1, 12)),
        ({'PRODUCT_START_TIME': '2020-04-15T09:00Z', 'PRODUCT_STOP_TIME': '2020-04-15T09:20Z'}, (2020, 4, 15, 9, 10)),
        ({'PRODUCT_START_TIME': '2020-04-15T09:00:00Z'}, (2020, 4, 15, 9)),
        ({'RANGEBEGINNINGDATE': '2017-07-12', 'RANGEBEGINNINGTIME': '00:00:00', 'RANGEENDINGDATE': '2017-07-19',
          'RANGEENDINGTIME': '23:59:59'}, (2017, 7, 15, 12)),
        ({'DATE': '2020-04-15'}, (2020, 4, 15, 12)),
        ({'EXIF_DateTimeOriginal': '2020:04:15 09:30:00'}, (2020, 4, 15, 9, 30)),
        ({'SENSING_TIME': '2021-07-09T17:04:02Z; 2021-07-09T17:04:26Z'}, (2021, 7, 9, 17, 4, 14)),
        ({'start_datetime': '2020-04-15T09:00:00Z', 'end_datetime': '2020-04-15T10:00:00Z'}, (2020, 4, 15, 9, 30)),
    ],
)  # fmt: skip
def test_reads_the_agencies_tags(tags, when):
    assert from_tags(tags).time == pytest.approx(utc(*when), abs=1e-5)
