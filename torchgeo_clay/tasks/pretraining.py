# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Masked autoencoder pretraining. Shapes: B samples, C bands, H × W pixels, L patches."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, cast

import torch.distributed
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import torchgeo_clay.models
from torchgeo_clay.conditioning import Conditioning, LatLonOrder, batch_sensor
from torchgeo_clay.models import ClayMAE, MAEOutput
from torchgeo_clay.models.teacher import teacher_rgb
from torchgeo_clay.tasks.optim import cosine, published
from torchgeo_clay.tasks.precision import warn_if_emulated
from torchgeo_clay.tasks.teacher import TaughtTask, teacher_options

__all__ = ('ClayPretraining',)

_MODELS = tuple(f'clay_mae_{size}_patch8' for size in ('tiny', 'small', 'base', 'large'))


def _counted(batch: dict[str, Any]) -> int:
    """How many samples of a batch count: all, but where a rank has none of its own left."""
    return batch.get('counted', batch['image'].shape[0])


class ClayPretraining(TaughtTask):
    """Pretrain Clay: reconstruct masked patches, and represent chips as a teacher does.

    Batches are those of :class:`~torchgeo_clay.datamodules.ClayPretrainDataModule`, which draws whatever is random:
    with them the task is deterministic. Those of :class:`~torchgeo_clay.datamodules.SensorDataModule` around any of
    TorchGeo's will do too; then masks are drawn by the task, anew in each validation, and no bands are hidden.

    Logged, for train, val and test: ``{split}_loss``, ``{split}_reconstruction_loss`` and, with a teacher,
    ``{split}_representation_loss``; of each also ``…/{sensor}``.
    """

    model: ClayMAE

    def __init__(
        self,
        model: str = 'clay_mae_large_patch8',
        weights: str | os.PathLike[str] | None = None,
        teacher: str | None = None,
        representation_weight: float = 0.05,
        norm_pix_loss: bool = False,
        mask_ratio: float = 0.75,
        recipe: Literal['cosine', 'published'] = 'cosine',
        lr: float | None = None,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        kernel_rate: float = 0.1,
        t_0: int = 1000,
        t_mult: int = 2,
        grad_checkpointing: bool = False,
        latlon_order: LatLonOrder = 'latlon',
        compile: bool = False,
        teacher_targets: str | None = None,
    ) -> None:
        """Initialize the task.

        Args:
            model: the builder's name, ``clay_mae_{tiny,small,base,large}_patch8``.
            weights: where training goes on from: ``ClayLarge8_Weights.CLAY_V1_5``, the path of a released-format
                checkpoint or of one of this task; None for random ones.
            teacher: a timm name such as ``vit_large_patch14_reg4_dinov2.lvd142m`` (the release's), which is fetched
                from the Hub unless the weights hold it; None to reconstruct only.
            representation_weight: see :class:`~torchgeo_clay.models.ClayMAE`, as for the next two.
            norm_pix_loss: see :class:`~torchgeo_clay.models.ClayMAE`.
            mask_ratio: see :class:`~torchgeo_clay.models.ClayMAE`.
            recipe: ``cosine``, a warm-up and a cosine decay, or ``published``, the release's rising warm restarts; see
                :mod:`torchgeo_clay.tasks.optim`.
            lr: learning rate; None for the recipe's own, 1.5e-4 for ``cosine`` and 1e-5 for ``published``.
            weight_decay: of AdamW.
            warmup: share of the steps in which ``cosine`` raises the rate.
            kernel_rate: factor on the rate of the networks that make kernels from wavelengths, with ``cosine``; see
                :func:`torchgeo_clay.tasks.optim.cosine`.
            t_0: steps of the first cycle of ``published``.
            t_mult: factor from one cycle's length to the next of ``published``.
            grad_checkpointing: recompute the encoder's activations in the backward pass, to save memory.
            latlon_order: order of latitude and longitude in the place code; the release's documents say ``latlon``, but
                its training chips may have been ``lonlat``.
            compile: whether to compile the autoencoder and its teacher (:func:`torch.compile`), for speed on a GPU.
            teacher_targets: a folder to keep the teacher's answers in, for chips (``.npz``) of at most ``patch_size``
                pixels: those that are not there yet are computed at the start, of the chips as they are, not flipped,
                and the teacher takes no part in training. None for a teacher that looks at every batch.

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
        self.model = getattr(torchgeo_clay.models, hparams['model'])(
            weights=self.weights,
            **teacher_options(hparams),
            representation_weight=hparams['representation_weight'],
            norm_pix_loss=hparams['norm_pix_loss'],
            mask_ratio=hparams['mask_ratio'],
        )
        self.model.encoder.set_grad_checkpointing(hparams['grad_checkpointing'])
        if hparams['compile']:
            self.model.compile()

    def on_fit_start(self) -> None:
        """Warn of a precision that is slow here."""
        warn_if_emulated(self.trainer)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The recipe's optimiser, and its scheduler stepped per training step."""
        hparams = self.hparams
        lr, decay = hparams['lr'], hparams['weight_decay']
        if hparams['recipe'] == 'published':
            pair: tuple[Optimizer, LRScheduler] = published(
                self.model, lr or 1e-5, decay, hparams['t_0'], hparams['t_mult']
            )
        else:
            tokens = {f'encoder.{name}' for name in self.model.encoder.no_weight_decay()}
            tokens |= {f'decoder.head.kernels.{name}' for name in ('weight_tokens', 'bias_token')}
            steps = int(self.trainer.estimated_stepping_batches)
            pair = cosine(
                self.model,
                steps,
                lr or 1.5e-4,
                decay,
                hparams['warmup'],
                no_decay=tokens,
                kernel_rate=hparams['kernel_rate'],
            )
        config = {'optimizer': pair[0], 'lr_scheduler': {'scheduler': pair[1], 'interval': 'step'}}
        return cast(OptimizerLRScheduler, config)

    def reconstruction(self, batch: dict[str, Any], share: Callable[[Tensor], Tensor] | None = None) -> MAEOutput:
        """Run the autoencoder on a batch.

        Args:
            batch: see :class:`~torchgeo_clay.datamodules.ClayPretrainDataModule`. Without ``target`` it is the image,
                without ``valid`` all of it counts, and without ``noise`` masks are drawn here.
            share: see :func:`~torchgeo_clay.models.mae.masked_l1`; None for the loss of this batch alone.

        Returns:
            Losses, prediction and mask.
        """
        sensor = batch_sensor(batch)
        conditioning = Conditioning.from_batch(batch, self.hparams['latlon_order'])
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
            global_count=share,
        )
        return output

    def _share(self, batch: dict[str, Any]) -> Callable[[Tensor], Tensor] | None:
        """On several ranks, what makes the mean of their losses the loss of all their samples; all have to call it."""
        if self.trainer.world_size == 1 or 'valid' not in batch:
            return None
        samples = _counted(batch)

        def share(patches: Tensor) -> Tensor:
            both = torch.stack((patches, torch.full_like(patches, samples)))
            torch.distributed.all_reduce(both)
            return both[0] * samples / both[1]

        return share

    def _step(self, batch: dict[str, Any], split: str) -> Tensor:
        """Run a batch and log its losses, in all and of its sensor."""
        output = self.reconstruction(batch, self._share(batch))
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
        """Compute the training loss.

        Args:
            batch: see :meth:`reconstruction`.
            batch_idx: ignored.

        Returns:
            () loss.
        """
        loss = self._step(batch, 'train')
        self.log('lr', self.trainer.optimizers[0].param_groups[0]['lr'], on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Compute the validation losses.

        Args:
            batch: see :meth:`reconstruction`.
            batch_idx: ignored.
        """
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
        """Compute the test losses.

        Args:
            batch: see :meth:`reconstruction`.
            batch_idx: ignored.
        """
        self._step(batch, 'test')
