# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

import math

import pytest
import torch

from torchgeo_clay.datasets.raster.dataset import combine_samples, overlay_samples


def sample(value, valid, time=1.0, channels=1):
    return {
        'image': torch.full((channels, 1, 3), float(value)),
        'valid': torch.tensor(valid).reshape(1, 1, 3),
        'time': torch.tensor(time),
        'res': torch.tensor(10.0),
    }


def test_overlay_takes_the_first_valid_pixel():
    laid = overlay_samples([sample(-5, [True, False, False]), sample(9, [True, True, False])])
    assert laid['image'].ravel().tolist() == [-5, 9, -5]  # the last is valid in none
    assert laid['valid'].ravel().tolist() == [True, True, False]
    assert laid['time'] == 1


@pytest.mark.parametrize(
    ('first', 'time'), [([True, False, False], math.nan), ([False, False, False], 2.0), ([True, True, True], 1.0)]
)
def test_overlay_knows_the_time_of_what_was_needed(first, time):
    laid = overlay_samples([sample(1, first), sample(2, [True, True, True], time=2.0)])
    assert float(laid['time']) == pytest.approx(time, nan_ok=True)


def test_overlay_of_other_bands_is_refused():
    with pytest.raises(ValueError, match='images of one shape'):
        overlay_samples([sample(1, [False] * 3), sample(2, [True] * 3, channels=2)])


def test_overlay_leaves_its_inputs_alone():
    first = sample(1, [False, True, True])
    overlay_samples([first, sample(2, [True] * 3)])
    assert first['image'].unique().tolist() == [1]


def test_combine_concatenates_channels_and_keeps_the_place():
    both = combine_samples([sample(1, [True, True, False]), sample(2, [True, False, True], time=2.0, channels=2)])
    assert both['image'][:, 0, 0].tolist() == [1, 2, 2]
    assert both['valid'].ravel().tolist() == [True, False, False]
    assert math.isnan(both['time'])
    assert both['res'].shape == ()
    assert combine_samples([sample(1, [True] * 3), {'mask': torch.ones(2)}])['mask'].tolist() == [1, 1]
