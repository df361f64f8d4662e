# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Overlapping windows of a scene, smoothly blended row by row.

Windows are a product of rows and columns, and so are their weights: those of each axis sum to one at every pixel, and
the weight of a window's pixel is the product of its row's and its column's. Shapes: K channels, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from torchgeo_clay.datasets.raster.dataset import starts

__all__ = ('Blender', 'axis_weights', 'taper')

#: First row of a block, its pixels (K, H, W) float32, and whether each is valid (H, W).
type Rows = tuple[int, npt.NDArray[np.float32], npt.NDArray[np.bool_]]


def taper(chip: int) -> npt.NDArray[np.float64]:
    """Weights of a window's pixels along an axis: most in its middle, little but not nothing at its ends.

    Args:
        chip: pixels of the window.

    Returns:
        (chip,) sin²(π·(i + ½)/chip), positive.
    """
    return np.sin(np.pi * (np.arange(chip) + 0.5) / chip) ** 2


def axis_weights(first: Sequence[int], chip: int) -> npt.NDArray[np.float64]:
    """Weights of the windows of an axis.

    Args:
        first: first pixels of the windows, of :func:`torchgeo_clay.datasets.raster.dataset.starts`.
        chip: pixels of a window.

    Returns:
        (windows, chip); over all windows that hold a pixel they sum to one.
    """
    shape = taper(chip)
    total = np.zeros(max(first) + chip)
    for start in first:
        total[start : start + chip] += shape
    return np.stack([shape / total[start : start + chip] for start in first])


class Blender:
    """Blends windows that come from top to bottom; memory holds the rows of one window, whatever the scene's height."""

    def __init__(self, height: int, width: int, chip: int, stride: int, align: int = 1) -> None:
        """Initialize a new Blender instance.

        Args:
            height: rows of the scene.
            width: columns of the scene.
            chip: as :func:`torchgeo_clay.datasets.raster.dataset.starts`.
            stride: pixels from one window to the next.
            align: windows begin at multiples of it.
        """
        self.height, self.width, self.chip = height, width, chip
        weights = []
        for length in (height, width):
            first = starts(length, chip, stride, align)
            weights.append(dict(zip(first, axis_weights(first, chip), strict=True)))
        self._row_weights, self._col_weights = weights
        self._top, self._across = 0, max(self._col_weights) + chip
        self._sums: npt.NDArray[np.float32] | None = None
        self._valid = np.zeros((chip, self._across), bool)

    def add(self, row: int, col: int, values: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]) -> Iterator[Rows]:
        """Add a window that begins at or below those added before. Exhaust the iterator.

        Args:
            row: first row of the window.
            col: first column.
            values: (K, chip, chip).
            valid: (chip, chip), which pixels hold data.

        Yields:
            The rows above the window, which are finished.
        """
        yield from self._move(row)
        if self._sums is None:
            self._sums = np.zeros((len(values), self.chip, self._across), np.float32)
        weights = np.outer(self._row_weights[row], self._col_weights[col]).astype(np.float32)
        self._sums[:, :, col : col + self.chip] += values * weights
        self._valid[:, col : col + self.chip] |= valid

    def finish(self) -> Iterator[Rows]:
        """Yield the rows left after the last window."""
        yield from self._move(self._top + self.chip)

    def _move(self, top: int) -> Iterator[Rows]:
        """Move the first row in memory to ``top``; yield those above it if any of them holds data."""
        done = min(top - self._top, self.chip)
        if not done:
            return
        height = min(done, self.height - self._top)
        if self._sums is not None and self._valid[:height].any():
            yield self._top, self._sums[:, :height, : self.width].copy(), self._valid[:height, : self.width].copy()
        for array, axis in ((self._sums, 1), (self._valid, 0)):
            if array is not None:
                kept = np.roll(array, -done, axis)
                kept[..., self.chip - done :, :] = 0
                array[...] = kept
        self._top = top
