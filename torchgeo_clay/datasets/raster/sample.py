# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A sample of a raster's pixels, by which its units are judged before it is used. Shapes: C bands, N pixels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from torchgeo_clay.datasets.raster.files import SceneError
from torchgeo_clay.datasets.raster.validity import Validity
from torchgeo_clay.sensors import Sensor

__all__ = ('check_complete', 'read_sample', 'undeclared_fill', 'unreadable')

Pixels = npt.NDArray[Any]
Valid = npt.NDArray[np.bool_]

#: Scenes of up to this many pixels are read whole.
_WHOLE = 1 << 20
#: Blocks, and valid pixels in them, that are enough.
_ENOUGH = 8, 1 << 15
#: Pixels that are kept.
_KEPT = 1 << 15
#: Blocks that are read of a scene without overviews, at most.
_BLOCKS = 64
#: Rows and columns of a block that are read, at most.
_SIDE = 512

#: Shares of pixels that hold one value in all bands from which on it looks like fill, by value; others from 0.1 %.
_SHARES = {0: 0.01, 255: 0.1}


def check_complete(dataset: DatasetReader) -> None:
    """Read the last block of each band, which a truncated file lacks.

    Args:
        dataset: the file, open.

    Raises:
        SceneError: if it cannot be read.
    """
    for band, (rows, cols) in zip(dataset.indexes, dataset.block_shapes, strict=True):
        height = min((dataset.height - 1) % rows + 1, _SIDE)
        width = min((dataset.width - 1) % cols + 1, _SIDE)
        window = Window(dataset.width - width, dataset.height - height, width, height)
        try:
            dataset.read(band, window=window)
        except RasterioIOError as error:
            raise SceneError(unreadable(window, error)) from error


def unreadable(window: Window, error: Exception) -> str:
    """Say that pixels are not readable.

    Args:
        window: where.
        error: why.
    """
    row, col, why = window.row_off, window.col_off, str(error.__cause__ or error).rstrip('.')
    return (
        f'not readable at rows {row} to {row + window.height}, columns {col} to {col + window.width}: {why}. Is the '
        'file truncated or damaged? Copy it again.'
    )


def read_sample(dataset: DatasetReader, bands: Sequence[int], validity: Validity, dtype: str) -> tuple[Pixels, Valid]:
    """Read pixels from all over a raster.

    A small raster is read whole, a large one from its overviews, or a number of its blocks.

    Args:
        dataset: the file, open.
        bands: bands to read, from 1.
        validity: how the file says which pixels are data.
        dtype: of the pixels.

    Returns:
        Pixels (C, 1, N) and which are valid (1, 1, N).

    Raises:
        SceneError: if the file cannot be read.
    """
    found: list[tuple[Pixels, Valid]] = []
    for window, shape in _windows(dataset):
        try:
            found.append(validity.read(dataset, bands, window, shape, dtype))
        except RasterioIOError as error:
            raise SceneError(unreadable(window, error)) from error
        if len(found) >= _ENOUGH[0] and sum(int(valid.sum()) for _, valid in found) >= _ENOUGH[1]:
            break
    pixels = np.concatenate([p.reshape(len(bands), 1, -1) for p, _ in found], axis=2)
    valid = np.concatenate([v.reshape(1, 1, -1) for _, v in found], axis=2)
    places = np.flatnonzero(valid)
    places = places[np.linspace(0, len(places) - 1, min(len(places), _KEPT)).astype(np.int64)]
    return pixels[:, :, places], valid[:, :, places]


def _windows(dataset: DatasetReader) -> Iterator[tuple[Window, tuple[int, int]]]:
    """Yield windows and the shape to read each at."""
    height, width = dataset.height, dataset.width
    everything = Window(0, 0, width, height)
    if height * width <= _WHOLE:
        yield everything, (height, width)
        return
    factors = [f for f in dataset.overviews(1) if height // f * (width // f) <= 4 * _WHOLE]
    if factors:
        yield everything, (max(height // factors[0], 1), max(width // factors[0], 1))
        return
    block_height, block_width = dataset.block_shapes[0]
    rows, cols = (_spread(side, block) for side, block in ((height, block_height), (width, block_width)))
    places = list(itertools.product(rows, cols))
    for i in np.random.default_rng(0).permutation(len(places))[:_BLOCKS]:
        row, col = places[i]
        size = min(block_height, height - row, _SIDE), min(block_width, width - col, _SIDE)
        yield Window(col, row, size[1], size[0]), size


def _spread(side: int, block: int) -> list[int]:
    """First pixels of up to 64 blocks along an axis, evenly spread; of one block, 8 windows in it."""
    count = -(-side // block)
    if count == 1 and side > _SIDE:
        return [int(start) for start in np.linspace(0, side - _SIDE, 8)]
    return sorted({int(i) * block for i in np.linspace(0, count - 1, min(count, _BLOCKS))})


def undeclared_fill(pixels: Pixels, sensor: Sensor) -> str | None:
    """Name a value that many valid pixels hold in all bands, as fill that nothing declares does.

    Args:
        pixels: (C, 1, N) valid pixels of the file.
        sensor: the sensor, with the bands of the pixels.
    """
    flat = pixels.reshape(len(pixels), -1)
    if flat.shape[1] == 0:
        return None
    values, counts = np.unique(flat[0, (flat == flat[0]).all(axis=0)], return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        share = count / flat.shape[1]
        odd = value in _SHARES if len(pixels) > 1 else False
        far = all(abs(value - b.mean) > 5 * b.std for b in sensor.bands) and (value < 0 or value >= 32767)
        if (odd or far) and share >= _SHARES.get(value, 0.001):
            return (
                f'{100 * share:.1f} % of the pixels are {value:g} in all bands and count as data. If they are fill '
                f'give nodata={value:g}; if they are not, give nodata=.nan.'
            )
    return None
