# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

import pytest
import torch

from torchgeo_clay.datasets.plotting import true_color
from torchgeo_clay.sensors import get_sensor

NAIP, S1 = get_sensor('naip'), get_sensor('sentinel-1-rtc')


def test_stretches_the_rgb_bands():
    image = torch.arange(101.0).expand(4, 1, 101).clone()
    image[2] *= 50
    picture = true_color(image.flip(0), NAIP.select(['nir', 'blue', 'green', 'red']))
    assert picture.shape == (1, 101, 3)
    assert picture[0, 50] == pytest.approx([0.5, 0.5, 0.5])
    assert picture[0, 2] == pytest.approx([0, 0, 0])
    assert picture[0, 98] == pytest.approx([1, 1, 1])


def test_leaves_out_what_is_not_valid():
    image = torch.arange(101.0).expand(4, 1, 101).clone()
    image[0, 0, 100] = torch.inf
    image[1, 0, 0] = torch.nan
    valid = torch.ones(1, 1, 101, dtype=torch.bool)
    valid[..., 50] = False
    picture = true_color(image, NAIP, valid)
    assert not picture[0, [0, 50, 100]].any()
    assert picture[0, 60].all()
    assert not true_color(torch.full((4, 2, 2), torch.nan), NAIP).any()
    assert not true_color(torch.ones(4, 2, 2), NAIP).any()  # nothing to stretch


def test_two_bands_have_their_mean_as_blue():
    image = torch.rand(2, 8, 8, generator=torch.manual_seed(0))
    third = torch.stack([*image, image.mean(0)])
    assert true_color(image, S1) == pytest.approx(true_color(third, NAIP.select(['red', 'green', 'blue'])))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r'Expected an image of 4 bands .* got shape \(3, 2, 2\)'):
        true_color(torch.ones(3, 2, 2), NAIP)
