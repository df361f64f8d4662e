# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What datamodules share: checks of arguments, and the transfer of batches. Shapes: B samples, T dates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torchgeo.datamodules import BaseDataModule

from torchgeo_clay.conditioning import check_batch, encode_time
from torchgeo_clay.models.clay import PATCH_SIZE

__all__ = (
    'MetadataDataModule',
    'check_at_least',
    'check_patch_size',
    'check_precision',
    'check_share',
    'counted',
    'split_batch',
)


def check_patch_size(patch_size: int) -> None:
    """Raise unless the model's patches fill a patch of ``patch_size`` pixels per side."""
    if patch_size < PATCH_SIZE or patch_size % PATCH_SIZE:
        nearest = max(1, round(patch_size / PATCH_SIZE)) * PATCH_SIZE
        raise ValueError(
            f"patch_size: expected a multiple of {PATCH_SIZE}, the size of the model's patches, got {patch_size}. "
            f'The nearest is {nearest}.'
        )


def check_at_least(least: int, **values: int) -> None:
    """Raise for an argument below ``least``, by name."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f'{name}: expected {least} or more, got {value}.')


def check_share(most: float, **values: float) -> None:
    """Raise for an argument that is not a share from 0 to ``most``, by name."""
    for name, value in values.items():
        if not 0 <= value <= most:
            raise ValueError(f'{name}: expected a share from 0 to {"1" if most == 1 else "below 1"}, got {value}.')


def counted(count: int, what: str) -> str:
    """Return a number with a noun, in the plural unless it is 1."""
    return f'{count} {what}{"" if count == 1 else "s"}'


def check_precision(trainer: Any) -> None:
    """Refuse a precision that makes Lightning cast batches before any hook sees them; warn of one that is slow here.

    Args:
        trainer: of the run; None without one.
    """
    precision = getattr(trainer, 'precision', None)
    if precision in ('bf16-true', '16-true'):
        raise ValueError(
            f"precision: expected one that leaves batches in float32 and float64, got '{precision}', with which "
            'Lightning casts times (off by days then) and places before any hook sees them. '
            f"Use '{precision.removesuffix('true')}mixed'."
        )
    on_cpu = precision == 'bf16-mixed' and trainer.strategy.root_device.type == 'cpu'
    if on_cpu and torch.backends.cpu.get_cpu_capability() == 'AVX2':
        rank_zero_warn(
            "precision 'bf16-mixed': this CPU has no instructions for bfloat16 (it ends at AVX2) and emulates it, "
            "several times slower than float32. Use '32-true' here, and 'bf16-mixed' on a GPU or a CPU with AVX-512."
        )


def split_batch(batch: Mapping[str, Any], device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a batch for its transfer, without float64, which some devices do not have (Apple's).

    Args:
        batch: on the host, with the metadata of :mod:`torchgeo_clay.conditioning`.
        device: where it goes; on the host everything stays as it is.

    Returns:
        What is sent: float64 as float32, which holds a place to 2 m, and for ``time`` its code, ``time_code`` (B, 4) or
        (B, T, 4). What stays on the host: ``time`` (seconds of today need float64), and ``length``, which forms shapes.
    """
    kept = {key: batch[key] for key in ('time', 'length') if key in batch}
    if device.type == 'cpu':
        return dict(batch), kept
    sent = {key: value for key, value in batch.items() if key not in kept}
    if isinstance(time := batch.get('time'), Tensor):
        sent['time_code'] = encode_time(time)
    return apply_to_collection(sent, Tensor, lambda x: x.float() if x.dtype == torch.float64 else x), kept


class MetadataDataModule(BaseDataModule):
    """Base of datamodules whose batches have metadata: checked and encoded on the host, before the transfer."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Check a batch's values on the host."""
        check_batch(batch)
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; see :func:`split_batch`."""
        sent, kept = split_batch(batch, device)
        return {**super().transfer_batch_to_device(sent, device, dataloader_idx), **kept}
