# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay's models, their builders and released weights."""

from torchgeo_clay.models.builders import (
    clay_base_patch8,
    clay_large_patch8,
    clay_mae_base_patch8,
    clay_mae_large_patch8,
    clay_mae_small_patch8,
    clay_mae_tiny_patch8,
    clay_small_patch8,
    clay_tiny_patch8,
)
from torchgeo_clay.models.clay import Clay, FoldedClay, find_clay
from torchgeo_clay.models.mae import ClayDecoder, ClayMAE, MAEOutput
from torchgeo_clay.models.weights import CheckpointError, ClayLarge8_Weights, load_encoder, save_encoder

__all__ = (
    'CheckpointError',
    'Clay',
    'ClayDecoder',
    'ClayLarge8_Weights',
    'ClayMAE',
    'FoldedClay',
    'MAEOutput',
    'clay_base_patch8',
    'clay_large_patch8',
    'clay_mae_base_patch8',
    'clay_mae_large_patch8',
    'clay_mae_small_patch8',
    'clay_mae_tiny_patch8',
    'clay_small_patch8',
    'clay_tiny_patch8',
    'find_clay',
    'load_encoder',
    'save_encoder',
)
