# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Optimizers and learning rates."""

from __future__ import annotations

import math
from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearLR,
    LRScheduler,
    SequentialLR,
)

from torchgeo_clay.models.clay import WaveKernels

__all__ = ('cosine', 'extend_schedule', 'finetuning', 'published', 'warm_cosine')

BETAS = (0.9, 0.95)


def published(model: nn.Module, lr: float = 1e-5) -> tuple[Optimizer, CosineAnnealingWarmRestarts]:
    """The recipe of the release document: AdamW on all weights alike, warm restarts after 1000, 2000, 4000 … steps.

    As ``eta_min`` is 100 times ``lr``, the rate does not fall but RISES from ``lr`` to 100·``lr`` in each cycle. It is
    kept as published; :func:`cosine` is the usual one. (The released code has lr 5e-6, T_0 5000 and T_mult 1.)

    Args:
        model: its trainable weights are optimized.
        lr: the rate at the start of a cycle.

    Returns:
        The optimizer and its scheduler, to be stepped once per training step.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW(weights, lr=lr, weight_decay=0.05, betas=BETAS, fused=True)
    return optimizer, CosineAnnealingWarmRestarts(optimizer, T_0=1000, T_mult=2, eta_min=lr * 100)


def cosine(
    model: nn.Module, steps: int, lr: float, no_decay: set[str] | None = None, kernel_rate: float = 0.1
) -> tuple[Optimizer, LRScheduler]:
    """AdamW with warm-up and cosine; norms, biases and tokens are not decayed.

    The networks that make kernels from wavelengths have a rate of their own. AdamW moves every weight by about the
    rate, and each of their outputs is a weight itself, so that at the common rate the kernels grow in step: the
    embedding of a patch becomes a hundred times longer than its position code, nearly all of it brightness, and such
    a pretraining is worth less to a linear probe than a random encoder (docs/benchmarks.md has the figures).

    Args:
        model: its trainable weights are optimized.
        steps: total number of training steps.
        lr: peak rate.
        no_decay: names of further weights that are not decayed.
        kernel_rate: factor on the rate of :class:`~torchgeo_clay.models.clay.WaveKernels`.

    Returns:
        The optimizer and its scheduler, to be stepped once per training step.
    """
    makers = {p for module in model.modules() if isinstance(module, WaveKernels) for p in module.parameters()}
    groups: list[dict[str, Any]] = []
    for group in param_groups_weight_decay(model, 0.05, no_weight_decay_list=tuple(no_decay or ())):
        for slow, rate in ((False, lr), (True, lr * kernel_rate)):
            if weights := [p for p in group['params'] if (p in makers) == slow]:
                groups.append({**group, 'params': weights, 'lr': rate})
    optimizer = AdamW(groups, lr=lr, betas=BETAS, fused=True)
    return optimizer, warm_cosine(optimizer, steps)


def finetuning(model: nn.Module, lr: float, weight_decay: float = 0.05, layer_decay: float | None = None) -> AdamW:
    """AdamW for a pretrained encoder; norms, biases and tokens are not decayed.

    Args:
        model: its trainable weights are optimized.
        lr: the rate of the layers after the encoder.
        weight_decay: of matrices.
        layer_decay: factor on the rate from each layer to the one before it, by the layers of ``group_matcher``; None
            for one rate.

    Returns:
        The optimizer.
    """
    tokens = {
        f'{prefix}.{name}' if prefix else name
        for prefix, module in model.named_modules()
        if hasattr(module, 'no_weight_decay')
        for name in module.no_weight_decay()
    }
    if layer_decay is None:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=tokens)
    else:
        groups = param_groups_layer_decay(model, weight_decay, tokens, layer_decay=layer_decay)
    for group in groups:
        group['lr'] = lr * group.pop('lr_scale', 1.0)
    return AdamW(groups, lr=lr, fused=True)


def warm_cosine(optimizer: Optimizer, steps: float, warmup: float = 0.05) -> LRScheduler:
    """Linear warm-up, then a cosine to zero, of each group's own rate.

    Args:
        optimizer: with the peak rates.
        steps: total number of training steps.
        warmup: share of the steps in which the rates rise.

    Returns:
        The scheduler, to be stepped once per training step.

    Raises:
        ValueError: for a training without an end, or a share out of range.
    """
    if math.isinf(steps):
        raise ValueError('A cosine schedule needs an end: give the trainer max_epochs or max_steps.')
    if not 0 <= warmup < 1:
        raise ValueError(f'warmup: expected a share of the steps from 0 to less than 1, got {warmup}.')
    rise = int(warmup * steps)
    fall = CosineAnnealingLR(optimizer, T_max=max(1, int(steps) - rise))
    if not rise:
        return fall
    return SequentialLR(optimizer, [LinearLR(optimizer, 1 / (rise + 1), total_iters=rise), fall], milestones=[rise])


def extend_schedule(scheduler: LRScheduler) -> None:
    """Let a schedule of :func:`warm_cosine` go on over parameter groups added since it was made.

    Each follows the same curve from the rate it has now. PyTorch's schedules know the groups of their first day only.

    Args:
        scheduler: of a training.
    """
    for part in getattr(scheduler, '_schedulers', [scheduler]):
        part.base_lrs += [group['lr'] for group in part.optimizer.param_groups[len(part.base_lrs) :]]
