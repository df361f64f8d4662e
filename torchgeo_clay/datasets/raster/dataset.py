# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Rasters of one sensor as a TorchGeo dataset whose samples follow :mod:`torchgeo_clay.conditioning`.

Shapes: C bands, H rows, W columns.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import pandas as pd
import torch
from matplotlib.figure import Figure
from pyproj import CRS
from rasterio import Affine
from torchgeo.datasets import GeoDataset, IntersectionDataset, UnionDataset

from torchgeo_clay.datasets.plotting import true_color
from torchgeo_clay.datasets.raster.files import SceneError, list_rasters, open_raster, printable
from torchgeo_clay.datasets.raster.georeference import window_center, window_gsd
from torchgeo_clay.datasets.raster.indexing import grid_of, scene_index, scenes_at, window_on_grid
from torchgeo_clay.datasets.raster.merging import combine_samples, overlay_samples
from torchgeo_clay.datasets.raster.reading import Handles, Pixels, Valid, read_window, read_window_on_grid
from torchgeo_clay.datasets.raster.scanning import list_skipped, log_assumptions, nothing_left, scan_scenes
from torchgeo_clay.datasets.raster.scene import Scene, file_version
from torchgeo_clay.datasets.upstream import GeoSlice, Path, Sample
from torchgeo_clay.sensors import Sensor, get_sensor

__all__ = ('SensorRaster',)


class SensorRaster(GeoDataset):
    """Raster files of one sensor.

    A TorchGeo dataset: it is indexed by place and time, composes by ``&`` and ``|`` and feeds TorchGeo's samplers.
    :meth:`patch` reads by scene, row and column instead, always in the scene's own grid and dtype.

    Samples hold ``image`` (C, H, W), ``valid`` (1, H, W) bool, ``wavelength`` (C,) µm, ``res`` meters per pixel,
    ``lat`` and ``lon`` of the centre, degrees WGS84, and ``time``, seconds UTC, each a scalar, in float64 but for
    ``wavelength`` and ``res``. Unknown place or time is NaN. Invalid pixels are 0.

    Args:
        paths: files and folders of any raster format, or scenes of :func:`scan_scene`, which the options below made.
        sensor: name of a sensor, a YAML file, or a sensor.
        bands: names or aliases of the bands wanted, in the order wanted; None for all of the sensor's.
        scale: factor on every pixel, such as 10000 for reflectance from 0 to 1; None, with ``offset`` None, to follow
            each file's own scale, product and processing baseline.
        offset: added after it, such as -1000 for Sentinel-2 since processing baseline 04.00.
        to_db: whether pixels are linear power to be turned into 10·log10(power).
        nodata: value that stands for no data where all bands have it; None to ask each file, NaN for no such value.
        gsd: meters per pixel of all scenes; None to measure each patch. Needed where there is no CRS.
        time: seconds UTC or a date as text for all scenes; None to look at tags and names.
        transforms: called on each sample of ``__getitem__`` (not of :meth:`patch`).
        cache: whether files stay open (at most 64 per worker).
        crs: of the dataset's index; None for the first scene's.
        res: pixel size of the dataset in units of its CRS; None for the first scene's.

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
        scale: float | None = None,
        offset: float | None = None,
        to_db: bool = False,
        nodata: float | None = None,
        gsd: float | None = None,
        time: float | str | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
        cache: bool = True,
        crs: CRS | None = None,
        res: float | tuple[float, float] | None = None,
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
        options = {'scale': scale, 'offset': offset, 'to_db': to_db, 'nodata': nodata, 'gsd': gsd, 'time': time}
        self.scenes, self.skipped = self._scan(paths, whole, bands, options)
        log_assumptions(self.sensor, self.scenes)
        self.index, first_res = scene_index(self.scenes, crs)
        self._res = first_res if res is None else (res, res) if isinstance(res, int | float) else res
        self._handles = Handles()
        self._wavelength = torch.tensor(self.sensor.wavelengths, dtype=torch.float32)

    @staticmethod
    def _scan(
        paths: Any, sensor: Sensor, bands: Sequence[str] | None, options: dict[str, Any]
    ) -> tuple[tuple[Scene, ...], list[tuple[str, str]]]:
        """Scan the files, unless they are scenes already."""
        if isinstance(paths, Sequence) and paths and all(isinstance(path, Scene) for path in paths):
            return tuple(paths), []
        files = list_rasters(paths)
        scenes, skipped = scan_scenes(files, sensor, bands, **options)
        if not scenes:
            raise ValueError(nothing_left(paths, sensor, skipped, len(files)))
        if skipped:
            warnings.warn(f'{sensor.name}: {list_skipped(skipped, len(files))}', stacklevel=3)
        return tuple(scenes), skipped

    def __and__(self, other: GeoDataset) -> IntersectionDataset:
        """Return the intersection, channels concatenated; put this dataset first, as its samples hold scalars."""
        return IntersectionDataset(self, other, collate_fn=combine_samples)

    def __or__(self, other: GeoDataset) -> UnionDataset:
        """Return the union; where both have pixels the first valid one counts."""
        return UnionDataset(self, other, collate_fn=overlay_samples)

    def _read(self, scene: Scene, reader: Callable[..., tuple[Pixels, Valid]], *where: Any) -> tuple[Pixels, Valid]:
        """Read from a scene's file, kept open or not."""
        if scene.version is not None and file_version(scene.path) != scene.version:
            happened = 'has changed' if os.path.exists(scene.path) else 'has vanished'
            raise SceneError(f'{printable(scene.path)}: the file {happened} since it was looked at.')
        if self.cache:
            return reader(self._handles(scene.path), scene, *where)
        with open_raster(scene.path) as dataset:
            return reader(dataset, scene, *where)

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
        where = self.scenes[scene]
        window = (row, col, *size)
        pixels, valid = self._read(where, read_window, *window)
        return self._sample(pixels, valid, where.gsd(*window), *where.place(*window), where.time)

    def _sample(self, pixels: Pixels, valid: Valid, gsd: float, lat: float, lon: float, time: float) -> Sample:
        """Make a sample of the batch contract."""
        return {
            'image': torch.from_numpy(pixels),
            'valid': torch.from_numpy(valid),
            'wavelength': self._wavelength.clone(),
            'res': torch.tensor(gsd, dtype=torch.float32),
            'lat': torch.tensor(lat, dtype=torch.float64),
            'lon': torch.tensor(lon, dtype=torch.float64),
            'time': torch.tensor(time, dtype=torch.float64),
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
        transform, height, width, outline = grid_of(x, y)
        times = cast(pd.IntervalIndex, self.index.index)
        when = (times.left <= t.stop) & (times.right >= t.start)
        found = [self.scenes[i] for i in scenes_at(self.index, outline) if when[i]][:: t.step]
        if not found:
            raise IndexError(f'index: {index} not found in dataset with bounds: {self.bounds}')
        sample = overlay_samples(self._on_grid(scene, transform, height, width) for scene in found)
        sample['bounds'] = self._slice_to_tensor(index)
        sample['transform'] = torch.tensor(tuple(transform))
        return sample if self.transforms is None else self.transforms(sample)

    def _on_grid(self, scene: Scene, transform: Affine, height: int, width: int) -> Sample:
        """Read a scene on a grid of the dataset's CRS."""
        crs = self.crs
        window = window_on_grid(scene, crs, transform, height, width)
        if window is not None:
            pixels, valid = self._read(scene, read_window, *window)
            gsd = scene.gsd(*window)
        else:
            pixels, valid = self._read(scene, read_window_on_grid, crs, transform, height, width)
            gsd = window_gsd(crs, transform, 0, 0, height, width)
        place = window_center(crs, transform, 0, 0, height, width)
        sample = self._sample(pixels, valid, gsd, *place, scene.time)
        sample['image'] = sample['image'].float()
        return sample

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Show a sample's image in true color (see :func:`torchgeo_clay.datasets.plotting.true_color`).

        Args:
            sample: of :meth:`__getitem__` or :meth:`patch`.
            show_titles: whether to write the sensor, the place and the date above.
            suptitle: a title above all.

        Returns:
            A matplotlib figure.
        """
        figure = Figure(figsize=(4, 4), layout='constrained')
        axes = figure.subplots()
        axes.imshow(true_color(sample['image'], self.sensor, sample.get('valid')))
        axes.axis('off')
        if show_titles:
            time = float(sample['time']) if 'time' in sample else math.nan
            date = 'date unknown' if math.isnan(time) else f'{pd.Timestamp(time, unit="s"):%Y-%m-%d}'
            axes.set_title(f'{self.sensor.name}, {date}')
        if suptitle is not None:
            figure.suptitle(suptitle)
        return figure
