# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay's chip cubes: ``.npz`` files with pixels and the codes of their place and time.

Shapes: C bands, H rows, W columns.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchgeo.datasets import NonGeoDataset

from torchgeo_clay.conditioning import LatLonOrder, check_gsd, metadata_tensors
from torchgeo_clay.datasets.raster.files import SceneError
from torchgeo_clay.datasets.upstream import Path, Sample, find_files
from torchgeo_clay.sensors import Sensor, get_sensor
from torchgeo_clay.sensors.plausibility import check_to_db, to_decibels

__all__ = ('ClayChips', 'angle_of', 'chip_shape', 'place_of', 'time_of')

#: Year of the timestamps recovered from codes. Codes hold a week and an hour only: the year is not known.
REFERENCE_YEAR = 2020

#: How far a code may lie from the one it is taken for; float16 codes are 5e-4 off.
_TOLERANCE = 2e-3
_KEYS = ('pixels', 'lat_norm', 'lon_norm', 'week_norm', 'hour_norm')

Code = npt.NDArray[np.float64]


def angle_of(code: Code) -> float:
    """The angle of a code (sine, cosine), radians from -π to π; NaN for zeros, which stand for unknown."""
    if not code.any():
        return math.nan
    if not abs(math.hypot(*code) - 1) < _TOLERANCE:
        raise SceneError(f'expected a sine and a cosine, or zeros for unknown, got {code.tolist()}.')
    return math.atan2(*code)


def place_of(lat_norm: Code, lon_norm: Code, order: LatLonOrder = 'latlon') -> tuple[float, float]:
    """Degrees north and east from the codes stored as latitude's and longitude's; NaN for both if either is unknown.

    Args:
        lat_norm: (2,) code stored as the latitude's.
        lon_norm: (2,) code stored as the longitude's.
        order: ``lonlat`` if the two were stored under each other's name, as Clay's own chip tool does.
    """
    lat, lon = (math.degrees(angle_of(code)) for code in (lat_norm, lon_norm))
    if order == 'lonlat':
        lat, lon = lon, lat
    if math.isnan(lat) or math.isnan(lon):
        return math.nan, math.nan
    if abs(lat) > 90 + _TOLERANCE:
        other = 'latlon' if order == 'lonlat' else 'lonlat'
        raise SceneError(
            f'expected a latitude from -90 to 90, got {lat:.4f}. Latitude and longitude seem to be stored under each '
            f"other's name: give order={other!r}."
        )
    return lat, lon


def time_of(week_norm: Code, hour_norm: Code) -> float:
    """A time that has the codes (2,) of an ISO week and an hour; NaN if either is unknown.

    It is in seconds UTC, on the Thursday of that week in :data:`REFERENCE_YEAR`: ``encode_time`` of it gives the codes
    again, but the year means nothing. Week 53 has the code of week 1.
    """
    steps = []
    for name, code, turn in (('week', week_norm, 52), ('hour', hour_norm, 24)):
        angle = angle_of(code)
        if math.isnan(angle):
            return math.nan
        step = angle * turn / (2 * math.pi)
        if abs(step - round(step)) * 2 * math.pi / turn > _TOLERANCE:
            raise SceneError(f'expected the code of a whole {name}, got {code.tolist()}, which is {name} {step:.3f}.')
        steps.append(round(step) % turn)
    day = date.fromisocalendar(REFERENCE_YEAR, steps[0] or 52, 4)
    return datetime.combine(day, time(steps[1]), UTC).timestamp()


def chip_shape(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Bands, rows and columns of a chip, from the header of its ``.npz`` file."""
    path = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive, archive.open('pixels.npy') as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            if dtype.hasobject:
                raise ValueError('its pixels are Python objects; write numbers')
            held = archive.getinfo('pixels.npy').file_size - file.tell()
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SceneError(f'{path}: not readable as a chip (.npz): {error}') from error
    if len(shape) != 3:
        raise SceneError(f'{path}: expected pixels of shape (C, H, W), got {shape}.')
    if held != (expected := math.prod(shape) * dtype.itemsize):
        raise SceneError(f'{path}: expected {expected} bytes of pixels {shape}, got {held}. Copy it again.')
    return shape


def _load(path: str) -> tuple[npt.NDArray[Any], dict[str, Code]]:
    """Pixels and codes of a chip."""
    chip_shape(path)
    try:
        # opened here, as numpy leaves a file open that turns out not to be a zip
        with open(path, 'rb') as stream, np.load(stream, allow_pickle=False) as file:
            missing = [key for key in _KEYS if key not in file]
            if missing:
                raise SceneError(f'{path}: expected {", ".join(_KEYS)}; missing {", ".join(missing)}.')
            arrays = {key: file[key] for key in _KEYS}
    except SceneError:
        raise
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise SceneError(f'{path}: not readable as a chip (.npz): {error}. Is it truncated? Copy it again.') from error
    pixels = arrays.pop('pixels')
    for key, code in arrays.items():
        if code.size != 2:
            raise SceneError(f'{path}: expected {key} to be a sine and a cosine, got shape {code.shape}.')
    return pixels, {key: code.astype(np.float64).ravel() for key, code in arrays.items()}


class ClayChips(NonGeoDataset):
    """Clay's chip cubes of one sensor, with samples like those of ``SensorRaster.patch``.

    Only paths are listed at first, as the release's training set has 70 million chips: a chip that cannot be
    read raises an error that names it.

    Args:
        paths: ``.npz`` files and folders of them.
        sensor: name of a sensor, a YAML file, or a sensor.
        bands: names or aliases of the bands wanted, in the order wanted; None for all. Chips hold all of the sensor's
            bands in its order, or exactly ``bands``.
        order: of the stored place codes, see :func:`place_of`.
        to_db: whether pixels are linear power, as in the release's Sentinel-1 chips, to be turned into decibels:
            values of zero or less become 1e-10, then 10·log10.
        gsd: meters per pixel; None for the sensor's, at which Clay's chips are made.
        transforms: called on each sample.

    Attributes:
        sensor: the sensor, with the bands selected.
        files: the chips, sorted.
    """

    def __init__(
        self,
        paths: Path | Iterable[Path],
        sensor: str | os.PathLike[str] | Sensor,
        bands: Sequence[str] | None = None,
        *,
        order: LatLonOrder = 'latlon',
        to_db: bool = False,
        gsd: float | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        """Initialize a new ClayChips instance; see the class."""
        if order not in ('latlon', 'lonlat'):
            raise ValueError(f"order: expected 'latlon' or 'lonlat', got {order!r}.")
        whole = get_sensor(sensor)
        self.paths = paths
        self.sensor = whole.select(bands)
        self.bands = self.sensor.band_names
        self.all_bands = whole.band_names
        self.order = order
        check_to_db(whole, to_db)
        self.to_db = to_db
        self.gsd = whole.gsd if gsd is None else float(gsd)
        check_gsd(self.gsd)
        self.transforms = transforms
        folders = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self.files = sorted({f for folder in folders for f in find_files(folder, '*.npz')})
        if not self.files:
            raise ValueError(f'{paths}: expected chips of {whole.name} (.npz), found none.')
        self._select = [whole.index(name) for name in self.bands]

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """Read the chip at a position in :attr:`files`.

        Returns:
            ``image`` (C, H, W) in the chip's dtype, float32 for decibels; ``valid`` (1, H, W) bool, False where a value
            is not finite (the image is 0 there); ``wavelength`` (C,) µm; ``res`` meters per pixel; ``lat``, ``lon``
            degrees; ``time`` seconds UTC, of a year that means nothing, see :func:`time_of`. Unknown is NaN.
        """
        path = self.files[index]
        pixels, codes = _load(path)
        try:
            lat, lon = place_of(codes['lat_norm'], codes['lon_norm'], self.order)
            seconds = time_of(codes['week_norm'], codes['hour_norm'])
            image, valid = self._image(pixels)
        except SceneError as error:
            raise SceneError(f'{path}: {error}') from error
        sample: Sample = {
            'image': torch.from_numpy(image),
            'valid': torch.from_numpy(valid),
            **metadata_tensors(self.sensor, self.gsd, lat, lon, seconds),
        }
        return sample if self.transforms is None else self.transforms(sample)

    def _image(self, pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """The bands wanted, in their units, and where they are valid."""
        if len(pixels) == len(self.all_bands):
            pixels = pixels[self._select]
        elif len(pixels) != len(self.bands):
            raise SceneError(
                f'expected {len(self.all_bands)} channels ({", ".join(self.all_bands)}), got {len(pixels)}. If the '
                'chip holds some of them, give bands=[…] in its order.'
            )
        valid = np.isfinite(pixels).all(axis=0, keepdims=True)
        if self.to_db:
            pixels = to_decibels(torch.from_numpy(pixels.astype(np.float64))).numpy().astype(np.float32)
        return (pixels if valid.all() else np.where(valid, pixels, pixels.dtype.type(0))), valid
