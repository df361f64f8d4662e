# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Weights cast once for autocast, which casts those of a frozen model in every forward."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

__all__ = ('cast_copy', 'cast_matmuls')


def cast_matmuls(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the weights of linear layers and convolutions, in place; norms, tokens and scales stay as they are.

    Under autocast to the same dtype the outputs are bit-identical: these are the weights that it casts, and its cache
    keeps them between forwards only for weights that require gradients.

    Args:
        module: a frozen module.
        dtype: of autocast, such as ``torch.bfloat16``.

    Returns:
        The module.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.to(dtype)
    return module


def cast_copy(blocks: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    """Copy blocks and cast their weights by :func:`cast_matmuls`, block by block to save memory.

    Args:
        blocks: left unchanged.
        dtype: of autocast.
    """
    return nn.Sequential(*(cast_matmuls(deepcopy(block), dtype) for block in blocks))
