# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Regression of pixels. Shapes: B samples, C bands, H × W pixels."""

from __future__ import annotations

from typing import Any, Literal

from torchgeo.tasks import PixelwiseRegression

from torchgeo_clay.models import ClayLarge8_Weights
from torchgeo_clay.tasks.base import ClayTask
from torchgeo_clay.tasks.building import pixelwise

__all__ = ('ClayPixelwiseRegression',)


class ClayPixelwiseRegression(ClayTask, PixelwiseRegression):
    """TorchGeo's pixelwise regression with Clay, told about each batch.

    Images are of any size from one patch on, and the output, (B, 1, H, W), is of theirs; see
    :class:`~torchgeo_clay.models.decoders.DenseClay`.
    """

    def __init__(
        self,
        model: str = 'clay_large_patch8',
        decoder: Literal['unet', 'deeplabv3+', 'upernet', 'segformer', 'dpt'] = 'unet',
        weights: ClayLarge8_Weights | str | bool | None = None,
        num_outputs: int = 1,
        labels: list[str] | None = None,
        loss: Literal['mae', 'mse'] = 'mse',
        freeze_backbone: bool = False,
        freeze_decoder: bool = False,
        trainable_blocks: int | None = None,
        lora: int | dict[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        lr: float = 1e-4,
        layer_decay: float | None = None,
        weight_decay: float = 0.05,
        schedule: Literal['cosine', 'plateau'] = 'cosine',
        warmup: float = 0.05,
        patience: int = 10,
        grad_checkpointing: bool = False,
    ) -> None:
        """Initialize the task.

        Args:
            model: the encoder's builder; see :class:`~torchgeo_clay.tasks.ClayClassification` and
                :class:`~torchgeo_clay.tasks.ClaySemanticSegmentation`, as for the arguments not explained here.
            decoder: see :class:`~torchgeo_clay.tasks.ClaySemanticSegmentation`.
            weights: of the encoder. The decoder, and the pyramid of feature maps under it, are new.
            num_outputs: 1, as TorchGeo's task has one output per pixel.
            labels: the output's name.
            loss: ``mse`` or ``mae``.
            freeze_backbone: see :class:`~torchgeo_clay.tasks.ClaySemanticSegmentation`.
            freeze_decoder: see :class:`~torchgeo_clay.tasks.ClaySemanticSegmentation`.
            trainable_blocks: see :class:`~torchgeo_clay.tasks.ClaySemanticSegmentation`.
            lora: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            drop_path_rate: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            lr: the highest learning rate.
            layer_decay: see :class:`~torchgeo_clay.tasks.ClaySemanticSegmentation`.
            weight_decay: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            schedule: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            warmup: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            patience: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            grad_checkpointing: see :class:`~torchgeo_clay.tasks.ClayClassification`.

        Raises:
            ValueError: for an unknown model, decoder or argument, arguments that contradict each other, or more
                outputs than one.
            CheckpointError: for weights that can't be fetched, read, or do not fit.
        """
        super().__init__(
            weights=weights,
            num_outputs=num_outputs,
            labels=labels,
            loss=loss,
            lr=lr,
            patience=patience,
            freeze_backbone=freeze_backbone,
            freeze_decoder=freeze_decoder,
        )

    def configure_models(self) -> None:
        """Build the encoder and the decoder."""
        outputs = self.hparams['num_outputs']
        if outputs != 1:
            raise ValueError(f"num_outputs: TorchGeo's pixelwise regression has 1 output per pixel, got {outputs}.")
        self.model = pixelwise(self.hparams, self.chosen_weights(), outputs)
        self.configure_training()
