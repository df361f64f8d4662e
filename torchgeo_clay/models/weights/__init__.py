# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Released and own weights: the Hub, the table of names, lazy and strict reading."""

from torchgeo_clay.models.weights.files import Archive, CheckpointError, tensor_digest, write_safetensors
from torchgeo_clay.models.weights.released import (
    ClayLarge8_Weights,
    WeightsLike,
    holds_teacher,
    load_encoder,
    load_mae,
    read_encoder,
    released_name,
    resolve_weights,
    save_encoder,
)

__all__ = (
    'Archive',
    'CheckpointError',
    'ClayLarge8_Weights',
    'WeightsLike',
    'holds_teacher',
    'load_encoder',
    'load_mae',
    'read_encoder',
    'released_name',
    'resolve_weights',
    'save_encoder',
    'tensor_digest',
    'write_safetensors',
)
