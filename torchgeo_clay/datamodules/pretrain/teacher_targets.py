# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A teacher's answers to chips, kept on disk. Shapes: n chips, T width of the teacher."""

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
from torch import Tensor

from torchgeo_clay.datasets.raster.scene import SceneError
from torchgeo_clay.models.weights.files import Archive, CheckpointError, write_safetensors

__all__ = ('ChipTargets', 'TargetStore', 'chip_key')

_KEY = 16  # bytes
_MISSING = -1

#: Keys of chips, (n, 16) uint8.
Keys = NDArray[np.uint8]


def chip_key(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> bytes:
    """What tells a chip from all others and from a later version of itself.

    Args:
        path: the ``.npz`` file, of which only the table of contents is read.
        root: folder that its name is relative to, so that moving the data changes nothing.

    Returns:
        16 bytes of its name and of the checksum that the file holds of its pixels: a chip copied or compressed anew
        keeps its key, one with other pixels has another.

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
def _opened(path: str) -> Any:
    """A part, memory-mapped, once per process; it is never written again, so that it can't be out of date."""
    return safe_open(path, framework='pt')


class TargetStore:
    """Targets of chips by key, in a folder that grows part by part.

    A part is a ``.safetensors`` file of up to some thousand chips, ``key`` (n, 16) uint8 and ``target`` (n, T) float32,
    whole or not there, and never changed. So a run that was killed goes on where it was, several processes write and
    read at once, and what is read is mapped into memory.

    Attributes:
        folder: the folder.
        about: what all its targets have in common; every part says it too.
    """

    def __init__(self, folder: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        """Initialise; nothing is read or written.

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
            targets: (n, T) the teacher's answers, in the order of the keys.

        Raises:
            ValueError: if they are not of one shape or not finite, or the folder can't be written to.
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
        part = self.folder / f'{uuid.uuid4().hex}.safetensors'
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_safetensors({'key': key, 'target': targets.float()}, part, {'about': json.dumps(self.about)})
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f'teacher_targets: {part} could not be written ({error}). Is its folder writable, and is there room on '
                'the disk? What was written before is kept; start the run again to go on.'
            ) from error

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Look through all parts that are there now.

        Args:
            keys: n of :func:`chip_key`.

        Returns:
            (n, 2) of each chip its part, as position in :attr:`parts`, and its row there; -1 where it has no target.

        Raises:
            ValueError: if a part is damaged, or of another teacher or chips shown in another way, naming what differs.
        """
        self.parts = sorted(str(path) for path in self.folder.glob('*.safetensors') if path.name[0] != '.')
        held = [self._keys_of(path) for path in self.parts]
        where = np.array([(i, row) for i, part in enumerate(held) for row in range(len(part))], np.int64).reshape(-1, 2)
        found = np.full((len(keys), 2), _MISSING, np.int64)
        if not len(where) or not len(keys):
            return found
        # void of 16 bytes can't be sorted, bytes can; that those ignore zeros at the end makes no two keys one
        known = np.concatenate(held).view(f'S{_KEY}').ravel()
        wanted = np.frombuffer(b''.join(keys), f'S{_KEY}')
        order = known.argsort(kind='stable')
        spots = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
        hit = known[spots] == wanted
        found[hit] = where[spots[hit]]
        return found

    def read(self, part: int, row: int) -> Tensor:
        """One chip's target: (T,) float32.

        Args:
            part: position in :attr:`parts`, see :meth:`find`.
            row: row in it.
        """
        target: Tensor = _opened(self.parts[part]).get_slice('target')[row]
        return target.clone()  # else the part would stay in memory as long as the target does

    def _keys_of(self, path: str) -> Keys:
        """The keys of a part, which has to be of what this store is of: (n, 16)."""
        try:
            archive = Archive(path)
            keys: Keys = archive.read(['key'])['key'].numpy()
            found = json.loads(archive.extra['about'])
        except (CheckpointError, KeyError) as error:
            raise ValueError(
                f'teacher_targets: expected targets in {path}, got a damaged file or another one ({error}). Remove it: '
                'its targets are then computed anew.'
            ) from error
        if differing := [name for name in {**self.about, **found} if self.about.get(name) != found.get(name)]:
            said = '; '.join(f'{name} {self.about.get(name)!r}, got {found.get(name)!r}' for name in differing)
            raise ValueError(
                f'teacher_targets: {path} holds other targets: expected {said}. Give another folder, or move the file '
                'away to have its targets computed.'
            )
        return keys


class ChipTargets:
    """The targets of some chips of a list.

    Attributes:
        store: where they are.
        keys: position of a chip → its key.
    """

    def __init__(
        self, store: TargetStore, files: Sequence[str], root: str | os.PathLike[str], chips: Iterable[int]
    ) -> None:
        """Initialise; :meth:`refresh` looks for targets.

        Args:
            store: where they are, or will be.
            files: paths of chips.
            root: folder that their names are relative to.
            chips: positions in ``files`` of the chips that are wanted.

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
                'the run began. Start the run again, which computes the target anew.'
            )
        part, row = self._where.get(chip, (_MISSING, 0))
        if part == _MISSING:
            raise SceneError(f"{path}: has no teacher's target, as the chip could not be read when they were computed.")
        return self.store.read(part, row)
