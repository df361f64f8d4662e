# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Checkpoints that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from torchgeo_clay.writers.atomic import OutputError, atomic

__all__ = ('AtomicCheckpoints',)


class AtomicCheckpoints(TorchCheckpointIO):
    """Write each checkpoint under a temporary name and rename it when it is complete.

    A full disk, a kill or a loss of power then leaves the checkpoint before. Lightning's own way makes the file in the
    system's temporary folder; where that is another disk, it is copied over the checkpoint before, and half of a copy
    is neither. That way also holds the file twice in memory. For ``trainer.plugins``::

        plugins:
          - class_path: torchgeo_clay.callbacks.AtomicCheckpoints
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save a checkpoint.

        Raises:
            OutputError: if it cannot be written; an existing file of that name is kept.
        """
        if storage_options is not None or '://' in os.fspath(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic(path) as partial:
            try:
                with open(partial, 'wb') as file:  # given a path, PyTorch hides the reason of a failure
                    torch.save(checkpoint, file)
            except RuntimeError as error:  # what PyTorch's writer makes of a full disk, whose own error came before
                raise OutputError(
                    f'{os.fspath(path)}: the checkpoint could not be written ({error.__context__ or error}). Is there '
                    'room on the disk? The checkpoint before it, if there was one, is as it was: make room and resume '
                    'from it with --ckpt_path.'
                ) from error
