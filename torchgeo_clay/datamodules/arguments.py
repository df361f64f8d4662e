# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Checks of datamodules' arguments."""

from __future__ import annotations

from torchgeo_clay.models.clay import PATCH_SIZE

__all__ = ('check_at_least', 'check_patch_size', 'check_precision', 'check_share')


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


def check_precision(precision: str | int | None) -> None:
    """Refuse a trainer's precision (None without one) that makes Lightning cast batches before any hook sees them."""
    if precision in ('bf16-true', '16-true'):
        raise ValueError(
            f"precision: expected one that leaves batches in float32 and float64, got '{precision}', with which "
            'Lightning casts times (off by days then) and places before any hook sees them. '
            f"Use '{str(precision).removesuffix('true')}mixed'."
        )
