# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

import math
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchgeo.datasets import stack_samples

from torchgeo_clay.conditioning import encode_latlon, encode_time
from torchgeo_clay.datasets import ClayChips, SceneError
from torchgeo_clay.datasets.chips import angle_of, place_of, time_of

LAT, LON, WHEN = -38.9, 177.7, datetime(2021, 10, 5, 22, tzinfo=UTC).timestamp()
dtypes = st.sampled_from([np.float64, np.float32, np.float16])


def pair(angle):
    return np.array([math.sin(angle), math.cos(angle)])


@pytest.fixture
def write_chip(tmp_path):
    """Write a NAIP chip of 4 bands of 16 x 24 pixels, its keys replaced (None: left out)."""

    def write(name='chip.npz', **replaced):
        week, hour = datetime.fromtimestamp(WHEN, UTC).isocalendar().week, 22
        arrays = {
            'pixels': np.random.default_rng(0).integers(0, 255, (4, 16, 24)).astype(np.uint8),
            'lat_norm': pair(math.radians(LAT)),
            'lon_norm': pair(math.radians(LON)),
            'week_norm': pair(week * 2 * math.pi / 52),
            'hour_norm': pair(hour * 2 * math.pi / 24),
        } | replaced
        path = tmp_path / name
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
        return path

    return write


@given(st.floats(-90, 90), st.floats(-179.99, 179.99), dtypes)
def test_places_come_back(lat, lon, dtype):
    lat_norm, lon_norm = (pair(math.radians(v)).astype(dtype).astype(float) for v in (lat, lon))
    tolerance = {np.float64: 1e-9, np.float32: 1e-5, np.float16: 0.1}[dtype]
    assert place_of(lat_norm, lon_norm) == pytest.approx((lat, lon), abs=tolerance)
    if abs(lon) <= 90:
        assert place_of(lon_norm, lat_norm, 'lonlat') == pytest.approx((lat, lon), abs=tolerance)


@given(st.datetimes(datetime(1985, 1, 1), datetime(2049, 12, 31)), dtypes)
def test_times_have_the_stored_code(when, dtype):
    seconds = when.replace(tzinfo=UTC).timestamp()
    code = encode_time([seconds])[0].numpy()
    found = time_of(*(code.astype(dtype).astype(float)[i : i + 2] for i in (0, 2)))
    np.testing.assert_allclose(encode_time([found])[0].numpy(), code, atol=1e-6)
    assert datetime.fromtimestamp(found, UTC).hour == when.hour


@given(st.floats(-math.pi + 1e-6, math.pi))
def test_angles_come_back(angle):
    assert angle_of(pair(angle)) == pytest.approx(angle)


def test_zeros_are_unknown():
    zeros, some = np.zeros(2), pair(0.5)
    assert all(math.isnan(v) for v in place_of(zeros, some))
    assert all(math.isnan(v) for v in place_of(some, zeros))
    assert math.isnan(time_of(zeros, pair(0)))
    assert math.isnan(time_of(pair(0), zeros))


@pytest.mark.parametrize('code', [[0.5, 0.5], [2.0, 0.0], [math.nan, 1.0]])
def test_other_numbers_are_no_codes(code):
    with pytest.raises(SceneError, match='sine and a cosine'):
        angle_of(np.array(code))


def test_angles_that_are_no_week_are_refused():
    with pytest.raises(SceneError, match='code of a whole week'):
        time_of(pair(0.5 * 2 * math.pi / 52), pair(0))
    with pytest.raises(SceneError, match='code of a whole hour'):
        time_of(pair(0), pair(1.0))


def test_swapped_names_are_noticed(write_chip, tmp_path):
    swapped = {'lat_norm': pair(math.radians(LON)), 'lon_norm': pair(math.radians(LAT))}
    write_chip(**swapped)
    with pytest.raises(SceneError, match=r"chip\.npz: expected a latitude .* give order='lonlat'"):
        ClayChips(tmp_path, 'naip')[0]
    sample = ClayChips(tmp_path, 'naip', order='lonlat')[0]
    assert (float(sample['lat']), float(sample['lon'])) == pytest.approx((LAT, LON))
    write_chip()
    with pytest.raises(SceneError, match="give order='latlon'"):
        ClayChips(tmp_path, 'naip', order='lonlat')[0]


def test_samples_keep_the_contract(write_chip, tmp_path):
    for name in ('b.npz', 'deep/a.npz'):
        (tmp_path / 'deep').mkdir(exist_ok=True)
        write_chip(name)
    (tmp_path / 'scene.tif').write_bytes(b'')
    dataset = ClayChips(tmp_path, 'naip')
    assert len(dataset) == 2
    sample = dataset[1]
    assert set(sample) == {'image', 'valid', 'wavelength', 'res', 'lat', 'lon', 'time'}
    with np.load(tmp_path / 'b.npz') as file:
        np.testing.assert_array_equal(sample['image'].numpy(), file['pixels'])
        torch.testing.assert_close(
            encode_latlon(sample['lat'], sample['lon'])[0],
            torch.from_numpy(np.hstack([file['lat_norm'], file['lon_norm']])).float(),
        )
        torch.testing.assert_close(
            encode_time(sample['time'])[0], torch.from_numpy(np.hstack([file['week_norm'], file['hour_norm']])).float()
        )
    assert sample['image'].dtype == torch.uint8
    assert sample['valid'].all()
    assert sample['valid'].shape == (1, 16, 24)
    for key, dtype in {'res': torch.float32, 'lat': torch.float64, 'lon': torch.float64, 'time': torch.float64}.items():
        assert (sample[key].dtype, sample[key].shape) == (dtype, ())
    assert stack_samples([dataset[0], dataset[1]])['image'].shape == (2, 4, 16, 24)


def test_bands_and_gsd_can_be_chosen(write_chip, tmp_path):
    path = write_chip()
    with np.load(path) as file:
        np.testing.assert_array_equal(ClayChips(path, 'naip', ['nir', 'red'])[0]['image'], file['pixels'][[3, 0]])
    assert ClayChips(path, 'naip')[0]['res'] == 1
    assert float(ClayChips(path, 'naip', gsd=0.6)[0]['res']) == pytest.approx(0.6)
    with pytest.raises(ValueError, match='gsd: expected positive'):
        ClayChips(path, 'naip', gsd=0)
    three = write_chip('three.npz', pixels=np.ones((3, 8, 8), np.float32))
    assert ClayChips(three, 'naip', ['nir', 'red', 'green'])[0]['image'].shape == (3, 8, 8)


def test_power_becomes_decibels_as_in_the_release(write_chip):
    power = np.array([[1.0, 0.1, 0.0], [-3.0, np.nan, 20.0]], np.float32)[None].repeat(2, 0)
    path = write_chip(pixels=power)
    linear = ClayChips(path, 'sentinel-1-rtc')[0]
    sample = ClayChips(path, 'sentinel-1-rtc', to_db=True)[0]
    assert sample['image'].dtype == torch.float32
    np.testing.assert_allclose(sample['image'][0].ravel(), [0, -10, -100, -100, 0, 13.0103], rtol=1e-6)
    for s in (linear, sample):
        assert s['valid'].ravel().tolist() == [True, True, True, True, False, True]
        assert s['image'].isfinite().all()


@pytest.mark.parametrize(
    ('replaced', 'reason'),
    [
        ({'week_norm': None}, 'missing week_norm'),
        ({'pixels': np.ones((3, 8, 8))}, r'expected 4 channels \(red, green, blue, nir\), got 3.*bands='),
        ({'pixels': np.ones((8, 8))}, r'pixels of shape \(C, H, W\), got \(8, 8\)'),
        ({'lat_norm': np.ones(3)}, 'lat_norm to be a sine and a cosine'),
        ({'pixels': np.array([None])}, 'not readable as a chip'),
    ],
)
def test_chips_that_are_wrong_are_named(write_chip, replaced, reason):
    path = write_chip(**replaced)
    with pytest.raises(SceneError, match=rf'chip\.npz: .*{reason}'):
        ClayChips(path, 'naip')[0]


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.99])
def test_truncated_chips_are_named(write_chip, share):
    path = write_chip()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SceneError, match=r'chip\.npz: not readable as a chip'):
        ClayChips(path, 'naip')[0]


def test_damaged_chips_are_named(write_chip):
    path = write_chip()
    content = bytearray(path.read_bytes())
    content[300:900] = bytes(600)
    path.write_bytes(content)
    with pytest.raises(SceneError, match=r'chip\.npz: not readable as a chip'):
        ClayChips(path, 'naip')[0]


def test_no_chips_or_a_wrong_order_are_errors(tmp_path, write_chip):
    with pytest.raises(ValueError, match='expected chips of naip'):
        ClayChips(tmp_path, 'naip')
    write_chip()
    with pytest.raises(ValueError, match="'latlon' or 'lonlat'"):
        ClayChips(tmp_path, 'naip', order='latlng')
    with pytest.raises(IndexError):
        ClayChips(tmp_path, 'naip')[1]
    assert ClayChips(tmp_path, 'naip', transforms=lambda s: {**s, 'seen': 1})[0]['seen'] == 1
