# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Finding the raster files of given paths, globs and folders, opening them, and keeping them open."""

from __future__ import annotations

import glob
import logging
import os
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import DatasetReader

from torchgeo_clay.datasets.upstream import Path, find_files

__all__ = ('Handles', 'SceneError', 'list_rasters', 'open_raster', 'printable')

#: Suffixes of files in a folder of scenes that are no scenes: GDAL's statistics, overviews, masks, headers and
#: world files, STAC items, tables, notes, archives, and Clay's chips, which have a dataset of their own.
_BESIDE = (
    '.xml', '.ovr', '.msk', '.hdr', '.tfw', '.tifw', '.jgw', '.pgw', '.j2w', '.wld', '.prj', '.rpb', '.rpc', '.imd',
    '.json', '.geojson', '.gpkg', '.kml', '.shp', '.shx', '.dbf', '.cpg', '.parquet', '.csv', '.yaml', '.yml', '.txt',
    '.md', '.html', '.pdf', '.docx', '.xlsx', '.log', '.md5', '.sha256', '.npz', '.db', '.ini', '.qml', '.sld', '.qgz',
    '.py', '.ipynb', '.sh', '.ckpt', '.safetensors', '.zip', '.tar', '.gz', '.tgz', '.7z',
)  # fmt: skip

#: Suffixes of pictures, and of the files that georeference one: its world file, or GDAL's metadata.
_PICTURES = ('.jpg', '.jpeg', '.png')
_GEOREFERENCE = ('.jgw', '.jpgw', '.jpegw', '.pgw', '.pngw', '.wld', '.aux.xml')

#: End of the folder of pictures that :class:`~torchgeo_clay.callbacks.EmbeddingWriter` draws of its table.
_QUICKLOOKS = '_quicklooks'


class SceneError(ValueError):
    """A file that is not usable as a scene, or whose pixels are not readable; the message says why."""


def printable(path: str | os.PathLike[str]) -> str:
    """Return a path as text that prints, also if its bytes are not UTF-8."""
    return os.fspath(path).encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')


def list_rasters(paths: Path | Iterable[Path]) -> list[str]:
    """List the files that may be rasters, sorted; a file found through links as well counts once.

    Args:
        paths: files, URLs, globs, and folders, which are searched through. ``~`` is the home folder. Hidden files and
            those that lie beside scenes are left out of folders, and of globs that do not name their suffix. What does
            not exist is listed too, so that scanning reports it without losing the others.
    """
    found: set[str] = set()
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        name = os.path.expanduser(os.fspath(path))
        if os.path.isdir(name):
            found.update(_in_folder(name))
        elif name.startswith('/vsi'):
            found.update(f for f in find_files(name) if f == name or not f.lower().endswith(_BESIDE))
        elif not os.path.lexists(name) and '://' not in name and glob.has_magic(name):
            matches, suffix = glob.glob(name, recursive=True), os.path.splitext(name)[1]
            files = [f for f in matches if not os.path.isdir(f)]
            found.update(_scenes(files) if glob.has_magic(suffix or '*') else files)
            found.update(f for m in matches if os.path.isdir(m) for f in _in_folder(m))
            found.update([] if matches else [name])
        else:
            found.add(name)
    unique: dict[str, str] = {}
    for name in sorted(found, key=lambda f: (os.path.islink(f), f)):
        unique.setdefault(os.path.realpath(name) if os.path.exists(name) else name, name)
    return sorted(unique.values())


def _in_folder(folder: str) -> list[str]:
    """List the files of a folder and its folders that may be rasters, also links that lead nowhere."""
    files = glob.iglob(os.path.join(glob.escape(folder), '**', '*'), recursive=True)
    return _scenes([f for f in files if not os.path.isdir(f)])


def _scenes(files: Sequence[str]) -> list[str]:
    """Leave out sidecars, tables, notes and quick-looks; pictures alone, such as a drone's, are all kept."""
    files = [f for f in files if not (f.lower().endswith(_BESIDE) or _is_text(f))]
    files = [f for f in files if not os.path.dirname(f).endswith(_QUICKLOOKS)]
    others = [f for f in files if not f.lower().endswith(_PICTURES) or _is_georeferenced(f)]
    return others or files


def _is_text(path: str) -> bool:
    """Return True for a file such as README: no suffix, and no zero byte, which every raster's header has."""
    if os.path.splitext(path)[1] or os.path.exists(f'{path}.hdr') or not os.path.isfile(path):
        return False
    try:
        with open(path, 'rb') as file:
            return b'\0' not in file.read(1024)
    except OSError:  # reported when it is scanned
        return False


def _is_georeferenced(picture: str) -> bool:
    """Return True if a world file or GDAL's metadata lies beside a picture."""
    stem = os.path.splitext(picture)[0]
    ends = [*_GEOREFERENCE, *map(str.upper, _GEOREFERENCE)]
    return any(os.path.exists(stem + end) for end in ends) or os.path.exists(f'{picture}.aux.xml')


def open_raster(path: str | os.PathLike[str]) -> DatasetReader:
    """Open a raster for reading, without rasterio's warning if it has no georeference.

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


class Handles:
    """Open rasters, the least recently used closed first.

    Every process and thread opens its own, as GDAL's handles must not be shared. Those open when the interpreter ends
    are closed before GDAL is, as rasterio prints an error for each one left.

    Args:
        limit: how many stay open.

    Raises:
        ValueError: for a limit below 1.
    """

    def __init__(self, limit: int = 64) -> None:
        """Initialize a new Handles instance."""
        if limit < 1:
            raise ValueError(f'limit: expected at least 1 open file, got {limit}.')
        self.limit = limit
        self._start()

    def _start(self) -> None:
        """Start empty, in this process."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[int, str], DatasetReader] = OrderedDict()
        weakref.finalize(self, _close_all, self._pid, self._open)

    def __reduce__(self) -> tuple[type[Handles], tuple[int]]:
        """Pickle no raster: the other process starts empty."""
        return Handles, (self.limit,)

    def __len__(self) -> int:
        """Return the number of rasters open in this process."""
        return len(self._open) if self._pid == os.getpid() else 0

    def __call__(self, path: str) -> DatasetReader:
        """Return the raster at a path, opened by :func:`open_raster` if it is not yet."""
        if self._pid != os.getpid():
            self._inherited = self._open  # the parent's, kept so that this process does not close them
            self._start()
        key = (threading.get_ident(), path)
        with self._lock:
            dataset = self._open.get(key)
            if dataset is not None:
                self._open.move_to_end(key)
                return dataset
        dataset = open_raster(path)
        with self._lock:
            self._open[key] = dataset
            mine = [k for k in self._open if k[0] == key[0]]
            if len(mine) > self.limit:  # another thread's may be in use just now
                self._open.pop(mine[0]).close()
        return dataset

    def close(self) -> None:
        """Close all rasters of this process; they are opened again when asked for."""
        _close_all(self._pid, self._open)


def _close_all(pid: int, rasters: OrderedDict[tuple[int, str], DatasetReader]) -> None:
    """Close rasters, in the process that opened them only."""
    while pid == os.getpid() and rasters:
        rasters.popitem()[1].close()
