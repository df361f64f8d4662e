# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Lazy, verified reading of tensors from ``.ckpt`` and ``.safetensors`` files.

A checkpoint's pickle is read without its tensors (torch's FakeTensorMode leaves their offsets), so that of the
release's 5.16 GB only the 1.25 GB of the encoder are ever touched, one tensor at a time, each checked against the
archive's CRC.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ('Archive', 'CheckpointError', 'tensor_digest', 'write_safetensors')

_CHUNK = 1 << 24
_LOCAL_HEADER = struct.Struct('<26xHH')  # a zip entry's local header: lengths of its name and extra field


class CheckpointError(ValueError):
    """A weights file that can't be used; the message says why, and what can."""


class Archive:
    """The tensors of a weights file, read when asked for.

    Attributes:
        path: the file.
        shapes: the shapes of its tensors, by name.
        extra: what a checkpoint holds beside its ``state_dict`` (tensors without values), or a safetensors' metadata.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a file and read its table of contents.

        Args:
            path: a Lightning or plain PyTorch checkpoint (zip format), or a ``.safetensors``.

        Raises:
            CheckpointError: if it is missing, truncated, neither of the formats, holds code, or no ``state_dict``.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f'No weights file at {self.path}. Expected a .ckpt or a .safetensors.')
        self.extra: Mapping[str, Any]
        self._fake: Mapping[str, Tensor] = {}
        if self.path.suffix == '.safetensors':
            self.shapes, self.extra = _safetensors_contents(self.path)
        else:
            self._fake, self.extra = _checkpoint_contents(self.path)
            self.shapes = {k: tuple(v.shape) for k, v in self._fake.items()}

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Read some tensors.

        Args:
            keys: their names, of :attr:`shapes`.

        Returns:
            Real tensors on the CPU, by name.

        Raises:
            CheckpointError: if bytes are missing or do not match their checksum.
        """
        if self._fake:
            return _read_zip(self.path, {k: self._fake[k] for k in keys})
        try:
            with safe_open(self.path, framework='pt') as file:
                tensors = {k: file.get_tensor(k) for k in keys}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f'{self.path}: could not be read ({error}); copy or download it again.') from error
        expected = self.extra.get('sha256')
        if expected is not None and set(tensors) == set(self.shapes) and tensor_digest(tensors) != expected:
            raise CheckpointError(
                f'{self.path}: the tensors do not match the SHA-256 written with them: the file was damaged or '
                'changed. Copy or download it again.'
            )
        return tensors


def _safetensors_contents(path: Path) -> tuple[Mapping[str, tuple[int, ...]], Mapping[str, Any]]:
    """Shapes and metadata of a safetensors file."""
    try:
        with safe_open(path, framework='pt') as file:
            names = file.keys()
            return {k: tuple(file.get_slice(k).get_shape()) for k in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f'{path}: not a whole .safetensors file ({error}). Is it truncated? Copy or download it again.'
        ) from error


def _checkpoint_contents(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """The state dict of a checkpoint, its tensors fake, and whatever stands beside it."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f'{path}: not a whole PyTorch checkpoint in zip format. Truncated? Then copy or download it again. '
            'Written by PyTorch before 1.6? Then load and save it with a newer one.'
        )
    try:
        with FakeTensorMode():
            contents = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f'{path}: holds more than tensors and plain values, that is code, which is never run here. If you trust '
            'it, load it yourself and save its state_dict alone. PyTorch says: ' + str(error).strip().split('\n')[-1]
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise CheckpointError(f'{path}: not a PyTorch checkpoint, or a damaged one ({error}).') from error
    if not isinstance(contents, Mapping):
        raise CheckpointError(f'{path}: expected a checkpoint with a state_dict, got a {type(contents).__name__}.')
    state = contents.get('state_dict', contents)
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()) or not state:
        raise CheckpointError(
            f'{path}: expected a state_dict of tensors, or a checkpoint that holds one; found {list(contents)[:8]}.'
        )
    return state, {k: v for k, v in contents.items() if k != 'state_dict'} if state is not contents else {}


def _read_zip(path: Path, fakes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read tensors of a PyTorch zip archive, each checked against its entry's CRC-32."""
    storages: dict[int, Tensor] = {}  # by offset, as tensors may share one
    tensors: dict[str, Tensor] = {}
    key = 'its table of contents'
    try:
        with zipfile.ZipFile(path) as archive, open(path, 'rb') as raw:
            entries = dict(_offsets(archive, raw))
            for key, fake in fakes.items():
                storage = fake.untyped_storage()
                offset = int(storage._checkpoint_offset or 0)
                if offset not in storages:
                    storages[offset] = _read_entry(archive, entries[offset], storage.nbytes())
                flat = storages[offset].untyped_storage()
                tensors[key] = torch.empty(0, dtype=fake.dtype)
                tensors[key].set_(flat, fake.storage_offset(), fake.shape, fake.stride())
    except (zipfile.BadZipFile, EOFError, KeyError, OSError, RuntimeError, struct.error) as error:
        raise CheckpointError(
            f'{path}: {key} is damaged ({error}); the file was truncated or changed. Copy or download it again.'
        ) from error
    return tensors


def _offsets(archive: zipfile.ZipFile, raw: BinaryIO) -> Iterator[tuple[int, zipfile.ZipInfo]]:
    """Where the bytes of each entry begin, which is by what PyTorch's reader calls them."""
    for entry in archive.infolist():
        raw.seek(entry.header_offset)
        name, extra = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
        yield entry.header_offset + _LOCAL_HEADER.size + name + extra, entry


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, size: int) -> Tensor:
    """Read one entry into memory of its own; zipfile compares the CRC as the last byte is read."""
    if entry.file_size != size:  # or the last byte, hence the CRC, would never be reached
        raise EOFError(f'{entry.file_size} of {size} bytes')
    buffer = torch.empty(size, dtype=torch.uint8)
    view = memoryview(buffer.numpy())
    with cast(zipfile.ZipExtFile, archive.open(entry)) as file:
        done = 0
        while done < size:
            read = file.readinto(view[done : done + _CHUNK])
            if not read:
                raise EOFError(f'{done} of {size} bytes')
            done += read
    return buffer


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f'{key} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_safetensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    """Write tensors and their digest, whole or not at all.

    Args:
        tensors: by name.
        path: the file, which ends in ``.safetensors``.
        metadata: strings to write beside them.

    Raises:
        ValueError: for another suffix.
    """
    path = Path(path)
    if path.suffix != '.safetensors':
        raise ValueError(f'Expected a path that ends in .safetensors, got {path}.')
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        save_file(tensors, partial, {**metadata, 'sha256': tensor_digest(tensors)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
