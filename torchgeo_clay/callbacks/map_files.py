# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Maps of a task: what they show, what their files are called, and whether one that is there is this run's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rasterio.errors import RasterioIOError

from torchgeo_clay.datasets.raster.files import open_raster
from torchgeo_clay.inference.maps import MapStyle, beside
from torchgeo_clay.writers import OutputError

__all__ = ('RUN', 'check_apart', 'is_done', 'map_paths', 'remove_halves', 'style_of')

#: Tag of a map that says of which run it is, JSON.
RUN = 'TORCHGEO_CLAY'


def style_of(hparams: Mapping[str, Any], options: Mapping[str, Any]) -> MapStyle:
    """What the maps of a task show.

    Args:
        hparams: the task's; of segmentation with ``task``.
        options: of :class:`~torchgeo_clay.inference.MapStyle`, as far as they are given.

    Raises:
        ValueError: for names or colours that are not those of the task's classes.
    """
    kind, labels = hparams.get('task'), list(hparams.get('labels') or ())
    if kind in ('binary', 'multiclass'):
        style = MapStyle(**{**options, 'classes': options['classes'] or labels})
        channels = hparams['num_classes'] if kind == 'multiclass' else 1
    else:
        style = MapStyle(**{**options, 'kind': 'values', 'names': labels})
        channels = hparams.get('num_labels') or hparams.get('num_outputs')
    if channels is not None:
        style.check_channels(channels)
    return style


def map_paths(folder: Path, sources: Sequence[str]) -> dict[str, Path]:
    """Of each scene the path of its map: its own name, numbered where another map is called so.

    Args:
        folder: of the maps.
        sources: paths and URLs of scenes.

    Returns:
        Source → path.
    """
    taken: set[Path] = set()
    found: dict[str, Path] = {}
    for source in sources:
        stem = Path(urlsplit(source).path if '://' in source else source).stem
        for name in _numbered(stem):
            path = folder / f'{name}.tif'
            if not {path, beside(path)} & taken:
                break
        taken |= {path, beside(path)}
        found[source] = path
    return found


def _numbered(stem: str) -> Iterator[str]:
    """A name, and then the same with a number from 1 on."""
    yield stem
    number = 1
    while True:
        yield f'{stem}_{number}'
        number += 1


def check_apart(folder: Path, inputs: str | Sequence[str], sources: Sequence[str]) -> None:
    """Raise for a folder of maps that is one of scenes: maps would replace them, or be scenes of the next run.

    Args:
        folder: of the maps.
        inputs: files, folders and URLs of scenes, as given.
        sources: the scenes found there.

    Raises:
        ValueError: naming both.
    """
    where = folder.resolve()
    given = [Path(p).resolve() for p in ([inputs] if isinstance(inputs, str) else inputs) if os.path.isdir(p)]
    holders = {Path(source).resolve().parent for source in sources if os.path.exists(source)}
    for path in [*given, *sorted(holders)]:
        if path == where or (path in given and path in where.parents):
            raise ValueError(f'out: expected a folder apart from the scenes, got {folder}, and scenes in {path}.')


def is_done(path: Path, run: Mapping[str, Any], *, probabilities: bool, overwrite: bool) -> bool:
    """Whether the map of a scene is there.

    Args:
        path: of the map.
        run: what the map has to be of, JSON values.
        probabilities: whether there has to be a file of these too.
        overwrite: whether a file of another run may be replaced.

    Raises:
        OutputError: if another file is there that may not be replaced, naming what differs.
    """
    files = [path, beside(path)] if probabilities else [path]
    there = [file for file in files if file.exists()]
    differing = [(file, said) for file in there if (said := _difference(_run_of(file), run))]
    if differing and not overwrite:
        file, said = differing[0]
        raise OutputError(
            f'out: {file} is there already, {said}. Choose another folder, remove it, or give overwrite: true.'
        )
    return not differing and len(there) == len(files)


def _run_of(path: Path) -> dict[str, Any]:
    """Of which run a map is; empty for a file of someone else."""
    try:
        with open_raster(path) as file:
            said = file.tags().get(RUN)
    except (ValueError, RasterioIOError):
        return {}
    return json.loads(said) if said else {}


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In what a run differs from another, in words; empty if in nothing."""
    if not found:
        return 'and no map of torchgeo_clay'
    differing = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
    said = '; '.join(f'{key} is {found.get(key)!r} there, {wanted.get(key)!r} here' for key in differing)
    return f'of another run ({said})' if differing else ''


def remove_halves(path: Path) -> None:
    """Remove what a run that was killed left of a map.

    Args:
        path: of the map.
    """
    for file in (path, beside(path)):
        for pattern in (f'.{file.stem}.*.rows.tif*', f'.{file.stem}.*.partial.tif*'):
            for half in file.parent.glob(pattern):
                half.unlink()
