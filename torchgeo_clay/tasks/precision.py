# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Where a trainer's precision makes things slow."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

__all__ = ('warn_if_emulated',)


def warn_if_emulated(trainer: Trainer) -> None:
    """Warn of bfloat16 on a CPU that has no instructions for it and computes it several times slower than float32.

    Args:
        trainer: the trainer.
    """
    on_cpu = trainer.strategy.root_device.type == 'cpu'
    if on_cpu and trainer.precision == 'bf16-mixed' and torch.backends.cpu.get_cpu_capability() == 'AVX2':
        rank_zero_warn(
            "precision 'bf16-mixed': this CPU has no instructions for bfloat16 (it ends at AVX2) and emulates it, "
            "several times slower than float32. Use '32-true' here, and 'bf16-mixed' on a GPU or a CPU with AVX-512."
        )
