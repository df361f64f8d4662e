# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Scenes: what a raster file is, found out once, before it is read.

Shapes: C bands, H rows, W columns.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from pyproj import CRS
from rasterio import Affine
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from torchgeo_clay.conditioning import check_gsd
from torchgeo_clay.datasets.raster.calibration import RAW, Calibration, calibrate
from torchgeo_clay.datasets.raster.dates import UNKNOWN, Acquisition, acquisition, parse_time
from torchgeo_clay.datasets.raster.detection import (
    FAR,
    BandMatch,
    FileBand,
    file_bands,
    match_bands,
    product_remark,
    sensor_of,
)
from torchgeo_clay.datasets.raster.files import SceneError, list_rasters, open_raster, printable
from torchgeo_clay.datasets.raster.georeference import georeferencing, window_center, window_gsd
from torchgeo_clay.datasets.raster.validity import Validity, check_complete, read_sample, read_validity, undeclared_fill
from torchgeo_clay.datasets.upstream import Path
from torchgeo_clay.sensors import Sensor
from torchgeo_clay.sensors.plausibility import check_numbers, check_to_db

__all__ = ('Scene', 'file_version', 'find_scenes', 'log_assumptions', 'scan_scene', 'scan_scenes')


@dataclass(frozen=True)
class Scene:
    """A raster file, seen as a scene of one sensor.

    Attributes:
        path: the file.
        sensor: the sensor, with the bands that are read.
        height: rows.
        width: columns.
        crs: its coordinate reference system; None for unknown.
        transform: affine from (column, row) to the CRS, float64; fitted to the ground control points where it has none.
        band_indexes: the file's bands (from 1) in the order of the sensor's bands.
        validity: how the file says which pixels are data.
        dtype: of the pixels in the file, as in numpy.
        acquired: when it was taken.
        fixed_gsd: meters per pixel given by the user; None to measure it.
        calibration: how the file's numbers become the sensor's; makes pixels float32 if it changes them.
        left_out: names of the file's bands that the sensor does not have or that were not asked for.
        version: size in bytes and time of change (ns) of a local file; None for others.
        remarks: what the user should check in this file, a sentence each.
    """

    path: str
    sensor: Sensor
    height: int
    width: int
    crs: CRS | None
    transform: Affine
    band_indexes: tuple[int, ...]
    validity: Validity
    dtype: str
    acquired: Acquisition = UNKNOWN
    fixed_gsd: float | None = None
    calibration: Calibration = RAW
    left_out: tuple[str, ...] = ()
    version: tuple[int, int] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def time(self) -> float:
        """Seconds since 1970-01-01 UTC; NaN for unknown."""
        return self.acquired.time

    def inside(self, row: float, col: float, height: float, width: float) -> tuple[float, float, float, float]:
        """Return the part of a window (row, column, height, width) in the scene; the window if no pixel of it is."""
        top, left = max(row, 0), max(col, 0)
        bottom, right = min(row + height, self.height), min(col + width, self.width)
        return (top, left, bottom - top, right - left) if bottom > top and right > left else (row, col, height, width)

    def place(self, row: float, col: float, height: float, width: float) -> tuple[float, float]:
        """Latitude and longitude of the center of a window's part in the scene, degrees WGS84; NaN for unknown."""
        return window_center(self.crs, self.transform, *self.inside(row, col, height, width))

    def gsd(self, row: float, col: float, height: float, width: float) -> float:
        """Ground sampling distance of a window's part in the scene: meters per pixel, as :func:`window_gsd`."""
        if self.fixed_gsd is not None:
            return self.fixed_gsd
        return window_gsd(self.crs, self.transform, *self.inside(row, col, height, width))


def file_version(path: str) -> tuple[int, int] | None:
    """Size in bytes and time of change (ns) of a local file; None for others, and for a file that is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def scan_scene(
    path: str | os.PathLike[str],
    sensor: Sensor | None = None,
    bands: Sequence[str] | None = None,
    *,
    scale: float | None = None,
    offset: float | None = None,
    to_db: bool = False,
    nodata: float | Literal['nan'] | None = None,
    gsd: float | None = None,
    time: float | str | None = None,
) -> Scene:
    """Look at a raster file: its header, and a sample of its pixels.

    Args:
        path: the file.
        sensor: its sensor, with all bands; None to detect it.
        bands: names or aliases of the bands wanted, in the order wanted; None for all of the sensor's. Also the order
            of a file that has as many bands and no names.
        scale: factor on every pixel, such as 10000 for reflectance from 0 to 1; None, with ``offset`` None, to follow
            the file's own scale, product and processing baseline.
        offset: added after it, such as -1000 for Sentinel-2 since processing baseline 04.00.
        to_db: whether pixels are linear power to be turned into 10·log10(power).
        nodata: value that stands for no data where all bands have it; None to ask the file, NaN for no such value.
        gsd: meters per pixel, for a file without CRS; None to measure it.
        time: seconds since 1970-01-01 UTC or a date as text; None to look at the tags and the name.

    Raises:
        SceneError: if the file can't be used; the message begins with its path.
        ValueError: for arguments that are wrong for every file.
    """
    if sensor is not None:
        sensor.select(bands)
        check_to_db(sensor, to_db)
    if gsd is not None:
        check_gsd(gsd)
    check_numbers(scale=scale, offset=offset)
    fill = None if nodata is None else float(nodata)
    values, acquired = {'scale': scale, 'offset': offset, 'to_db': to_db}, _given_time(time)
    name = os.fspath(path)
    version = file_version(name)
    with open_raster(name) as dataset:
        try:
            found, remark = (sensor, '') if sensor is not None else sensor_of(dataset, name)
            scene = _scan(dataset, name, found, bands, fill, values, gsd, acquired)
            return replace(scene, version=version, remarks=(*filter(None, [remark]), *scene.remarks))
        except UnicodeError as error:
            raise SceneError(f'{printable(name)}: its tags or band names are not UTF-8 ({error}).') from error
        except (ValueError, RasterioError) as error:  # SceneError, and an option that does not fit the detected sensor
            raise SceneError(f'{printable(name)}: {error}') from error


def _given_time(time: float | str | None) -> Acquisition | None:
    """The acquisition a user gives."""
    if time is None or not isinstance(time, str):
        return None if time is None else Acquisition(float(time), float(time), float(time))
    acquired = parse_time(time)
    if not acquired.known:
        raise ValueError(f"time: expected a date such as '2020-04-15' or '2020-04-15T09:30:00Z', got {time!r}.")
    return acquired


def _scan(
    dataset: DatasetReader,
    path: str,
    sensor: Sensor,
    bands: Sequence[str] | None,
    nodata: float | None,
    values: Mapping[str, Any],
    gsd: float | None,
    acquired: Acquisition | None,
) -> Scene:
    """The scene of an open raster."""
    if dataset.count == 0:
        raise SceneError(
            f'it holds no bands itself, but {len(dataset.subdatasets)} subdatasets; convert one to GeoTIFF.'
        )
    check_complete(dataset)  # first, as the names of bands may be among what is missing
    file, selected = file_bands(dataset, path), sensor.select(bands)
    match = match_bands(sensor, file, bands, path)
    dtype = _one_type(dataset, match.indexes)
    crs, transform, unplaced = georeferencing(dataset)
    if crs is None and gsd is None:
        raise SceneError(
            f'{unplaced or "it has no CRS"}, so there are no meters: give gsd= in meters per pixel (its place will be '
            'unknown), or georeference it.'
        )
    owned = {*match.indexes, *(i for i, band in enumerate(file, start=1) if sensor.find(band.name) is not None)}
    alpha = tuple(i for i, band in enumerate(file, start=1) if band.is_alpha and i not in owned)
    validity = read_validity(dataset, selected, match.indexes, sorted(owned), alpha, nodata)
    sample = read_sample(dataset, match.indexes, validity, dtype)
    calibration, doubts = calibrate(dataset, path, match.indexes, selected, sample, **values)
    when, disagreement = acquisition(dataset.tags(), path)
    scene = Scene(
        path=path,
        sensor=selected,
        height=dataset.height,
        width=dataset.width,
        crs=crs,
        transform=transform,
        band_indexes=match.indexes,
        validity=validity,
        dtype=dtype,
        acquired=acquired or when,
        fixed_gsd=gsd,
        calibration=calibration,
        left_out=tuple(b.name or f'band {i}' for i, b in enumerate(file, start=1) if i not in match.indexes),
    )
    remarks = (
        _order(match, selected, file),
        unplaced,
        '' if acquired else disagreement,
        product_remark(sensor, dataset.tags(), path, file),
        _far_gsd(scene),
        *doubts,
        '' if validity.given else undeclared_fill(sample[0], selected),
    )
    return replace(scene, remarks=tuple(filter(None, remarks)))


def _one_type(dataset: DatasetReader, indexes: Sequence[int]) -> str:
    """The type of the pixels of some bands; raise for complex numbers and for more than one type."""
    dtypes = sorted({dataset.dtypes[i - 1] for i in indexes})
    if any(d.startswith('complex') for d in dtypes):
        raise SceneError(f'expected real pixels, got {", ".join(dtypes)}; take the power of complex ones first.')
    if len(dtypes) > 1:
        raise SceneError(f'its bands have different types, {", ".join(dtypes)}; convert them to one.')
    return dtypes[0]


def _order(match: BandMatch, selected: Sensor, file: Sequence[FileBand]) -> str:
    """What to report if bands were taken by their order, or alpha as a band by the order stated."""
    if match.source == 'bands':
        pairs = zip(match.indexes, selected.band_names, strict=True)
        alpha = [f'band {i} as {name}' for i, name in pairs if file[i - 1].is_alpha]
        return f'its color interpretation says alpha, a mask, of {alpha[0]}, which bands= states' if alpha else ''
    if match.source != 'order':
        return ''
    taken = ', '.join(f'{i} {name}' for i, name in sorted(zip(match.indexes, selected.band_names, strict=True)))
    return (
        f'it does not name its bands: taken as {taken}; to state another order give bands= with one name per band, or '
        'name them in the file'
    )


def _far_gsd(scene: Scene) -> str:
    """What to report of a GSD far from that of the sensor's training data."""
    gsd, usual = scene.gsd(0, 0, scene.height, scene.width), scene.sensor.gsd
    if 1 / FAR <= gsd / usual <= FAR:
        return ''
    return f"its pixels measure {gsd:.3g} m, far from {scene.sensor.name}'s {usual:g} m; is it this sensor?"


#: Files named in one message.
_MOST = 10


def scan_scenes(
    files: Sequence[str], sensor: Sensor | None = None, bands: Sequence[str] | None = None, **options: Any
) -> tuple[list[Scene], list[tuple[str, str]]]:
    """Scan files, keeping those that are scenes of the sensor.

    Args: as :func:`scan_scene`, for all files.

    Returns:
        The scenes, and path and reason of each file left out.
    """
    scenes: list[Scene] = []
    skipped: list[tuple[str, str]] = []
    for file in files:
        try:
            scenes.append(scan_scene(file, sensor, bands, **options))
        except SceneError as error:
            skipped.append((printable(file), str(error).removeprefix(f'{printable(file)}: ')))
    return scenes, skipped


def find_scenes(
    paths: Path | Iterable[Path] | Sequence[Scene], sensor: Sensor, bands: Sequence[str] | None = None, **options: Any
) -> tuple[list[Scene], list[tuple[str, str]]]:
    """Find the scenes of a sensor in files and folders, warn of the files left out, and log what is assumed.

    Args:
        paths: files and folders, or scenes, which are returned.
        sensor: their sensor, with all bands.
        bands: as :func:`scan_scene`.
        **options: those of :func:`scan_scene`, for all files.

    Returns:
        As :func:`scan_scenes`.

    Raises:
        ValueError: if no scene is left, naming what was wrong with each file.
    """
    skipped: list[tuple[str, str]] = []
    if isinstance(paths, Sequence) and paths and all(isinstance(path, Scene) for path in paths):
        scenes = [cast(Scene, scene) for scene in paths]
    else:
        files = list_rasters(cast(Path | Iterable[Path], paths))
        if not files:
            raise ValueError(f'{paths}: expected rasters of {sensor.name} in any format rasterio reads, found no file.')
        scenes, skipped = scan_scenes(files, sensor, bands, **options)
        lines = [f'left out {len(skipped)} of {len(files)} files:', *(f'  {path}: {why}' for path, why in skipped)]
        if len(skipped) > _MOST:
            lines[_MOST + 1 :] = [f'  and {len(skipped) - _MOST} more; .skipped lists them all']
        if not scenes:
            where = f'{paths}: ' if isinstance(paths, str | os.PathLike) else ''  # a list of files may be of any length
            raise ValueError(f'{where}no scene of {sensor.name} is left; {"\n".join(lines)}')
        if skipped:
            warnings.warn(f'{sensor.name}: {"\n".join(lines)}', stacklevel=3)
    log_assumptions(sensor.select(bands), scenes)
    return scenes, skipped


def log_assumptions(sensor: Sensor, scenes: Sequence[Scene]) -> None:
    """Log a dataset's assumptions about its scenes once, and warn of remarks on them.

    It logs through Lightning, whose log ``torchgeo fit`` shows; Python's own hides what is not a warning.
    """
    no_hour = [s for s in scenes if s.acquired.known and not s.acquired.has_hour]
    for found, text in (
        (no_hour, 'a date without an hour; taken at noon UTC'),
        ([s for s in scenes if not s.acquired.known], 'no date in their tags or names; their time is unknown (NaN)'),
        ([s for s in scenes if s.crs is None], 'no CRS; their place is unknown (NaN), their GSD as given'),
        ([s for s in scenes if _departs(s)], 'pixels of another size than gsd= says; taken as given'),
    ):
        if found:
            rank_zero_info(f'{sensor.name}: {len(found)} of {len(scenes)} scenes have {text} (first: {found[0].path})')
    for conversion, paths in _paths_by((str(s.calibration), s.path) for s in scenes if str(s.calibration)).items():
        rank_zero_info(f'{sensor.name}: {conversion}: {_names(paths)}')
    if left_out := sorted({name for s in scenes for name in s.left_out}):
        rank_zero_info(f'{sensor.name}: bands of the files left out: {", ".join(left_out)}')
    if remarks := _paths_by((remark, s.path) for s in scenes for remark in s.remarks):
        lines = (f'\n  {_names(paths)}: {remark}' for remark, paths in remarks.items())
        rank_zero_warn(f'{sensor.name}: please check{"".join(lines)}')


def _paths_by(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group the paths of (text, path) by text."""
    paths: dict[str, list[str]] = {}
    for text, path in pairs:
        paths.setdefault(text, []).append(path)
    return paths


def _names(paths: Sequence[str]) -> str:
    """Join paths; beyond ten their number."""
    more = f' and {len(paths) - _MOST} more' if len(paths) > _MOST else ''
    return ', '.join(printable(path) for path in paths[:_MOST]) + more


def _departs(scene: Scene) -> bool:
    """Whether a given GSD is more than 5 % from what the scene's own grid measures."""
    if scene.fixed_gsd is None or scene.crs is None:
        return False
    measured = replace(scene, fixed_gsd=None).gsd(0, 0, scene.height, scene.width)
    return abs(measured / scene.fixed_gsd - 1) > 0.05
