# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Atomic writing: a file is there completely or not at all."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock, Timeout

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

__all__ = (
    'OutputError',
    'atomic',
    'check_writable',
    'claimed',
    'differences',
    'exclusive',
    'is_newer',
    'remove_abandoned',
    'remove_remains',
)


#: Temporary name of a file: its stem, the process, and whether it is the file or the rows that it is made of.
_TEMPORARY = re.compile(r'\.(.+)\.\d+\.(?:rows|partial)\..+')

_log = logging.getLogger(__name__)


class OutputError(ValueError):
    """A file cannot be written; the message names it, the reason and the remedy."""


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file under a temporary name in its folder; rename it once all of it is on the disk.

    Example::

        with atomic('map.tif') as partial:
            write(partial)

    Args:
        path: the file; replaced if it exists.

    Yields:
        The path to write to; deleted after an exception.

    Raises:
        OutputError: if the folder cannot be written to or the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f'.{path.stem}.{os.getpid()}.partial{path.suffix}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f'{path}: could not be written ({error}). Is its folder writable, and is there room on the disk? Nothing '
            'half-written is left.'
        ) from error
    finally:
        with suppress(OSError):  # the folder may be a file
            partial.unlink()


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a new name survives a loss of power."""
    if os.name != 'posix':  # other systems cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Create a file, and lock it until the end, or the death of this process; for :func:`remove_abandoned`."""
    with open(path, 'wb') as file:
        if fcntl is not None:
            with suppress(OSError):  # where the file system has no locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def remove_abandoned(folder: str | os.PathLike[str], suffix: str) -> list[Path]:
    """Remove the unfinished files that processes left when they were killed.

    Args:
        folder: of the files.
        suffix: of them, such as ``.ckpt``.

    Returns:
        The files removed. A file that a live process has :func:`claimed` stays.
    """
    removed: list[Path] = []
    if fcntl is None:
        return removed
    for partial in Path(folder).glob(f'.*.partial{suffix}'):
        with suppress(OSError), open(partial, 'rb+') as file:  # locked, or removed by another process meanwhile
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()
            removed.append(partial)
    return removed


def remove_remains(files: Iterable[Path]) -> None:
    """Remove what a killed run left of files that it was writing, with one look into each folder.

    Args:
        files: the complete ones, whose temporary names are ``.STEM.PROCESS.partial.SUFFIX`` (or ``rows``).
    """
    wanted = {(file.parent, file.stem) for file in files}
    for folder in {folder for folder, _ in wanted}:
        for left in folder.glob('.*'):
            found = _TEMPORARY.fullmatch(left.name)
            if found and (folder, found[1]) in wanted:
                left.unlink()


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make a folder and write an empty file into it, so that a run fails at its start if at all.

    Args:
        folder: the folder.

    Raises:
        OutputError: if it cannot be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f'.writable.{os.getpid()}'
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f'{folder}: expected a folder that can be written to ({error}). Choose another.') from error


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Describe how the settings of an existing file's run differ from this run's; empty if they are the same."""
    keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    return '; '.join(f'{key} is {found.get(key)!r} there, {expected.get(key)!r} here' for key in keys)


@contextmanager
def exclusive(out: str | os.PathLike[str]) -> Iterator[None]:
    """Keep a second run from writing the same output. The lock of a process that was killed is free.

    Args:
        out: a file, or a folder (a path without a suffix).

    Raises:
        OutputError: if another process writes it; the message names the process and when it started.
    """
    out = Path(out)
    path = out.with_name(f'.{out.name}.lock') if out.suffix else out / '.lock'
    check_writable(path.parent)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except NotImplementedError:
        _log.warning('%s: its file system has no locks. Let no second run write there.', out)
        yield
        return
    except Timeout as error:
        holder = path.read_text() if path.exists() else ''
        raise OutputError(
            f'out: another run writes {out} ({holder or "a process that does not say its name"}). Wait until it ends, '
            'stop it, or choose another output.'
        ) from error
    try:
        now = datetime.now(UTC).isoformat(' ', 'seconds')
        path.write_text(f'process {os.getpid()} on {socket.gethostname()}, since {now}')
        yield
    finally:
        with suppress(OSError):  # before the release, as it may be another's after it
            path.unlink()
        lock.release()


def is_newer(path: str | os.PathLike[str], than: str | os.PathLike[str]) -> bool:
    """Whether a file exists and was written after another one, hence need not be made of it again."""
    path = Path(path)
    return path.exists() and path.stat().st_mtime_ns >= Path(than).stat().st_mtime_ns
