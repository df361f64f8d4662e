# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The folded encoder against the released model's own code, live."""

from collections.abc import Callable

import pytest
import torch
from pair import Pair, draw

from torchgeo_clay.sensors import SENSORS


@pytest.mark.parametrize('sensor', SENSORS)
def test_tokens_are_equal(make_pair: Callable[[str], Pair], sensor: str) -> None:
    pair = make_pair('tiny')
    s = SENSORS[sensor]
    x, time, latlon, _ = draw(s, 64)
    folded = pair.encoder().fold(sensor)
    with torch.no_grad():
        ours = folded.forward_features(x, s.gsd, time, latlon)
    torch.testing.assert_close(ours, pair.their_tokens(x, s, time, latlon), rtol=0, atol=1e-6)
