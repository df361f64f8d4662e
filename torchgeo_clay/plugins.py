# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Checkpoints that are whole or not there."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from torchgeo_clay.models.weights import check_file
from torchgeo_clay.writers.atomic import OutputError, atomic, claimed, remove_abandoned

__all__ = ('AtomicCheckpoints',)


class AtomicCheckpoints(TorchCheckpointIO):
    """Write each checkpoint under a temporary name and rename it when it is complete.

    A full disk, a kill or a loss of power then leaves the checkpoint before. Lightning's own way makes the file in the
    system's temporary folder; where that is another disk, it is copied over the checkpoint before, and half of a copy
    is neither. That way also holds the file twice in memory. What a killed run left unfinished is removed by the next
    that reads or writes a checkpoint in that folder. For ``trainer.plugins``::

        plugins:
          - class_path: torchgeo_clay.callbacks.AtomicCheckpoints
    """

    def __init__(self) -> None:
        """Initialize a new AtomicCheckpoints instance."""
        self._tidied: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save a checkpoint.

        Raises:
            OutputError: if it cannot be written; an existing file of that name is kept.
        """
        if storage_options is not None or '://' in os.fspath(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        self._tidy(path)
        with ExitStack() as until_renamed, atomic(path) as partial:
            if os.name == 'posix':  # elsewhere a file that is open cannot be renamed
                until_renamed.enter_context(claimed(partial))
            try:
                with open(partial, 'wb') as file:  # given a path, PyTorch hides the reason of a failure
                    torch.save(checkpoint, file)
            except RuntimeError as error:  # what PyTorch's writer makes of a full disk, whose own error came before
                raise OutputError(
                    f'{os.fspath(path)}: the checkpoint could not be written ({error.__context__ or error}). Is there '
                    'room on the disk? The checkpoint before it, if there was one, is as it was: make room and resume '
                    'from it with --ckpt_path.'
                ) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint.

        Raises:
            CheckpointError: if it is not there, a folder or a pipe.
        """
        if '://' not in os.fspath(path):
            check_file(Path(path))
            self._tidy(path)
        return super().load_checkpoint(path, *args, **kwargs)

    def _tidy(self, path: str | Path) -> None:
        """Remove what killed runs left unfinished in the folder of a checkpoint, once."""
        folder = Path(path).parent
        if folder not in self._tidied:
            self._tidied.add(folder)
            if removed := remove_abandoned(folder, Path(path).suffix):
                names = ', '.join(file.name for file in removed)
                rank_zero_info(f'{folder}: removed what a killed run left unfinished: {names}')
