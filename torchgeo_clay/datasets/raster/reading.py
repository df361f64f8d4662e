# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Pixels of a scene: C bands, H rows, W columns.

Pixels are read as they lie in the file: nothing is resampled by :func:`read_window`. Which are valid is decided in
:mod:`torchgeo_clay.datasets.raster.validity`. Invalid pixels are 0 in all bands, so that no fill value or NaN travels
on; after normalization set them to 0 again to give them the mean.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt
from pyproj import CRS
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader
from rasterio.transform import array_bounds
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import Window

from torchgeo_clay.datasets.raster.files import SceneError, open_raster, printable
from torchgeo_clay.datasets.raster.georeference import apply, shifted
from torchgeo_clay.datasets.raster.scene import Scene
from torchgeo_clay.datasets.raster.validity import unreadable

__all__ = ('Handles', 'read_window', 'read_window_on_grid')

Pixels = npt.NDArray[Any]
Valid = npt.NDArray[np.bool_]


def read_window(
    dataset: DatasetReader, scene: Scene, row: int, col: int, height: int, width: int
) -> tuple[Pixels, Valid]:
    """Read a window of a scene in its own grid.

    Args:
        dataset: the scene's file, open.
        scene: the scene.
        row: first row; the window may begin or end outside of the scene.
        col: first column.
        height: rows.
        width: columns.

    Returns:
        Pixels (C, H, W), float32 if the scene's calibration changes them, else in the file's dtype; and valid
        (1, H, W), bool.

    Raises:
        SceneError: if the file is not readable there.
        ValueError: for a height or width that is not positive.
    """
    pixels, valid = _read_raw(dataset, scene, row, col, height, width)
    return scene.calibration(pixels, valid), valid


def _read_raw(
    dataset: DatasetReader, scene: Scene, row: int, col: int, height: int, width: int
) -> tuple[Pixels, Valid]:
    """Read a window, padded where it leaves the scene, in the file's dtype."""
    if height < 1 or width < 1:
        raise ValueError(f'Expected a window of at least 1 x 1 pixels, got {height} x {width}.')
    top, left = max(row, 0), max(col, 0)
    bottom, right = min(row + height, scene.height), min(col + width, scene.width)
    if bottom <= top or right <= left:
        return np.zeros((len(scene.band_indexes), height, width), scene.dtype), np.zeros((1, height, width), bool)
    pixels, valid = _read_inside(dataset, scene, Window(left, top, right - left, bottom - top))
    if valid.shape[1:] == (height, width):
        return pixels, valid
    margins = ((0, 0), (top - row, row + height - bottom), (left - col, col + width - right))
    return np.pad(pixels, margins), np.pad(valid, margins)


def _read_inside(dataset: DatasetReader, scene: Scene, window: Window) -> tuple[Pixels, Valid]:
    """Read a window that lies inside the scene."""
    shape = int(window.height), int(window.width)
    try:
        return scene.validity.read(dataset, scene.band_indexes, window, shape, scene.dtype)
    except RasterioIOError as error:
        raise SceneError(f'{printable(scene.path)}: {unreadable(window, error)}') from error
    except SceneError as error:
        raise SceneError(f'{printable(scene.path)}: {error}') from error


def read_window_on_grid(
    dataset: DatasetReader, scene: Scene, crs: CRS, transform: Affine, height: int, width: int
) -> tuple[Pixels, Valid]:
    """Read a scene onto another grid, bilinearly, as TorchGeo does.

    Args:
        dataset: the scene's file, open.
        scene: the scene; it must have a CRS.
        crs: of the grid.
        transform: from the grid's (column, row) to its CRS.
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        Pixels (C, H, W), float32, and valid (1, H, W), bool. A pixel that takes part of its value from an invalid one
        takes it from the valid ones only.

    Raises:
        SceneError: if the file is not readable there.
    """
    assert scene.crs is not None
    bounds = array_bounds(height, width, transform)
    left, bottom, right, top = transform_bounds(crs.to_wkt(), scene.crs.to_wkt(), *bounds, densify_pts=21)
    inverse = ~scene.transform
    corners = [apply(inverse, x, y) for x in (left, right) for y in (bottom, top)]
    shape = (len(scene.band_indexes), height, width)
    if not np.isfinite(corners).all():  # the grid lies where the scene's CRS is not defined
        return np.zeros(shape, np.float32), np.zeros((1, height, width), bool)
    cols, rows = zip(*corners, strict=True)
    # one pixel more on each side for the bilinear kernel, and one for rounding
    row, col = max(int(min(rows)) - 2, 0), max(int(min(cols)) - 2, 0)
    size = min(int(max(rows)) + 3, scene.height) - row, min(int(max(cols)) + 3, scene.width) - col
    if min(size) < 1:
        return np.zeros(shape, np.float32), np.zeros((1, height, width), bool)
    pixels, valid = _read_raw(dataset, scene, row, col, *size)
    warped = np.full(shape, np.nan, np.float32)
    reproject(
        np.where(valid, pixels, np.nan).astype(np.float32),
        warped,
        src_transform=shifted(scene.transform, row, col),
        src_crs=scene.crs.to_wkt(),
        src_nodata=np.nan,
        dst_transform=transform,
        dst_crs=crs.to_wkt(),
        dst_nodata=np.nan,
        resampling=Resampling.bilinear,
    )
    valid = np.isfinite(warped).all(axis=0)[None]
    return scene.calibration(np.where(valid, warped, np.float32(0)), valid), valid


class Handles:
    """Open rasters, the least recently used closed first.

    Every process and thread opens its own, as GDAL's handles must not be shared. Those open when the interpreter ends
    are closed before GDAL is, as rasterio prints an error for each one left.

    Args:
        limit: how many stay open.

    Raises:
        ValueError: for a limit below 1.
    """

    def __init__(self, limit: int = 64) -> None:
        """Initialize a new Handles instance."""
        if limit < 1:
            raise ValueError(f'limit: expected at least 1 open file, got {limit}.')
        self.limit = limit
        self._start()

    def _start(self) -> None:
        """Start empty, in this process."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[int, str], DatasetReader] = OrderedDict()
        weakref.finalize(self, _close_all, self._pid, self._open)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: no handles."""
        return {'limit': self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start empty in the other process."""
        self.limit = state['limit']
        self._start()

    def __len__(self) -> int:
        """Return the number of rasters open in this process."""
        return len(self._open) if self._pid == os.getpid() else 0

    def __call__(self, path: str) -> DatasetReader:
        """Return the raster at a path, opened if it is not yet.

        Args:
            path: the file.

        Raises:
            SceneError: if it is not readable as a raster.
        """
        if self._pid != os.getpid():
            self._inherited = self._open  # the parent's, kept so that this process does not close them
            self._start()
        key = (threading.get_ident(), path)
        with self._lock:
            dataset = self._open.get(key)
            if dataset is not None:
                self._open.move_to_end(key)
                return dataset
        dataset = open_raster(path)
        with self._lock:
            self._open[key] = dataset
            mine = [k for k in self._open if k[0] == key[0]]
            if len(mine) > self.limit:  # another thread's may be in use just now
                self._open.pop(mine[0]).close()
        return dataset

    def close(self) -> None:
        """Close all rasters of this process; they are opened again when asked for."""
        _close_all(self._pid, self._open)


def _close_all(pid: int, rasters: OrderedDict[tuple[int, str], DatasetReader]) -> None:
    """Close rasters, in the process that opened them only."""
    while pid == os.getpid() and rasters:
        rasters.popitem()[1].close()
