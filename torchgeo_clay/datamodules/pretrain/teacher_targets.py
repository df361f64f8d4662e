# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A teacher's targets of chips, kept on disk. Shapes: n chips, T width of the teacher."""

from __future__ import annotations

import json
import os
import uuid
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from torchgeo_clay.datasets import SceneError
from torchgeo_clay.writers.atomic import atomic

__all__ = ('ChipTargets', 'TargetStore', 'chip_key')

_KEY = 16  # bytes
_MISSING = -1


def chip_key(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> bytes:
    """A key of a chip that differs from those of all other chips, and changes with its pixels.

    Args:
        path: the ``.npz`` file, of which only the table of contents is read.
        root: folder that its name is relative to, so that moving the data changes nothing.

    Returns:
        16 bytes of its name and of the checksum that the file holds of its pixels: a chip that is copied
        or compressed again keeps its key, one with other pixels has another.

    Raises:
        SceneError: if it is not readable as a chip.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo('pixels.npy')
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SceneError(f'{os.fspath(path)}: not readable as a chip (.npz): {error}') from error
    name = Path(os.path.relpath(path, root)).as_posix()
    return blake2b(f'{name}\n{entry.CRC}\n{entry.file_size}'.encode(), digest_size=_KEY).digest()


@lru_cache(maxsize=128)
def _open_part(path: str) -> Any:
    """A part, memory-mapped, once per process; parts never change."""
    return safe_open(path, framework='pt')


class TargetStore:
    """Targets of chips by key, in a folder that grows part by part.

    A part is a ``.safetensors`` file of up to some thousand chips, ``key`` (n, 16) uint8 and ``target`` (n, T) float32,
    whole or absent, and never changed. So a killed run resumes with what was computed, several processes write and
    read at once, and what is read is mapped into memory.

    Attributes:
        folder: the folder.
        about: what all its targets have in common; every part repeats it.
    """

    def __init__(self, folder: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        """Initialize a new TargetStore instance; nothing is read or written.

        Args:
            folder: where the parts are, or will be.
            about: what all targets have in common: the teacher, and how chips are shown to it. JSON values.
        """
        self.folder = Path(folder)
        self.about: dict[str, Any] = json.loads(json.dumps(about))  # as it is read back
        self.parts: list[str] = []

    def write(self, keys: Sequence[bytes], targets: Tensor) -> None:
        """Add a part.

        Args:
            keys: n of :func:`chip_key`.
            targets: (n, T) the teacher's outputs, in the order of the keys.

        Raises:
            ValueError: if they have another shape or are not finite, or the folder cannot be written to.
        """
        if targets.ndim != 2 or len(targets) != len(keys):
            raise ValueError(
                f'teacher: expected a vector for each of {len(keys)} chips, (B, T), got {tuple(targets.shape)}. Take '
                'one that pools its features.'
            )
        if not torch.isfinite(targets).all():
            raise ValueError(
                'teacher: expected finite numbers, got NaN or infinity. Are its weights whole? If so, train with '
                'precision 32-true.'
            )
        key = torch.frombuffer(bytearray(b''.join(keys)), dtype=torch.uint8).view(-1, _KEY)
        with atomic(self.folder / f'{uuid.uuid4().hex}.safetensors') as partial:
            save_file({'key': key, 'target': targets.float()}, partial, {'about': json.dumps(self.about)})

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Search all existing parts.

        Args:
            keys: n of :func:`chip_key`.

        Returns:
            (n, 2) of each chip its part, as position in :attr:`parts`, and its row there; -1 where it has no target.

        Raises:
            ValueError: if a part is damaged, or of another teacher or chips shown in another way, naming what differs.
        """
        self.parts = sorted(str(path) for path in self.folder.glob('*.safetensors') if path.name[0] != '.')
        held = [self._read_keys(path) for path in self.parts]
        row_of = {key: (part, row) for part, keys in enumerate(held) for row, key in enumerate(keys)}
        return np.array([row_of.get(key, (_MISSING, _MISSING)) for key in keys], np.int64).reshape(-1, 2)

    def read(self, part: int, row: int) -> Tensor:
        """One chip's target: (T,) float32.

        Args:
            part: position in :attr:`parts`, see :meth:`find`.
            row: row in it.
        """
        target: Tensor = _open_part(self.parts[part]).get_slice('target')[row]
        return target.clone()  # else the part would stay in memory as long as the target does

    def _read_keys(self, path: str) -> list[bytes]:
        """Read a part's keys; raise if it belongs to another store."""
        try:
            with safe_open(path, framework='pt') as file:
                keys: NDArray[np.uint8] = file.get_tensor('key').numpy()
                found = json.loads(file.metadata()['about'])
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise ValueError(
                f'teacher_targets: expected targets in {path}, got a damaged file or another one ({error}). Remove it: '
                'its targets are then computed again.'
            ) from error
        if differing := [name for name in {**self.about, **found} if self.about.get(name) != found.get(name)]:
            said = '; '.join(f'{name} {self.about.get(name)!r}, got {found.get(name)!r}' for name in differing)
            raise ValueError(
                f'teacher_targets: {path} holds other targets: expected {said}. Give another folder, or move the file '
                'away to have its targets computed.'
            )
        return [row.tobytes() for row in keys]


class ChipTargets:
    """The targets of some chips of a list.

    Attributes:
        store: where they are.
        keys: position of a chip → its key.
    """

    def __init__(
        self, store: TargetStore, files: Sequence[str], root: str | os.PathLike[str], chips: Iterable[int]
    ) -> None:
        """Initialize a new ChipTargets instance; :meth:`refresh` looks for targets.

        Args:
            store: where they are, or will be.
            files: paths of chips.
            root: folder that their names are relative to.
            chips: positions in ``files`` of the chips to find targets of.

        Raises:
            SceneError: if one is not readable as a chip.
        """
        self.store, self.files, self.root = store, files, root
        self.keys = {chip: chip_key(files[chip], root) for chip in chips}
        self._where: dict[int, tuple[int, int]] = {}

    def refresh(self) -> list[int]:
        """Look for targets, and return the positions of the chips that have none yet."""
        found = self.store.find(list(self.keys.values()))
        self._where = {chip: (part, row) for chip, (part, row) in zip(self.keys, found.tolist(), strict=True)}
        return [chip for chip, (part, _) in self._where.items() if part == _MISSING]

    def __getitem__(self, chip: int) -> Tensor:
        """A chip's target: (T,) float32.

        Args:
            chip: its position.

        Raises:
            SceneError: naming the chip, if its pixels have changed since the start of the run, or it has no target.
        """
        path = self.files[chip]
        if chip_key(path, self.root) != self.keys.get(chip):
            raise SceneError(
                f"{path}: the chip's pixels are not those its teacher's target was computed of: it has changed since "
                'the run began. Start the run again, which computes the target again.'
            )
        part, row = self._where.get(chip, (_MISSING, 0))
        if part == _MISSING:
            raise SceneError(f"{path}: has no teacher's target, as the chip could not be read when they were computed.")
        return self.store.read(part, row)
