# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The part of Clay's tasks that TorchGeo's lack: metadata, partial training, adapters, layer-wise rates, export.

Shapes: B samples, T dates, C bands, H × W pixels, K outputs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, cast

import matplotlib.pyplot as plt
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchgeo.datamodules import BaseDataModule
from torchgeo.datasets import RGBBandsMissingError
from torchgeo.tasks import BaseTask

from torchgeo_clay.conditioning import Conditioning, on_host, task_conditioning
from torchgeo_clay.models import CheckpointError, Clay, builders, save_encoder
from torchgeo_clay.models.clay import Position, find_clay, pad_image
from torchgeo_clay.models.decoders import DenseClay
from torchgeo_clay.models.freezing import add_lora, eval_frozen, freeze_encoder, merge_lora
from torchgeo_clay.models.temporal import DenseSeries, ImageSeries, Temporal
from torchgeo_clay.models.weights import WeightsLike
from torchgeo_clay.tasks.losses import LossWithoutIgnored
from torchgeo_clay.tasks.optim import extend_schedule, finetuning, warm_cosine
from torchgeo_clay.tasks.stopping import StopAtSigterm

__all__ = ('ClayTask', 'ImageTask', 'PixelTask', 'check_labels')

#: Number of validation batches of which TorchGeo's tasks plot the first sample.
_PLOTTED = 10

#: Arguments of TorchGeo's tasks that have no effect on Clay's: their defaults there, and the remedy.
_REFUSED: dict[str, tuple[Any, str]] = {
    'in_channels': (3, 'the number of channels is that of the wavelengths of each batch. Leave it out'),
    'num_filters': (3, 'only TorchGeo\'s "fcn" has filters. Leave it out'),
    'patience': (10, 'the rate follows a warm-up and a cosine. Leave it out, and set warmup and lr'),
    'backbone': ('resnet50', 'model names the encoder'),
    'trainable_layers': (3, 'they are layers of a ResNet. Leave it out; trainable_blocks are the last blocks of Clay'),
    'weights_backbone': (None, 'weights are those of the encoder. Leave it out'),
    'freeze_decoder': (False, 'a frozen decoder would be random. Leave it out; freeze_backbone freezes the encoder'),
}


class ClayTask(BaseTask):
    """Mixin; must precede the TorchGeo task in the bases. Each step runs with Clay conditioned on its batch.

    Steps, metrics, losses and plots are TorchGeo's own.
    """

    #: Arguments that are not saved: the weights are in the checkpoint, the others have no effect.
    ignore: Any = property(
        lambda self: ('weights', '_class_path', *(name for name in _REFUSED if name != self.encoder_key))
    )

    #: Key of the batch that holds class labels, which are checked against the number of classes; None for none.
    label_key: str | None = None

    #: Whether TorchGeo's steps want a mask as (B, 1, H, W).
    labels_have_channel = False

    #: Whether batches have objects: lists of boxes and labels per image.
    takes_boxes = False

    #: Name of the argument that names the encoder, which is taken even if :data:`_REFUSED` has it.
    encoder_key = 'model'

    weights: Any
    criterion: nn.Module

    #: Name of a sensor → its bands, of the batches trained on; None for a task that was never trained.
    trained_on: dict[str, list[str]] | None = None

    def __init__(
        self,
        *,
        weights: WeightsLike = None,
        position: Position | None = None,
        freeze_backbone: bool = False,
        trainable_blocks: int | None = None,
        lora: int | dict[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        lr: float = 1e-4,
        layer_decay: float | None = None,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        grad_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        """Initialize a new ClayTask instance.

        Args:
            weights: of the encoder: True for the release's, a member of ``ClayLarge8_Weights`` or its name, the path of
                a released checkpoint, of one of our pretraining or of an encoder, or None for random ones.
            position: code of position, ``release`` or ``graded``; None for that of the weights, else the release's.
            freeze_backbone: freeze the encoder; it stays in eval mode. All other layers are trained.
            trainable_blocks: train only this number of the encoder's last blocks, and the norm after them.
            lora: freeze the encoder and train adapters of this rank in its attention, or with these arguments of
                :class:`peft.LoraConfig`; :meth:`export` merges them.
            drop_path_rate: probability of skipping the last block in training; lower in earlier blocks.
            lr: peak learning rate. 1e-3 suits a frozen encoder or LoRA, 1e-4 and less a trained one.
            layer_decay: factor on the rate from each layer of the encoder to the one before it, such as 0.75; None for
                one rate.
            weight_decay: of matrices; norms, biases and tokens are not decayed.
            warmup: share of the steps in which the rate rises, before it falls along a cosine.
            grad_checkpointing: recompute the encoder's activations in the backward pass, to save memory.
            **kwargs: of TorchGeo's task.

        Raises:
            ValueError: for an unknown or refused argument, or arguments that contradict each other.
            CheckpointError: for weights that cannot be fetched or read, or do not fit.
        """
        kwargs.pop('_class_path', None)  # Lightning passes what on_save_checkpoint adds to every **kwargs
        for name, (default, remedy) in _REFUSED.items():
            if name != self.encoder_key and kwargs.get(name, default) != default:
                raise ValueError(f'{name}: expected none, got {kwargs[name]!r}: {remedy}.')
        ways = {'freeze_backbone': freeze_backbone, 'trainable_blocks': trainable_blocks, 'lora': lora}
        if len(given := [key for key, value in ways.items() if value]) > 1:
            raise ValueError(
                f'{" and ".join(given)} contradict each other. freeze_backbone trains nothing of the encoder, '
                'trainable_blocks its last blocks, lora adapters of its attention: give one of them, or none to train '
                'everything.'
            )
        if trainable_blocks is not None and trainable_blocks < 1:
            raise ValueError(
                f'trainable_blocks: expected 1 or more, got {trainable_blocks}. To train none, freeze_backbone: true.'
            )
        if layer_decay is not None and (freeze_backbone or not 0 < layer_decay <= 1):
            raise ValueError(
                'layer_decay: expected a factor above 0 and up to 1 per layer of a trained encoder, got '
                f'{layer_decay} with freeze_backbone={freeze_backbone}.'
            )
        # of the TorchGeo task that follows in the bases
        super().__init__(weights=weights, lr=lr, freeze_backbone=freeze_backbone, **kwargs)  # type: ignore[call-arg]

    # building ---------------------------------------------------------------------------------------------------------

    @property
    def clay(self) -> Clay:
        """The encoder."""
        (clay,) = find_clay(self)
        return clay

    @property
    def backbone(self) -> nn.Module:
        """The encoder without its head, by the name that Lightning's ``BackboneFinetuning`` looks for."""
        clay, encoder = self.clay, nn.Module()
        for name, module in clay.named_children():
            if module is not clay.get_classifier():
                encoder.add_module(name, module)
        for name, token in clay.named_parameters(recurse=False):
            encoder.register_parameter(name, token)
        return encoder

    @property
    def sees_dates(self) -> bool:
        """Whether images are (B, T, C, H, W), each date with its own metadata."""
        return self.hparams.get('temporal') is not None

    @property
    def outputs(self) -> int:
        """K, number of outputs."""
        return self.hparams.get('num_outputs') or self.hparams.get('num_classes') or self.hparams.get('num_labels') or 1

    def build(self) -> Any:
        """Build the model."""
        raise NotImplementedError

    def configure_models(self) -> None:
        """Build the model, and freeze parts of its encoder or add adapters."""
        hparams, name = self.hparams, self.hparams[self.encoder_key]
        if name not in builders.ENCODERS:
            raise ValueError(f'{self.encoder_key}: expected one of {", ".join(builders.ENCODERS)}, got {name!r}.')
        self.model = self.build()
        self.hparams['position'] = self.clay.position  # for checkpoints, which name no weights
        if hparams['lora']:
            add_lora(self.clay, hparams['lora'])
        elif hparams['freeze_backbone'] or hparams['trainable_blocks']:
            freeze_encoder(self.clay, hparams['trainable_blocks'] or 0)
        self.clay.set_grad_checkpointing(hparams['grad_checkpointing'])

    def configure_callbacks(self) -> list[Callback]:
        """Add what a SIGTERM does to a run."""
        return [StopAtSigterm()]

    def configure_losses(self) -> None:
        """Make TorchGeo's loss, which leaves out ``ignore_index`` whatever the loss."""
        super().configure_losses()
        if (ignored := self.hparams.get('ignore_index')) is not None:
            self.criterion = LossWithoutIgnored(self.criterion, ignored)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up and cosine, stepped per training step; each layer may have its own rate.

        Raises:
            ValueError: for a training without an end.
        """
        hparams = self.hparams
        optimizer = finetuning(self.model, hparams['lr'], hparams['weight_decay'], hparams['layer_decay'])
        scheduler = warm_cosine(optimizer, self.trainer.estimated_stepping_batches, hparams['warmup'])
        config = {'optimizer': optimizer, 'lr_scheduler': {'scheduler': scheduler, 'interval': 'step'}}
        return cast(OptimizerLRScheduler, config)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step the schedule, also of parameter groups that a callback has added, such as ``BackboneFinetuning``."""
        extend_schedule(scheduler)
        super().lr_scheduler_step(scheduler, metric)

    # modes ------------------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> ClayTask:
        """Set the training mode; frozen parts of the encoder stay in eval mode."""
        super().train(mode)
        if mode:
            eval_frozen(self.clay)
        return self

    def on_train_start(self) -> None:
        """Put frozen parts into eval mode, as Lightning trains a task in the mode in which it was built."""
        eval_frozen(self.clay)

    # steps ------------------------------------------------------------------------------------------------------------

    def conditioning(self, batch: Mapping[str, Any]) -> Conditioning:
        """Return the conditioning of a batch.

        Args:
            batch: ``image`` (B, C, H, W), or (B, T, C, H, W) for a task that sees dates; ``wavelength`` (B, C), ``res``
                (B,); if known ``lat``, ``lon`` and ``time`` (B,). Missing ``wavelength`` and ``res`` are those that
                :class:`~torchgeo_clay.callbacks.SensorMetadata` has set. With dates, each of ``res``, ``lat``, ``lon``
                and ``time`` may be (B, T), ``length`` (B,) is the number of real dates, which padding follows, and the
                result is that of all real dates.

        Raises:
            ValueError: see :func:`~torchgeo_clay.conditioning.batch_conditioning`.
        """
        return task_conditioning(batch, self.clay.patch_embed.conditioning, self.sees_dates)

    def check_labels(self, batch: Mapping[str, Any]) -> None:
        """Raise for labels that are no class, before a loss on a device stops at an assertion that names none.

        Steps check labels on the host, and on a device once an epoch, as reading them there means waiting for it.

        Args:
            batch: with ``label`` or ``mask``, or without, in prediction.

        Raises:
            ValueError: naming the first such label.
        """
        target = None if self.label_key is None else batch.get(self.label_key)
        if self.label_key is not None and isinstance(target, Tensor):
            classes = self.hparams['num_classes'] if self.hparams['task'] == 'multiclass' else 2
            check_labels(target, self.label_key, classes, self.hparams['ignore_index'])

    def integer_labels(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch with labels as TorchGeo's steps want them: int64, with or without a channel.

        Args:
            batch: with ``label`` (B,) or (B, 1), ``mask`` (B, H, W) or (B, 1, H, W) of any integer type or bool; (B, K)
                and (B, K, H, W) for several labels.

        Raises:
            TypeError: for labels that are fractions.
        """
        target = batch.get(self.label_key or '')
        if self.label_key is None or not isinstance(target, Tensor):
            return batch
        if target.is_floating_point() or target.is_complex():
            raise TypeError(
                f'{self.label_key}: expected labels, which are integers or bool, got {target.dtype}. Convert them in '
                "the dataset's transforms, or use a regression task for values."
            )
        plain = 3 if self.label_key == 'mask' else 1  # dimensions without a channel
        if self.hparams['task'] != 'multilabel':
            if self.labels_have_channel and target.ndim == plain:
                target = target.unsqueeze(1)
            elif not self.labels_have_channel and target.ndim == plain + 1:
                target = target.squeeze(1)
        return {**batch, self.label_key: target.long()}

    def _step(self, name: str, batch: Any, batch_idx: int, *args: Any) -> Any:
        """Run one of TorchGeo's steps with Clay conditioned on the batch.

        Raises:
            ValueError: for batches of objects in a task that takes none.
        """
        if 'bbox_xyxy' in batch and not self.takes_boxes and name != 'predict_step':
            raise ValueError(
                f"{type(self).__name__}: expected batches without objects, got 'bbox_xyxy'. For boxes use "
                'ClayObjectDetection, for boxes with masks ClayInstanceSegmentation.'
            )
        conditioning = self.conditioning(batch)
        batch = self.integer_labels(batch)
        if batch_idx == 0 or on_host(batch['image']):
            self.check_labels(batch)
        with self.clay.conditioned_on(conditioning):
            return getattr(super(), name)(batch, batch_idx, *args)

    def training_step(self, batch: Any, batch_idx: int, *args: Any) -> Any:
        """Run TorchGeo's training step, conditioned on the batch."""
        self.trained_on = {} if self.trained_on is None else self.trained_on
        if 'selection' in batch:
            self.trained_on.setdefault(str(batch['sensor']), list(batch['selection'].band_names))
        return self._step('training_step', batch, batch_idx, *args)

    def validation_step(self, batch: Any, batch_idx: int, *args: Any) -> Any:
        """Run TorchGeo's validation step, conditioned on the batch; the plots of series are made here."""
        if not self.sees_dates or batch_idx >= _PLOTTED:
            return self._step('validation_step', batch, batch_idx, *args)
        if batch_idx == 0:
            self.check_labels(self.integer_labels(batch))
        outputs: list[Tensor] = []
        handle = self.model.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
        try:
            self._step('validation_step', batch, batch_idx + _PLOTTED, *args)  # TorchGeo does not plot from there on
        finally:
            handle.remove()
        _plot_series(self, batch, outputs[0], batch_idx)

    def test_step(self, batch: Any, batch_idx: int, *args: Any) -> Any:
        """Run TorchGeo's test step, conditioned on the batch."""
        return self._step('test_step', batch, batch_idx, *args)

    def predict_step(self, batch: Any, batch_idx: int, *args: Any) -> Any:
        """Run TorchGeo's prediction step, conditioned on the batch."""
        return self._step('predict_step', batch, batch_idx, *args)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log a value; in validation and test the mean over processes, where TorchGeo's steps log one process's."""
        super().log(name, value, *args, **{'sync_dist': not self.training, **kwargs})

    # files ------------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the class, so that ``torchgeo test --ckpt_path`` finds the task, and the sensors trained on.

        Lightning's command stores the class itself if it built the task, but not for a script.
        """
        name = f'{type(self).__module__}.{type(self).__qualname__}'
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY].setdefault('_class_path', name)
        checkpoint['torchgeo_clay'] = {'trained_on': self.trained_on}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare shapes before loading, and read the sensors trained on.

        Raises:
            CheckpointError: for weights of other shapes, such as those of another number of classes.
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
        """Write the encoder, adapters merged, for ``weights=`` of any task or builder.

        Args:
            path: a file ending in ``.safetensors``.

        Raises:
            ValueError: for another suffix.
        """
        save_encoder(merge_lora(self.clay), path)


class ImageTask(ClayTask):
    """A task with outputs per image. Images have any size from one patch on; see :func:`pad_image`."""

    def __init__(
        self, *, pooling: Literal['class', 'mean'] = 'class', temporal: Temporal | None = None, **kwargs: Any
    ) -> None:
        """Initialize a new ImageTask instance.

        Args:
            pooling: input of the head: the ``class`` token, or the ``mean`` of the patches.
            temporal: aggregation of that input over the dates of images (B, T, C, H, W): ``mean``, ``max`` or ``ltae``;
                None for images of one date. See :mod:`torchgeo_clay.models.temporal`.
            **kwargs: see :class:`ClayTask`.

        Raises:
            ValueError: for an unknown pooling.
        """
        if pooling not in ('class', 'mean'):
            raise ValueError(f"pooling: expected 'class' or 'mean', got {pooling!r}.")
        super().__init__(**kwargs)

    def build(self) -> Clay | ImageSeries:
        """Build an encoder with a linear head."""
        hparams = self.hparams
        encoder: Clay = getattr(builders, hparams['model'])(
            self.weights,
            num_classes=self.outputs,
            global_pool='token' if hparams['pooling'] == 'class' else 'avg',
            drop_path_rate=hparams['drop_path_rate'],
            position=hparams['position'],
        )
        return ImageSeries(encoder, hparams['temporal']) if self.sees_dates else encoder

    def forward(self, x: Tensor) -> Tensor:
        """Classify or regress normalized images, (B, C, H, W), or with ``temporal`` (B, T, C, H, W): (B, K)."""
        return cast(Tensor, self.model(x if self.sees_dates else pad_image(x)))


class PixelTask(ClayTask):
    """A task with outputs per pixel, of any size of images from one patch on; see :class:`DenseClay`."""

    encoder_key = 'backbone'
    model_class: type[DenseClay] = DenseClay

    def build(self) -> DenseClay:
        """Build an encoder with a decoder."""
        hparams = self.hparams
        temporal = hparams.get('temporal')
        return (self.model_class if temporal is None else partial(DenseSeries, temporal=temporal))(
            hparams['backbone'],
            hparams['model'],
            self.outputs,
            self.weights,
            drop_path_rate=hparams['drop_path_rate'],
            position=hparams['position'],
        )

    def forward(self, x: Tensor) -> Tensor:
        """Predict the pixels of normalized images, (B, C, H, W), or with ``temporal`` (B, T, C, H, W): (B, K, H, W)."""
        return cast(Tensor, self.model(x))


def check_labels(target: Tensor, key: str, num_classes: int | None, ignore_index: int | None) -> None:
    """Raise for labels that are not classes."""
    if num_classes is None or target.numel() == 0:
        return
    low, high = (int(v) for v in target.aminmax())
    if low >= 0 and high < num_classes:
        return
    wrong = (target < 0) | (target >= num_classes)
    if ignore_index is not None:
        wrong &= target != ignore_index
    if wrong.any():
        value, share = target[wrong][0].item(), wrong.float().mean().item()
        ignored = 'no ignore_index' if ignore_index is None else f'ignore_index={ignore_index}'
        raise ValueError(
            f'{key}: found the label {value} ({share:.1%} of them are out of range), expected 0 to {num_classes - 1} '
            f'for num_classes={num_classes} and {ignored}. Give num_classes: {int(high) + 1} if they are classes, '
            f'ignore_index: {value} if they mean no data, or number the classes from 0.'
        )


def _plot_series(task: LightningModule, batch: Mapping[str, Tensor], logits: Tensor, batch_idx: int) -> None:
    """Log the datamodule's plot of a batch's first series, if the logger takes figures.

    A workaround: TorchGeo's own steps denormalize with kornia, which takes no series, and from 0.9 on refuses one mask
    with several images.

    Args:
        task: attached to a trainer.
        batch: ``image`` (B, T, C, H, W) normalized by the datamodule's ``mean`` and ``std``, and ``mask`` or ``label``.
        logits: (B, K), or (B, K, H, W).
        batch_idx: number of the figure.
    """
    datamodule = getattr(task.trainer, 'datamodule', None)
    experiment: Any = getattr(task.logger, 'experiment', None)
    if not isinstance(datamodule, BaseDataModule) or not hasattr(experiment, 'add_figure'):
        return
    mean, std = (s.to(logits).reshape(-1, 1, 1) for s in (datamodule.mean, datamodule.std))
    kind = task.hparams.get('task')
    prediction = logits[0]
    if kind is not None:
        prediction = prediction.argmax(0) if kind == 'multiclass' else (prediction >= 0).long()
    targets = {key: batch[key][0].cpu() for key in ('mask', 'label') if key in batch}
    shape = next(iter(targets.values())).shape
    dates = batch['length'][0] if 'length' in batch else None
    sample = {
        'image': (batch['image'][0, :dates] * std + mean).cpu(),
        **targets,
        'prediction': prediction.reshape(shape).cpu(),
    }
    try:
        figure = datamodule.plot(sample)
    except RGBBandsMissingError:  # no picture without its bands
        return
    if figure:
        experiment.add_figure(f'image/{batch_idx}', figure, global_step=task.global_step)
        plt.close(figure)
