# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Folders of scenes: one folder per sensor under a root, holding rasters and Clay's ``.npz`` chips at any depth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchgeo_clay.sensors import Sensor, get_sensor

__all__ = ('SENSOR_FILE', 'WEIGHTS_FILE', 'SensorFolder', 'find_files', 'find_folders')

#: A user's own sensor: its folder holds its description, see :meth:`Sensor.from_yaml`.
SENSOR_FILE = 'sensor.yaml'

#: Shares of the scenes in the draws of training: a CSV file with the columns ``file`` and ``weight``.
WEIGHTS_FILE = 'weights.csv'

_RASTERS = ('.tif', '.tiff', '.jp2', '.vrt', '.img', '.png', '.jpg', '.jpeg', '.hdf', '.nc')
_CHIPS = ('.npz',)
# What lies beside rasters and is none: GDAL's statistics, overviews and masks, STAC items, notes.
_SIDECARS = ('.xml', '.ovr', '.msk', '.json', '.geojson', '.csv', '.txt', '.md', '.yaml', '.yml', '.html', '.parquet')

_READER_OPTIONS = {'bands', 'offset', 'to_db', 'gsd', 'time', 'order'}


@dataclass(frozen=True)
class SensorFolder:
    """A folder of scenes of one sensor.

    Attributes:
        path: the folder.
        sensor: its sensor, with all bands.
        options: how its files are read: ``bands``, ``offset``, ``to_db``, ``gsd`` and ``time`` of
            :class:`~torchgeo_clay.datasets.SensorRaster`, ``order`` of :class:`~torchgeo_clay.datasets.ClayChips`.
    """

    path: Path
    sensor: Sensor
    options: Mapping[str, Any]


def find_folders(
    root: str | os.PathLike[str],
    sensors: Sequence[str] | None = None,
    readers: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, SensorFolder]:
    """Find the folders of sensors under a root.

    Args:
        root: the root.
        sensors: names of the folders wanted; None for all.
        readers: name of a folder → how its files are read.

    Returns:
        Name of the folder → the folder, sorted by name.

    Raises:
        ValueError: if the root is not there or holds no folder, if a folder is not named for a sensor and has no
            ``sensor.yaml``, if a folder wanted is not there, or for unknown options.
    """
    root = Path(root)
    layout = f'Expected one folder per sensor in it, such as {root / "sentinel-2-l2a"}, holding GeoTIFFs or .npz chips.'
    if not root.is_dir():
        raise ValueError(f'root: {root} is not a folder. {layout}')
    paths = {p.name: p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith('.')}
    if not paths:
        loose = sum(p.suffix.lower() in (*_RASTERS, *_CHIPS) for p in root.iterdir())
        found = f'{loose} scenes without a folder' if loose else 'nothing'
        raise ValueError(f'root: {root} holds {found}. {layout}')
    if isinstance(sensors, str):
        raise ValueError(f'sensors: expected a list of names, got the string {sensors!r}; write [{sensors!r}].')
    for name in sensors or ():
        if name not in paths:
            raise ValueError(f'sensors: there is no folder {name!r} in {root}, only {", ".join(paths)}.')
    for name in readers or {}:
        if name not in paths:
            raise ValueError(f'readers: there is no folder {name!r} in {root}, only {", ".join(paths)}.')
    wanted = sorted(set(sensors)) if sensors is not None else list(paths)
    if not wanted:
        raise ValueError('sensors: expected at least one name, got an empty list; leave it out for all folders.')
    return {name: _folder(paths[name], (readers or {}).get(name, {})) for name in wanted}


def _folder(path: Path, options: Mapping[str, Any]) -> SensorFolder:
    """A folder, its sensor known and its options checked."""
    for name in options:
        if name not in _READER_OPTIONS:
            raise ValueError(f'readers: unknown option {name!r} of {path.name}. Known: {sorted(_READER_OPTIONS)}.')
    described = path / SENSOR_FILE
    try:
        sensor = get_sensor(described if described.is_file() else path.name)
    except ValueError as error:
        raise ValueError(
            f'{path}: {error} Rename the folder, leave it out with sensors=, or put a {SENSOR_FILE} into it.'
        ) from error
    sensor.select(options.get('bands'))
    return SensorFolder(path, sensor, dict(options))


def find_files(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """The files of a folder, at any depth, hidden ones left out.

    Args:
        folder: the folder.

    Returns:
        Rasters, chips, and files that are neither, nor anything that usually lies beside them; each list sorted.
    """
    rasters: list[Path] = []
    chips: list[Path] = []
    strangers: list[Path] = []
    for path in sorted(p for p in folder.rglob('*') if p.is_file()):
        suffix = path.suffix.lower()
        if any(part.startswith('.') for part in path.relative_to(folder).parts) or suffix in _SIDECARS:
            continue
        (rasters if suffix in _RASTERS else chips if suffix in _CHIPS else strangers).append(path)
    return rasters, chips, strangers
