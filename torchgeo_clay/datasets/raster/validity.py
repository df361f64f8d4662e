# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Which pixels of a raster are data: GDAL's mask, alpha and nodata. Shapes: C bands, H rows, W columns.

A nodata value shared by all bands is no data where all bands have it, as in GDAL's dataset mask: zero reflectance in
one band over water and a saturated red at 255 are data. A fill value that no measurement of the sensor has, such as
-9999, counts in any band.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window

from torchgeo_clay.datasets.raster.files import SceneError
from torchgeo_clay.sensors import Sensor

__all__ = ('Validity', 'read_validity')

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
        """Read a window that lies inside the raster.

        Args:
            dataset: the file, open.
            bands: bands of the file, from 1.
            window: the window.
            shape: rows and columns to read it at.
            dtype: of the pixels.

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
        values = [None if value is None else as_dtype(value, pixels.dtype) for value in fill]
        filled = np.stack(
            [np.zeros(band.shape, bool) if v is None else band == v for band, v in zip(pixels, values, strict=True)]
        )
        if self.in_any and fill is self.fill:
            return filled.any(axis=0)
        lacking = filled.all(axis=0)
        if self.others and lacking.any():  # rare, so that the other bands are seldom read
            others = dataset.read(list(self.others), out_dtype=pixels.dtype, **_shaped(where, len(self.others)))
            lacking &= (others == values[0]).all(axis=0)
        return lacking


def _shaped(where: dict[str, Any], count: int) -> dict[str, Any]:
    """A window for several bands."""
    return {'window': where['window'], 'out_shape': (count, *where['out_shape'])}


def as_dtype(value: float, dtype: np.dtype[Any]) -> np.generic | None:
    """A value in the pixels' own dtype, so that comparing converts no pixel; None if no pixel can have it.

    Args:
        value: the value.
        dtype: of the pixels.
    """
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
        nodata: what the user says stands for no data where all bands have it; None to ask the file.
    """
    fill = tuple(dataset.nodatavals[i - 1] for i in bands) if nodata is None else (float(nodata),) * len(bands)
    flags = dataset.mask_flag_enums[bands[0] - 1]
    tagged = dataset.nodatavals
    return Validity(
        fill=fill,
        in_any=len(set(fill)) > 1 or (fill[0] is not None and _no_measurement(fill[0], sensor)),
        zero=nodata is None and sensor.name in _ZERO_FILLED,
        others=tuple(i for i in owned if i not in bands and tagged[i - 1] == tagged[bands[0] - 1]),
        mask=MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags,
        alpha=alpha,
        given=nodata is not None,
    )


def _no_measurement(value: float, sensor: Sensor) -> bool:
    """Whether a value is none that the sensor measures: negative reflectance, or far from all statistics."""
    if sensor.scale == 'linear' and min(sensor.mean) >= 20 and value < 0:
        return True
    return all(abs(value - b.mean) > 10 * b.std for b in sensor.bands)
