# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Finds the Clay inside other people's modules, so that it can be told about the batch."""

from __future__ import annotations

from torch import nn

from torchgeo_clay.models.clay import Clay

__all__ = ('find_clay',)


def find_clay(module: nn.Module) -> list[Clay]:
    """Every Clay that a module contains, itself included.

    A decoder of segmentation_models_pytorch, a Lightning task or a compiled model each hold it somewhere else. What is
    found takes the batch's metadata by :meth:`torchgeo_clay.models.Clay.conditioned_on`.

    Args:
        module: any module.

    Returns:
        The encoders, each once, in the order of registration; empty if there are none.
    """
    return [m for m in module.modules() if isinstance(m, Clay)]
