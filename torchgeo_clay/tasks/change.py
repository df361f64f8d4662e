# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Change detection. Shapes: B samples, T = 2 dates, C bands, H × W pixels, K classes or labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from einops import rearrange
from torch import Tensor
from torchgeo.tasks import ChangeDetection

from torchgeo_clay.models import ClayLarge8_Weights
from torchgeo_clay.tasks.base import ClayTask
from torchgeo_clay.tasks.building import change_detector
from torchgeo_clay.tasks.plotting import PLOTTED, plot_change

__all__ = ('ClayChangeDetection',)


class ClayChangeDetection(ClayTask, ChangeDetection):
    """TorchGeo's change detection with Clay: both dates through one encoder, each told its own time.

    Batches have ``image`` (B, 2, C, H, W), the earlier date first, and ``time`` (B, 2); ``res``, ``lat`` and ``lon``
    may be of the sample, (B,), or of each date, (B, 2). Images are of any size from one patch on, and the output is of
    theirs.
    """

    label_key = 'mask'
    sees_dates = True

    def __init__(
        self,
        model: str = 'clay_large_patch8',
        decoder: Literal['unet', 'deeplabv3+', 'upernet', 'segformer'] = 'unet',
        weights: ClayLarge8_Weights | str | bool | None = None,
        task: Literal['binary', 'multiclass', 'multilabel'] = 'binary',
        num_classes: int | None = None,
        num_labels: int | None = None,
        labels: list[str] | None = None,
        pos_weight: Tensor | None = None,
        loss: Literal['ce', 'bce', 'jaccard', 'focal', 'dice'] = 'bce',
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
            model: the encoder's builder; see :class:`~torchgeo_clay.tasks.ClayClassification` and
                :class:`~torchgeo_clay.tasks.ClaySemanticSegmentation`, as for the arguments not explained here.
            decoder: see :class:`~torchgeo_clay.tasks.ClaySemanticSegmentation`.
            weights: of the encoder. Everything after it is new.
            task: see :class:`torchgeo.tasks.ChangeDetection`, as for the arguments up to ``ignore_index``.
            num_classes: K for ``task='multiclass'``.
            num_labels: K for ``task='multilabel'``.
            labels: names of the classes.
            pos_weight: weight of changed pixels in 'bce'.
            loss: ``bce`` for binary and multilabel; ``ce`` for multiclass; or one of the others.
            class_weights: weight of each class in 'ce'.
            ignore_index: a label that is left out.
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
        self.model = change_detector(self.hparams, self.chosen_weights(), outputs)
        self.configure_training()

    def forward(self, x: Tensor) -> Tensor:
        """Predict what changed.

        Args:
            x: (B, 2, C, H, W) normalised, the earlier date first, or the (B, 2·C, H, W) that TorchGeo's steps make of
                it for a model that is none of its own siamese ones.

        Returns:
            (B, K, H, W) logits.

        Raises:
            ValueError: for images smaller than a patch.
        """
        return self.model(rearrange(x, 'b (t c) h w -> b t c h w', t=2) if x.ndim == 4 else x)

    def validation_step(self, batch: Any, batch_idx: int, *args: Any) -> None:
        """TorchGeo's validation step, and a plot of the first batches (see :mod:`torchgeo_clay.tasks.plotting`).

        Args:
            batch: see :meth:`training_step`.
            batch_idx: of the epoch.
            *args: the index of the loader, if there are several.
        """
        if batch_idx >= PLOTTED:
            super().validation_step(batch, batch_idx, *args)
            return
        if batch_idx == 0:
            self.check_labels(batch)
        seen: list[Tensor] = []
        handle = self.model.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        try:
            super().validation_step(batch, batch_idx + PLOTTED, *args)  # by which TorchGeo knows what it plots
        finally:
            handle.remove()
        plot_change(self, batch, seen[0], batch_idx)
