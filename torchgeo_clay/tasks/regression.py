# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Regression of images and of pixels."""

from __future__ import annotations

from typing import Any, Literal

from torchgeo.tasks import PixelwiseRegression, Regression

from torchgeo_clay.models.decoders import DenseClay
from torchgeo_clay.models.weights import WeightsLike
from torchgeo_clay.tasks.base import ImageTask, PixelTask

__all__ = ('ClayPixelwiseRegression', 'ClayRegression')


class ClayRegression(ImageTask, Regression):
    """TorchGeo's regression with Clay, conditioned on each batch's metadata."""

    def __init__(self, model: str = 'clay_large_patch8', weights: WeightsLike = None, **kwargs: Any) -> None:
        """Initialize a new ClayRegression instance.

        Args:
            model: the encoder, ``clay_{tiny,small,base,large}_patch8``.
            weights: see :class:`~torchgeo_clay.tasks.base.ClayTask`.
            **kwargs: see :class:`~torchgeo_clay.tasks.base.ImageTask`, and :class:`torchgeo.tasks.Regression` for
                ``num_outputs``, ``labels`` and ``loss``.
        """
        super().__init__(model=model, weights=weights, **kwargs)


class ClayPixelwiseRegression(PixelTask, PixelwiseRegression):
    """TorchGeo's pixelwise regression with Clay, conditioned on each batch's metadata."""

    def __init__(
        self,
        model: Literal['unet', 'deeplabv3+', 'upernet', 'segformer', 'dpt'] = 'unet',
        backbone: str = 'clay_large_patch8',
        weights: WeightsLike = None,
        **kwargs: Any,
    ) -> None:
        """Initialize a new ClayPixelwiseRegression instance.

        Args:
            model: decoder of segmentation_models_pytorch.
            backbone: the encoder, ``clay_{tiny,small,base,large}_patch8``.
            weights: see :class:`~torchgeo_clay.tasks.base.ClayTask`.
            **kwargs: see :class:`~torchgeo_clay.tasks.base.ClayTask`, and :class:`torchgeo.tasks.PixelwiseRegression`
                for ``labels`` and ``loss``.
        """
        super().__init__(model=model, backbone=backbone, weights=weights, **kwargs)

    def build(self) -> DenseClay:
        """Build an encoder with a decoder.

        Raises:
            ValueError: for several outputs per pixel.
        """
        if self.outputs != 1:
            raise ValueError(
                f"num_outputs: TorchGeo's pixelwise regression has 1 output per pixel, got {self.outputs}."
            )
        return super().build()
