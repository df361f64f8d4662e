# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Scanning files for scenes of a sensor. Skipped files and assumptions are logged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from torchgeo_clay.datasets.raster.files import SceneError, printable
from torchgeo_clay.datasets.raster.scene import Scene, scan_scene
from torchgeo_clay.sensors import Sensor

__all__ = ('list_skipped', 'log_assumptions', 'nothing_left', 'scan_scenes')


#: Files named in one message.
_MOST = 10


def scan_scenes(
    files: Sequence[str], sensor: Sensor | None = None, bands: Sequence[str] | None = None, **options: Any
) -> tuple[list[Scene], list[tuple[str, str]]]:
    """Scan files, keeping those that are scenes of the sensor.

    Args:
        files: the files.
        sensor: their sensor, with all bands; None to detect each file's.
        bands: as for :func:`~torchgeo_clay.datasets.scan_scene`, like the options.
        **options: passed on.

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


def list_skipped(skipped: Sequence[tuple[str, str]], total: int, most: int = _MOST) -> str:
    """List the files left out, by name and reason; beyond ``most`` their number.

    Args:
        skipped: path and reason of each file left out.
        total: number of files found.
        most: files listed.
    """
    lines = [f'left out {len(skipped)} of {total} files:', *(f'  {path}: {reason}' for path, reason in skipped[:most])]
    if len(skipped) > most:
        lines.append(f'  and {len(skipped) - most} more; .skipped lists them all')
    return '\n'.join(lines)


def log_assumptions(sensor: Sensor, scenes: Sequence[Scene]) -> None:
    """Log once per dataset what was assumed of its scenes, and warn of what was remarked.

    It logs through Lightning, whose log ``torchgeo fit`` shows; Python's own hides what is not a warning.

    Args:
        sensor: the sensor, with the bands selected.
        scenes: the scenes.
    """
    left_out = sorted({name for s in scenes for name in s.left_out})
    no_hour = [s for s in scenes if s.acquired.known and not s.acquired.has_hour]
    no_time = [s for s in scenes if not s.acquired.known]
    no_place = [s for s in scenes if s.crs is None]
    other_gsd = [s for s in scenes if s.crs is not None and _departs(s)]
    for found, text in (
        (no_hour, 'have a date without an hour; taken at noon UTC'),
        (no_time, 'have no date in their tags or names; their time is unknown (NaN)'),
        (no_place, 'have no CRS; their place is unknown (NaN), their GSD as given'),
        (other_gsd, 'have pixels of another size than gsd= says; taken as given'),
    ):
        if found:
            rank_zero_info(f'{sensor.name}: {len(found)} of {len(scenes)} scenes {text} (first: {found[0].path})')
    for conversion, paths in _paths_by((str(s.calibration), s.path) for s in scenes if str(s.calibration)).items():
        rank_zero_info(f'{sensor.name}: {conversion}: {_names(paths)}')
    if left_out:
        rank_zero_info(f'{sensor.name}: bands of the files left out: {", ".join(left_out)}')
    _warn_of_remarks(sensor, scenes)


def _warn_of_remarks(sensor: Sensor, scenes: Sequence[Scene]) -> None:
    """Warn once of what scanning remarked, each remark with its files."""
    remarks = _paths_by((remark, scene.path) for scene in scenes for remark in scene.remarks)
    if remarks:
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
    if scene.fixed_gsd is None:
        return False
    measured = replace(scene, fixed_gsd=None).gsd(0, 0, scene.height, scene.width)
    return abs(measured / scene.fixed_gsd - 1) > 0.05


def nothing_left(paths: Any, sensor: Sensor, skipped: Sequence[tuple[str, str]], total: int) -> str:
    """Say why there is nothing to read.

    Args:
        paths: as the user gave them.
        sensor: the sensor.
        skipped: path and reason of each file left out.
        total: number of files found.
    """
    if total == 0:
        return f'{paths}: expected rasters of {sensor.name} in any format rasterio reads, found no file.'
    where = f'{paths}: ' if isinstance(paths, str | os.PathLike) else ''  # a list of files may be of any length
    return f'{where}no scene of {sensor.name} is left; {list_skipped(skipped, total)}'
