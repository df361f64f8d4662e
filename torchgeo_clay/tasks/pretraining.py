# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Self-supervised pretraining of Clay. Shapes: B samples, C bands, H × W pixels, L patches."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
import torch.distributed
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchgeo.tasks import BaseTask

import torchgeo_clay.models
from torchgeo_clay.conditioning import Conditioning, batch_sensor
from torchgeo_clay.datamodules import ClayPretrainDataModule
from torchgeo_clay.datamodules.pretrain.teacher_targets import attach_targets
from torchgeo_clay.models import ClayLarge8_Weights, ClayMAE, MAEOutput
from torchgeo_clay.models.clay import Position
from torchgeo_clay.models.teacher import make_teacher, teacher_rgb
from torchgeo_clay.tasks.optim import cosine, published
from torchgeo_clay.tasks.stopping import StopAtSigterm

__all__ = ('ClayPretraining',)

_TEACHER = 'model.teacher.'
_DIGEST = 'teacher_sha256'


def _teacher_options(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a builder of :mod:`torchgeo_clay.models` for a model with a teacher, or with targets only."""
    teacher = hparams['teacher']
    if hparams['teacher_targets'] is None:
        return {'teacher': teacher}
    if teacher is None:
        raise ValueError(
            f'teacher_targets: expected teacher= too, the timm name of the model whose targets are kept in '
            f'{hparams["teacher_targets"]}, got none. Leave teacher_targets out to train without a teacher.'
        )
    with torch.device('meta'):  # only its width is needed
        width = cast(nn.Module, make_teacher(teacher, pretrained=False)).num_features
    return {'teacher': None, 'teacher_dim': width}


_MODELS = tuple(f'clay_mae_{size}_patch8' for size in ('tiny', 'small', 'base', 'large'))


def _counted(batch: dict[str, Any]) -> int:
    """Number of samples that count: all, or none if a rank has no sample of its own left."""
    return batch.get('counted', batch['image'].shape[0])


class ClayPretraining(BaseTask):
    """Pretrain Clay: reconstruct masked patches, and represent chips as a teacher does.

    Batches are those of :class:`~torchgeo_clay.datamodules.ClayPretrainDataModule`, which draws whatever is random:
    with them the task is deterministic. Batches of :class:`~torchgeo_clay.datamodules.SensorDataModule` work too; the
    task then draws the masks, in each validation again, and no bands are hidden.

    Logged, for train, val and test: ``{split}_loss``, ``{split}_reconstruction_loss`` and, with a teacher,
    ``{split}_representation_loss``; of each also ``…/{sensor}``.
    """

    model: ClayMAE
    _digest: str | None = None

    def __init__(
        self,
        model: str = 'clay_mae_large_patch8',
        weights: bool | str | os.PathLike[str] | ClayLarge8_Weights | None = None,
        position: Position | None = None,
        teacher: str | None = None,
        teacher_targets: str | None = None,
        model_options: dict[str, Any] | None = None,
        recipe: Literal['cosine', 'published'] = 'cosine',
        lr: float | None = None,
        kernel_rate: float = 0.1,
        grad_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        """Initialize a new ClayPretraining instance.

        Args:
            model: the builder's name, ``clay_mae_{tiny,small,base,large}_patch8``.
            weights: weights to start from, as for the builders: True for the release's, a name or member of
                ``ClayLarge8_Weights``, the path of a checkpoint in the release's format or of this task; None or False
                for random initialization.
            position: kind of position code: ``graded``, the better one to train from scratch (docs/position.md), or
                ``release``; None for that of the weights, else the release's.
            teacher: a timm name such as ``vit_large_patch14_reg4_dinov2.lvd142m`` (the release's), which is fetched
                from the Hub unless the weights hold it; None to reconstruct only.
            teacher_targets: a folder to keep the teacher's outputs in, for chips (``.npz``) of at most ``patch_size``
                pixels: missing ones are computed at the start, of the chips as they are, not flipped, and the teacher
                takes no part in training. None for a teacher that sees every batch.
            model_options: further arguments of the builder: ``representation_weight``, ``norm_pix_loss``,
                ``mask_ratio``; see :class:`~torchgeo_clay.models.ClayMAE`.
            recipe: ``cosine``, a warm-up and a cosine decay, or ``published``, the release's rising warm restarts; see
                :mod:`torchgeo_clay.tasks.optim`.
            lr: learning rate; None for the recipe's own, 1.5e-4 for ``cosine`` and 1e-5 for ``published``.
            kernel_rate: factor on the rate of the networks that make kernels from wavelengths, with ``cosine``; see
                :func:`torchgeo_clay.tasks.optim.cosine`.
            grad_checkpointing: recompute the encoder's activations in the backward pass, to save memory.
            compile: compile the autoencoder and its teacher (:func:`torch.compile`), for speed on a GPU.

        Raises:
            ValueError: for an unknown model or recipe, values out of range, or targets without a teacher.
        """
        if model not in _MODELS:
            raise ValueError(f'model: expected one of {", ".join(_MODELS)}, got {model!r}.')
        if recipe not in ('cosine', 'published'):
            raise ValueError(f"recipe: expected 'cosine' or 'published', got {recipe!r}.")
        self.weights = weights
        super().__init__()

    def configure_models(self) -> None:
        """Build the autoencoder."""
        hparams = self.hparams
        options = {**(hparams['model_options'] or {}), **_teacher_options(hparams), 'position': hparams['position']}
        self.model = getattr(torchgeo_clay.models, hparams['model'])(weights=self.weights, **options)
        hparams['position'] = self.model.encoder.position  # for checkpoints, which name no weights
        self.model.encoder.set_grad_checkpointing(hparams['grad_checkpointing'])
        if hparams['compile']:
            self.model.compile()

    def configure_callbacks(self) -> list[Callback]:
        """Add what a SIGTERM does to a run."""
        return [StopAtSigterm()]

    def setup(self, stage: str) -> None:
        """Compute the teacher's targets that are not in the store yet, and free the teacher.

        Raises:
            ValueError: without a :class:`~torchgeo_clay.datamodules.ClayPretrainDataModule`, and see
                :func:`torchgeo_clay.datamodules.pretrain.teacher_targets.attach_targets`.
        """
        folder = self.hparams['teacher_targets']
        if folder is None:
            return
        data = getattr(self.trainer, 'datamodule', None)
        if not isinstance(data, ClayPretrainDataModule):
            raise ValueError(
                'teacher_targets: expected a ClayPretrainDataModule with chips (.npz), which have the same target in '
                f'every epoch, got {type(data).__name__}. Train with teacher_targets=null.'
            )
        with torch.random.fork_rng():  # a teacher is initialized at random before its weights are loaded
            self._digest = attach_targets(data, folder, self._teacher(), self.hparams['teacher'])
        rank_zero_info(f'Trains on teacher targets, without the teacher (weights with SHA-256 {self._digest[:12]}…)')

    def _teacher(self) -> nn.Module:
        """The teacher, with the weights it would have as a part of the model."""
        name = self.hparams['teacher']
        if self.weights in (None, False):
            return cast(nn.Module, make_teacher(name))
        model = getattr(torchgeo_clay.models, self.hparams['model'])(weights=self.weights, teacher=name)
        return cast(nn.Module, model.teacher)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The recipe's optimizer, and its scheduler stepped per training step."""
        lr, recipe = self.hparams['lr'], self.hparams['recipe']
        if recipe == 'published':
            pair: tuple[Optimizer, LRScheduler] = published(self.model, 1e-5 if lr is None else lr)
        else:
            tokens = {f'encoder.{name}' for name in self.model.encoder.no_weight_decay()}
            tokens |= {f'decoder.head.kernels.{name}' for name in ('weight_tokens', 'bias_token')}
            steps = int(self.trainer.estimated_stepping_batches)
            rate, kernel_rate = 1.5e-4 if lr is None else lr, self.hparams['kernel_rate']
            pair = cosine(self.model, steps, rate, no_decay=tokens, kernel_rate=kernel_rate)
        config = {'optimizer': pair[0], 'lr_scheduler': {'scheduler': pair[1], 'interval': 'step'}}
        return cast(OptimizerLRScheduler, config)

    def reconstruction(
        self, batch: dict[str, Any], global_count: Callable[[Tensor], Tensor] | None = None
    ) -> MAEOutput:
        """Run the autoencoder on a batch.

        Args:
            batch: see :class:`~torchgeo_clay.datamodules.ClayPretrainDataModule`. Without ``target`` the image
                is, without ``valid`` all pixels count, and without ``noise`` masks are drawn here.
            global_count: see :func:`~torchgeo_clay.models.mae.masked_l1`; None for the loss of this batch alone.

        Returns:
            Losses, prediction and mask.
        """
        sensor = batch_sensor(batch)
        conditioning = Conditioning.from_batch(batch)
        output: MAEOutput = self(
            batch['image'],
            conditioning.wavelengths,
            conditioning.gsd,
            conditioning.time,
            conditioning.latlon,
            noise=batch.get('noise'),
            target=batch.get('target'),
            valid=batch.get('valid'),
            rgb=None if self.model.teacher is None else teacher_rgb(batch.get('target', batch['image']), sensor),
            teacher_target=batch.get('teacher_target') if self.model.teacher is None else None,
            loss_scale=sensor.loss_scale,
            global_count=global_count,
        )
        return output

    def _global_count(self, batch: dict[str, Any]) -> Callable[[Tensor], Tensor] | None:
        """Return the divisor of the loss over all ranks (its function is collective: call it on every rank)."""
        if self.trainer.world_size == 1 or 'valid' not in batch:
            return None
        samples = _counted(batch)

        def global_count(patches: Tensor) -> Tensor:
            both = torch.stack((patches, torch.full_like(patches, samples)))
            torch.distributed.all_reduce(both)
            return both[0] * samples / both[1]

        return global_count

    def _step(self, batch: dict[str, Any], split: str) -> Tensor:
        """Run a batch and log its losses, overall and per sensor."""
        output = self.reconstruction(batch, self._global_count(batch))
        losses = {'loss': output.loss, 'reconstruction_loss': output.reconstruction_loss}
        if self.model.proj is not None:
            losses['representation_loss'] = output.representation_loss
        for name, value in losses.items():
            for key in (f'{split}_{name}', f'{split}_{name}/{batch["sensor"]}'):
                bar = key == f'{split}_loss'
                # not an int, of which Lightning takes the mean over ranks rounded down
                size: Any = float(_counted(batch))
                self.log(key, value, batch_size=size, prog_bar=bar, on_step=False, on_epoch=True, sync_dist=True)
        return output.loss

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute the training loss."""
        loss = self._step(batch, 'train')
        self.log('lr', self.trainer.optimizers[0].param_groups[0]['lr'], on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Compute the validation losses."""
        self._step(batch, 'val')

    def on_validation_epoch_end(self) -> None:
        """Log the losses before any training, where the sanity check is the whole validation.

        Lightning logs nothing of its sanity check; with ``num_sanity_val_steps: -1`` it is the value that training
        starts from, and is logged at step 0.
        """
        if self.trainer.sanity_checking and self.trainer.num_sanity_val_steps == float('inf'):
            losses = {k: float(v) for k, v in self.trainer.callback_metrics.items() if k.startswith('val_')}
            for logger in self.loggers:
                logger.log_metrics(losses, step=0)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Compute the test losses."""
        self._step(batch, 'test')

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen teacher out of checkpoints: its name, in the hyperparameters, brings it back."""
        checkpoint['state_dict'] = {k: v for k, v in checkpoint['state_dict'].items() if not k.startswith(_TEACHER)}
        if self._digest is not None:
            checkpoint[_DIGEST] = self._digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the teacher to the checkpoint, whose loading is strict.

        Raises:
            ValueError: if the targets are of a teacher with other weights than in the checkpoint's run.
        """
        teacher = {k: v for k, v in self.state_dict().items() if k.startswith(_TEACHER)}
        checkpoint['state_dict'] = {**checkpoint['state_dict'], **teacher}
        before = checkpoint.get(_DIGEST)
        if before is not None and self._digest is not None and before != self._digest:
            raise ValueError(
                f'teacher: expected weights with SHA-256 {before[:12]}…, whose targets the checkpoint was trained on, '
                f'got {self._digest[:12]}… Bring those weights back, or start a new run with weights=<checkpoint>.'
            )
