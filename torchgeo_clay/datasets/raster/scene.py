# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A raster file as a scene of a sensor: which of its bands are the sensor's, where and when it is.

Nothing here reads pixels; see :mod:`torchgeo_clay.datasets.raster.reading`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyproj import CRS
from rasterio import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from torchgeo_clay.conditioning import check_gsd
from torchgeo_clay.datasets.raster.bands import file_bands, match_bands
from torchgeo_clay.datasets.raster.dates import UNKNOWN, Acquisition, acquisition, parse_time
from torchgeo_clay.datasets.raster.detection import FAR
from torchgeo_clay.datasets.raster.files import SceneError, open_raster, printable
from torchgeo_clay.datasets.raster.georeference import georeferencing, window_center, window_gsd
from torchgeo_clay.datasets.raster.tiff import missing_bytes
from torchgeo_clay.sensors import Sensor

__all__ = ('Scene', 'scan_scene')


@dataclass(frozen=True)
class Scene:
    """A raster file, seen as a scene of one sensor.

    Attributes:
        path: the file.
        height: rows.
        width: columns.
        crs: its coordinate reference system; None for unknown.
        transform: affine from (column, row) to the CRS, float64; fitted to the ground control points where it has none.
        band_indexes: the file's bands (from 1) in the order of the sensor's bands.
        nodata: per band the value that stands for no data, or None.
        has_mask: whether the file has a mask of its own, or an alpha band that is not one of ``band_indexes``.
        dtype: of the pixels in the file, as in numpy.
        acquired: when it was taken.
        fixed_gsd: metres per pixel given by the user; None to measure it.
        offset: added to every valid pixel; makes them float32 if not zero.
        to_db: whether linear power is turned into 10·log10(power); makes pixels float32.
        left_out: names of the file's bands that the sensor does not have or that were not asked for.
        scaling: the file's own scale or offset as text, where it has one: never applied, only said.
        remarks: what the user should check in this file, a sentence each.
    """

    path: str
    height: int
    width: int
    crs: CRS | None
    transform: Affine
    band_indexes: tuple[int, ...]
    nodata: tuple[float | None, ...]
    has_mask: bool
    dtype: str
    acquired: Acquisition = UNKNOWN
    fixed_gsd: float | None = None
    offset: float = 0.0
    to_db: bool = False
    left_out: tuple[str, ...] = ()
    scaling: str = ''
    remarks: tuple[str, ...] = ()

    @property
    def time(self) -> float:
        """Seconds since 1970-01-01 UTC; NaN for unknown."""
        return self.acquired.time

    def inside(self, row: float, col: float, height: float, width: float) -> tuple[float, float, float, float]:
        """The part of a window that lies in the scene, as row, column, height and width.

        Args:
            row: first row of the window.
            col: first column of the window.
            height: rows of the window.
            width: columns of the window.

        Returns:
            The part; the window itself if no pixel of it is in the scene.
        """
        top, left = max(row, 0), max(col, 0)
        bottom, right = min(row + height, self.height), min(col + width, self.width)
        return (top, left, bottom - top, right - left) if bottom > top and right > left else (row, col, height, width)

    def place(self, row: float, col: float, height: float, width: float) -> tuple[float, float]:
        """Latitude and longitude of the center of a window's part in the scene, degrees WGS84; NaN for unknown.

        Args: as :meth:`inside`.
        """
        return window_center(self.crs, self.transform, *self.inside(row, col, height, width))

    def gsd(self, row: float, col: float, height: float, width: float) -> float:
        """Ground sampling distance of a window's part in the scene: metres per pixel, as :func:`window_gsd`.

        Args: as :meth:`inside`.
        """
        if self.fixed_gsd is not None:
            return self.fixed_gsd
        return window_gsd(self.crs, self.transform, *self.inside(row, col, height, width))


def _alpha_bands(dataset: DatasetReader) -> tuple[int, ...]:
    """The bands that the file calls alpha. Four-band aerial images often call their infrared so."""
    return tuple(i for i, c in enumerate(dataset.colorinterp, start=1) if c == ColorInterp.alpha)


def _has_mask(dataset: DatasetReader, band_indexes: Sequence[int]) -> bool:
    """Whether there is a mask to read besides nodata values."""
    flags = dataset.mask_flag_enums[band_indexes[0] - 1]
    if MaskFlags.per_dataset not in flags:
        return False
    return MaskFlags.alpha not in flags or not set(_alpha_bands(dataset)) & set(band_indexes)


def _check_complete(dataset: DatasetReader) -> None:
    """Raise if a GeoTIFF on disk ends before its last tag or block, which opening it does not notice."""
    if dataset.driver == 'GTiff' and os.path.isfile(dataset.name) and (missing := missing_bytes(dataset.name)):
        raise SceneError(f'truncated: at least {missing} bytes are missing at its end. Copy it again.')


def _scaling(dataset: DatasetReader, band_indexes: Sequence[int]) -> str:
    """The file's own scale and offset, where it has one, as text."""
    tags = dataset.tags()
    said = []
    if tags.get('REFLECTANCE_OFFSET_DN', '').strip('-+0.'):  # what is left of any spelling of zero is nothing
        said.append(f'REFLECTANCE_OFFSET_DN={tags["REFLECTANCE_OFFSET_DN"]}')
    for name, neutral, values in (('scale', 1.0, dataset.scales), ('offset', 0.0, dataset.offsets)):
        if any(values[i - 1] != neutral for i in band_indexes):
            said.append(f'{name}={values[band_indexes[0] - 1]:g}')
    return ', '.join(said)


def scan_scene(
    path: str | os.PathLike[str],
    sensor: Sensor,
    bands: Sequence[str] | None = None,
    *,
    offset: float = 0.0,
    to_db: bool = False,
    gsd: float | None = None,
    time: float | str | None = None,
) -> Scene:
    """Look at a raster file without reading its pixels.

    Args:
        path: the file.
        sensor: the sensor it is of, with all its bands.
        bands: names or aliases of the bands wanted, in the order wanted; None for all of the sensor's. Also the order
            of a file that has as many bands and no names.
        offset: added to every valid pixel, such as -1000 for Sentinel-2 since processing baseline 04.00.
        to_db: whether pixels are linear power to be turned into 10·log10(power).
        gsd: metres per pixel, for a file without CRS; None to measure it.
        time: seconds since 1970-01-01 UTC or a date as text; None to look at the tags and the name.

    Returns:
        The scene.

    Raises:
        SceneError: if the file can't be used; the message begins with its path.
        ValueError: for arguments that are wrong for every file.
    """
    sensor.select(bands)
    if gsd is not None:
        check_gsd(gsd)
    name = os.fspath(path)
    with open_raster(name) as dataset:
        try:
            return _scan(dataset, name, sensor, bands, offset, to_db, gsd, _given_time(time))
        except (SceneError, RasterioError) as error:
            raise SceneError(f'{printable(name)}: {error}') from error
        except UnicodeError as error:
            raise SceneError(f'{printable(name)}: its tags or band names are not UTF-8 ({error}).') from error


def _given_time(time: float | str | None) -> Acquisition | None:
    """The acquisition a user gives."""
    if time is None:
        return None
    if isinstance(time, str):
        acquired = parse_time(time)
        if not acquired.known:
            raise ValueError(f"time: expected a date such as '2020-04-15' or '2020-04-15T09:30:00Z', got {time!r}.")
        return acquired
    return Acquisition(float(time), float(time), float(time))


def _scan(
    dataset: DatasetReader,
    path: str,
    sensor: Sensor,
    bands: Sequence[str] | None,
    offset: float,
    to_db: bool,
    gsd: float | None,
    acquired: Acquisition | None,
) -> Scene:
    """The scene of an open raster."""
    _check_complete(dataset)  # first, as band names may be among what is missing
    if dataset.count == 0:
        raise SceneError(
            f'it holds no bands itself, but {len(dataset.subdatasets)} subdatasets; convert one to GeoTIFF.'
        )
    match = match_bands(sensor, file_bands(dataset, path), bands, path)
    indexes = match.indexes
    dtypes = {dataset.dtypes[i - 1] for i in indexes}
    if any(d.startswith('complex') for d in dtypes):
        raise SceneError(
            f'expected real pixels, got {", ".join(sorted(dtypes))}; take the power of complex ones first.'
        )
    if len(dtypes) > 1:
        raise SceneError(f'its bands have different types, {", ".join(sorted(dtypes))}; convert them to one.')
    crs, transform, report = georeferencing(dataset)
    if crs is None and gsd is None:
        raise SceneError(
            f'{report or "it has no CRS"}, so there are no metres: give gsd= in metres per pixel (its place will be '
            'unknown), or georeference it.'
        )
    when, disagreement = acquisition(dataset.tags(), path)
    scene = Scene(
        path=path,
        height=dataset.height,
        width=dataset.width,
        crs=crs,
        transform=transform,
        band_indexes=indexes,
        nodata=tuple(dataset.nodatavals[i - 1] for i in indexes),
        has_mask=_has_mask(dataset, indexes),
        dtype=dataset.dtypes[indexes[0] - 1],
        acquired=acquired or when,
        fixed_gsd=gsd,
        offset=float(offset),
        to_db=to_db,
        left_out=tuple(dataset.descriptions[i - 1] or f'band {i}' for i in dataset.indexes if i not in indexes),
        scaling=_scaling(dataset, indexes),
    )
    order = sorted(zip(indexes, sensor.select(bands).band_names, strict=True))
    remarks = (
        ''
        if match.source != 'order'
        else f'it does not name its bands: taken as {", ".join(f"{i} {name}" for i, name in order)}; to state another '
        'order give bands= with one name per band, or name them in the file',
        report,
        '' if acquired else disagreement,
        _far_gsd(scene, sensor),
    )
    return replace(scene, remarks=tuple(filter(None, remarks)))


def _far_gsd(scene: Scene, sensor: Sensor) -> str:
    """What to report of a GSD far from that of the sensor's training data."""
    gsd = scene.gsd(0, 0, scene.height, scene.width)
    if 1 / FAR <= gsd / sensor.gsd <= FAR:
        return ''
    return f"its pixels measure {gsd:.3g} m, far from {sensor.name}'s {sensor.gsd:g} m; is it this sensor?"
