# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Place, GSD and dates of a TorchGeo sample, from its file or its dataset's index, in float64."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import geopandas
import pandas as pd
import PIL.Image
import rasterio
from geopandas import GeoDataFrame
from pyproj import CRS
from rasterio import Affine
from rasterio.transform import from_origin
from torch import Tensor
from torchgeo import datasets as tg
from torchgeo.datasets import GeoDataset

from torchgeo_clay.datasets.raster.dates import UNKNOWN, Acquisition, acquisition, from_interval, from_name
from torchgeo_clay.datasets.raster.files import SceneError, open_raster
from torchgeo_clay.datasets.raster.georeference import georeferencing, window_center, window_gsd

__all__ = ('SampleMetadata', 'opened_files', 'sample_metadata')


#: Datasets whose folders, not files, bear the date of acquisition.
_DATED_FOLDERS = (tg.SSL4EOL, tg.SSL4EOLBenchmark, tg.SSL4EOS12)

#: Formats that may be georeferenced, of images that Pillow reads.
_GEOREFERENCED = ('.tif', '.tiff', '.jp2')


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Collect the paths of rasters that are opened for reading, in order, while a dataset reads a sample.

    It replaces ``rasterio.open`` and ``PIL.Image.open`` meanwhile, which TorchGeo's datasets call, so that place, date
    and GSD of a sample are those of its own files, whatever the dataset.
    """
    paths: list[str] = []
    by_rasterio, by_pillow = rasterio.open, PIL.Image.open

    def note_rasterio(fp: Any, mode: str = 'r', *args: Any, **kwargs: Any) -> Any:
        if mode == 'r' and isinstance(fp, str | os.PathLike):
            paths.append(os.fspath(fp))
        return by_rasterio(fp, mode, *args, **kwargs)

    def note_pillow(fp: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(fp, str | os.PathLike) and os.fspath(fp).lower().endswith(_GEOREFERENCED):
            paths.append(os.fspath(fp))
        return by_pillow(fp, *args, **kwargs)

    rasterio.open, PIL.Image.open = note_rasterio, note_pillow
    try:
        yield paths
    finally:
        rasterio.open, PIL.Image.open = by_rasterio, by_pillow


@dataclass(frozen=True)
class SampleMetadata:
    """Place, GSD and dates of a sample.

    Attributes:
        lat: degrees north, WGS84, of the center; NaN for unknown.
        lon: degrees east; NaN for unknown.
        gsd: meters per pixel; NaN for unknown.
        acquired: acquisitions, one per date; empty for unknown.
        growth: side of a pixel over that in the file, where the dataset resamples what it reads.
    """

    lat: float = math.nan
    lon: float = math.nan
    gsd: float = math.nan
    acquired: tuple[Acquisition, ...] = ()
    growth: float = 1.0

    def times(self, dates: int) -> list[float]:
        """Seconds UTC of each of a sample's dates, NaN for unknown.

        Args:
            dates: number of the sample's dates. If another number is known, times are used only if all are equal.
        """
        known = [a.time for a in self.acquired]
        if len(known) == dates:
            return known
        return (known[:1] if len(set(known)) == 1 else [math.nan]) * dates


#: Arguments of :func:`window_center` for a whole file.
_Grid = tuple[CRS | None, Affine, int, int, int, int]


@functools.lru_cache(maxsize=65536)
def _raster(path: str) -> tuple[_Grid, Acquisition]:
    """A file's grid and date, read once per process; SceneError where rasterio cannot open it, which is not kept."""
    with open_raster(path) as file:
        crs, transform, _ = georeferencing(file)
        return (crs, transform, 0, 0, file.height, file.width), acquisition(file.tags(), path)[0]


def _rasters(paths: Iterable[str | os.PathLike[str]]) -> dict[str, tuple[_Grid, Acquisition]]:
    """Path → grid and date, of the files that can be opened."""
    found = {}
    for path in paths:
        with suppress(SceneError):
            found[os.fspath(path)] = _raster(os.fspath(path))
    return found


def _of_files(dataset: Any, index: Any, files: Sequence[str], shape: tuple[int, int] | None) -> SampleMetadata:
    """Place and dates of a chip by the files read for it.

    Args:
        dataset: the innermost dataset.
        index: its index.
        files: paths of its files, in the order in which they were opened.
        shape: rows and columns of the chip as the dataset reads it; None for unknown.

    Returns:
        GSD is that of a file of the chip's shape, else that of the file's extent divided by the chip's shape.
    """
    if isinstance(dataset, tg.BioMassters):  # its place is withheld, and its files' transform is none
        files = []
    elif isinstance(dataset, tg.HySpecNet11k):  # reads a copy in numpy's format, beside the georeferenced file
        name = dataset.files[index].replace('DATA.npy', 'SPECTRAL_IMAGE.TIF')
        files = [os.path.join(dataset.root, 'hyspecnet-11k', 'patches', name)]
    rasters = _rasters(dict.fromkeys(files))
    acquired = [acquired for _, acquired in rasters.values() if acquired.known]
    if isinstance(dataset, tg.OSCD):
        acquired = [from_name(date) for date in dataset.files[index]['dates']]
    elif isinstance(dataset, _DATED_FOLDERS):
        acquired = [from_name(os.path.basename(os.path.dirname(path))) for path in rasters]
    dates = tuple({a.start: a for a in acquired}.values())
    placed = [grid for grid, _ in rasters.values() if grid[0] is not None]
    if not placed:
        return SampleMetadata(acquired=dates)
    grid = next((grid for grid in placed if grid[-2:] == shape), placed[0])
    growth = 1.0 if shape is None else math.sqrt(math.prod(grid[-2:]) / math.prod(shape))
    return SampleMetadata(*window_center(*grid), window_gsd(*grid) * growth, dates, growth)


def _of_query(dataset: GeoDataset, index: Any) -> SampleMetadata:
    """Place and dates of a query of a geospatial dataset, in its CRS."""
    x, y, t = dataset._disambiguate_slice(index)
    window = (0, 0, abs((y.stop - y.start) / y.step), abs((x.stop - x.start) / x.step))
    transform = from_origin(x.start, y.stop, abs(x.step), abs(y.step))
    when = cast(Any, dataset.index.index).overlaps(pd.Interval(t.start, t.stop))
    rows = cast(GeoDataFrame, dataset.index.iloc[when].iloc[:: t.step]).cx[x.start : x.stop, y.start : y.stop]
    place = window_center(dataset.crs, transform, *window)
    gsd = window_gsd(dataset.crs, transform, *window)
    if isinstance(dataset, tg.ChesapeakeCVPR):  # reads each tile in its own grid, not in that of the index
        gsd = _tile_gsd(dataset, rows)
    return SampleMetadata(*place, gsd, tuple(_of_row(row) for _, row in rows.reset_index().iterrows()))


def _of_row(row: Any) -> Acquisition:
    """Acquisition of the file of an index row."""
    interval = row.get('datetime', row.get('index'))
    acquired = from_interval(interval.left, interval.right)
    path = row.get('filepath')
    if acquired.known or not isinstance(path, str | os.PathLike):
        return acquired
    return next((found for _, found in _rasters([path]).values()), acquired)


@functools.lru_cache(maxsize=8)
def _pastis_patches(path: str) -> GeoDataFrame:
    """PASTIS' table of patches, by number, in degrees."""
    return geopandas.read_file(path).set_index('ID_PATCH').to_crs('EPSG:4326')


def _of_pastis(dataset: tg.PASTIS, index: int) -> SampleMetadata:
    """Place and dates of a PASTIS patch, whose arrays are in the order of its table's dates."""
    patches = _pastis_patches(os.path.join(dataset.root, dataset.directory, 'metadata.geojson'))
    patch = patches.loc[dataset.idxs[index]]
    dates = patch.get(f'dates-{dataset.image_key.upper()}')  # number → year, month and day as an integer
    dates = json.loads(dates) if isinstance(dates, str) else dates
    acquired = [from_name(str(dates[key])) for key in sorted(dates, key=int)] if isinstance(dates, dict) else ()
    center = patch.geometry.centroid
    return SampleMetadata(center.y, center.x, 10.0, tuple(acquired))


def _tile_gsd(dataset: Any, rows: pd.DataFrame) -> float:
    """Meters per pixel of the tile that a query of Chesapeake CVPR reads."""
    layer = next((name for name in dataset.layers if name.startswith(('naip', 'landsat'))), None)
    paths = [] if layer is None or rows.empty else [os.path.join(dataset.root, rows.iloc[0][layer])]
    return next((window_gsd(*grid) for grid, _ in _rasters(paths).values()), math.nan)


def _numbers(sample: Mapping[str, Any], key: str) -> list[float]:
    """A number of the dataset's own sample, or one per date; none if missing."""
    value = sample.get(key)
    if isinstance(value, Tensor):
        return [float(v) for v in value.reshape(-1)] if value.ndim <= 1 else []
    return [float(value)] if isinstance(value, int | float) else []


def sample_metadata(
    dataset: Any, index: Any, sample: Mapping[str, Any], files: Sequence[str] = (), shape: tuple[int, int] | None = None
) -> SampleMetadata:
    """Return place, GSD and dates of a sample: from its files or query, else from the dataset's own keys.

    Args:
        dataset: the innermost dataset.
        index: its index: a number, or a slice of place and time.
        sample: its sample; ``lat``, ``lon`` (or ``centroid_lat``, ``centroid_lon``), ``time`` and ``res`` are used if
            no file has them.
        files: paths that were opened for it, see :func:`opened_files`.
        shape: rows and columns of its image, before any transform; None for unknown.
    """
    indexed = isinstance(dataset, GeoDataset)
    found = _of_query(dataset, index) if indexed else _of_files(dataset, index, files, shape)
    if isinstance(dataset, tg.PASTIS):  # whose files are arrays
        found = _of_pastis(dataset, index)
    own = {  # the first known of several dates
        key: next(filter(math.isfinite, _numbers(sample, key)), math.nan)
        for key in ('lat', 'lon', 'centroid_lat', 'centroid_lon', 'res')
    }
    for prefix in ('', 'centroid_'):
        if math.isnan(found.lat):
            found = replace(found, lat=own[f'{prefix}lat'], lon=own[f'{prefix}lon'])
    if math.isnan(found.gsd):
        found = replace(found, gsd=own['res'])
    if not any(a.known for a in found.acquired):
        times = _numbers(sample, 'time')
        found = replace(found, acquired=tuple(Acquisition(t, t, t) if math.isfinite(t) else UNKNOWN for t in times))
    return found
