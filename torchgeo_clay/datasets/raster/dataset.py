# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Rasters of one sensor as a TorchGeo dataset whose samples follow :mod:`torchgeo_clay.conditioning`.

Above it: its index, how samples of one place become one, the windows that cover a scene, and reading them.

Shapes: C bands, H rows, W columns.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import torch
from matplotlib.figure import Figure
from pyproj import CRS
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader
from rasterio.transform import array_bounds
from rasterio.warp import calculate_default_transform, reproject, transform_bounds
from rasterio.windows import Window
from torch import Tensor
from torchgeo.datasets import GeoDataset, IntersectionDataset, UnionDataset

from torchgeo_clay.conditioning import metadata_tensors
from torchgeo_clay.datasets.plotting import show, true_color
from torchgeo_clay.datasets.raster.files import Handles, SceneError, open_raster, printable
from torchgeo_clay.datasets.raster.georeference import apply, footprint, shifted, window_center, window_gsd
from torchgeo_clay.datasets.raster.scene import Scene, file_version, find_scenes
from torchgeo_clay.datasets.raster.validity import Pixels, Valid, unreadable
from torchgeo_clay.datasets.upstream import GeoSlice, Path, Sample
from torchgeo_clay.sensors import Sensor, get_sensor

__all__ = (
    'PATCH', 'SensorRaster', 'Windows', 'check_windows', 'combine_samples', 'overlay_samples', 'owned', 'read_window',
    'read_window_on_grid', 'starts', 'windows',
)  # fmt: skip

#: How far a query may lie from a scene's grid to count as on it, in pixels; less than any resampling could show.
_ON_GRID = 0.01

# Points along each side of a footprint, so that it bends with the projection.
_POINTS_PER_SIDE = 16


def _outline(scene: Scene, crs: CRS | None) -> shapely.Geometry:
    """Outline of a scene in a CRS; empty where that is not defined."""
    if scene.crs is None:
        return shapely.Polygon()
    outline = footprint(scene.transform, 0, 0, scene.height, scene.width)
    if crs is None or scene.crs == crs:
        return outline
    bent = outline.segmentize(outline.length / 4 / _POINTS_PER_SIDE)
    moved = gpd.GeoSeries([bent], crs=scene.crs).to_crs(crs).iloc[0]
    return moved if np.isfinite(moved.bounds).all() else shapely.Polygon()


def _interval(scene: Scene) -> tuple[pd.Timestamp, pd.Timestamp]:
    """First and last moment of a scene; all of time, as in TorchGeo, where it is unknown."""
    if not scene.acquired.known:
        return pd.Timestamp.min, pd.Timestamp.max
    start, stop = scene.acquired.start, scene.acquired.stop
    return pd.Timestamp(round(start * 1e6), unit='us'), pd.Timestamp(round(stop * 1e6), unit='us')


def _pixel_size(scene: Scene, crs: CRS) -> tuple[float, float]:
    """Size of a scene's pixels in units of a CRS, in x and y."""
    assert scene.crs is not None
    if scene.crs == crs:
        a, b, _, d, e, _ = tuple(scene.transform)[:6]
        return math.hypot(a, d), math.hypot(b, e)
    bounds = array_bounds(scene.height, scene.width, scene.transform)
    transform, _, _ = calculate_default_transform(scene.crs.to_wkt(), crs.to_wkt(), scene.width, scene.height, *bounds)
    return transform.a, -transform.e


def _scene_index(scenes: Sequence[Scene], crs: CRS | None = None) -> tuple[gpd.GeoDataFrame, tuple[float, float]]:
    """Build the index of TorchGeo's samplers and set operations: a row per scene, in their order.

    Returns:
        The index (``filepath``, ``geometry``, and ``datetime`` intervals), and the size of the first scene's pixels in
        units of its CRS. Scenes without CRS are in it with an empty outline, so that no place finds them.
    """
    first = next((s for s in scenes if s.crs is not None), None)
    target = crs if crs is not None or first is None else first.crs
    times = pd.IntervalIndex.from_tuples([_interval(s) for s in scenes], closed='both', name='datetime')
    outlines = [_outline(s, target) for s in scenes]
    index = gpd.GeoDataFrame({'filepath': [s.path for s in scenes]}, index=times, geometry=outlines, crs=target)
    return index, (1.0, 1.0) if first is None or target is None else _pixel_size(first, target)


def _grid_of(x: slice, y: slice) -> tuple[Affine, int, int]:
    """Compute the north-up grid of a query: its affine, height and width in pixels."""
    if not (x.step > 0 and y.step > 0 and x.stop > x.start and y.stop > y.start):
        raise ValueError(f'Expected x and y from less to more with a positive pixel size, got {x} and {y}.')
    height, width = round((y.stop - y.start) / y.step), round((x.stop - x.start) / x.step)
    return Affine(x.step, 0.0, x.start, 0.0, -y.step, y.stop), max(height, 1), max(width, 1)


def _window_on_grid(
    scene: Scene, crs: CRS, transform: Affine, height: int, width: int
) -> tuple[int, int, int, int] | None:
    """Find the window of a scene that is a given grid; None where its pixels would have to be resampled."""
    own = scene.transform
    if scene.crs != crs or own.b != 0 or own.d != 0:
        return None
    # the far corner must fit as well as the near one, else the pixels are of another size
    left, top = (transform.c - own.c) / own.a, (transform.f - own.f) / own.e
    right = (transform.c + width * transform.a - own.c) / own.a
    bottom = (transform.f + height * transform.e - own.f) / own.e
    row, col = round(top), round(left)
    off = max(abs(top - row), abs(left - col), abs(bottom - row - height), abs(right - col - width))
    return (row, col, height, width) if off < _ON_GRID else None


# Keys of the place and the grid, which the datasets share: TorchGeo gives both samples the same query.
_SHARED = ('bounds', 'transform', 'res', 'lat', 'lon')


def combine_samples(samples: Iterable[Sample]) -> Sample:
    """Join samples of one place: channels are concatenated, a pixel is valid where it is in all.

    ``time`` is kept if the samples agree, else NaN: the model sees one date at a time.
    """
    combined: Sample = {}
    for sample in samples:
        for key, value in sample.items():
            if key not in combined:
                combined[key] = value
            elif key == 'valid':
                combined[key] = combined[key] & value
            elif key == 'time':
                combined[key] = _same_time(combined[key], value)
            elif key not in _SHARED:
                combined[key] = torch.cat([combined[key], value])
    return combined


def overlay_samples(samples: Iterable[Sample]) -> Sample:
    """Lay samples of one place and shape over each other: the first valid pixel counts.

    ``time`` is that of the samples that gave a pixel if they agree, else NaN.
    """
    overlaid: Sample = {}
    for sample in samples:
        if overlaid.get('valid') is None or sample.get('valid') is None:
            overlaid = sample | overlaid
            continue
        new = sample['valid'] & ~overlaid['valid']
        if not new.any():
            continue
        first = not overlaid['valid'].any()
        overlaid['time'] = sample['time'] if first else _same_time(overlaid['time'], sample['time'])
        if overlaid['image'].shape != sample['image'].shape:
            raise ValueError(
                f'Expected images of one shape, got {tuple(overlaid["image"].shape)} and '
                f'{tuple(sample["image"].shape)}. A union is of one sensor with one band list.'
            )
        overlaid['image'] = torch.where(new, sample['image'], overlaid['image'])
        overlaid['valid'] = overlaid['valid'] | new
    return overlaid


def _same_time(one: Tensor, other: Tensor) -> Tensor:
    """A time that two samples share; NaN if they do not."""
    return one if torch.equal(one, other) else torch.full_like(one, torch.nan)


#: Pixels per side of the model's patches.
PATCH = 8


def check_windows(chip: int, stride: int, align: int = 1) -> None:
    """Raise ValueError, with what would do, unless windows can cover a scene.

    Args:
        chip: pixels per side.
        stride: pixels from one window to the next.
        align: windows begin at multiples of it: 8 for a common grid of patches.
    """
    if chip < PATCH or chip % PATCH:
        raise ValueError(
            f"chip: expected a multiple of {PATCH} pixels, the size of the model's patches, got {chip}. "
            f'The nearest is {_nearest(chip, PATCH)}.'
        )
    if not 0 < stride <= chip:
        why = 'windows would never end' if stride <= 0 else 'pixels between windows would be left out'
        raise ValueError(
            f'stride: expected 1 to {chip} pixels (the chip), got {stride}: {why}. Give stride={chip} for chips side '
            f'by side, stride={chip // 2} for half of each overlapping.'
        )
    if stride % align:
        raise ValueError(
            f'stride: expected a multiple of {align} pixels, so that the patches of all windows lie on one grid, got '
            f'{stride}. The nearest is {_nearest(stride, align)}.'
        )


def _nearest(value: int, step: int) -> int:
    """The positive multiple of a step that is nearest to a value."""
    return max(1, round(value / step)) * step


def starts(length: int, chip: int, stride: int, align: int = 1) -> tuple[int, ...]:
    """First pixels of the windows along one axis: 0, stride, 2·stride, …; the last window ends where the scene does.

    So no window is there twice, none is missing, and only a scene smaller than a chip is padded. An aligned last window
    may end up to ``align`` - 1 pixels outside.

    Args: as :func:`check_windows`, after the axis's length in pixels.
    """
    check_windows(chip, stride, align)
    if length < 1:
        raise ValueError(f'length: expected at least 1 pixel, got {length}.')
    last = -(-max(length - chip, 0) // align) * align
    return (*range(0, last, stride), last)


@dataclass(frozen=True)
class Windows:
    """Upper left corners (row, column) of windows, row by row, computed when asked for.

    Attributes:
        rows: first rows.
        cols: first columns.
        places: positions in the product of both.
    """

    rows: Sequence[int]
    cols: Sequence[int]
    places: range

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Return a window's corner."""
        row, col = divmod(self.places[index], len(self.cols))
        return self.rows[row], self.cols[col]

    def part(self, first: int, count: int) -> Windows:
        """Return some successive windows, or fewer at the end."""
        return Windows(self.rows, self.cols, self.places[first : first + count])


def windows(height: int, width: int, chip: int, stride: int, align: int = 1) -> Windows:
    """Cover a scene with windows, row by row, each axis as :func:`starts`."""
    rows, cols = starts(height, chip, stride, align), starts(width, chip, stride, align)
    return Windows(rows, cols, range(len(rows) * len(cols)))


def owned(first: Sequence[int], chip: int, align: int = 1) -> tuple[tuple[int, int], ...]:
    """Divide an axis among overlapping windows: cut in the middle of each overlap, at multiples of ``align``.

    Args:
        first: first pixels of the windows, of :func:`starts`.
        chip: pixels of a window.
        align: as for :func:`starts`.

    Returns:
        First pixel and the one after the last, of each window; together they cover the axis once.
    """
    cuts = [(left + chip + right) // (2 * align) * align for left, right in pairwise(first)]
    return tuple(zip([first[0], *cuts], [*cuts, first[-1] + chip], strict=True))


def read_window(
    dataset: DatasetReader, scene: Scene, row: int, col: int, height: int, width: int
) -> tuple[Pixels, Valid]:
    """Read a window of a scene in its own grid; what lies outside of the scene is padded with invalid pixels.

    Returns:
        Pixels (C, H, W), float32 if the scene's calibration changes them, else in the file's dtype; 0 in all bands
        where they are not valid, so that no fill value or NaN travels on. And valid (1, H, W), bool.

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
    window = Window(left, top, right - left, bottom - top)
    try:
        pixels, valid = scene.validity.read(
            dataset, scene.band_indexes, window, (bottom - top, right - left), scene.dtype
        )
    except RasterioIOError as error:
        raise SceneError(f'{printable(scene.path)}: {unreadable(window, error)}') from error
    except SceneError as error:
        raise SceneError(f'{printable(scene.path)}: {error}') from error
    if valid.shape[1:] == (height, width):
        return pixels, valid
    margins = ((0, 0), (top - row, row + height - bottom), (left - col, col + width - right))
    return np.pad(pixels, margins), np.pad(valid, margins)


def read_window_on_grid(
    dataset: DatasetReader, scene: Scene, crs: CRS, transform: Affine, height: int, width: int
) -> tuple[Pixels, Valid]:
    """Read a scene, which must have a CRS, onto another grid, bilinearly, as TorchGeo does.

    Args:
        dataset: the scene's file, open.
        scene: the scene.
        crs: of the grid.
        transform: from the grid's (column, row) to its CRS.
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        As :func:`read_window`, in float32. A pixel that takes part of its value from an invalid one takes it from the
        valid ones only.
    """
    assert scene.crs is not None
    bounds = transform_bounds(crs.to_wkt(), scene.crs.to_wkt(), *array_bounds(height, width, transform), densify_pts=21)
    corners = [apply(~scene.transform, x, y) for x in bounds[::2] for y in bounds[1::2]]
    warped = np.full((len(scene.band_indexes), height, width), np.nan, np.float32)
    if np.isfinite(corners).all():  # else the grid lies where the scene's CRS is not defined
        cols, rows = zip(*corners, strict=True)
        # one pixel more on each side for the bilinear kernel, and one for rounding
        row, col = max(int(min(rows)) - 2, 0), max(int(min(cols)) - 2, 0)
        size = min(int(max(rows)) + 3, scene.height) - row, min(int(max(cols)) + 3, scene.width) - col
        if min(size) > 0:
            pixels, valid = _read_raw(dataset, scene, row, col, *size)
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


class SensorRaster(GeoDataset):
    """Raster files of one sensor.

    A TorchGeo dataset: it is indexed by place and time, composes by ``&`` and ``|`` and feeds TorchGeo's samplers.
    :meth:`patch` reads by scene, row and column instead, always in the scene's own grid and dtype.

    Samples hold ``image`` (C, H, W), ``valid`` (1, H, W) bool, ``wavelength`` (C,) µm, ``res`` meters per pixel,
    ``lat`` and ``lon`` of the centre, degrees WGS84, and ``time``, seconds UTC, each a scalar, in float64 but for
    ``wavelength`` and ``res``. Unknown place or time is NaN. Invalid pixels are 0.

    Args:
        paths: files and folders of any raster format, or scenes of :func:`scan_scene`, which ``reading`` made.
        sensor: name of a sensor, a YAML file, or a sensor.
        bands: as :func:`scan_scene`, for all scenes.
        transforms: called on each sample of ``__getitem__`` (not of :meth:`patch`).
        cache: whether files stay open (at most 64 per worker).
        crs: of the dataset's index; None for the first scene's.
        res: pixel size of the dataset in units of its CRS; None for the first scene's.
        **reading: options of :func:`scan_scene` for all scenes, such as ``offset`` and ``gsd``.

    Attributes:
        sensor: the sensor, with the bands selected.
        scenes: the scenes, in the order of the index.
        skipped: path and reason of each file left out.

    Raises:
        ValueError: if no file is left, naming what was wrong with each.
    """

    def __init__(
        self,
        paths: Path | Iterable[Path] | Sequence[Scene],
        sensor: str | os.PathLike[str] | Sensor,
        bands: Sequence[str] | None = None,
        *,
        transforms: Callable[[Sample], Sample] | None = None,
        cache: bool = True,
        crs: CRS | None = None,
        res: float | tuple[float, float] | None = None,
        **reading: Any,
    ) -> None:
        """Initialize a new SensorRaster instance."""
        whole = get_sensor(sensor)
        self.paths = cast(Any, paths)
        self.sensor = whole.select(bands)
        self.bands = self.sensor.band_names
        self.all_bands = whole.band_names
        self.rgb_bands = self.sensor.rgb
        self.transforms = transforms
        self.cache = cache
        scenes, self.skipped = find_scenes(paths, whole, bands, **reading)
        self.scenes = tuple(scenes)
        self.index, first_res = _scene_index(self.scenes, crs)
        self._res = first_res if res is None else (res, res) if isinstance(res, int | float) else res
        self._handles = Handles()

    def __and__(self, other: GeoDataset) -> IntersectionDataset:
        """Return the intersection, channels concatenated; put this dataset first, as its samples hold scalars."""
        return IntersectionDataset(self, other, collate_fn=combine_samples)

    def __or__(self, other: GeoDataset) -> UnionDataset:
        """Return the union; where both have pixels the first valid one counts."""
        return UnionDataset(self, other, collate_fn=overlay_samples)

    def close(self) -> None:
        """Close the files of this process; they are opened again when read."""
        self._handles.close()

    def patch(self, scene: int, row: int, col: int, size: tuple[int, int]) -> Sample:
        """Read a window of one scene in its own grid and dtype.

        Args:
            scene: position in :attr:`scenes`.
            row: first row of the window; what lies outside of the scene is padded with invalid pixels.
            col: first column of the window.
            size: rows and columns.

        Returns:
            The sample, as the class describes it; ``image`` in the file's dtype, float32 if calibrated.

        Raises:
            SceneError: if the file is not readable there, has changed or has vanished.
            ValueError: for a size that is not positive.
        """
        where, window = self.scenes[scene], (row, col, *size)
        return self._sample(where, read_window, window, where.gsd(*window), *where.place(*window))

    def _sample(
        self,
        scene: Scene,
        reader: Callable[..., tuple[Pixels, Valid]],
        window: tuple[Any, ...],
        gsd: float,
        lat: float,
        lon: float,
    ) -> Sample:
        """Read a window of a scene's file, kept open or not, as a sample of the batch contract."""
        if scene.version is not None and file_version(scene.path) != scene.version:
            happened = 'has changed' if os.path.exists(scene.path) else 'has vanished'
            raise SceneError(f'{printable(scene.path)}: the file {happened} since it was looked at.')
        if self.cache:
            pixels, valid = reader(self._handles(scene.path), scene, *window)
        else:
            with open_raster(scene.path) as dataset:
                pixels, valid = reader(dataset, scene, *window)
        return {
            'image': torch.from_numpy(pixels),
            'valid': torch.from_numpy(valid),
            **metadata_tensors(self.sensor, gsd, lat, lon, scene.time),
        }

    def __getitem__(self, index: GeoSlice) -> Sample:
        """Read a place, in the dataset's CRS.

        A scene on whose own grid the query lies is read as it is, another is resampled bilinearly. Where scenes
        overlap the first valid pixel counts, in the order of the index.

        Args:
            index: [xmin:xmax:xres, ymin:ymax:yres, tmin:tmax:tres] in units of :attr:`crs` and time.

        Returns:
            The sample, as the class describes it, with ``image`` in float32 as all of TorchGeo's, and TorchGeo's
            ``bounds`` and ``transform``. ``time`` is NaN where scenes of different times were needed.

        Raises:
            IndexError: if no scene is there.
            SceneError: as :meth:`patch`.
        """
        x, y, t = self._disambiguate_slice(index)
        transform, height, width = _grid_of(x, y)
        outline = shapely.box(x.start, y.start, x.stop, y.stop)
        near = sorted(self.index.sindex.query(outline, predicate='intersects'))
        times = cast(pd.IntervalIndex, self.index.index)
        when = (times.left <= t.stop) & (times.right >= t.start)
        # sharing area counts, touching does not
        found = [self.scenes[i] for i in near if when[i] and not self.index.geometry.iloc[i].touches(outline)][
            :: t.step
        ]
        if not found:
            raise IndexError(f'index: {index} not found in dataset with bounds: {self.bounds}')
        sample = overlay_samples(self._on_grid(scene, transform, height, width) for scene in found)
        sample['bounds'] = self._slice_to_tensor(index)
        sample['transform'] = torch.tensor(tuple(transform))
        return sample if self.transforms is None else self.transforms(sample)

    def _on_grid(self, scene: Scene, transform: Affine, height: int, width: int) -> Sample:
        """Read a scene on a grid of the dataset's CRS."""
        grid = (self.crs, transform, height, width)
        window = _window_on_grid(scene, *grid)
        place = window_center(self.crs, transform, 0, 0, height, width)
        if window is not None:
            sample = self._sample(scene, read_window, window, scene.gsd(*window), *place)
        else:
            gsd = window_gsd(self.crs, transform, 0, 0, height, width)
            sample = self._sample(scene, read_window_on_grid, grid, gsd, *place)
        sample['image'] = sample['image'].float()
        return sample

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Show a sample's image in true color (see :func:`torchgeo_clay.datasets.plotting.true_color`)."""
        time = float(sample['time']) if 'time' in sample else math.nan
        date = 'date unknown' if math.isnan(time) else f'{pd.Timestamp(time, unit="s"):%Y-%m-%d}'
        title = f'{self.sensor.name}, {date}' if show_titles else ''
        return show([(title, true_color(sample['image'], self.sensor, sample.get('valid')))], suptitle)
