# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Registration of Clay in TorchGeo and timm, so that their commands, tasks and functions find it by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from timm.models import is_model, model_entrypoint, register_model
from torch import nn
from torchgeo.models import api

from torchgeo_clay.models import builders, timm
from torchgeo_clay.models.weights import ClayLarge8_Weights

__all__ = ('register',)

_BUILDERS: tuple[Callable[..., nn.Module], ...] = (
    builders.clay_tiny_patch8,
    builders.clay_small_patch8,
    builders.clay_base_patch8,
    builders.clay_large_patch8,
    builders.clay_mae_tiny_patch8,
    builders.clay_mae_small_patch8,
    builders.clay_mae_base_patch8,
    builders.clay_mae_large_patch8,
)
_RELEASED: tuple[Callable[..., nn.Module], ...] = (builders.clay_large_patch8, builders.clay_mae_large_patch8)
_ENTRY_POINTS: tuple[Callable[..., nn.Module], ...] = (
    timm.clay_tiny_patch8,
    timm.clay_small_patch8,
    timm.clay_base_patch8,
    timm.clay_large_patch8,
)


def register() -> None:
    """Register the builders in ``torchgeo.models`` and the encoders in timm; a second call changes nothing."""
    _register_in_torchgeo()
    _register_in_timm()


def _register_in_torchgeo() -> None:
    """Enter TorchGeo's private tables; no other function of this package touches them."""
    for builder in _BUILDERS:
        api._model[builder.__name__] = builder
    for builder in _RELEASED:
        # by function and by name, as get_model_weights takes either
        api._model_weights[builder] = api._model_weights[builder.__name__] = ClayLarge8_Weights


def _register_in_timm() -> None:
    """Register the entry points; another package's model of the same name is replaced with timm's warning."""
    for entry_point in _ENTRY_POINTS:
        known = model_entrypoint(entry_point.__name__) if is_model(entry_point.__name__) else None
        if known is entry_point:
            continue
        with warnings.catch_warnings():
            if known is not None and known.__module__ == entry_point.__module__:  # this package, imported again
                warnings.simplefilter('ignore')
            register_model(entry_point)
