# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Regression of images and of pixels."""

from __future__ import annotations

from typing import Any, Literal

from torchgeo.tasks import PixelwiseRegression, Regression

from torchgeo_clay.models.decoders import DenseClay
from torchgeo_clay.models.temporal import Temporal
from torchgeo_clay.models.weights import WeightsLike
from torchgeo_clay.tasks.base import ClayTask, ImageTask, PixelTask
from torchgeo_clay.tasks.losses import LossWithoutNodata, metrics_without_nodata

__all__ = ('ClayPixelwiseRegression', 'ClayRegression')


class _ValuesTask(ClayTask):
    """A regression whose loss and metrics leave out targets that are NaN, infinite, or ``nodata``."""

    def configure_losses(self) -> None:
        """Make TorchGeo's loss, of the targets that have a value."""
        super().configure_losses()
        self.criterion = LossWithoutNodata(self.criterion, self.hparams['nodata'])

    def configure_metrics(self) -> None:
        """Make TorchGeo's metrics, of the targets that have a value."""
        metrics = metrics_without_nodata(self.outputs, self.hparams['labels'], self.hparams['nodata'])
        for stage in ('train', 'val', 'test'):
            setattr(self, f'{stage}_metrics', metrics.clone(prefix=f'{stage}_'))


class ClayRegression(_ValuesTask, ImageTask, Regression):
    """TorchGeo's regression with Clay, conditioned on each batch's metadata."""

    def __init__(
        self,
        model: str = 'clay_large_patch8',
        weights: WeightsLike = None,
        nodata: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize a new ClayRegression instance.

        Args:
            model: the encoder, ``clay_{tiny,small,base,large}_patch8``.
            weights: see :class:`~torchgeo_clay.tasks.base.ClayTask`.
            nodata: number that stands for no value in targets, beside NaN and infinity.
            **kwargs: see :class:`~torchgeo_clay.tasks.base.ImageTask`, and :class:`torchgeo.tasks.Regression` for
                ``num_outputs``, ``labels`` and ``loss``.
        """
        super().__init__(model=model, weights=weights, **kwargs)


class ClayPixelwiseRegression(_ValuesTask, PixelTask, PixelwiseRegression):
    """TorchGeo's pixelwise regression with Clay, conditioned on each batch's metadata."""

    def __init__(
        self,
        model: Literal['unet', 'deeplabv3+', 'upernet', 'segformer', 'dpt'] = 'unet',
        backbone: str = 'clay_large_patch8',
        weights: WeightsLike = None,
        nodata: float | None = None,
        temporal: Temporal | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize a new ClayPixelwiseRegression instance.

        Args:
            model: see :class:`~torchgeo_clay.tasks.ClaySemanticSegmentation`.
            backbone: see there.
            weights: see there.
            nodata: see :class:`~torchgeo_clay.tasks.ClayRegression`.
            temporal: see :class:`~torchgeo_clay.tasks.ClaySemanticSegmentation`.
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
