# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The four sizes of Clay's encoder, each a literal call. Source of the numbers: the release's ``src/model.py``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from torchgeo_clay.models.clay import Clay
from torchgeo_clay.models.weights.names import load_encoder
from torchgeo_clay.models.weights.released import WeightsLike, fetch
from torchgeo_clay.sensors import Sensor

__all__ = (
    'clay_base_patch8',
    'clay_large_patch8',
    'clay_small_patch8',
    'clay_tiny_patch8',
)

SensorLike = str | os.PathLike[str] | Sensor | None


def _encoder(name: str, weights: WeightsLike, **kwargs: Any) -> Clay:
    """An encoder, with random weights or those of a file."""
    if weights is None:
        return Clay(**kwargs)
    path = fetch(weights, name)
    with torch.device('meta'):  # so that a large model is in memory once, not twice
        model = Clay(**kwargs)
    return load_encoder(model, path)


def clay_tiny_patch8(
    weights: WeightsLike = None, *, sensor: SensorLike = None, bands: Sequence[str] | None = None, **vit_kwargs: Any
) -> Clay:
    """Clay's encoder, tiny (4 M parameters).

    Args:
        weights: None for random ones, or the path of a released-format
            ``.ckpt``, a checkpoint of our own pretraining, or an encoder-only ``.safetensors``. What does not match
            raises.
        sensor: see :class:`Clay`, as for bands.
        bands: see :class:`Clay`.
        **vit_kwargs: see :class:`Clay`.

    Raises:
        CheckpointError: for weights that can't be fetched, read, or do not fit.
    """
    return _encoder(
        'clay_tiny_patch8',
        weights,
        embed_dim=192,
        depth=6,
        num_heads=4,
        mlp_ratio=2,
        sensor=sensor,
        bands=bands,
        **vit_kwargs,
    )


def clay_small_patch8(
    weights: WeightsLike = None, *, sensor: SensorLike = None, bands: Sequence[str] | None = None, **vit_kwargs: Any
) -> Clay:
    """Clay's encoder, small (11 M parameters).

    Args:
        weights: None for random ones, or the path of a released-format
            ``.ckpt``, a checkpoint of our own pretraining, or an encoder-only ``.safetensors``. What does not match
            raises.
        sensor: see :class:`Clay`, as for bands.
        bands: see :class:`Clay`.
        **vit_kwargs: see :class:`Clay`.

    Raises:
        CheckpointError: for weights that can't be fetched, read, or do not fit.
    """
    return _encoder(
        'clay_small_patch8',
        weights,
        embed_dim=384,
        depth=6,
        num_heads=6,
        mlp_ratio=2,
        sensor=sensor,
        bands=bands,
        **vit_kwargs,
    )


def clay_base_patch8(
    weights: WeightsLike = None, *, sensor: SensorLike = None, bands: Sequence[str] | None = None, **vit_kwargs: Any
) -> Clay:
    """Clay's encoder, base (92 M parameters).

    Args:
        weights: None for random ones, or the path of a released-format
            ``.ckpt``, a checkpoint of our own pretraining, or an encoder-only ``.safetensors``. What does not match
            raises.
        sensor: see :class:`Clay`, as for bands.
        bands: see :class:`Clay`.
        **vit_kwargs: see :class:`Clay`.

    Raises:
        CheckpointError: for weights that can't be fetched, read, or do not fit.
    """
    return _encoder(
        'clay_base_patch8',
        weights,
        embed_dim=768,
        depth=12,
        num_heads=12,
        mlp_ratio=4,
        sensor=sensor,
        bands=bands,
        **vit_kwargs,
    )


def clay_large_patch8(
    weights: WeightsLike = None, *, sensor: SensorLike = None, bands: Sequence[str] | None = None, **vit_kwargs: Any
) -> Clay:
    """Clay's encoder, large (311 M parameters). The size of the v1.5 release.

    Args:
        weights: None for random ones, a member of :class:`ClayLarge8_Weights`, or the path of a released-format
            ``.ckpt``, a checkpoint of our own pretraining, or an encoder-only ``.safetensors``. What does not match
            raises.
        sensor: see :class:`Clay`, as for bands.
        bands: see :class:`Clay`.
        **vit_kwargs: see :class:`Clay`.

    Raises:
        CheckpointError: for weights that can't be fetched, read, or do not fit.
    """
    return _encoder(
        'clay_large_patch8',
        weights,
        embed_dim=1024,
        depth=24,
        num_heads=16,
        mlp_ratio=4,
        sensor=sensor,
        bands=bands,
        **vit_kwargs,
    )
