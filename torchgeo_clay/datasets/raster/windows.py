# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Windows that cover a scene: chips of one size at a stride, in pixels.

Along each axis windows begin at 0, stride, 2·stride, …; the last one is moved back so that it ends where the scene
ends. So no window is there twice, none is missing, and only a scene smaller than a chip is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import eq
from typing import overload

__all__ = ('check_windows', 'owned', 'starts', 'windows')

#: Pixels per side of the model's patches.
PATCH = 8


def check_windows(chip: int, stride: int, align: int = 1) -> None:
    """Check a chip size and a stride.

    Args:
        chip: pixels per side.
        stride: pixels from one window to the next.
        align: where windows have to begin at multiples of it, 8 for a common grid of patches.

    Raises:
        ValueError: naming the argument, what was expected and what would do.
    """
    if chip < PATCH or chip % PATCH:
        nearest = max(1, round(chip / PATCH)) * PATCH
        raise ValueError(
            f"chip: expected a multiple of {PATCH} pixels, the size of the model's patches, got {chip}. "
            f'The nearest is {nearest}.'
        )
    if not 0 < stride <= chip:
        why = 'windows would never end' if stride <= 0 else 'pixels between windows would be left out'
        raise ValueError(
            f'stride: expected 1 to {chip} pixels (the chip), got {stride}: {why}. Give stride={chip} for chips side '
            f'by side, stride={chip // 2} for half of each overlapping.'
        )
    if stride % align:
        nearest = max(1, round(stride / align)) * align
        raise ValueError(
            f'stride: expected a multiple of {align} pixels, so that the patches of all windows lie on one grid, got '
            f'{stride}. The nearest is {nearest}.'
        )


def starts(length: int, chip: int, stride: int, align: int = 1) -> tuple[int, ...]:
    """First pixels of the windows along one axis.

    Args:
        length: pixels of the axis.
        chip: pixels of a window.
        stride: pixels from one window to the next.
        align: every window begins at a multiple of it. The last one may then end up to align - 1 pixels outside.

    Returns:
        Rising; one window, which is padded, for an axis shorter than a chip.

    Raises:
        ValueError: as for :func:`check_windows`, and for an axis without pixels.
    """
    check_windows(chip, stride, align)
    if length < 1:
        raise ValueError(f'length: expected at least 1 pixel, got {length}.')
    last = -(-max(length - chip, 0) // align) * align
    return (*range(0, last, stride), last)


class Windows(Sequence[tuple[int, int]]):
    """Upper left corners (row, column) of windows, row by row, computed when asked for; slices are of the same class.

    Args:
        rows: first rows.
        cols: first columns.
        places: positions in the product of both; None for all.
    """

    def __init__(self, rows: Sequence[int], cols: Sequence[int], places: range | None = None) -> None:
        """Initialize a new Windows instance."""
        self.rows, self.cols = rows, cols
        self.places = range(len(rows) * len(cols)) if places is None else places

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.places)

    def __eq__(self, other: object) -> bool:
        """Compare with any sequence of corners."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, index: int) -> tuple[int, int]: ...

    @overload
    def __getitem__(self, index: slice) -> Windows: ...

    def __getitem__(self, index: int | slice) -> tuple[int, int] | Windows:
        """Return a window's corner, or some of the windows."""
        if isinstance(index, slice):
            return Windows(self.rows, self.cols, self.places[index])
        row, col = divmod(self.places[index], len(self.cols))
        return self.rows[row], self.cols[col]


def windows(height: int, width: int, chip: int, stride: int, align: int = 1) -> Windows:
    """Cover a scene with windows, row by row.

    Args:
        height: rows of the scene.
        width: columns of the scene.
        chip: as for :func:`starts`, like stride and align.
        stride: pixels from one window to the next.
        align: windows begin at multiples of it.

    Raises:
        ValueError: as for :func:`starts`.
    """
    return Windows(starts(height, chip, stride, align), starts(width, chip, stride, align))


def owned(first: Sequence[int], chip: int, align: int = 1) -> tuple[tuple[int, int], ...]:
    """Divide an axis among overlapping windows: cut in the middle of each overlap.

    Args:
        first: first pixels of the windows, of :func:`starts` with the same ``align``.
        chip: pixels of a window.
        align: the parts begin and end at multiples of it.

    Returns:
        First pixel and the one after the last, of each window; together they cover the axis once.
    """
    cuts = [(left + chip + right) // (2 * align) * align for left, right in pairwise(first)]
    return tuple(zip([first[0], *cuts], [*cuts, first[-1] + chip], strict=True))
