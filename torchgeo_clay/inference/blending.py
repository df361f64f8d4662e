# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Weights with which overlapping windows are blended: they sum to one at every pixel.

Windows are a product of rows and columns, and so are the weights: those of an axis are normalised by themselves, and
the weight of a window's pixel is that of its row times that of its column.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ('axis_weights', 'taper')


def taper(chip: int) -> npt.NDArray[np.float64]:
    """How much a window knows of its pixels along an axis: most in its middle, little but not nothing at its ends.

    Args:
        chip: pixels of the window.

    Returns:
        (chip,) sin²(π·(i + ½)/chip), positive.
    """
    return np.sin(np.pi * (np.arange(chip) + 0.5) / chip) ** 2


def axis_weights(first: Sequence[int], chip: int) -> npt.NDArray[np.float64]:
    """Weights of the windows of an axis.

    Args:
        first: first pixels of the windows, of :func:`torchgeo_clay.datasets.raster.windows.starts`.
        chip: pixels of a window.

    Returns:
        (windows, chip); over all windows that hold a pixel they sum to one.
    """
    shape = taper(chip)
    total = np.zeros(max(first) + chip)
    for start in first:
        total[start : start + chip] += shape
    return np.stack([shape / total[start : start + chip] for start in first])
