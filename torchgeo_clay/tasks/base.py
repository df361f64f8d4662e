# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What Clay's tasks have beyond TorchGeo's: metadata, freezing, adapters, layer-wise rates, padding, export.

Shapes: B samples, T dates, C bands, H × W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchgeo.tasks import BaseTask

from torchgeo_clay.conditioning import Conditioning, on_host, task_conditioning
from torchgeo_clay.models import CheckpointError, Clay, builders, save_encoder
from torchgeo_clay.models.clay import find_clay
from torchgeo_clay.models.decoders import DenseClay
from torchgeo_clay.models.freezing import eval_frozen, freeze_encoder
from torchgeo_clay.models.lora import add_lora, merge_lora
from torchgeo_clay.models.weights import WeightsLike
from torchgeo_clay.tasks.labels import check_labels
from torchgeo_clay.tasks.optim import finetuning, warm_cosine

__all__ = ('ClayTask',)


class ClayTask(BaseTask):
    """Mixed into one of TorchGeo's tasks, before it: each of its steps runs with Clay told about the batch.

    The steps, metrics, losses and plots are TorchGeo's own. A task that mixes this in has the arguments ``model``,
    ``weights``, ``freeze_backbone``, ``trainable_blocks``, ``lora``, ``layer_decay``, ``lr``, ``weight_decay``,
    ``schedule``, ``warmup``, ``patience`` and ``grad_checkpointing``, and builds ``self.model``.
    """

    #: Not saved: the weights are in the checkpoint, the others are arguments of TorchGeo's tasks that these have not.
    ignore: tuple[str, ...] = ('weights', 'in_channels', 'backbone', 'num_filters')

    #: Key of the batch that holds class labels, which are held against the number of classes; None for none.
    label_key: str | None = None

    #: Whether images are (B, T, C, H, W), each date with its own metadata.
    sees_dates = False

    weights: Any

    #: Name of a sensor → its bands, of the batches trained on; None for a task that was never trained.
    trained_on: dict[str, list[str]] | None = None

    @property
    def clay(self) -> Clay:
        """The encoder."""
        (clay,) = find_clay(self)
        return clay

    # building ---------------------------------------------------------------------------------------------------------

    def chosen_weights(self) -> WeightsLike:
        """The encoder's weights, as its builder takes them.

        Raises:
            ValueError: for a model that there is not, or arguments that contradict each other.
            CheckpointError: for ``weights: true`` where none were released.
        """
        name = self.hparams['model']
        if name not in builders.ENCODERS:
            raise ValueError(f'model: expected one of {", ".join(sorted(builders.ENCODERS))}, got {name!r}.')
        ways = [key for key in ('freeze_backbone', 'trainable_blocks', 'lora') if self.hparams[key]]
        if len(ways) > 1:
            raise ValueError(
                f'{" and ".join(ways)} contradict each other. freeze_backbone trains nothing of the encoder, '
                'trainable_blocks its last blocks, lora adapters beside its attention: give one of them, or none to '
                'train everything.'
            )
        decay = self.hparams['layer_decay']
        if decay is not None and (self.hparams['freeze_backbone'] or not 0 < decay <= 1):
            raise ValueError(
                'layer_decay: expected a factor over 0 and up to 1 per layer of an encoder that is trained, got '
                f'{decay} with freeze_backbone={self.hparams["freeze_backbone"]}.'
            )
        return self.weights

    def configure_training(self) -> None:
        """Freeze what is not to be trained, and add adapters, once the model is built."""
        hparams = self.hparams
        if hparams['lora']:
            add_lora(self.clay, hparams['lora'])
        elif hparams['freeze_backbone'] or hparams['trainable_blocks'] is not None:
            blocks = hparams['trainable_blocks']
            if blocks is not None and blocks < 1:
                raise ValueError(
                    f'trainable_blocks: expected 1 or more, got {blocks}. To train none, freeze_backbone: true.'
                )
            freeze_encoder(self.clay, blocks or 0)
        if hparams.get('freeze_decoder') and isinstance(self.model, DenseClay):
            for part in (self.model.decoder, *self.model.neck()):
                part.requires_grad_(False)
        self.clay.set_grad_checkpointing(hparams['grad_checkpointing'])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW; norms, biases and tokens are not decayed, and each layer may have its own rate.

        Raises:
            ValueError: for a cosine schedule without an end.
        """
        hparams = self.hparams
        optimizer = finetuning(self.model, hparams['lr'], hparams['weight_decay'], hparams['layer_decay'])
        if hparams['schedule'] == 'plateau':
            plateau = ReduceLROnPlateau(optimizer, patience=hparams['patience'])
            scheduler: dict[str, Any] = {'scheduler': plateau, 'monitor': self.monitor}
        else:
            steps = self.trainer.estimated_stepping_batches
            scheduler = {'scheduler': warm_cosine(optimizer, steps, hparams['warmup']), 'interval': 'step'}
        return cast(OptimizerLRScheduler, {'optimizer': optimizer, 'lr_scheduler': scheduler})

    # modes ------------------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> ClayTask:
        """Set the mode; what is frozen of the encoder stays in eval mode.

        Args:
            mode: True for training.
        """
        super().train(mode)
        if mode:
            eval_frozen(self.clay)
        return self

    def on_train_start(self) -> None:
        """Put what is frozen into eval mode, as Lightning trains a task in the mode it was made in."""
        eval_frozen(self.clay)

    # steps ------------------------------------------------------------------------------------------------------------

    def conditioning(self, batch: Mapping[str, Any]) -> Conditioning:
        """What a batch's images are conditioned on.

        Args:
            batch: ``image`` (B, C, H, W), or (B, T, C, H, W) for a task that sees dates; ``wavelength`` (B, C), ``res``
                (B,); if known ``lat``, ``lon`` and ``time`` (B,). What lacks of the first two is taken from the scope
                that :class:`~torchgeo_clay.callbacks.SensorMetadata` has set. Of dates, each of ``res``, ``lat``,
                ``lon`` and ``time`` may be (B, T), and the answer is of B·T images.

        Raises:
            ValueError: see :func:`~torchgeo_clay.conditioning.batch_conditioning`.
        """
        return task_conditioning(batch, self.clay.patch_embed.conditioning, self.sees_dates)

    def check_labels(self, batch: Mapping[str, Any]) -> None:
        """Raise for labels that are no class, before a loss on a device stops at an assertion that names none.

        Each step does it where the labels lie on the host, and once an epoch on a device, as looking at them there
        means waiting for it. (It is no ``on_before_batch_transfer``, which Lightning takes from the datamodule.)

        Args:
            batch: with ``label`` or ``mask``, or to be predicted, without.

        Raises:
            ValueError: see :func:`~torchgeo_clay.tasks.labels.check_labels`.
        """
        target = None if self.label_key is None else batch.get(self.label_key)
        if self.label_key is not None and isinstance(target, Tensor):
            classes = self.hparams['num_classes'] if self.hparams['task'] == 'multiclass' else 2
            check_labels(target, self.label_key, classes, self.hparams['ignore_index'])

    def _step(self, name: str, batch: Any, batch_idx: int, *args: Any) -> Any:
        """Run one of TorchGeo's steps, with Clay told about the batch."""
        conditioning = self.conditioning(batch)
        if batch_idx == 0 or on_host(batch['image']):
            self.check_labels(batch)
        with self.clay.conditioned_on(conditioning):
            return getattr(super(), name)(batch, batch_idx, *args)

    def training_step(self, batch: Any, batch_idx: int, *args: Any) -> Any:
        """TorchGeo's training step.

        Args:
            batch: see :meth:`conditioning`, and the target.
            batch_idx: of the epoch.
            *args: the index of the loader, if there are several.
        """
        self.trained_on = {} if self.trained_on is None else self.trained_on
        if 'selection' in batch:
            self.trained_on.setdefault(str(batch['sensor']), list(batch['selection'].band_names))
        return self._step('training_step', batch, batch_idx, *args)

    def validation_step(self, batch: Any, batch_idx: int, *args: Any) -> Any:
        """TorchGeo's validation step.

        Args:
            batch: see :meth:`training_step`.
            batch_idx: of the epoch.
            *args: the index of the loader, if there are several.
        """
        return self._step('validation_step', batch, batch_idx, *args)

    def test_step(self, batch: Any, batch_idx: int, *args: Any) -> Any:
        """TorchGeo's test step.

        Args:
            batch: see :meth:`training_step`.
            batch_idx: of the epoch.
            *args: the index of the loader, if there are several.
        """
        return self._step('test_step', batch, batch_idx, *args)

    def predict_step(self, batch: Any, batch_idx: int, *args: Any) -> Any:
        """TorchGeo's prediction step.

        Args:
            batch: see :meth:`conditioning`.
            batch_idx: of the epoch.
            *args: the index of the loader, if there are several.
        """
        return self._step('predict_step', batch, batch_idx, *args)

    # files ------------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the class, by which ``torchgeo test --ckpt_path`` knows the task, and the sensors trained on.

        Lightning's command does so by itself where it made the task, and can not read what a script has saved.

        Args:
            checkpoint: to be saved.
        """
        name = f'{type(self).__module__}.{type(self).__qualname__}'
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY].setdefault('_class_path', name)
        checkpoint['torchgeo_clay'] = {'trained_on': self.trained_on}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare shapes before anything is loaded, and read the sensors trained on.

        Args:
            checkpoint: to be loaded.

        Raises:
            CheckpointError: for weights of other shapes, as those of another number of classes.
        """
        self.trained_on = checkpoint.get('torchgeo_clay', {}).get('trained_on') or {}
        saved, own = checkpoint['state_dict'], self.state_dict()
        for name in own.keys() & saved.keys():
            if saved[name].shape != own[name].shape:
                raise CheckpointError(
                    f'The checkpoint has {name} of shape {tuple(saved[name].shape)}, this task '
                    f'{tuple(own[name].shape)}: another model, or another number of classes or outputs. Give the task '
                    'the arguments it was trained with (hyper_parameters in the checkpoint); to start a new task from '
                    'its encoder alone, give weights= a file written by export().'
                )

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the encoder as it is now, adapters merged, for ``weights=`` of any task or builder.

        Args:
            path: a file ending in ``.safetensors``.

        Raises:
            ValueError: for another suffix.
        """
        save_encoder(merge_lora(self.clay), path)
