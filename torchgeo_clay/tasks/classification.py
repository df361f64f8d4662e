# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Classification of images. Shapes: B samples, C bands, H × W pixels, K classes or labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor
from torchgeo.tasks import Classification

from torchgeo_clay.models import ClayLarge8_Weights
from torchgeo_clay.models.clay import pad_image
from torchgeo_clay.tasks.base import ClayTask
from torchgeo_clay.tasks.building import classifier

__all__ = ('ClayClassification',)


class ClayClassification(ClayTask, Classification):
    """TorchGeo's classification with Clay, told about each batch.

    Images are of any size from one patch on; the last patches are completed by reflection.
    """

    label_key = 'label'

    def __init__(
        self,
        model: str = 'clay_large_patch8',
        weights: ClayLarge8_Weights | str | bool | None = None,
        task: Literal['binary', 'multiclass', 'multilabel'] = 'multiclass',
        num_classes: int | None = None,
        num_labels: int | None = None,
        labels: list[str] | None = None,
        pos_weight: Tensor | None = None,
        loss: Literal['ce', 'bce', 'jaccard', 'focal', 'dice'] = 'ce',
        class_weights: Tensor | Sequence[float] | None = None,
        ignore_index: int | None = None,
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
            model: the builder's name, ``clay_{tiny,small,base,large}_patch8``.
            weights: of the encoder: ``ClayLarge8_Weights.CLAY_V1_5`` or True for those released for ``large``, the path
                of a released-format checkpoint, of one of our pretraining or of an encoder, or None for random ones.
            task: see :class:`torchgeo.tasks.Classification`, as for the arguments up to ``ignore_index``.
            num_classes: K for ``task='multiclass'``.
            num_labels: K for ``task='multilabel'``.
            labels: names of the classes.
            pos_weight: weight of positive examples in 'bce'.
            loss: ``ce`` for multiclass; ``bce`` for binary and multilabel; or one of the others.
            class_weights: weight of each class in 'ce'.
            ignore_index: a label that is left out.
            pooling: what the head sees: the class ``token``, the mean of the patches (``avg``), or an attention over
                them that is trained too (``map``).
            freeze_backbone: train the head (and ``map`` pooling) alone: the encoder is in eval mode, without gradients.
            trainable_blocks: train the encoder's last so many blocks, and the norm after them, and freeze the rest.
            lora: train adapters of this rank beside the attention's weights, or with these arguments of
                :class:`peft.LoraConfig`; the encoder itself is frozen. :meth:`export` merges them.
            drop_path_rate: share of the samples that skip the last block in training; less in earlier ones.
            lr: the highest learning rate. 1e-3 suits a frozen encoder or LoRA, 1e-4 and less one that is trained.
            layer_decay: factor on the rate from each layer to the one before it, such as 0.75; None for one rate.
            weight_decay: of matrices; norms, biases and tokens are not decayed.
            schedule: ``cosine`` after a warm-up, per step, or TorchGeo's ``plateau`` of the validation loss.
            warmup: share of the steps in which the rate rises (cosine).
            patience: epochs without improvement before the rate falls (plateau).
            grad_checkpointing: compute activations anew in the backward pass instead of keeping them.

        Raises:
            ValueError: for an unknown model or argument, or arguments that contradict each other.
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
        )

    def configure_models(self) -> None:
        """Build the classifier."""
        outputs = self.hparams['num_classes'] or self.hparams['num_labels'] or 1
        self.model = classifier(self.hparams, self.chosen_weights(), outputs)
        self.configure_training()

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: (B, C, H, W) normalised.

        Returns:
            (B, K) logits.

        Raises:
            ValueError: for images smaller than a patch.
        """
        return self.model(pad_image(x))
