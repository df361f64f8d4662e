# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Semantic segmentation."""

from __future__ import annotations

from typing import Any, Literal

from torchgeo.tasks import SemanticSegmentation

from torchgeo_clay.models.temporal import Temporal
from torchgeo_clay.models.weights import WeightsLike
from torchgeo_clay.tasks.base import PixelTask
from torchgeo_clay.tasks.classes import ClassTask

__all__ = ('ClaySemanticSegmentation',)


class ClaySemanticSegmentation(ClassTask, PixelTask, SemanticSegmentation):
    """TorchGeo's semantic segmentation with Clay, conditioned on each batch's metadata."""

    label_key = 'mask'

    def __init__(
        self,
        model: Literal['unet', 'deeplabv3+', 'upernet', 'segformer', 'dpt'] = 'unet',
        backbone: str = 'clay_large_patch8',
        weights: WeightsLike = None,
        temporal: Temporal | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize a new ClaySemanticSegmentation instance.

        Args:
            model: decoder of segmentation_models_pytorch.
            backbone: the encoder, ``clay_{tiny,small,base,large}_patch8``.
            weights: see :class:`~torchgeo_clay.tasks.base.ClayTask`.
            temporal: aggregation of the feature maps over the dates of images (B, T, C, H, W): ``mean``, ``max`` or
                ``ltae``; None for images of one date. See :mod:`torchgeo_clay.models.temporal`.
            **kwargs: see :class:`~torchgeo_clay.tasks.base.ClayTask`, and :class:`torchgeo.tasks.SemanticSegmentation`
                for ``task``, ``num_classes``, ``num_labels``, ``labels``, ``pos_weight``, ``loss``, ``class_weights``
                and ``ignore_index``.
        """
        super().__init__(model=model, backbone=backbone, weights=weights, **kwargs)
