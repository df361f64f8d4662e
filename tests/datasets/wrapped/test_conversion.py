# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""From a dataset's numbers to a sensor's units, what transforms do to a pixel's size, and dates of intervals."""

import math

import kornia.augmentation as K
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgeo_clay.datasets.raster.dates import from_interval
from torchgeo_clay.datasets.wrapped.conversion import Conversion, check_range
from torchgeo_clay.datasets.wrapped.resampling import SharedMask, pixel_growth
from torchgeo_clay.sensors import get_sensor

NAIP, SAR = get_sensor('naip'), get_sensor('sentinel-1-rtc')


@given(
    scale=st.floats(0.01, 1e4),
    offset=st.floats(-1e3, 1e3),
    power=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=2),
)
def test_conversions_are_undone(scale, offset, power):
    image = torch.tensor(power, dtype=torch.float64)[:, None, None]
    linear, decibels = Conversion(scale, offset), Conversion(to_db=True)
    torch.testing.assert_close(linear.inverse(linear(image, SAR)), image, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(decibels(image, SAR).numpy(), 10 * np.log10(image.numpy()), check_dtype=False)
    torch.testing.assert_close(decibels.inverse(decibels(image, SAR)), image)


def test_no_power_and_no_value():
    image = torch.tensor([0.0, math.nan])[:, None, None]
    assert Conversion(to_db=True)(image, SAR).flatten().tolist() == pytest.approx([-100, SAR.mean[1]])


def test_decibels_of_an_optical_sensor():
    with pytest.raises(ValueError, match=r'to_db: expected a sensor .* got naip'):
        Conversion(to_db=True)(torch.rand(4, 8, 8), NAIP)


@pytest.mark.parametrize(
    'kwargs', [{'scale': 0}, {'scale': math.nan}, {'offset': math.inf}, {'scale': 3e38}, {'offset': -3e38}]
)
def test_conversions_that_lose_everything(kwargs):
    with pytest.raises(ValueError, match=f'{next(iter(kwargs))}: expected a finite number'):
        Conversion(**kwargs)


def test_ranges():
    check_range(torch.rand(4, 8, 8) * 255, NAIP)
    check_range(torch.zeros(4, 8, 8), NAIP)
    check_range(torch.full((4, 8, 8), math.nan), NAIP)
    check_range(-10 * torch.rand(2, 8, 8), SAR)
    with pytest.raises(ValueError, match='scale=10000'):
        check_range(torch.rand(10, 8, 8), get_sensor('sentinel-2-l2a'))
    with pytest.raises(ValueError, match='to_db=True'):
        check_range(torch.rand(2, 8, 8), SAR)


def called(*transforms, size=(24, 40), batch=3):
    container = K.AugmentationSequential(*transforms, data_keys=None, keepdim=True)
    return container, container({'image': torch.rand(batch, 2, *size)})['image']


@settings(max_examples=15)
@given(height=st.integers(8, 64), width=st.integers(8, 64))
def test_resizes_count_pixels(height, width):
    container, image = called(K.Resize((height, width)))
    assert image.shape[-2:] == (height, width)
    expected = math.sqrt(24 * 40 / (height * width))
    assert pixel_growth(container, 3).tolist() == pytest.approx([expected] * 3)


def test_random_crops_count_pixels_of_each_sample():
    torch.manual_seed(0)
    container, _ = called(
        K.RandomResizedCrop((16, 16), scale=(0.2, 1.0)), K.RandomHorizontalFlip(), K.Resize(32), batch=8
    )
    boxes = container._params[0].data['src']
    sides = boxes[:, 2] - boxes[:, 0] + 1
    expected = (sides.prod(1) / (16 * 16)).sqrt() / 2
    growth = pixel_growth(container, 8)
    assert growth.tolist() == pytest.approx(expected.tolist())
    assert len(set(growth.tolist())) > 4


def test_scaling_counts_and_moving_does_not():
    container, _ = called(K.RandomAffine(30, scale=(2.0, 2.0), p=1.0))
    assert pixel_growth(container, 3).tolist() == pytest.approx([0.5] * 3, rel=1e-5)
    moved, _ = called(
        K.RandomRotation(90.0, p=1.0), K.RandomVerticalFlip(p=1.0), K.CenterCrop(16), K.RandomCrop((8, 8))
    )
    assert pixel_growth(moved, 3).tolist() == pytest.approx([1] * 3, rel=1e-5)
    plain = K.Resize((12, 20))
    plain(torch.rand(3, 2, 24, 40))
    assert pixel_growth(plain, 3).tolist() == [2] * 3
    assert pixel_growth(K.Resize(8), 3).tolist() == [1] * 3  # never called


def test_videos_and_the_mask_of_all_their_dates():
    inner = K.AugmentationSequential(
        K.VideoSequential(K.RandomCrop((16, 16)), K.Resize((32, 32)), K.RandomHorizontalFlip()),
        data_keys=None,
        keepdim=True,
    )
    rows = torch.arange(24.0)[:, None].expand(24, 40)
    for batch in (1, 3):
        mask = rows.long().expand(batch, 1, 24, 40).clone()
        image = rows.expand(batch, 2, 1, 24, 40).clone()
        result = SharedMask(inner)({'image': image, 'mask': mask, 'res': torch.ones(batch)})
        assert result['image'].shape == (batch, 2, 1, 32, 32)
        assert result['mask'].shape == (batch, 1, 32, 32)
        assert result['mask'].dtype == torch.int64
        assert (result['image'][:, 0] - result['mask']).abs().max() <= 1  # the same crop
        assert pixel_growth(SharedMask(inner), batch).tolist() == [0.5] * batch


@pytest.mark.parametrize(
    ('left', 'right', 'expected'),
    [
        ('2021-06-05', '2021-06-05T23:59:59.999999', '2021-06-05T12:00'),
        ('2021-06-05T10:30:41', '2021-06-05T10:30:41.999999', '2021-06-05T10:30:41'),
        ('2021-06-05T10:00', '2021-06-05T12:00', '2021-06-05T11:00'),
        ('2021-06-01', '2021-06-30T23:59:59', '2021-06-15T12:00'),
        ('2021-01-01', '2021-12-31T23:59:59', None),
        (pd.Timestamp.min, pd.Timestamp.max, None),
    ],
)
def test_intervals(left, right, expected):
    found = from_interval(pd.Timestamp(left), pd.Timestamp(right)).time
    assert math.isnan(found) if expected is None else found == pd.Timestamp(expected).timestamp()
