# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Optimiser recipes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR

from torchgeo_clay.models.clay import WaveKernels

__all__ = ('cosine', 'finetuning', 'published', 'warm_cosine', 'warmup_cosine')

BETAS = (0.9, 0.95)


def published(
    model: nn.Module, lr: float = 1e-5, weight_decay: float = 0.05, t_0: int = 1000, t_mult: int = 2
) -> tuple[Optimizer, CosineAnnealingWarmRestarts]:
    """The recipe of the release document: AdamW on all weights alike, warm restarts per step.

    As ``eta_min`` is 100 times ``lr``, the rate does not fall but RISES from ``lr`` to 100·``lr`` in each cycle. It is
    kept as published; :func:`cosine` is the sane one. (The released code has lr 5e-6, T_0 5000 and T_mult 1.)

    Args:
        model: whose trainable weights are optimised.
        lr: the rate at the start of a cycle.
        weight_decay: of all weights.
        t_0: steps of the first cycle.
        t_mult: factor from one cycle's length to the next.

    Returns:
        The optimiser and its scheduler, to be stepped once per training step.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW(weights, lr=lr, weight_decay=weight_decay, betas=BETAS, fused=True)
    return optimizer, CosineAnnealingWarmRestarts(optimizer, T_0=t_0, T_mult=t_mult, eta_min=lr * 100)


def warmup_cosine(steps: int, warmup: int, floor: float) -> Callable[[int], float]:
    """Factor on the learning rate: a linear rise over ``warmup`` steps, then half a cosine down to ``floor``.

    Args:
        steps: of the whole training.
        warmup: steps of the rise.
        floor: factor at the end.

    Returns:
        A function of the step. Plain arithmetic, so that a scheduler with it can be saved and resumed.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def cosine(
    model: nn.Module,
    steps: int,
    lr: float,
    weight_decay: float = 0.05,
    warmup: float = 0.05,
    floor: float = 0.01,
    no_decay: set[str] | None = None,
    kernel_rate: float = 0.1,
) -> tuple[Optimizer, LambdaLR]:
    """AdamW with warm-up and cosine decay; norms, biases and tokens are not decayed.

    The networks that make kernels from wavelengths have a rate of their own. AdamW moves every weight by about the
    rate, and each of their outputs is a weight itself, so that at the rate of the others the kernels grow in step: the
    embedding of a patch becomes a hundred times longer than its position code, nearly all of it brightness, and what
    is pretrained so is worth less to a linear probe than a random encoder (docs/benchmarks.md has the figures).

    Args:
        model: whose trainable weights are optimised.
        steps: training steps in all.
        lr: the highest rate.
        weight_decay: of matrices.
        warmup: share of the steps in which the rate rises.
        floor: factor on the rate at the end.
        no_decay: names of weights that are not decayed beside norms and biases.
        kernel_rate: factor on the rate of :class:`~torchgeo_clay.models.clay.WaveKernels`.

    Returns:
        The optimiser and its scheduler, to be stepped once per training step.
    """
    makers = [module for module in model.modules() if isinstance(module, WaveKernels)]
    making = {p for module in makers for p in module.parameters()}
    groups: list[dict[str, Any]] = []
    for group in param_groups_weight_decay(model, weight_decay, no_weight_decay_list=tuple(no_decay or ())):
        for slow, rate in ((False, lr), (True, lr * kernel_rate)):
            if weights := [p for p in group['params'] if (p in making) == slow]:
                groups.append({**group, 'params': weights, 'lr': rate})
    optimizer = AdamW(groups, lr=lr, betas=BETAS, fused=True)
    return optimizer, LambdaLR(optimizer, warmup_cosine(steps, int(warmup * steps), floor))


def token_names(model: nn.Module) -> set[str]:
    """Names of the weights that are tokens, as parts of the model say of themselves, and a pool's latent."""
    names = {name for name, _ in model.named_parameters() if name.endswith('attn_pool.latent')}
    for prefix, module in model.named_modules():
        if hasattr(module, 'no_weight_decay'):
            names |= {f'{prefix}.{name}' if prefix else name for name in module.no_weight_decay()}
    return names


def finetuning(model: nn.Module, lr: float, weight_decay: float = 0.05, layer_decay: float | None = None) -> AdamW:
    """AdamW for a pretrained encoder; norms, biases and tokens are not decayed.

    Args:
        model: whose trainable weights are optimised.
        lr: the rate of what comes after the encoder.
        weight_decay: of matrices.
        layer_decay: factor on the rate from each layer to the one before it, by the layers of ``group_matcher``; None
            for one rate.

    Returns:
        The optimiser.
    """
    tokens = token_names(model)
    if layer_decay is None:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=tokens)
    else:
        groups = param_groups_layer_decay(model, weight_decay, tokens, layer_decay=layer_decay)
    for group in groups:
        group['lr'] = lr * group.pop('lr_scale', 1.0)
    return AdamW(groups, lr=lr, fused=True)


def warm_cosine(optimizer: Optimizer, steps: float, warmup: float, floor: float = 0.01) -> LambdaLR:
    """Warm-up and cosine decay of each group's own rate.

    Args:
        optimizer: whose rates are the highest.
        steps: training steps in all.
        warmup: share of the steps in which the rates rise.
        floor: factor on the rates at the end.

    Returns:
        The scheduler, to be stepped once per training step.

    Raises:
        ValueError: for a training without an end.
    """
    if math.isinf(steps):
        raise ValueError(
            'A cosine schedule needs to know its end: give the trainer max_epochs or max_steps, or the task '
            "schedule='plateau'."
        )
    return LambdaLR(optimizer, warmup_cosine(int(steps), int(warmup * steps), floor))
