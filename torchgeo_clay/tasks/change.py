# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Change detection. Shapes: B samples, T = 2 dates, C bands, H × W pixels, K classes or labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from einops import rearrange
from torch import Tensor
from torchgeo.tasks import ChangeDetection

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.models.decoders import ChangeClay
from torchgeo_clay.models.weights import WeightsLike
from torchgeo_clay.tasks.base import PixelTask
from torchgeo_clay.tasks.classes import ClassTask

__all__ = ('ClayChangeDetection',)


class ClayChangeDetection(ClassTask, PixelTask, ChangeDetection):
    """TorchGeo's change detection with Clay: one encoder for both dates, each conditioned on its own time.

    Batches have ``image`` (B, 2, C, H, W), the earlier date first, and ``time`` (B, 2); ``res``, ``lat`` and ``lon``
    may be per sample, (B,), or per date, (B, 2).
    """

    label_key = 'mask'
    labels_have_channel = True
    model_class = ChangeClay

    @property
    def sees_dates(self) -> bool:
        """True: images are (B, 2, C, H, W)."""
        return True

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
            backbone: see :class:`~torchgeo_clay.tasks.ClaySemanticSegmentation`.
            weights: see there.
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

    def conditioning(self, batch: Mapping[str, Any]) -> Conditioning:
        """Return the conditioning of a batch, as in other tasks.

        Raises:
            ValueError: for other than two dates, too.
        """
        image = batch['image']
        if image.ndim == 5 and image.shape[1] != 2:
            raise ValueError(
                f'Expected images (B, 2, C, H, W) of two dates, got {tuple(image.shape)}: {image.shape[1]} dates.'
            )
        return super().conditioning(batch)
