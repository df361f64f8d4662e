# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Lazy reading of tensors from ``.ckpt`` and ``.safetensors`` files.

Both formats are mapped into memory, so of the release's 5.16 GB only the 1.25 GB of the encoder are ever read.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ('Archive', 'CheckpointError', 'tensor_digest', 'write_safetensors')


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message says why, and what can."""


class Archive:
    """The tensors of a weights file, read on request.

    Attributes:
        path: the file.
        shapes: the shapes of its tensors, by name.
        extra: the other contents of a checkpoint, or the metadata of a safetensors file.
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
        self._mapped: Mapping[str, Tensor] = {}
        if self.path.suffix == '.safetensors':
            self.shapes, self.extra = _safetensors_contents(self.path)
        else:
            self._mapped, self.extra = _checkpoint_contents(self.path)
            self.shapes = {k: tuple(v.shape) for k, v in self._mapped.items()}

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Read some tensors into memory of their own.

        Args:
            keys: their names, of :attr:`shapes`.

        Returns:
            Tensors on the CPU, by name.

        Raises:
            CheckpointError: if a safetensors file is unreadable or does not match its digest.
        """
        if self._mapped:
            return {k: self._mapped[k].detach().clone() for k in keys}
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
    """The state dict of a checkpoint, mapped into memory, and its other contents."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f'{path}: not a whole PyTorch checkpoint in zip format. Truncated? Then copy or download it again. '
            'Written by PyTorch before 1.6? Then load and save it with a newer one.'
        )
    try:
        contents = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
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


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f'{key} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_safetensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    """Write tensors and their digest, atomically.

    Args:
        tensors: by name.
        path: the file, which ends in ``.safetensors``.
        metadata: further strings.

    Raises:
        ValueError: for another suffix.
        OutputError: if the file cannot be written.
    """
    if Path(path).suffix != '.safetensors':
        raise ValueError(f'Expected a path that ends in .safetensors, got {path}.')
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    from torchgeo_clay.writers.atomic import atomic  # with pyarrow behind it, which reading weights does without

    with atomic(path) as partial:
        save_file(tensors, partial, {**metadata, 'sha256': tensor_digest(tensors)})
