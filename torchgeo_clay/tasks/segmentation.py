# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Semantic segmentation. Shapes: B samples, C bands, H × W pixels, K classes or labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor
from torchgeo.tasks import SemanticSegmentation

from torchgeo_clay.models import ClayLarge8_Weights
from torchgeo_clay.tasks.base import ClayTask
from torchgeo_clay.tasks.building import pixelwise

__all__ = ('ClaySemanticSegmentation',)


class ClaySemanticSegmentation(ClayTask, SemanticSegmentation):
    """TorchGeo's semantic segmentation with Clay, told about each batch.

    Images are of any size from one patch on, and the output is of theirs; see
    :class:`~torchgeo_clay.models.decoders.DenseClay`.
    """

    label_key = 'mask'

    def __init__(
        self,
        model: str = 'clay_large_patch8',
        decoder: Literal['unet', 'deeplabv3+', 'upernet', 'segformer', 'dpt'] = 'unet',
        weights: ClayLarge8_Weights | str | bool | None = None,
        task: Literal['binary', 'multiclass', 'multilabel'] = 'multiclass',
        num_classes: int | None = None,
        num_labels: int | None = None,
        labels: list[str] | None = None,
        pos_weight: Tensor | None = None,
        loss: Literal['ce', 'bce', 'jaccard', 'focal', 'dice'] = 'ce',
        class_weights: Tensor | Sequence[float] | None = None,
        ignore_index: int | None = None,
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
            model: the encoder's builder; see :class:`~torchgeo_clay.tasks.ClayClassification`, as for the other
                arguments that are not explained here.
            decoder: of segmentation_models_pytorch, by TorchGeo's names (which calls this argument ``model``).
            weights: of the encoder. The decoder, and the pyramid of feature maps under it, are new.
            task: see :class:`torchgeo.tasks.SemanticSegmentation`, as for the arguments up to ``ignore_index``.
            num_classes: K for ``task='multiclass'``.
            num_labels: K for ``task='multilabel'``.
            labels: names of the classes.
            pos_weight: weight of positive pixels in 'bce'.
            loss: ``ce`` for multiclass; ``bce`` for binary and multilabel; or one of the others.
            class_weights: weight of each class in 'ce'.
            ignore_index: a label that is left out.
            freeze_backbone: train the pyramid, the decoder and the head: the encoder is in eval mode, without
                gradients.
            freeze_decoder: freeze the pyramid and the decoder, at random as they are.
            trainable_blocks: train the encoder's last so many blocks and freeze the rest of it.
            lora: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            drop_path_rate: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            lr: the highest learning rate.
            layer_decay: see :class:`~torchgeo_clay.tasks.ClayClassification`; pyramid and decoder have ``lr`` itself.
            weight_decay: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            schedule: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            warmup: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            patience: see :class:`~torchgeo_clay.tasks.ClayClassification`.
            grad_checkpointing: see :class:`~torchgeo_clay.tasks.ClayClassification`.

        Raises:
            ValueError: for an unknown model, decoder or argument, or arguments that contradict each other.
            CheckpointError: for weights that can't be fetched, read, or do not fit.
        """
        super().__init__(
            weights=weights,
            task=task,
            num_classes=num_classes,
            num_labels=num_labels,
            labels=labels,
            pos_weight=pos_weight,
            loss=loss,
            class_weights=class_weights,
            ignore_index=ignore_index,
            lr=lr,
            patience=patience,
            freeze_backbone=freeze_backbone,
            freeze_decoder=freeze_decoder,
        )

    def configure_models(self) -> None:
        """Build the encoder and the decoder."""
        outputs = self.hparams['num_classes'] or self.hparams['num_labels'] or 1
        self.model = pixelwise(self.hparams, self.chosen_weights(), outputs)
        self.configure_training()
