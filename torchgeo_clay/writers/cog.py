# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Cloud-optimized GeoTIFFs of maps and of patch embeddings."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from pyproj import CRS
from rasterio import Affine
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetWriter
from rasterio.shutil import copy as raster_copy
from rasterio.windows import Window

from torchgeo_clay.writers.atomic import OutputError, atomic, check_writable, is_newer, remove_remains
from torchgeo_clay.writers.geoparquet import embedding_batches, read_metadata

__all__ = (
    'CogStream',
    'Color',
    'Layout',
    'write_patch_cogs',
)

#: Pixels per side of a COG's tiles.
_TILE = 256

#: Bytes that GDAL may keep of rasters; by its own choice it is a twentieth of the machine's memory. (As a number
#: rasterio takes GDAL_CACHEMAX for bytes, whatever its size; in the environment small ones are megabytes.)
CACHE_BYTES = 32 << 20

#: End of the name of a folder for a scene's patches while they are collected.
_SCRATCH = '.torchgeo_clay_patches'

#: What rasterio raises; GDAL's own errors reach the caller where it flushes or copies.
_FAILURES = (OSError, RasterioError, CPLE_BaseError)

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Layout:
    """A raster's metadata.

    Attributes:
        height: rows.
        width: columns.
        crs: its coordinate reference system; None for unknown.
        transform: affine from (column, row) to the CRS.
        dtype: of the pixels.
        count: K, bands.
        nodata: the value for no data; None for none.
        names: of the bands.
        classes: names of the values 0, 1, … of a map of classes.
        colors: of these values, red, green and blue from 0 to 255.
        tags: metadata items of the file.
    """

    height: int
    width: int
    crs: CRS | None
    transform: Affine
    dtype: str
    count: int = 1
    nodata: float | None = None
    names: Sequence[str] = ()
    classes: Sequence[str] = ()
    colors: Sequence[Color] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ValueError: for names that are not one per band, colors that are not one per class or no colors, or
                classes and colors of a raster that is not one band of small integers.
        """
        if self.names and len(self.names) != self.count:
            raise ValueError(f'names: expected {self.count}, one per band, got {len(self.names)}: {self.names}.')
        if (self.classes or self.colors) and (self.count != 1 or self.dtype not in ('uint8', 'uint16')):
            raise ValueError(
                f'classes and colors: expected one band of uint8 or uint16, got {self.count} of {self.dtype}.'
            )
        if self.classes and self.colors and len(self.classes) != len(self.colors):
            raise ValueError(
                f'colors: expected {len(self.classes)}, one per class ({", ".join(self.classes)}), got '
                f'{len(self.colors)}.'
            )
        for color in self.colors:
            if len(color) != 3 or not all(0 <= part <= 255 for part in color):
                raise ValueError(f'colors: expected red, green and blue from 0 to 255, got {tuple(color)}.')


class CogStream:
    """A COG written row by row; memory does not grow with its height.

    GDAL can only write a COG from another raster: rows go to a temporary plain GeoTIFF first, which is deleted at the
    end. The COG itself is written atomically.

    Example::

        with CogStream('map.tif', layout) as stream:
            stream.write(0, rows)
    """

    def __init__(self, path: str | os.PathLike[str], layout: Layout) -> None:
        """Initialize a new CogStream instance.

        Args:
            path: the COG.
            layout: its metadata.
        """
        self.path, self.layout = Path(path), layout
        self._rows = self.path.with_name(f'.{self.path.stem}.{os.getpid()}.rows.tif')
        self._file: DatasetWriter | None = None

    def __enter__(self) -> CogStream:
        """Open the plain raster.

        Raises:
            OutputError: if it cannot be created.
        """
        layout = self.layout
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', NotGeoreferencedWarning)  # a scene without CRS gives a map without
                self._file = rasterio.open(
                    self._rows,
                    'w',
                    driver='GTiff',
                    height=layout.height,
                    width=layout.width,
                    count=layout.count,
                    dtype=layout.dtype,
                    crs=None if layout.crs is None else layout.crs.to_wkt(),
                    transform=layout.transform,
                    nodata=layout.nodata,
                    interleave='band',
                    bigtiff='if_safer',
                )
            _describe(self._file, layout)
        except _FAILURES as error:
            self._drop()
            raise OutputError(f'{self.path}: could not be written ({error}). Is its folder writable?') from error
        return self

    def write(self, row: int, pixels: npt.NDArray[Any]) -> None:
        """Write a block of rows; rows in no block have no data.

        Args:
            row: its first row.
            pixels: (K, H, W) of the layout's dtype.

        Raises:
            OutputError: if the disk is full.
        """
        assert self._file is not None
        try:
            self._file.write(pixels, window=Window(0, row, pixels.shape[2], pixels.shape[1]))
        except _FAILURES as error:
            raise OutputError(f'{self.path}: could not be written ({error}). Is there room on the disk?') from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Make the COG, unless an exception was raised.

        Raises:
            OutputError: if it cannot be written.
        """
        assert self._file is not None
        try:
            self._file.close()
            if kind is None:
                self._convert()
        except _FAILURES as failure:
            raise OutputError(f'{self.path}: could not be written ({failure}). Is there room on the disk?') from failure
        finally:
            self._drop()

    def _convert(self) -> None:
        """Copy the plain raster into the COG."""
        integers = np.issubdtype(np.dtype(self.layout.dtype), np.integer)
        with atomic(self.path) as partial, warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            raster_copy(
                self._rows,
                partial,
                driver='COG',
                blocksize=_TILE,
                compress='deflate',
                predictor='yes',
                overviews='auto',
                overview_resampling='mode' if integers else 'average',
                bigtiff='if_safer',
            )

    def _drop(self) -> None:
        """Delete the plain raster and GDAL's side-car file."""
        for path in (self._rows, self._rows.with_name(f'{self._rows.name}.aux.xml')):
            path.unlink(missing_ok=True)


def _describe(file: DatasetWriter, layout: Layout) -> None:
    """Write names, classes, colors and tags."""
    if layout.names:
        file.descriptions = tuple(layout.names)
    if layout.classes:
        file.update_tags(1, **{f'CLASS_{i}': name for i, name in enumerate(layout.classes)})
        file.update_tags(CLASSES=json.dumps(dict(enumerate(layout.classes))))
    if layout.colors:
        colors = {i: (*color, 255) for i, color in enumerate(layout.colors)}
        if layout.nodata is not None:
            colors[int(layout.nodata)] = (0, 0, 0, 0)
        file.write_colormap(1, colors)
    file.update_tags(**layout.tags)


def write_patch_cogs(
    folder: str | os.PathLike[str], table: str | os.PathLike[str], scenes: Sequence[Any], patch_size: int = 8
) -> list[Path]:
    """Write the embeddings of each scene's patches as a COG of one pixel per patch.

    Values are collected in a temporary file next to the COG, not in memory.

    Args:
        folder: of the COGs, ``NAME_i.tif`` for the ith scene; those newer than the table are kept.
        table: embeddings of every patch, of :func:`torchgeo_clay.writers.write_geoparquet`.
        scenes: of :class:`torchgeo_clay.datasets.Scene`; those that are not in the table are skipped.
        patch_size: pixels per side of a patch.

    Returns:
        The paths.

    Raises:
        ValueError: if the table's rows are no patches.
        OutputError: if a COG cannot be written.
    """
    if (pooling := read_metadata(table).get('pooling')) != 'patches':
        raise ValueError(f'{os.fspath(table)}: expected embeddings of every patch, pooling: patches, got {pooling!r}.')
    check_writable(folder)
    paths = [Path(folder, f'{Path(scene.path).stem}_{i}.tif') for i, scene in enumerate(scenes)]
    remove_remains(paths)
    for left in Path(folder).glob(f'.*{_SCRATCH}'):  # of a run that was killed
        shutil.rmtree(left)
    return [
        path
        for path, scene in zip(paths, scenes, strict=True)
        if is_newer(path, table) or _write(path, table, scene, patch_size)
    ]


def _write(path: Path, table: str | os.PathLike[str], scene: Any, p: int) -> bool:
    """Write a scene's patches; return whether there are any."""
    h, w, t = -(-scene.height // p), -(-scene.width // p), scene.transform
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.', suffix=_SCRATCH) as scratch:
        grid: np.memmap | None = None
        for embedding, _, rows, cols in embedding_batches(table, scene.path):
            if grid is None:
                grid = _memmap(f'{scratch}/grid', (h, w, embedding.shape[1]), path)
            grid[rows // p, cols // p] = embedding
        if grid is None:
            return False
        scaled = Affine(t.a * p, t.b * p, t.c, t.d * p, t.e * p, t.f)
        layout = Layout(h, w, scene.crs, scaled, 'float32', grid.shape[2], float('nan'), tags={'SOURCE': scene.path})
        with CogStream(path, layout) as stream:
            for row in range(0, h, 16):
                stream.write(row, np.ascontiguousarray(np.moveaxis(grid[row : row + 16], 2, 0)))
        del grid
    return True


def _memmap(file: str, shape: tuple[int, int, int], path: Path) -> np.memmap:
    """Make an array of NaN on the disk, whose room is taken first: a full disk would kill the process later."""
    try:
        with open(file, 'wb') as handle:
            if hasattr(os, 'posix_fallocate'):
                os.posix_fallocate(handle.fileno(), 0, 4 * math.prod(shape))
    except OSError as error:
        raise OutputError(f'{path}: could not be written ({error}). Is there room on the disk?') from error
    grid = np.memmap(file, np.float32, 'r+' if os.path.getsize(file) else 'w+', shape=shape)
    grid[:] = np.nan
    return grid
