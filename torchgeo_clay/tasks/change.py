# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Change detection. Shapes: B samples, T = 2 dates, C bands, H × W pixels, K classes or labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import matplotlib.pyplot as plt
from einops import rearrange
from lightning.pytorch import LightningModule
from torch import Tensor
from torchgeo.datamodules import BaseDataModule
from torchgeo.datasets import RGBBandsMissingError
from torchgeo.tasks import ChangeDetection

from torchgeo_clay.models.decoders import ChangeClay
from torchgeo_clay.models.weights import WeightsLike
from torchgeo_clay.tasks.base import PixelTask

__all__ = ('ClayChangeDetection',)

#: Number of validation batches of which TorchGeo's tasks plot the first sample.
_PLOTTED = 10


class ClayChangeDetection(PixelTask, ChangeDetection):
    """TorchGeo's change detection with Clay: one encoder for both dates, each conditioned on its own time.

    Batches have ``image`` (B, 2, C, H, W), the earlier date first, and ``time`` (B, 2); ``res``, ``lat`` and ``lon``
    may be per sample, (B,), or per date, (B, 2).
    """

    label_key = 'mask'
    labels_have_channel = True
    sees_dates = True
    model_class = ChangeClay

    def __init__(
        self,
        model: Literal['unet', 'deeplabv3+', 'upernet', 'segformer'] = 'unet',
        backbone: str = 'clay_large_patch8',
        weights: WeightsLike = None,
        **kwargs: Any,
    ) -> None:
        """Initialize a new ClayChangeDetection instance.

        Args:
            model: decoder of segmentation_models_pytorch; it sees the difference of the two dates' features.
            backbone: the encoder, ``clay_{tiny,small,base,large}_patch8``.
            weights: see :class:`~torchgeo_clay.tasks.base.ClayTask`.
            **kwargs: see :class:`~torchgeo_clay.tasks.base.ClayTask`, and :class:`torchgeo.tasks.ChangeDetection` for
                ``task``, ``num_classes``, ``num_labels``, ``labels``, ``pos_weight``, ``loss``, ``class_weights`` and
                ``ignore_index``.
        """
        super().__init__(model=model, backbone=backbone, weights=weights, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Predict the change.

        Args:
            x: (B, 2, C, H, W) normalized, the earlier date first, or (B, 2·C, H, W), as TorchGeo's steps pass it to
                models other than its own siamese ones.

        Returns:
            (B, K, H, W) logits.

        Raises:
            ValueError: for images smaller than a patch.
        """
        return self.model(rearrange(x, 'b (t c) h w -> b t c h w', t=2) if x.ndim == 4 else x)

    def validation_step(self, batch: Any, batch_idx: int, *args: Any) -> None:
        """Run TorchGeo's validation step, conditioned on the batch, and plot the first batches."""
        if batch_idx >= _PLOTTED:
            super().validation_step(batch, batch_idx, *args)
            return
        if batch_idx == 0:
            self.check_labels(batch)
        seen: list[Tensor] = []
        handle = self.model.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        try:
            super().validation_step(batch, batch_idx + _PLOTTED, *args)  # TorchGeo does not plot from there on
        finally:
            handle.remove()
        _plot_change(self, batch, seen[0], batch_idx)


def _plot_change(task: LightningModule, batch: Mapping[str, Tensor], logits: Tensor, batch_idx: int) -> None:
    """Log the datamodule's plot of a batch's first sample, if the logger takes figures.

    A workaround: TorchGeo's own step denormalizes with kornia, which from 0.9 on refuses one mask with two images.
    """
    datamodule = getattr(task.trainer, 'datamodule', None)
    experiment: Any = getattr(task.logger, 'experiment', None)
    if not isinstance(datamodule, BaseDataModule) or not hasattr(experiment, 'add_figure'):
        return
    mean, std = (s.to(logits).reshape(-1, 1, 1) for s in (datamodule.mean, datamodule.std))
    multiclass = task.hparams['task'] == 'multiclass'
    sample = {
        'image': (batch['image'][0] * std + mean).cpu(),
        'mask': batch['mask'][0].cpu(),
        'prediction': (logits[0].argmax(0, keepdim=True) if multiclass else (logits[0] >= 0).long()).cpu(),
    }
    try:
        figure = datamodule.plot(sample)
    except RGBBandsMissingError:  # no picture without its bands
        return
    if figure:
        experiment.add_figure(f'image/{batch_idx}', figure, global_step=task.global_step)
        plt.close(figure)
