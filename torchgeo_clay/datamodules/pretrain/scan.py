# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A look at the scenes of a sensor's folder before training: what can be read, and what there is."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchgeo.datasets.utils import Sample
from tqdm import tqdm  # type: ignore[import-untyped]

from torchgeo_clay.datamodules.pretrain.dataset import READ_ERRORS
from torchgeo_clay.datamodules.pretrain.folders import WEIGHTS_FILE, SensorFolder, find_files
from torchgeo_clay.datamodules.pretrain.regions import PatchSource, Region, SensorScenes, read_weights
from torchgeo_clay.datamodules.pretrain.teacher_targets import ChipTargets
from torchgeo_clay.datasets import ClayChips, SceneError, SensorRaster
from torchgeo_clay.sensors import Sensor

__all__ = ('ChipScenes', 'ScannedFolder', 'chip_size', 'scan_folder')

Skipped = tuple[str, str]


class ChipScenes:
    """Chips as scenes: patches of a chip are cut out of it, at the place and time of the whole chip."""

    def __init__(self, chips: ClayChips) -> None:
        """Initialise; :mod:`torchgeo_clay.datamodules.pretrain.teach` may add targets."""
        self.chips = chips
        self.sensor: Sensor = chips.sensor
        self.targets: ChipTargets | None = None

    def patch(self, scene: int, row: int, col: int, size: tuple[int, int]) -> Sample:
        """Cut a patch out of a chip.

        Args:
            scene: position of the chip.
            row: first row.
            col: first column.
            size: rows and columns.

        Raises:
            SceneError: if the chip can't be read, or has changed since its targets were looked up.
        """
        sample = self.chips[scene]
        for name in ('image', 'valid'):
            sample[name] = sample[name][:, row : row + size[0], col : col + size[1]].clone()
        if self.targets is not None:
            sample['teacher_target'] = self.targets[scene]
        return sample

    def close(self) -> None:
        """Nothing to do: chips are read whole, none stays open."""


def chip_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Rows and columns of a chip, from its header.

    Args:
        path: the ``.npz`` file.

    Raises:
        SceneError: if it has no header of a (C, H, W) array of pixels.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open('pixels.npy') as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape = read(file)[0]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SceneError(f'{fspath(path)}: not readable as a chip (.npz): {error}') from error
    if len(shape) != 3:
        raise SceneError(f'{fspath(path)}: expected pixels of shape (C, H, W), got {shape}.')
    return shape[1], shape[2]


@dataclass(frozen=True)
class ScannedFolder:
    """What there is in a sensor's folder.

    Attributes:
        folder: the folder.
        scenes: the scenes that patches are taken from.
        skipped: path and reason of each file that is not used.
        rasters: number of rasters in use.
        chips: number of chips in use.
        small: number of scenes in use that are smaller than a patch, and padded.
        gsd: metres per pixel, of rasters measured where they were looked at.
        times: seconds UTC of the rasters; chips know a week and no year.
    """

    folder: SensorFolder
    scenes: SensorScenes
    skipped: tuple[Skipped, ...]
    rasters: int
    chips: int
    small: int
    gsd: tuple[float, ...]
    times: tuple[float, ...]

    def summary(self) -> str:
        """One line: scenes, chips, bands, GSD and dates."""
        bands = ', '.join(self.scenes.sensor.band_names)
        parts = [
            f'{self.folder.path.name}: {self.rasters} scenes and {self.chips} chips',
            f'{len(self.scenes.sensor)} bands ({bands})',
            f'GSD {_span([f"{g:.4g}" for g in sorted(self.gsd)])} m',
            f'dates {_span([datetime.fromtimestamp(t, UTC).date().isoformat() for t in sorted(self.times)])}',
        ]
        if unknown := self.rasters - len(self.times):
            parts.append(f'{unknown} scenes without a date')
        if self.small:
            parts.append(f'{self.small} scenes smaller than a patch, padded')
        if self.skipped:
            parts.append(f'{len(self.skipped)} files skipped')
        return '; '.join(parts)

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


@dataclass
class _Found:
    """What was found so far."""

    sources: list[PatchSource] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    gsd: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


def scan_folder(
    folder: SensorFolder,
    patch_size: int,
    *,
    skip_small: bool = False,
    weights: Mapping[str, float] | None = None,
    progress: bool = True,
) -> ScannedFolder:
    """Look at every scene of a folder.

    Rasters are opened and a patch of each is read, so that those that can't be read or have no data are found now. Of
    chips, of which there may be millions, the headers are read.

    Args:
        folder: the folder.
        patch_size: pixels per side of a patch.
        skip_small: whether scenes smaller than a patch are skipped; they are padded otherwise.
        weights: file → share of the draws; None for the folder's ``weights.csv``, if it has one.
        progress: whether to show a progress bar on a terminal.

    Raises:
        ValueError: if there is nothing to read, or for weights
            :func:`~torchgeo_clay.datamodules.pretrain.regions.read_weights` refuses or that leave out a scene.
    """
    rasters, chips, strangers = find_files(folder.path)
    found = _Found(skipped=[(str(path), 'neither a raster nor an .npz chip') for path in strangers])
    if not rasters and not chips:
        raise ValueError(
            f'{folder.path}: expected GeoTIFF scenes or .npz chips, found none ({len(strangers)} other files).'
        )
    if rasters:
        _add_rasters(found, folder, rasters, patch_size, progress)
    if chips:
        _add_chips(found, folder, chips, progress)
    small = [r for r in found.regions if min(r.height, r.width) < patch_size]
    if skip_small:
        found.regions = [r for r in found.regions if min(r.height, r.width) >= patch_size]
        found.skipped += [
            (r.path, f'{r.height} x {r.width} pixels, smaller than patch_size={patch_size}') for r in small
        ]
    if not found.regions:
        reasons = '\n'.join(f'  {path}: {reason}' for path, reason in found.skipped[:10])
        raise ValueError(f'{folder.path}: no scene is left of {len(rasters) + len(chips)} files:\n{reasons}')
    scenes = SensorScenes(folder.sensor.select(folder.options.get('bands')), tuple(found.sources), tuple(found.regions))
    is_chip = [r.path.lower().endswith('.npz') for r in found.regions]
    return ScannedFolder(
        folder=folder,
        scenes=_weighted(scenes, folder.path, weights),
        skipped=tuple(found.skipped),
        rasters=is_chip.count(False),
        chips=is_chip.count(True),
        small=0 if skip_small else len(small),
        gsd=tuple(found.gsd),
        times=tuple(found.times),
    )


def _add_rasters(found: _Found, folder: SensorFolder, paths: list[Path], patch_size: int, progress: bool) -> None:
    """Add the rasters that can be read and have data."""
    options = {name: value for name, value in folder.options.items() if name != 'order'}
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*: left out', category=UserWarning)  # all are said in one place
        raster = SensorRaster(paths, folder.sensor, **options)
    found.skipped += raster.skipped
    found.sources.append(raster)
    for i, scene in enumerate(_bar(raster.scenes, f'{folder.path.name}: scenes', progress)):
        region = Region(scene.path, len(found.sources) - 1, i, 0, 0, scene.height, scene.width)
        try:
            sample = _first_valid(raster, region, patch_size)
        except READ_ERRORS as error:
            found.skipped.append((scene.path, str(error).removeprefix(f'{scene.path}: ')))
            continue
        if sample is None:
            found.skipped.append((scene.path, 'all pixels are nodata'))
            continue
        found.regions.append(region)
        found.gsd.append(sample['res'].item())
        found.times += [scene.time] if math.isfinite(scene.time) else []


def _first_valid(source: PatchSource, region: Region, patch_size: int) -> Mapping[str, Any] | None:
    """The first patch with a valid pixel, from the centre outwards; None if the whole region has none."""
    size = (min(patch_size, region.height), min(patch_size, region.width))
    for row, col in region.cover(patch_size):
        sample = source.patch(region.scene, row, col, size)
        if (sample['valid'] & torch.isfinite(sample['image'])).any():
            return sample
    return None


def _add_chips(found: _Found, folder: SensorFolder, paths: list[Path], progress: bool) -> None:
    """Add the chips that have a header, and the first of them whole, so that wrong options are found now."""
    for name in ('offset', 'time'):
        if folder.options.get(name):
            raise ValueError(
                f'readers: {name} of {folder.path.name} is for rasters, and the folder holds {len(paths)} chips. Put '
                'them into another root, or leave the option out.'
            )
    sizes: dict[str, tuple[int, int]] = {}
    for path in _bar(paths, f'{folder.path.name}: chips', progress):
        try:
            sizes[str(path)] = chip_size(path)
        except SceneError as error:
            found.skipped.append((str(path), str(error).removeprefix(f'{path}: ')))
    if not sizes:
        return
    options = {name: value for name, value in folder.options.items() if name not in ('offset', 'time')}
    chips = ClayChips(list(sizes), folder.sensor, **options)
    chips[0]
    found.gsd.append(chips.gsd)
    found.sources.append(ChipScenes(chips))
    source = len(found.sources) - 1
    found.regions += [Region(path, source, i, 0, 0, *sizes[path]) for i, path in enumerate(chips.files)]


def _bar[T](items: Sequence[T], text: str, progress: bool) -> Iterable[T]:
    """A progress bar, where somebody can see it."""
    return tqdm(items, desc=text, disable=None if progress else True, leave=False)


def _weighted(scenes: SensorScenes, folder: Path, weights: Mapping[str, float] | None) -> SensorScenes:
    """The scenes with their weights, where there are any."""
    table: Mapping[str, float] | Path | None = weights
    if weights is None and (folder / WEIGHTS_FILE).is_file():
        table = folder / WEIGHTS_FILE
    if table is None:
        return scenes
    weight = read_weights(table, folder)
    if missing := [r.path for r in scenes.regions if r.path not in weight]:
        raise ValueError(
            f'{folder}: expected a weight for every scene, {len(missing)} have none, such as {missing[0]}. A weight of '
            '0 leaves a scene out of training.'
        )
    return replace(scenes, weights=tuple(weight[r.path] for r in scenes.regions))
