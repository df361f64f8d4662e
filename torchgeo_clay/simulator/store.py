# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""GeoTIFFs in a folder that is written completely or not at all."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from rasterio.io import MemoryFile

__all__ = ('MANIFEST', 'complete_folder', 'write_geotiff')

MANIFEST = 'manifest.json'
_log = logging.getLogger(__name__)


def write_geotiff(
    path: Path,
    image: np.ndarray,
    *,
    descriptions: Sequence[str],
    tags: Mapping[str, str],
    colors: Mapping[int, tuple[int, int, int]] | None = None,
    **grid: Any,
) -> None:
    """Write an image (C, H, W) with its crs and transform as a tiled, compressed GeoTIFF, into a new folder if needed.

    It is built in memory and written by Python, as GDAL notices a full disk only on closing, without an error.
    """
    count, height, width = image.shape
    with MemoryFile() as memory:
        with memory.open(
            driver='GTiff', count=count, height=height, width=width, dtype=image.dtype, **grid,
            tiled=True, blockxsize=128, blockysize=128, interleave='pixel', compress='deflate', zlevel=4,
            predictor=3 if image.dtype.kind == 'f' else 2,
        ) as file:  # fmt: skip
            file.write(image)
            file.descriptions = tuple(descriptions)
            file.update_tags(**tags)
            if colors:
                file.write_colormap(1, dict(colors))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(memory.getbuffer())


def complete_folder(
    root: Path, parameters: Mapping[str, Any], needed: int, write: Callable[[Path], None]
) -> dict[str, int]:
    """Write a folder once, completely; a complete folder is only read.

    The files are written into a temporary folder next to ``root``, which then replaces it; a lock lets one process
    write while others wait. A complete folder may lie on read-only storage.

    Args:
        root: the folder.
        parameters: they determine the content; serializable as JSON.
        needed: upper bound of the bytes to write, for the message on a full disk.
        write: writes all files into the folder it is given.

    Returns:
        Size in bytes by the path of each file, relative to ``root``.
    """
    if (files := _read(root, parameters)) is not None:
        return files
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root.parent / f'.{root.name}.lock'):
            if (files := _read(root, parameters)) is not None:  # another process wrote it meanwhile
                return files
            return _write(root, parameters, write)
    except OSError as error:
        parent = next(p for p in root.absolute().parents if p.exists())
        free = shutil.disk_usage(parent).free
        raise OSError(
            error.errno,
            f'Writing the synthetic scenes into {root} failed ({error}). They need up to {needed / 1e6:.0f} MB, and '
            f'{free / 1e6:.0f} MB are free; no file was left. Free space, make fewer or smaller scenes, or '
            'choose another root.',
        ) from error


def _write(root: Path, parameters: Mapping[str, Any], write: Callable[[Path], None]) -> dict[str, int]:
    """Write a temporary folder, then rename it; the caller holds the lock."""
    draft = root.parent / f'.{root.name}.writing'
    shutil.rmtree(draft, ignore_errors=True)  # left by a killed process, as this one holds the lock
    try:
        draft.mkdir()
        write(draft)
        files = {p.relative_to(draft).as_posix(): p.stat().st_size for p in sorted(draft.rglob('*')) if p.is_file()}
        manifest = {'parameters': parameters, 'files': files}
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding='utf-8')
        os.replace(draft, root)  # takes the place of an empty folder, too
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _log.info('Wrote %d files, %.1f MB, into %s.', len(files), sum(files.values()) / 1e6, root)
    return files


def _read(root: Path, parameters: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the files of a complete folder, None for an empty one."""
    remedy = f'Delete {root}, or choose another root.'
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding='utf-8'))
        found, files = manifest['parameters'], dict(manifest['files'])
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{root}: expected an empty folder or synthetic scenes, got other files. {remedy}') from error
    expected = json.loads(json.dumps(parameters))
    if found != expected:
        differing = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
        raise ValueError(f'{root}: holds synthetic scenes made with other {", ".join(differing)}. {remedy}')
    for name, size in files.items():
        path = root / name
        if not path.is_file() or path.stat().st_size != size:
            raise ValueError(f'{root}: expected {name} with {size} bytes, which is missing or was changed. {remedy}')
    return files
