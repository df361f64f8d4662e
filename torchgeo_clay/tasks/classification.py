# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Classification of images."""

from __future__ import annotations

from typing import Any

from torchgeo.tasks import Classification

from torchgeo_clay.models.weights import WeightsLike
from torchgeo_clay.tasks.base import ImageTask
from torchgeo_clay.tasks.classes import ClassTask

__all__ = ('ClayClassification',)


class ClayClassification(ClassTask, ImageTask, Classification):
    """TorchGeo's classification with Clay, conditioned on each batch's metadata."""

    label_key = 'label'

    def __init__(self, model: str = 'clay_large_patch8', weights: WeightsLike = None, **kwargs: Any) -> None:
        """Initialize a new ClayClassification instance.

        Args:
            model: the encoder, ``clay_{tiny,small,base,large}_patch8``.
            weights: see :class:`~torchgeo_clay.tasks.base.ClayTask`.
            **kwargs: see :class:`~torchgeo_clay.tasks.base.ImageTask`, and :class:`torchgeo.tasks.Classification` for
                ``task``, ``num_classes``, ``num_labels``, ``labels``, ``pos_weight``, ``loss``, ``class_weights`` and
                ``ignore_index``.
        """
        super().__init__(model=model, weights=weights, **kwargs)
