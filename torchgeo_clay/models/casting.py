# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Weights cast once for autocast, which casts those of a frozen model anew in every forward."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

__all__ = ('cast_copy', 'cast_matmuls')


def cast_matmuls(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the weights of linear layers and convolutions, in place; norms, tokens and scales stay as they are.

    Under autocast to the same dtype the outputs are equal to the last bit: these are the weights that it casts, and it
    keeps what it cast from one forward to the next only for weights that are trained.

    Args:
        module: is not trained any more.
        dtype: of autocast, such as ``torch.bfloat16``.

    Returns:
        The module.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.to(dtype)
    return module


def cast_copy(blocks: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    """A copy of blocks with weights cast by :func:`cast_matmuls`, made block by block to save memory.

    Args:
        blocks: stay as they are.
        dtype: of autocast.
    """
    return nn.Sequential(*(cast_matmuls(deepcopy(block), dtype) for block in blocks))
