# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

import math

import numpy as np
import pytest
import torch

from torchgeo_clay.sensors import SENSORS
from torchgeo_clay.sensors.plausibility import check_to_db, to_decibels


def test_decibels_are_those_of_numpy():
    power = torch.tensor([1.0, 0.1, 0.0, -0.5, 20.0], dtype=torch.float64)
    expected = 10 * np.log10(np.maximum(power.numpy(), 1e-10))
    np.testing.assert_allclose(to_decibels(power), expected)
    assert math.isnan(to_decibels(torch.tensor(math.nan)))


def test_optical_sensors_have_no_decibels():
    check_to_db(SENSORS['sentinel-1-rtc'], True)
    check_to_db(SENSORS['naip'], False)
    with pytest.raises(ValueError, match=r'to_db: expected a sensor .* in decibels, .* got naip'):
        check_to_db(SENSORS['naip'], True)
