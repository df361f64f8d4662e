# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Place, GSD and dates of a TorchGeo sample, from its file or its dataset's index, in float64."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
from geopandas import GeoDataFrame
from pyproj import CRS
from rasterio import Affine
from rasterio.transform import from_origin
from torch import Tensor
from torchgeo.datasets import (
    OSCD,
    SSL4EOL,
    ChesapeakeCVPR,
    EuroSAT,
    GeoDataset,
    HySpecNet11k,
    L8Biome,
    Sentinel2,
    SSL4EOLBenchmark,
    UCMerced,
)
from torchvision.datasets import ImageFolder

from torchgeo_clay.datasets.raster.dates import UNKNOWN, Acquisition, acquisition, from_name
from torchgeo_clay.datasets.raster.files import SceneError, open_raster
from torchgeo_clay.datasets.raster.georeference import georeferencing, window_center, window_gsd
from torchgeo_clay.datasets.upstream import disambiguate_timestamp

__all__ = (
    'SampleMetadata',
    'Source',
    'from_interval',
    'other_product',
    'sample_metadata',
    'sources',
)


@dataclass(frozen=True)
class Source:
    """The file of one date of a sample.

    Attributes:
        path: the file with the image's georeferencing.
        date: text with the date, if the file's name lacks it.
        shape: rows and columns to which the dataset resizes the file; None if it does not.
    """

    path: str
    date: str | None = None
    shape: tuple[int, int] | None = None


def _hyspecnet(dataset: Any, index: int, sample: Mapping[str, Any]) -> tuple[Source, ...]:
    name = dataset.files[index].replace('DATA.npy', 'SPECTRAL_IMAGE.TIF')
    return (Source(os.path.join(dataset.root, 'hyspecnet-11k', 'patches', name)),)


def _ssl4eo(dataset: Any, index: int, sample: Mapping[str, Any]) -> tuple[Source, ...]:
    """Find the drawn season's folder from the sample's time, which is float32."""
    root = os.path.join(dataset.subdir, dataset.scenes[index])
    drawn = [float(t) for t in sample['t']]
    found = []
    for time in drawn:
        for folder in sorted(os.listdir(root)):
            first, last = disambiguate_timestamp(folder[-8:], '%Y%m%d')
            if abs((first.timestamp() + last.timestamp()) / 2 - time) < 43200:
                found.append(Source(os.path.join(root, folder, 'all_bands.tif'), folder))
                break
    return tuple(found) if len(found) == len(drawn) else ()


def _ssl4eo_benchmark(dataset: Any, index: int, sample: Mapping[str, Any]) -> tuple[Source, ...]:
    path = dataset.sample_collection[index][0]
    return (Source(path, os.path.basename(os.path.dirname(path))),)


def _oscd(dataset: Any, index: int, sample: Mapping[str, Any]) -> tuple[Source, ...]:
    files = dataset.files[index]
    return tuple(Source(files[f'images{i}'][0], files['dates'][i - 1]) for i in (1, 2))


def _folder(dataset: Any, index: int, sample: Mapping[str, Any]) -> tuple[Source, ...]:
    return (Source(dataset.samples[index][0], shape=(256, 256) if isinstance(dataset, UCMerced) else None),)


Find = Callable[[Any, int, Mapping[str, Any]], tuple[Source, ...]]

#: Functions that find the files. Datasets of images without georeferencing (LandCover.ai's chips, LoveDA, VHR-10,
#: LEVIR-CD) and BioMassters, whose place is withheld, are missing on purpose.
_FIND: Mapping[type, Find] = {
    HySpecNet11k: _hyspecnet,
    SSL4EOL: _ssl4eo,
    SSL4EOLBenchmark: _ssl4eo_benchmark,
    OSCD: _oscd,
    ImageFolder: _folder,
}


def sources(dataset: Any, index: int, sample: Mapping[str, Any]) -> tuple[Source, ...]:
    """Return the files of a sample.

    Args:
        dataset: the innermost dataset, see :func:`~torchgeo_clay.datasets.wrapped.channels.leaf_of`.
        index: its index.
        sample: its sample.

    Returns:
        One per date; none for other datasets.
    """
    for kind, find in _FIND.items():
        if isinstance(dataset, kind):
            return find(dataset, index, sample)
    return ()


def other_product(dataset: Any, sensor: str) -> str | None:
    """Name a dataset's product if the sensor's statistics are of another one.

    Args:
        dataset: the innermost dataset.
        sensor: name of the sensor.

    Returns:
        The product; None if no difference is known.
    """
    if sensor == 'sentinel-2-l2a':
        level1 = isinstance(dataset, Sentinel2) and any('MSIL1C' in str(p) for p in dataset.index.filepath)
        if isinstance(dataset, EuroSAT | OSCD) or level1:
            return 'Sentinel-2 L1C, reflectance at the top of the atmosphere'
    if isinstance(dataset, L8Biome) and sensor.startswith('landsat'):
        return 'Landsat 8 level 1 from before Collection 1'
    if isinstance(dataset, SSL4EOL | SSL4EOLBenchmark) and sensor.startswith('landsat'):
        return 'Landsat in 8 bits'
    return None


_DAY = 86400.0
_LONGEST = 31 * _DAY  # a longer interval does not give the season, see dates


@dataclass(frozen=True)
class SampleMetadata:
    """Place, GSD and dates of a sample.

    Attributes:
        lat: degrees north, WGS84, of the center; NaN for unknown.
        lon: degrees east; NaN for unknown.
        gsd: meters per pixel; NaN for unknown.
        acquired: acquisitions, one per date; empty for unknown.
    """

    lat: float = math.nan
    lon: float = math.nan
    gsd: float = math.nan
    acquired: tuple[Acquisition, ...] = ()

    def times(self, dates: int) -> list[float]:
        """Seconds UTC of each of a sample's dates, NaN for unknown.

        Args:
            dates: number of the sample's dates. If another number is known, times are used only if all are equal.
        """
        known = [a.time for a in self.acquired]
        if len(known) == dates:
            return known
        return (known[:1] if len(set(known)) == 1 else [math.nan]) * dates


@dataclass(frozen=True)
class _Raster:
    """The georeferencing and the date of a file; ``crs`` None where it has none."""

    crs: CRS | None
    transform: Affine
    height: int
    width: int
    acquired: Acquisition


@functools.lru_cache(maxsize=65536)
def _raster(path: str) -> _Raster | None:
    """A file's georeferencing, read once per process; None where rasterio cannot open it."""
    try:
        with open_raster(path) as file:
            crs, transform, _ = georeferencing(file)
            return _Raster(crs, transform, file.height, file.width, acquisition(file.tags(), path)[0])
    except SceneError:
        return None


def from_interval(left: pd.Timestamp, right: pd.Timestamp) -> Acquisition:
    """Return the acquisition of an interval of TorchGeo's index.

    Args:
        left: begin, UTC.
        right: end, UTC.

    Returns:
        A second for an interval of seconds, noon for whole days, the middle for hours; unknown beyond a month, as
        for a year alone.
    """
    start, stop = left.timestamp(), right.timestamp()
    span = stop - start
    if not 0 <= span <= _LONGEST:
        return UNKNOWN
    middle = start if span <= 1 else (start + stop) / 2
    if span < _DAY - 2:
        return Acquisition(middle, start, stop)
    return Acquisition(middle // _DAY * _DAY + _DAY / 2, start, stop, has_hour=False)


def _of_files(found: Sequence[Source]) -> SampleMetadata:
    """Place and dates of chips that are whole files."""
    rasters = [_raster(os.fspath(source.path)) for source in found]
    acquired = tuple(
        from_name(source.date) if source.date is not None else UNKNOWN if raster is None else raster.acquired
        for source, raster in zip(found, rasters, strict=True)
    )
    for source, raster in zip(found, rasters, strict=True):
        if raster is not None and raster.crs is not None:
            height, width = raster.height, raster.width
            window = (raster.crs, raster.transform, 0, 0, height, width)
            growth = 1.0 if source.shape is None else math.sqrt(height * width / math.prod(source.shape))
            return SampleMetadata(*window_center(*window), window_gsd(*window) * growth, acquired)
    return SampleMetadata(acquired=acquired)


def _of_query(dataset: GeoDataset, index: Any) -> SampleMetadata:
    """Place and dates of a query of a geospatial dataset, in its CRS."""
    x, y, t = dataset._disambiguate_slice(index)
    window = (0, 0, abs((y.stop - y.start) / y.step), abs((x.stop - x.start) / x.step))
    transform = from_origin(x.start, y.stop, abs(x.step), abs(y.step))
    when = cast(Any, dataset.index.index).overlaps(pd.Interval(t.start, t.stop))
    rows = cast(GeoDataFrame, dataset.index.iloc[when].iloc[:: t.step]).cx[x.start : x.stop, y.start : y.stop]
    place = window_center(dataset.crs, transform, *window)
    gsd = window_gsd(dataset.crs, transform, *window)
    if isinstance(dataset, ChesapeakeCVPR):  # reads each tile in its own grid, not in that of the index
        gsd = _tile_gsd(dataset, rows)
    return SampleMetadata(*place, gsd, tuple(_of_row(row) for _, row in rows.reset_index().iterrows()))


def _of_row(row: Any) -> Acquisition:
    """Acquisition of the file of an index row."""
    interval = row.get('datetime', row.get('index'))
    acquired = from_interval(interval.left, interval.right)
    path = row.get('filepath')
    raster = None if acquired.known or not isinstance(path, str | os.PathLike) else _raster(os.fspath(path))
    return acquired if raster is None else raster.acquired


def _tile_gsd(dataset: Any, rows: pd.DataFrame) -> float:
    """Meters per pixel of the tile that a query of Chesapeake CVPR reads."""
    layer = next((name for name in dataset.layers if name.startswith(('naip', 'landsat'))), None)
    raster = None if layer is None or rows.empty else _raster(os.path.join(dataset.root, rows.iloc[0][layer]))
    return math.nan if raster is None else window_gsd(raster.crs, raster.transform, 0, 0, raster.height, raster.width)


def _number(sample: Mapping[str, Any], key: str) -> float:
    """A scalar of the dataset's own sample, NaN if missing."""
    value = sample.get(key)
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else math.nan
    return float(value) if isinstance(value, int | float) else math.nan


def sample_metadata(dataset: Any, index: Any, sample: Mapping[str, Any]) -> SampleMetadata:
    """Return place, GSD and dates of a sample: from its file or query, else from the dataset's own keys.

    Args:
        dataset: the innermost dataset.
        index: its index: a number, or a slice of place and time.
        sample: its sample; ``lat``, ``lon``, ``time`` and ``res`` are used if no file has them.
    """
    indexed = isinstance(dataset, GeoDataset)
    found = _of_query(dataset, index) if indexed else _of_files(sources(dataset, index, sample))
    lat, lon, gsd, acquired = found.lat, found.lon, found.gsd, found.acquired
    if math.isnan(lat):
        lat, lon = _number(sample, 'lat'), _number(sample, 'lon')
    if math.isnan(gsd):
        gsd = _number(sample, 'res')
    time = _number(sample, 'time')
    if not any(a.known for a in acquired) and math.isfinite(time):
        acquired = (Acquisition(time, time, time),)
    return SampleMetadata(lat, lon, gsd, acquired)
