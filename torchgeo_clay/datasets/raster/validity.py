# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Which pixels of a raster are data, and a sample of them, by which its units are judged before it is used.

A nodata value shared by all bands is no data where all bands have it, as in GDAL's dataset mask: zero reflectance in
one band over water and a saturated red at 255 are data. A fill value that no measurement of the sensor has, such as
-9999, counts in any band. Shapes: C bands, H × W pixels, N pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from torchgeo_clay.datasets.raster.files import SceneError
from torchgeo_clay.sensors import Sensor

__all__ = ('Validity', 'check_complete', 'read_sample', 'read_validity', 'undeclared_fill', 'unreadable')

Pixels = npt.NDArray[Any]
Valid = npt.NDArray[np.bool_]

#: Sensors whose products are zero in all bands outside the swath, often without a tag that says so.
_ZERO_FILLED = ('sentinel-2-l2a', 'landsat-c2l1', 'landsat-c2l2-sr')

#: Larger than any measurement: uninitialized memory, or a fill value that nothing declares.
_ABSURD = 1e30


@dataclass(frozen=True)
class Validity:
    """How a file says which pixels are data.

    Attributes:
        fill: per band the value that stands for no data, or None.
        in_any: whether the value in one band is enough; else all bands must have it.
        zero: whether zero in all bands stands for no data too.
        others: the sensor's bands of the file (from 1) that are not read, but share the nodata value.
        mask: whether the file has a mask, inside it or beside it.
        alpha: the file's alpha bands (from 1).
        given: whether the user said which value stands for no data.
    """

    fill: tuple[float | None, ...]
    in_any: bool = False
    zero: bool = False
    others: tuple[int, ...] = ()
    mask: bool = False
    alpha: tuple[int, ...] = ()
    given: bool = False

    def read(
        self, dataset: DatasetReader, bands: Sequence[int], window: Window, shape: tuple[int, int], dtype: str
    ) -> tuple[Pixels, Valid]:
        """Read bands (from 1) in a window inside the raster, at a shape of rows and columns.

        Returns:
            Pixels (C, H, W), 0 where they are not valid, and valid (1, H, W).

        Raises:
            SceneError: for pixels that no sensor measures.
            rasterio.errors.RasterioIOError: if the file cannot be read there.
        """
        where = {'window': window, 'out_shape': shape}
        pixels = dataset.read(list(bands), window=window, out_shape=(len(bands), *shape), out_dtype=dtype)
        valid = np.ones(shape, bool)
        if self.mask:
            valid &= dataset.read_masks(bands[0], **where) > 0
        for band in self.alpha:
            valid &= dataset.read(band, **where) > 0
        if np.issubdtype(pixels.dtype, np.floating):
            valid &= np.isfinite(pixels).all(axis=0)
        if any(value is not None for value in self.fill):
            valid &= ~self._filled(dataset, pixels, self.fill, **where)
        if self.zero:
            valid &= ~self._filled(dataset, pixels, (0.0,) * len(bands), **where)
        if not valid.all():
            pixels[:, ~valid] = 0
        if pixels.dtype.itemsize >= 4 and np.issubdtype(pixels.dtype, np.floating):
            _check_absurd(pixels, bands)
        return pixels, valid[None]

    def _filled(
        self, dataset: DatasetReader, pixels: Pixels, fill: Sequence[float | None], **where: Any
    ) -> npt.NDArray[np.bool_]:
        """Where pixels hold the fill value, (H, W)."""
        values = [None if value is None else _as_dtype(value, pixels.dtype) for value in fill]
        filled = np.stack(
            [np.zeros(band.shape, bool) if v is None else band == v for band, v in zip(pixels, values, strict=True)]
        )
        if self.in_any and fill is self.fill:
            return filled.any(axis=0)
        lacking = filled.all(axis=0)
        if self.others and lacking.any():  # rare, so that the other bands are seldom read
            where['out_shape'] = (len(self.others), *where['out_shape'])
            others = dataset.read(list(self.others), out_dtype=pixels.dtype, **where)
            lacking &= (others == values[0]).all(axis=0)
        return lacking


def _as_dtype(value: float, dtype: np.dtype[Any]) -> np.generic | None:
    """A value in the pixels' own dtype, so that comparing converts no pixel; None if no pixel can have it."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        fits = float(value).is_integer() and limits.min <= value <= limits.max
        return cast(np.generic, dtype.type(int(value))) if fits else None
    with np.errstate(over='ignore'):
        return None if value != value else cast(np.generic, dtype.type(value))  # NaN is seen as not finite


def _check_absurd(pixels: Pixels, bands: Sequence[int]) -> None:
    """Raise for a value that no sensor measures."""
    extreme = max(pixels.max(), -pixels.min(), key=abs) if pixels.size else 0
    if abs(extreme) > _ABSURD:
        band = int(np.abs(pixels).max(axis=(1, 2)).argmax())
        value = str(pixels[band].flat[np.abs(pixels[band]).argmax()])  # as short as its type allows
        raise SceneError(
            f'band {bands[band]} holds {value}, which no sensor measures. If it is a fill value give nodata={value}.'
        )


def read_validity(
    dataset: DatasetReader,
    sensor: Sensor,
    bands: Sequence[int],
    owned: Sequence[int],
    alpha: tuple[int, ...],
    nodata: float | None,
) -> Validity:
    """Find out how a file says which pixels are data.

    Args:
        dataset: the file, open.
        sensor: the sensor, with the bands that are read.
        bands: the bands that are read, from 1.
        owned: all bands of the file that are the sensor's.
        alpha: its alpha bands.
        nodata: as :func:`~torchgeo_clay.datasets.scan_scene`.
    """
    tagged, first = dataset.nodatavals, bands[0] - 1
    fill = tuple(tagged[i - 1] for i in bands) if nodata is None else (nodata,) * len(bands)
    flags = dataset.mask_flag_enums[first]
    return Validity(
        fill=fill,
        in_any=len(set(fill)) > 1 or (fill[0] is not None and _no_measurement(fill[0], sensor)),
        zero=nodata is None and sensor.name in _ZERO_FILLED,
        others=tuple(i for i in owned if i not in bands and tagged[i - 1] == tagged[first]),
        mask=MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags,
        alpha=alpha,
        given=nodata is not None,
    )


def _no_measurement(value: float, sensor: Sensor) -> bool:
    """Whether a value is none that the sensor measures: negative reflectance, or far from all statistics."""
    negative = sensor.scale == 'linear' and min(sensor.mean) >= 20 and value < 0
    return negative or all(abs(value - b.mean) > 10 * b.std for b in sensor.bands)


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
    """Read the last block of each band, which a truncated file lacks; raise SceneError if it cannot be read."""
    for band, (rows, cols) in zip(dataset.indexes, dataset.block_shapes, strict=True):
        height = min((dataset.height - 1) % rows + 1, _SIDE)
        width = min((dataset.width - 1) % cols + 1, _SIDE)
        window = Window(dataset.width - width, dataset.height - height, width, height)
        try:
            dataset.read(band, window=window)
        except RasterioIOError as error:
            raise SceneError(unreadable(window, error)) from error


def unreadable(window: Window, error: Exception) -> str:
    """Say where, and why, pixels are not readable."""
    row, col, why = window.row_off, window.col_off, str(error.__cause__ or error).rstrip('.')
    return (
        f'not readable at rows {row} to {row + window.height}, columns {col} to {col + window.width}: {why}. Is the '
        'file truncated or damaged? Copy it again.'
    )


def read_sample(dataset: DatasetReader, bands: Sequence[int], validity: Validity, dtype: str) -> tuple[Pixels, Valid]:
    """Read pixels from all over a raster: all of a small one, else its overviews, or a number of its blocks.

    Returns:
        Pixels (C, 1, N) of the bands (from 1) and which are valid (1, 1, N).
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


def undeclared_fill(pixels: Pixels, sensor: Sensor) -> str:
    """Name a value that many valid pixels (C, 1, N) hold in all bands, as fill that nothing declares does; or empty."""
    flat = pixels.reshape(len(pixels), -1)
    if flat.shape[1] == 0:
        return ''
    values, counts = np.unique(flat[0, (flat == flat[0]).all(axis=0)], return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        share = count / flat.shape[1]
        odd = value in _SHARES if len(pixels) > 1 else False
        far = all(abs(value - b.mean) > 5 * b.std for b in sensor.bands) and (value < 0 or value >= 32767)
        if (odd or far) and share >= _SHARES.get(value, 0.001):
            return (
                f'{100 * share:.1f} % of the pixels are {value:g} in all bands and count as data. If they are fill '
                f'give nodata={value:g}; if they are not, give nodata="nan".'
            )
    return ''
