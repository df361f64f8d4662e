# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Models of the tasks, from their hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchgeo_clay.models import Clay, builders
from torchgeo_clay.models.decoders import ChangeClay, DenseClay
from torchgeo_clay.models.weights import WeightsLike

__all__ = ('change_detector', 'classifier', 'pixelwise')

_POOLINGS = ('token', 'avg', 'map')


def classifier(hparams: Mapping[str, Any], weights: WeightsLike, outputs: int) -> Clay:
    """An encoder with a pooling and a linear head.

    Args:
        hparams: with ``model``, ``pooling`` and ``drop_path_rate``.
        weights: of the encoder.
        outputs: K.

    Raises:
        ValueError: for an unknown pooling.
    """
    pooling = hparams['pooling']
    if pooling not in _POOLINGS:
        raise ValueError(f'pooling: expected one of {", ".join(_POOLINGS)}, got {pooling!r}.')
    builder = getattr(builders, hparams['model'])
    model: Clay = builder(weights, num_classes=outputs, global_pool=pooling, drop_path_rate=hparams['drop_path_rate'])
    return model


def pixelwise(hparams: Mapping[str, Any], weights: WeightsLike, outputs: int) -> DenseClay:
    """An encoder with a decoder.

    Args:
        hparams: with ``model``, ``decoder`` and ``drop_path_rate``.
        weights: of the encoder.
        outputs: K.
    """
    rate = hparams['drop_path_rate']
    return DenseClay(hparams['model'], hparams['decoder'], outputs, weights, drop_path_rate=rate)


def change_detector(hparams: Mapping[str, Any], weights: WeightsLike, outputs: int) -> ChangeClay:
    """An encoder of two dates with a decoder.

    Args:
        hparams: with ``model``, ``decoder`` and ``drop_path_rate``.
        weights: of the encoder.
        outputs: K.
    """
    rate = hparams['drop_path_rate']
    return ChangeClay(hparams['model'], hparams['decoder'], outputs, weights, drop_path_rate=rate)
