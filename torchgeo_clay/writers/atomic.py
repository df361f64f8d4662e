# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Atomic writing: a file is there completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ('OutputError', 'atomic', 'check_writable', 'differences')


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
