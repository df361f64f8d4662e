# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Finding the raster files of given paths, globs and folders, and opening them."""

from __future__ import annotations

import glob
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import DatasetReader

from torchgeo_clay.datasets.upstream import Path, find_files

__all__ = ('SceneError', 'is_beside', 'list_rasters', 'open_raster', 'printable')

#: Suffixes of what lies beside scenes in a folder without being one: GDAL's statistics, overviews, masks, headers and
#: world files, STAC items, tables, notes, and Clay's chips, which have a dataset of their own.
_BESIDE = (
    '.xml', '.ovr', '.msk', '.hdr', '.tfw', '.tifw', '.jgw', '.pgw', '.j2w', '.wld', '.prj', '.rpb', '.rpc', '.imd',
    '.json', '.geojson', '.gpkg', '.kml', '.shp', '.shx', '.dbf', '.cpg', '.parquet', '.csv', '.yaml', '.yml', '.txt',
    '.md', '.html', '.pdf', '.docx', '.xlsx', '.log', '.md5', '.sha256', '.npz', '.db', '.ini', '.qml', '.sld', '.qgz',
    '.py', '.ipynb', '.sh', '.ckpt', '.safetensors',
)  # fmt: skip

#: End of the folder of pictures that :class:`~torchgeo_clay.callbacks.EmbeddingWriter` draws of its table.
_PICTURES = '_quicklooks'


class SceneError(ValueError):
    """A file that is not usable as a scene, or whose pixels are not readable; the message says why."""


def printable(path: str | os.PathLike[str]) -> str:
    """A path as text that prints, also if its bytes are not UTF-8.

    Args:
        path: the path.
    """
    return os.fspath(path).encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')


def is_beside(path: str) -> bool:
    """Whether a file in a folder of scenes is none itself: a sidecar, a table, a picture drawn by this package.

    Args:
        path: the file.
    """
    folder = os.path.basename(os.path.dirname(path))
    return path.lower().endswith(_BESIDE) or folder.endswith(_PICTURES)


def list_rasters(paths: Path | Iterable[Path]) -> list[str]:
    """List the files that may be rasters, sorted; a file found through links as well counts once.

    Args:
        paths: files, URLs, globs, and folders, which are searched through. ``~`` is the home folder. Hidden files and
            those of :func:`is_beside` are left out of folders and globs. What does not exist is listed too, so that
            scanning reports it without losing the others.
    """
    found: set[str] = set()
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        name = os.path.expanduser(os.fspath(path))
        if os.path.isdir(name):
            found.update(_in_folder(name))
        elif name.startswith('/vsi'):
            found.update(f for f in find_files(name) if f == name or not is_beside(f))
        elif not os.path.lexists(name) and '://' not in name and glob.has_magic(name):
            matches = glob.glob(name, recursive=True)
            found.update(f for f in matches if not is_beside(f) and not os.path.isdir(f))
            found.update(f for m in matches if os.path.isdir(m) for f in _in_folder(m))
            found.update([] if matches else [name])
        else:
            found.add(name)
    unique: dict[str, str] = {}
    for name in sorted(found, key=lambda f: (os.path.islink(f), f)):
        unique.setdefault(os.path.realpath(name) if os.path.exists(name) else name, name)
    return sorted(unique.values())


def _in_folder(folder: str) -> list[str]:
    """The files of a folder and its folders that may be rasters, also links that lead nowhere."""
    files = glob.iglob(os.path.join(glob.escape(folder), '**', '*'), recursive=True)
    return [f for f in files if not is_beside(f) and not os.path.isdir(f)]


def open_raster(path: str | os.PathLike[str]) -> DatasetReader:
    """Open a raster for reading, without rasterio's warning if it has no georeference.

    Args:
        path: the file.

    Raises:
        SceneError: if it is not readable as a raster.
    """
    name = os.fspath(path)
    # TorchGeo's command sets EMPTY_DIR, which hides masks, world files and .aux.xml beside a file.
    options = {'GDAL_DISABLE_READDIR_ON_OPEN': 'TRUE'} if os.path.exists(name) else {}
    with warnings.catch_warnings(), rasterio.Env(**options), _gdal_messages() as messages:
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        try:
            dataset = rasterio.open(name)
        except (RasterioIOError, UnicodeError) as error:
            raise SceneError(f'{printable(name)}: {_why_unreadable(name, error)}') from error
    if any('IO error during reading of' in message for message in messages):
        dataset.close()
        raise SceneError(f'{printable(name)}: truncated: its last tags are missing. Copy it again.')
    return dataset


@contextmanager
def _gdal_messages() -> Iterator[list[str]]:
    """Collect the warnings of GDAL, which ignores tags that a truncated file lacks."""
    messages: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage())
        return True

    logger = logging.getLogger('rasterio._env')
    logger.addFilter(note)
    try:
        yield messages
    finally:
        logger.removeFilter(note)


def _why_unreadable(name: str, error: Exception) -> str:
    """Why a file does not open."""
    if isinstance(error, UnicodeError):
        return 'its name is not UTF-8, which GDAL needs: rename it.'
    if os.path.islink(name) and not os.path.exists(name):
        return f'the link points to {printable(os.readlink(name))}, which does not exist.'
    if os.path.isfile(name) and os.path.getsize(name) == 0:
        return 'the file has zero bytes.'
    if ':' not in name and not name.startswith('/vsi') and not os.path.exists(name):
        return 'there is no such file or folder.'
    return f'not readable as a raster: {error}'
