# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Blending weights: they sum to one everywhere, and a window counts most in its middle."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgeo_clay.datasets.raster.dataset import starts
from torchgeo_clay.inference.blending import axis_weights, taper


@st.composite
def axes(draw: st.DrawFn) -> tuple[tuple[int, ...], int]:
    chip = 8 * draw(st.integers(1, 8))
    return starts(draw(st.integers(1, 400)), chip, draw(st.integers(1, chip))), chip


@given(axes())
def test_weights_sum_to_one(axis: tuple[tuple[int, ...], int]) -> None:
    first, chip = axis
    weights = axis_weights(first, chip)
    total = np.zeros(first[-1] + chip)
    for start, window in zip(first, weights, strict=True):
        total[start : start + chip] += window
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-14)
    assert (weights > 0).all()


@settings(max_examples=30)
@given(axes(), axes(), st.integers(0, 2**32 - 1))
def test_blending_an_image_with_itself_changes_nothing(
    rows: tuple[tuple[int, ...], int], cols: tuple[tuple[int, ...], int], seed: int
) -> None:
    image = np.random.default_rng(seed).normal(size=(rows[0][-1] + rows[1], cols[0][-1] + cols[1]))
    blended = np.zeros_like(image)
    for row, down in zip(rows[0], axis_weights(*rows), strict=True):
        for col, across in zip(cols[0], axis_weights(*cols), strict=True):
            part = np.s_[row : row + rows[1], col : col + cols[1]]
            blended[part] += image[part] * np.outer(down, across)
    np.testing.assert_allclose(blended, image, rtol=1e-12, atol=1e-14)


@given(st.integers(1, 64).map(lambda n: 8 * n))
def test_taper_is_symmetric_and_highest_in_the_middle(chip: int) -> None:
    shape = taper(chip)
    np.testing.assert_allclose(shape, shape[::-1], rtol=1e-9)
    assert (np.diff(shape[: chip // 2]) > 0).all()
    assert shape.min() > 0
    assert shape.max() <= 1


def test_a_step_between_windows_becomes_a_slope() -> None:
    """Two windows that disagree by 1: no pixel differs from its neighbour by more than a small part of that."""
    first, chip = (0, 32), 64
    weights = axis_weights(first, chip)
    line = np.zeros(96)
    line[32:] += weights[1]
    assert line[0] == 0
    assert line[-1] == 1
    assert np.abs(np.diff(line)).max() < 0.1
