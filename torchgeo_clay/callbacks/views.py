# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Metadata of the augmented views that contrastive tasks make of each image. Shapes: B samples, C bands."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchgeo.tasks import MoCo, SimCLR

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.datasets.wrapped.resampling import follow_pixels
from torchgeo_clay.models.clay import Clay

__all__ = ('condition_views',)

#: Task → names of the augmentations that it calls on a batch's images.
_AUGMENTATIONS: dict[type[LightningModule], tuple[str, ...]] = {
    MoCo: ('augmentation1', 'augmentation2'),
    SimCLR: ('augmentations',),
}


def _check_augmentation(task: LightningModule, name: str) -> nn.Module:
    """Return an augmentation that reports how it moves pixels.

    Raises:
        ValueError: for other modules than kornia's.
    """
    module: nn.Module = getattr(task, name)
    if not hasattr(module, '_params'):
        raise ValueError(
            f'{name}: expected an augmentation of kornia, which reports the pixel size of the views it makes, got '
            f'{type(module).__name__}. Put its transforms into kornia.augmentation.AugmentationSequential.'
        )
    return module


def condition_views(task: LightningModule, models: list[Clay], batch: Mapping[str, Any], condition: Any) -> ExitStack:
    """Condition the models of a contrastive task on each view: its GSD and place follow the random resized crop.

    Args:
        task: any task; others than :class:`torchgeo.tasks.MoCo` and :class:`torchgeo.tasks.SimCLR` make no views.
        models: the encoders inside the task.
        batch: ``image`` (B, C, H, W), ``res`` (B,), and ``lat`` and ``lon`` (B,) where known.
        condition: function that returns the conditioning of a batch with a view for its image.

    Returns:
        A stack that ends the conditioning when it is closed.

    Raises:
        ValueError: for augmentations other than kornia's; in a step, for an image that is none of the views.
    """
    scopes = ExitStack()
    names = [name for kind, names in _AUGMENTATIONS.items() if isinstance(task, kind) for name in names]
    views: list[tuple[Tensor, Conditioning]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], view: Tensor) -> None:
        known = follow_pixels(module, batch, inputs[0].shape, view.shape)
        views.append((view, condition({**batch, **known, 'image': view})))

    def enter(clay: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for view, known in views:
            if view is inputs[0]:
                clay.patch_embed.conditioning = known  # type: ignore[union-attr]
                return
        raise ValueError(
            f'{type(task).__name__} gave Clay an image that none of {", ".join(names)} returned, whose pixel size is '
            'unknown. Give the model the views as the augmentations make them.'
        )

    for module in {_check_augmentation(task, name) for name in names}:
        scopes.callback(module.register_forward_hook(note).remove)
    for model in models if names else ():
        scopes.callback(model.register_forward_pre_hook(enter).remove)
    return scopes
