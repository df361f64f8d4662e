# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Search for training scenes and chips, and the check that all ranks found the same."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from torchgeo_clay.datamodules.pretrain.regions import READ_ERRORS, PatchSource, Region, SensorScenes, find_data
from torchgeo_clay.datasets import ClayChips, SceneError, SensorRaster
from torchgeo_clay.datasets.chips import chip_shape
from torchgeo_clay.datasets.raster.files import list_rasters, printable
from torchgeo_clay.datasets.raster.scene import scan_scenes
from torchgeo_clay.datasets.upstream import Sample
from torchgeo_clay.sensors import Sensor, get_sensor
from torchgeo_clay.sensors.plausibility import UnitsCheck

__all__ = (
    'SENSOR_FILE',
    'ChipScenes',
    'DisagreementError',
    'ScannedFolder',
    'SensorFolder',
    'check_agreement',
    'describe_parts',
    'find_folders',
    'scan_folder',
)

#: Description of a user's own sensor, see :meth:`Sensor.from_yaml`.
SENSOR_FILE = 'sensor.yaml'

#: Shares of the scenes in the draws of training: a CSV file with the columns ``file`` and ``weight``.
WEIGHTS_FILE = 'weights.csv'

#: Differences between ranks that an error names.
SHOWN = 5

_RASTERS = ('.tif', '.tiff', '.jp2', '.vrt', '.img', '.png', '.jpg', '.jpeg', '.hdf', '.nc')
_CHIPS = ('.npz',)

_RASTER_OPTIONS = {'bands', 'scale', 'offset', 'to_db', 'nodata', 'gsd', 'time'}
_CHIP_OPTIONS = {'bands', 'to_db', 'gsd', 'order'}

#: Chips read to find out whether the options fit them.
_TRIED_CHIPS = 10


@dataclass(frozen=True)
class SensorFolder:
    """A folder of scenes of one sensor.

    Attributes:
        path: the folder.
        sensor: its sensor, with all bands.
        options: how its files are read, the ``readers`` of ``ClayPretrainDataModule``.
    """

    path: Path
    sensor: Sensor
    options: Mapping[str, Any]


def find_folders(
    root: str | os.PathLike[str],
    sensors: Sequence[str] | None = None,
    readers: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, SensorFolder]:
    """Find the folders of sensors under a root, by name; see ``ClayPretrainDataModule`` for the arguments."""
    root, readers = Path(root), readers or {}
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
    for option, names in (('sensors', sensors or ()), ('readers', readers)):
        for name in names:
            if name not in paths:
                raise ValueError(f'{option}: there is no folder {name!r} in {root}, only {", ".join(paths)}.')
    wanted = sorted(set(sensors)) if sensors is not None else list(paths)
    if not wanted:
        raise ValueError('sensors: expected at least one name, got an empty list; leave it out for all folders.')
    return {name: _folder(paths[name], readers.get(name, {})) for name in wanted}


def _folder(path: Path, options: Mapping[str, Any]) -> SensorFolder:
    """A folder, with its sensor and options checked."""
    known = sorted(_RASTER_OPTIONS | _CHIP_OPTIONS)
    for name in options:
        if name not in known:
            raise ValueError(f'readers: unknown option {name!r} of {path.name}. Known: {known}.')
    described = path / SENSOR_FILE
    try:
        sensor = get_sensor(described if described.is_file() else path.name)
    except ValueError as error:
        raise ValueError(
            f'{path}: {error} Rename the folder, leave it out with sensors=, or put a {SENSOR_FILE} into it.'
        ) from error
    sensor.select(options.get('bands'))
    return SensorFolder(path, sensor, dict(options))


class _Targets(Protocol):
    """A teacher's targets by position of the chip."""

    def __getitem__(self, chip: int) -> Tensor:
        """A chip's target: (T,) float32."""


class ChipScenes:
    """Chips as scenes: patches of a chip are cut out of it, at the place and time of the whole chip."""

    def __init__(self, chips: ClayChips) -> None:
        """Initialize a new ChipScenes instance; ``attach_targets`` may add a target per chip, by position."""
        self.chips = chips
        self.sensor: Sensor = chips.sensor
        self.targets: _Targets | None = None

    def patch(self, scene: int, row: int, col: int, size: tuple[int, int]) -> Sample:
        """Cut a patch out of a chip."""
        sample = self.chips[scene]
        for name in ('image', 'valid'):
            sample[name] = sample[name][:, row : row + size[0], col : col + size[1]].clone()
        if self.targets is not None:
            sample['teacher_target'] = self.targets[scene]
        return sample

    def close(self) -> None:
        """Do nothing: chips are read whole, none stays open."""


@dataclass
class ScannedFolder:
    """The content of a sensor's folder.

    Attributes:
        folder, patch_size: as :func:`scan_folder`.
        sources, regions, weights: as :class:`~torchgeo_clay.datamodules.pretrain.regions.SensorScenes`.
        skipped: path and reason of each file that is not used.
        gsd: meters per pixel, of rasters where they were looked at.
        times: seconds UTC of the rasters; chips know a week and no year.
    """

    folder: SensorFolder
    patch_size: int
    sources: list[PatchSource] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    gsd: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    weights: tuple[float, ...] | None = None

    @property
    def scenes(self) -> SensorScenes:
        """The scenes that patches are taken from."""
        sensor = self.folder.sensor.select(self.folder.options.get('bands'))
        return SensorScenes(sensor, tuple(self.sources), tuple(self.regions), self.weights)

    def skip(self, path: str | Path, reason: object) -> None:
        """Note a file that is not used, and why."""
        name = printable(path)
        self.skipped.append((name, str(reason).removeprefix(f'{name}: ')))

    def summary(self) -> str:
        """One line: scenes, chips, bands, GSD and dates."""
        sensor = self.scenes.sensor
        rasters = sum(not r.path.lower().endswith(_CHIPS) for r in self.regions)
        parts = [
            f'{self.folder.path.name}: {rasters} scenes and {len(self.regions) - rasters} chips',
            f'{len(sensor)} bands ({", ".join(sensor.band_names)})',
            f'GSD {_span([f"{g:.4g}" for g in sorted(self.gsd)])} m',
            f'dates {_span([datetime.fromtimestamp(t, UTC).date().isoformat() for t in sorted(self.times)])}',
        ]
        counts = {
            'scenes without a date': rasters - len(self.times),
            'scenes smaller than a patch, padded': sum(min(r.height, r.width) < self.patch_size for r in self.regions),
            'files skipped': len(self.skipped),
        }
        return '; '.join([*parts, *(f'{count} {what}' for what, count in counts.items() if count)])

    def skips(self, most: int = 10) -> str:
        """The files that are not used: their number, and of the first ones path and reason."""
        lines = [f'{path}: {reason}' for path, reason in self.skipped[:most]]
        more = [f'and {len(self.skipped) - most} more'] if len(self.skipped) > most else []
        return '\n  '.join([f'{self.folder.path.name}: skipped {len(self.skipped)} files', *lines, *more])


def _span(values: Sequence[str]) -> str:
    """First and last of sorted values."""
    if not values:
        return 'unknown'
    return values[0] if values[0] == values[-1] else f'{values[0]} to {values[-1]}'


def scan_folder(folder: SensorFolder, patch_size: int) -> ScannedFolder:
    """Look at every scene of a folder.

    Rasters are opened and searched for a patch with data, so that those that cannot be read or hold no data are found
    now. Of chips, of which there may be millions, the headers are read.
    """
    found = ScannedFolder(folder, patch_size)
    files = [Path(name) for name in list_rasters(folder.path)]
    rasters = [p for p in files if p.suffix.lower() in _RASTERS]
    others = [p for p in files if p.suffix.lower() not in _RASTERS]
    npz = (p for p in folder.path.rglob('*') if p.suffix.lower() in _CHIPS and not p.is_dir())
    chips = sorted(p for p in npz if not any(part.startswith('.') for part in p.relative_to(folder.path).parts))
    if not rasters and not chips:
        raise ValueError(
            f'{folder.path}: expected GeoTIFF scenes or .npz chips, found none ({len(others)} other files).'
        )
    for path in others:
        found.skip(path, 'neither a raster nor an .npz chip')
    if present := [path for path in rasters if _exists(found, path)]:
        _add_rasters(found, present)
    if present := [path for path in chips if _exists(found, path)]:
        _add_chips(found, present)
    if not found.regions:
        reasons = '\n'.join(f'  {path}: {reason}' for path, reason in found.skipped[:10])
        raise ValueError(f'{folder.path}: no scene is left of {len(rasters) + len(chips)} files:\n{reasons}')
    if (folder.path / WEIGHTS_FILE).is_file():
        found.weights = _read_weights(folder.path, found.regions)
    return found


def _exists(found: ScannedFolder, path: Path) -> bool:
    """Skip a link whose target does not exist."""
    if path.exists():
        return True
    found.skip(path, f'the link points to {os.readlink(path)}, which does not exist')
    return False


def _add_rasters(found: ScannedFolder, paths: list[Path]) -> None:
    """Add the rasters that can be read and hold data."""
    folder = found.folder
    options = {name: value for name, value in folder.options.items() if name in _RASTER_OPTIONS}
    scenes, skipped = scan_scenes([str(path) for path in paths], folder.sensor, **options)
    found.skipped += skipped
    if not scenes:
        return
    raster = SensorRaster(scenes, folder.sensor, options.get('bands'))
    found.sources.append(raster)
    for i, scene in enumerate(_bar(raster.scenes, f'{folder.path.name}: scenes')):
        whole = Region(scene.path, len(found.sources) - 1, i, 0, 0, scene.height, scene.width)
        try:
            region = find_data(raster, whole, found.patch_size)
        except READ_ERRORS as error:
            found.skip(scene.path, error)
            continue
        if region is None:
            found.skip(scene.path, 'all pixels are nodata')
            continue
        found.regions.append(region)
        height, width = (min(found.patch_size, side) for side in (scene.height, scene.width))
        found.gsd.append(scene.gsd(*region.anchor, height, width))
        found.times += [scene.time] if math.isfinite(scene.time) else []


def _add_chips(found: ScannedFolder, paths: list[Path]) -> None:
    """Add the chips that have a header, and read some until one is whole, so that wrong options are found now."""
    folder = found.folder
    for name in _RASTER_OPTIONS - _CHIP_OPTIONS:
        if folder.options.get(name):
            raise ValueError(
                f'readers: {name} of {folder.path.name} is for rasters, and the folder holds {len(paths)} chips. Put '
                'them into another root, or leave the option out.'
            )
    sizes: dict[str, tuple[int, int]] = {}
    for path in _bar(paths, f'{folder.path.name}: chips'):
        try:
            sizes[str(path)] = chip_shape(path)[1:]
        except SceneError as error:
            found.skip(path, error)
    if not sizes:
        return
    options = {name: value for name, value in folder.options.items() if name in _CHIP_OPTIONS}
    chips = ClayChips(list(sizes), folder.sensor, **options)
    first = _first_readable(found, chips)
    _check_units(chips, first)
    found.gsd.append(chips.gsd)
    found.sources.append(ChipScenes(chips))
    found.regions += [
        Region(path, len(found.sources) - 1, i, 0, 0, *sizes[path], has_gaps=False)
        for i, path in enumerate(chips.files)
        if i >= first
    ]


def _first_readable(found: ScannedFolder, chips: ClayChips) -> int:
    """Position of the first chip that can be read; those before it are skipped."""
    tried = min(len(chips), _TRIED_CHIPS)
    for i in range(tried):
        try:
            chips[i]
        except SceneError as error:
            found.skip(chips.files[i], error)
        else:
            return i
    raise SceneError(f'none of the first {tried} chips can be read: {": ".join(found.skipped[-tried])}')


def _check_units(chips: ClayChips, first: int) -> None:
    """Warn if some of the chips cannot be in their sensor's units."""
    check = UnitsCheck()
    for i in range(first, len(chips), -(-(len(chips) - first) // _TRIED_CHIPS)):
        try:
            sample = chips[i]
        except SceneError:
            continue  # named when it is its turn
        check(sample['image'], chips.sensor, sample['valid'], source=os.path.dirname(chips.files[i]))


def _bar[T](items: Sequence[T], text: str) -> Iterable[T]:
    """A progress bar, shown on a terminal only."""
    return tqdm(items, desc=text, disable=None, leave=False)


def _read_weights(folder: Path, regions: Sequence[Region]) -> tuple[float, ...]:
    """Weights of the scenes of a folder, from its table, in the order of the regions."""
    table = folder / WEIGHTS_FILE
    frame = pd.read_csv(table)
    if missing := {'file', 'weight'} - set(frame.columns):
        raise ValueError(f'{table}: expected the columns file and weight, missing {sorted(missing)}.')
    if frame['file'].duplicated().any():
        raise ValueError(f'{table}: {frame["file"][frame["file"].duplicated()].iloc[0]} is named more than once.')
    weights = {}
    for name, value in zip(frame['file'].astype(str), pd.to_numeric(frame['weight'], errors='coerce'), strict=True):
        if not (folder / name).is_file():
            raise ValueError(f'{table}: expected names of files in {folder}, got {name!r}, which is not there.')
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(f'{table}: expected a weight of 0 or more, got {value} for {name}.')
        weights[str(folder / name)] = float(value)
    if unnamed := [r.path for r in regions if r.path not in weights]:
        raise ValueError(
            f'{table}: expected a weight for every scene, {len(unnamed)} have none, such as {unnamed[0]}. A weight of '
            '0 leaves a scene out of training.'
        )
    if not sum(weights[r.path] for r in regions) > 0:
        raise ValueError(f'{table}: expected at least one positive weight.')
    return tuple(weights[r.path] for r in regions)


class DisagreementError(ValueError):
    """Ranks of one run see different data."""


def describe_parts(parts: Mapping[str, Mapping[str, SensorScenes]]) -> dict[str, tuple[int, str]]:
    """Describe the parts, which have to be the same on all ranks, by number of scenes and a fingerprint."""
    return {
        f'{name} ({split})': (len(part), part.digest(part.sensor))
        for split, sensors in parts.items()
        for name, part in sensors.items()
    }


def check_agreement(look: Callable[[], Mapping[str, tuple[int, str]]]) -> None:
    """Look at the data on every rank and raise, on all of them, unless all have found the same.

    A rank that fails reports it to the others, which would else wait until the time limit of the process group.

    Args:
        look: looks at this rank's data and describes it, see :func:`describe_parts`.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        look()
        return
    found: dict[str, Any] | str
    failure = None
    try:
        found = dict(look())
    except (ValueError, OSError) as error:
        failure, found = error, f'{type(error).__name__}: {error}'
    everyone: list[dict[str, Any] | str] = [''] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    if differences := _differences(everyone):
        shown = '\n'.join(f'  {line}' for line in differences[:SHOWN])
        more = f'\n  … and {len(differences) - SHOWN} more' if len(differences) > SHOWN else ''
        raise DisagreementError(
            f'Expected all {len(everyone)} ranks to find the same scenes, got\n{shown}{more}\nEvery rank reads the '
            'scenes of any sensor: put them on storage that all machines share, or copy them whole to each, under the '
            'same names, and give all ranks the same root.'
        ) from failure


def _differences(everyone: list[dict[str, Any] | str]) -> list[str]:
    """A line for each failure, and for each difference from the first rank without one."""
    lines = [f'rank {rank}: {found}' for rank, found in enumerate(everyone) if isinstance(found, str)]
    good = [(rank, found) for rank, found in enumerate(everyone) if not isinstance(found, str)]
    for rank, found in good[1:]:
        first, expected = good[0]
        for name in sorted({*expected, *found}):
            here, there = (ranks.get(name, (0, '')) for ranks in (found, expected))
            if here[0] != there[0]:
                lines.append(f'rank {rank}: {here[0]} scenes of {name}, rank {first} {there[0]}')
            elif here != there:
                how = f'{here[0]} on both, of other names, sizes or weights'
                lines.append(f'rank {rank}: other scenes of {name} than rank {first}: {how}')
    return lines
