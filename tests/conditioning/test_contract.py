# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Codes of time and place against `datetime` and `math`; the batch contract."""

import math
from datetime import UTC, datetime, timedelta

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_clay.conditioning import Conditioning, check_batch, check_gsd, encode_latlon, encode_time

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOMENTS = st.datetimes(datetime(1583, 1, 1), datetime(3000, 1, 1), timezones=st.just(UTC))


def seconds_of(moment: datetime) -> float:
    return (moment - EPOCH) / timedelta(seconds=1)


def angle_code(*angles: float) -> list[float]:
    return [f(angle) for angle in angles for f in (math.sin, math.cos)]


def expected_time(moment: datetime) -> list[float]:
    return angle_code(moment.isocalendar().week * 2 * math.pi / 52, moment.hour * 2 * math.pi / 24)


@given(st.lists(MOMENTS, min_size=1, max_size=8))
def test_time_is_that_of_the_iso_calendar(moments: list[datetime]) -> None:
    code = encode_time(torch.tensor([seconds_of(m) for m in moments], dtype=torch.float64))
    assert code.shape == (len(moments), 4)
    assert code.dtype == torch.float32
    torch.testing.assert_close(code, torch.tensor([expected_time(m) for m in moments]), rtol=0, atol=1e-6)


@pytest.mark.parametrize('year', [1969, 1970, 1999, 2000, 2004, 2009, 2015, 2016, 2020, 2021, 2024, 2026, 2100])
def test_week_on_every_day_around_new_year(year: int) -> None:
    days = [datetime(year, 12, 20, 23, 59, 59, tzinfo=UTC) + timedelta(days=d) for d in range(80)]
    code = encode_time([seconds_of(d) for d in days])
    torch.testing.assert_close(code, torch.tensor([expected_time(d) for d in days]), rtol=0, atol=1e-6)


def test_unknown_time_is_zeros_for_that_sample_alone() -> None:
    moment = datetime(2023, 6, 10, 7, 46, 21, tzinfo=UTC)
    code = encode_time([math.nan, seconds_of(moment), math.inf])
    assert torch.equal(code[[0, 2]], torch.zeros(2, 4))
    torch.testing.assert_close(code[1], torch.tensor(expected_time(moment)), rtol=0, atol=1e-6)


def test_time_takes_a_number_and_whole_seconds() -> None:
    assert torch.equal(encode_time(0.0), encode_time(torch.tensor([0])))
    assert torch.equal(encode_time(0.0)[0], encode_time([3599.999])[0])
    assert not torch.equal(encode_time(0.0)[0], encode_time([3600.0])[0])


def test_float32_time_warns_and_half_is_refused() -> None:
    with pytest.warns(UserWarning, match='steps of 128 s'):
        encode_time(torch.zeros(1))
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match='bf16-mixed'):
            encode_time(torch.zeros(1, dtype=dtype))
        with pytest.raises(ValueError, match='expected float64'):
            encode_latlon(torch.zeros(1, dtype=dtype), [0.0])


@given(st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 360)), min_size=1, max_size=8))
def test_place_in_either_order(places: list[tuple[float, float]]) -> None:
    lat, lon = (torch.tensor(values, dtype=torch.float64) for values in zip(*places, strict=True))
    expected = torch.tensor([angle_code(math.radians(a), math.radians(b)) for a, b in places])
    torch.testing.assert_close(encode_latlon(lat, lon), expected, rtol=0, atol=1e-6)
    swapped = encode_latlon(lat, lon, order='lonlat')
    torch.testing.assert_close(swapped, expected[:, [2, 3, 0, 1]], rtol=0, atol=1e-6)


def test_a_place_is_known_only_when_both_are() -> None:
    nan = math.nan
    code = encode_latlon([nan, 10.0, nan, 10.0], [20.0, nan, nan, 20.0])
    assert torch.equal(code[:3], torch.zeros(3, 4))
    assert code[3].abs().min() > 0


@pytest.mark.parametrize(
    ('lat', 'lon', 'order', 'message'),
    [
        ([90.1], [0.0], 'latlon', r'lat: expected degrees from -90 to 90, got 90\.1.*swapped'),
        ([0.0, -91.0], [0.0, 0.0], 'latlon', 'got -91'),
        ([0.0], [-180.5], 'latlon', 'lon: expected degrees from -180 to 360'),
        ([4.4e6], [5e5], 'latlon', 'projected coordinate'),
        ([0.0], [math.inf], 'latlon', 'lon: expected degrees'),
        ([0.0, 1.0], [0.0], 'latlon', 'as many latitudes as longitudes, got 2 and 1'),
        ([0.0], [0.0], 'lon,lat', "'latlon' or 'lonlat', got 'lon,lat'"),
    ],
)
def test_places_that_are_refused(lat: list[float], lon: list[float], order: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_latlon(lat, lon, order)  # type: ignore[arg-type]


def test_codes_are_the_same_when_traced() -> None:
    seconds = torch.tensor([1.7e9, math.nan], dtype=torch.float64)
    place = torch.tensor([10.0, math.nan], dtype=torch.float64)
    for function, arguments in ((encode_time, (seconds,)), (encode_latlon, (place, place))):
        traced = torch.compile(function, backend='aot_eager', fullgraph=True)
        torch.testing.assert_close(traced(*arguments), function(*arguments), rtol=0, atol=1e-7)


@pytest.mark.parametrize('gsd', [0, -10.0, math.nan, math.inf, torch.tensor([10.0, 0.0]), torch.tensor(math.nan)])
def test_gsd_has_no_unknown(gsd: float | torch.Tensor) -> None:
    with pytest.raises(ValueError, match='gsd=') as error:
        check_gsd(gsd)
    assert 'positive meters per pixel' in str(error.value)
    check_gsd(torch.tensor([0.1, 500.0]))
    check_gsd(10)


def batch(**changes: object) -> dict[str, object]:
    """A good batch of two images of three bands, with changes; None takes a key out."""
    good = {
        'image': torch.zeros(2, 3, 8, 8),
        'wavelength': torch.tensor([[0.665, 0.56, 0.493]] * 2, dtype=torch.float64),
        'res': torch.tensor([10.0, 20.0], dtype=torch.float64),
        'lat': torch.tensor([-6.5, math.nan], dtype=torch.float64),
        'lon': torch.tensor([34.1, math.nan], dtype=torch.float64),
        'time': torch.tensor([1686383181.0, math.nan], dtype=torch.float64),
    }
    return {k: v for k, v in (good | changes).items() if v is not None}


def test_conditioning_of_a_batch() -> None:
    sample = batch()
    conditioning = Conditioning.from_batch(sample)
    assert torch.equal(conditioning.wavelengths, torch.tensor([0.665, 0.56, 0.493]))
    assert torch.equal(conditioning.gsd, torch.tensor([10.0, 20.0]))
    assert torch.equal(conditioning.time, encode_time(sample['time']))
    assert torch.equal(conditioning.latlon, encode_latlon(sample['lat'], sample['lon']))
    other = Conditioning.from_batch(sample, order='lonlat')
    assert torch.equal(other.latlon, encode_latlon(sample['lat'], sample['lon'], 'lonlat'))
    assert not torch.equal(other.latlon, conditioning.latlon)


def test_conditioning_without_what_may_be_unknown() -> None:
    flat = batch(image=None, wavelength=torch.tensor([0.665, 0.56]), time=None, lon=None)
    conditioning = Conditioning.from_batch(flat)
    assert torch.equal(conditioning.wavelengths, flat['wavelength'])
    assert conditioning.time is None
    assert conditioning.latlon is None


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'wavelength': None}, "no 'wavelength'.*SensorMetadata"),
        ({'res': None}, "no 'res' in meters per pixel.*gsd="),
        ({'wavelength': torch.full((2, 6), 0.5)}, r'got \(6,\) wavelengths for 3 channels.*Dates stacked'),
        ({'wavelength': torch.full((1, 3), 0.5)}, 'wavelength: expected 2 rows'),
        ({'wavelength': torch.tensor([[0.6, 0.5, 0.4], [0.4, 0.5, 0.6]])}, 'equal rows'),
        ({'wavelength': torch.tensor([[665.0, 560.0, 493.0]] * 2)}, 'nanometers'),
        ({'wavelength': torch.full((2, 3), 55500.0)}, 'Radar bands have no optical wavelength'),
        ({'wavelength': torch.full((2, 3), math.nan)}, 'wavelength'),
        ({'res': torch.tensor([10.0])}, 'res: expected 2 rows'),
        ({'res': torch.tensor(10.0)}, 'res: expected 2 rows'),
        ({'res': torch.tensor([10.0, math.nan])}, 'gsd: expected positive'),
        ({'res': torch.tensor([10.0, -1.0])}, 'gsd: expected positive'),
        ({'lat': torch.tensor([0.0, 100.0])}, 'lat: expected degrees'),
        ({'lon': torch.tensor([0.0, 400.0])}, 'lon: expected degrees'),
        ({'time': torch.zeros(3, dtype=torch.float64)}, 'time: expected 2 rows'),
        ({'time': torch.zeros(2, dtype=torch.bfloat16)}, 'bf16-mixed'),
    ],
)
def test_batches_that_are_refused(changes: dict[str, object], message: str) -> None:
    Conditioning.from_batch(batch())
    with pytest.raises(ValueError, match=message):
        Conditioning.from_batch(batch(**changes))


@pytest.mark.parametrize('device', ['meta', pytest.param('cuda', marks=pytest.mark.gpu)])
def test_values_on_a_device_are_not_looked_at(device: str) -> None:
    # On 'meta' there are no values: any look at them raises.
    away = {k: v.to(device) for k, v in batch(res=torch.tensor([10.0, -1.0])).items()}
    check_batch(away)
    conditioning = Conditioning.from_batch(away)
    assert conditioning.time.device.type == conditioning.latlon.device.type == device


def test_lengths_are_checked_on_any_device() -> None:
    away = {k: v.to('meta') for k, v in batch(wavelength=torch.full((2, 6), 0.5)).items()}
    with pytest.raises(ValueError, match=r'\(6,\) wavelengths for 3 channels'):
        check_batch(away)
