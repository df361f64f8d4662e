# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay's models, their builders and released weights."""

from torchgeo_clay.models.builders import (
    clay_base_patch8,
    clay_large_patch8,
    clay_small_patch8,
    clay_tiny_patch8,
)
from torchgeo_clay.models.clay import Clay
from torchgeo_clay.models.decoder import ClayDecoder
from torchgeo_clay.models.folded import FoldedClay
from torchgeo_clay.models.mae import ClayMAE, MAEOutput
from torchgeo_clay.models.mae_builders import (
    clay_mae_base_patch8,
    clay_mae_large_patch8,
    clay_mae_small_patch8,
    clay_mae_tiny_patch8,
)
from torchgeo_clay.models.weights.files import CheckpointError
from torchgeo_clay.models.weights.names import load_encoder, save_encoder
from torchgeo_clay.models.weights.released import ClayLarge8_Weights

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
    'load_encoder',
    'save_encoder',
)
