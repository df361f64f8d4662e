# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Windows that cover a scene: laws that hold for any size, chip and stride."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_clay.datasets.raster.dataset import owned, starts, windows

CHIPS = st.integers(1, 6).map(lambda n: 8 * n)


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Length, chip, stride, align."""
    chip = draw(CHIPS)
    align = draw(st.sampled_from([1, 8]))
    stride = draw(st.integers(1, chip // align)) * align
    return draw(st.integers(1, 300)), chip, stride, align


@given(axes())
def test_an_axis_is_covered_and_nothing_is_there_twice(axis: tuple[int, int, int, int]) -> None:
    length, chip, stride, align = axis
    first = starts(*axis)
    covered = np.zeros(first[-1] + chip, int)
    for start in first:
        covered[start : start + chip] += 1
    assert (covered > 0).all()
    assert len(set(first)) == len(first)
    assert list(first) == sorted(first)
    assert first[0] == 0
    assert all(start % align == 0 for start in first)
    assert all(b - a <= stride for a, b in pairwise(first))
    assert first[-1] + chip >= length


@given(axes())
def test_windows_end_where_the_scene_ends(axis: tuple[int, int, int, int]) -> None:
    length, chip, _, align = axis
    end = starts(*axis)[-1] + chip
    assert end - max(length, chip) < align
    if align == 1:
        assert end == max(length, chip)


@given(axes())
def test_no_window_too_many(axis: tuple[int, int, int, int]) -> None:
    length, chip, stride, _ = axis
    fewest = 1 + -(-max(length - chip, 0) // stride)
    assert len(starts(*axis)) == fewest


@given(axes())
def test_what_windows_answer_for_is_the_axis_once(axis: tuple[int, int, int, int]) -> None:
    _, chip, _, align = axis
    first = starts(*axis)
    parts = owned(first, chip, align)
    assert [p for begin, end in parts for p in range(begin, end)] == list(range(first[-1] + chip))
    for start, (begin, end) in zip(first, parts, strict=True):
        assert start <= begin < end <= start + chip
        assert begin % align == 0


def test_windows_go_row_by_row() -> None:
    assert list(windows(20, 24, 16, 8)) == [(0, 0), (0, 8), (4, 0), (4, 8)]
    assert list(windows(20, 24, 16, 8, align=8)) == [(0, 0), (0, 8), (8, 0), (8, 8)]
    assert list(windows(5, 9, 16, 16)) == [(0, 0)]
    assert list(windows(20, 24, 16, 8).part(1, 2)) == [(0, 8), (4, 0)]
    assert list(windows(20, 24, 16, 8).part(3, 2)) == [(4, 8)]


def test_windows_of_a_huge_scene_take_no_memory():
    every = windows(10**6, 10**6, 256, 256)
    assert len(every) == 3907**2
    assert every[3907] == (256, 0)
    assert list(every.part(len(every) - 2, 9)) == [(10**6 - 256, 3905 * 256), (10**6 - 256, 10**6 - 256)]


@pytest.mark.parametrize(
    ('chip', 'stride', 'align', 'message'),
    [
        (20, 8, 1, 'chip: expected a multiple of 8.*got 20.*nearest is 16'),
        (0, 8, 1, 'chip: expected a multiple of 8.*got 0.*nearest is 8'),
        (16, 0, 1, 'stride: expected 1 to 16.*got 0.*never end'),
        (16, -8, 1, 'stride: expected 1 to 16.*got -8'),
        (16, 17, 1, 'stride: expected 1 to 16.*got 17.*left out'),
        (16, 12, 8, 'stride: expected a multiple of 8.*got 12'),
    ],
)
def test_mistakes(chip: int, stride: int, align: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        starts(100, chip, stride, align)


def test_an_axis_without_pixels() -> None:
    with pytest.raises(ValueError, match='length'):
        starts(0, 16, 8)
