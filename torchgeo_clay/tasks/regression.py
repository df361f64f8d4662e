# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Regression of images. Shapes: B samples, C bands, H × W pixels, K outputs."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torchgeo.tasks import Regression

from torchgeo_clay.models import ClayLarge8_Weights
from torchgeo_clay.models.clay import pad_image
from torchgeo_clay.tasks.base import ClayTask
from torchgeo_clay.tasks.building import classifier

__all__ = ('ClayRegression',)


class ClayRegression(ClayTask, Regression):
    """TorchGeo's regression with Clay, told about each batch.

    Images are of any size from one patch on; the last patches are completed by reflection.
    """

    ignore = (*ClayTask.ignore, 'freeze_decoder')

    def __init__(
        self,
        model: str = 'clay_large_patch8',
        weights: ClayLarge8_Weights | str | bool | None = None,
        num_outputs: int = 1,
        labels: list[str] | None = None,
        loss: Literal['mae', 'mse'] = 'mse',
        pooling: Literal['token', 'avg', 'map'] = 'token',
        freeze_backbone: bool = False,
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
            model: the encoder's builder; see :class:`~torchgeo_clay.tasks.ClayClassification`, as for the other
                arguments that are not explained here.
            weights: of the encoder.
            num_outputs: K.
            labels: names of the outputs.
            loss: ``mse`` or ``mae``.
            pooling: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            freeze_backbone: train the head (and ``map`` pooling) alone.
            trainable_blocks: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            lora: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            drop_path_rate: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            lr: the highest learning rate.
            layer_decay: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            weight_decay: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            schedule: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            warmup: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            patience: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            grad_checkpointing: see :class:`~torchgeo_clay.tasks.ClayClassification`.

        Raises:
            ValueError: for an unknown model or argument, or arguments that contradict each other.
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
        )

    def configure_models(self) -> None:
        """Build the model."""
        self.model = classifier(self.hparams, self.chosen_weights(), self.hparams['num_outputs'])
        self.configure_training()

    def forward(self, x: Tensor) -> Tensor:
        """Predict numbers.

        Args:
            x: (B, C, H, W) normalised.

        Returns:
            (B, K).

        Raises:
            ValueError: for images smaller than a patch.
        """
        return self.model(pad_image(x))
