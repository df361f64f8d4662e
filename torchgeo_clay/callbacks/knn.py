# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Nearest-neighbor accuracy of embeddings during pretraining. Shapes: N chips, D width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng

from torchgeo_clay.datamodules.common import check_at_least
from torchgeo_clay.evaluation import collapse_figures, knn_probe
from torchgeo_clay.inference.embedding import embed_labeled
from torchgeo_clay.models import Clay
from torchgeo_clay.models.clay import find_clay

__all__ = ('KNNEvaluation',)


class KNNEvaluation(Callback):
    """Classifies labeled chips by their nearest neighbors, with the encoder as it is being trained.

    Logged with the validation of every nth epoch: ``val_knn_accuracy``, of validation chips by training chips (see
    :func:`torchgeo_clay.evaluation.knn_probe`), and ``val_effective_rank`` and ``val_mean_cosine`` of the validation
    chips (see :class:`torchgeo_clay.evaluation.CollapseFigures`). It is evaluated once before training, too, so that a
    mistake in the labeled data shows then; loggers get that where the sanity check is the whole validation
    (``num_sanity_val_steps: -1``).

    Training is not affected: the data have a datamodule of their own, and the state of all random generators is
    restored. Every process evaluates all chips.

    Example::

        trainer:
          callbacks:
            - class_path: torchgeo_clay.callbacks.KNNEvaluation
              init_args:
                data:
                  class_path: torchgeo_clay.datamodules.SyntheticDataModule
                  init_args: {root: data/synthetic, hide_metadata: 1}
    """

    def __init__(
        self,
        data: LightningDataModule,
        every_n_epochs: int = 1,
        k: int = 20,
        temperature: float | None = None,
        pooling: Literal['class', 'mean'] = 'class',
        seed: int = 0,
    ) -> None:
        """Initialize a new KNNEvaluation instance.

        Args:
            data: a datamodule for classification, whose batches follow the contract of
                :mod:`torchgeo_clay.conditioning` and have ``label`` (B,):
                :class:`~torchgeo_clay.datamodules.SyntheticDataModule`, or
                :class:`~torchgeo_clay.datamodules.SensorDataModule` around one of TorchGeo's. Not the one trained on.
            every_n_epochs: interval; the last epoch is always evaluated.
            k: neighbors that vote.
            temperature: see :func:`torchgeo_clay.evaluation.knn_probe`.
            pooling: ``class`` for the class token, ``mean`` for the mean of the patches with data.
            seed: of the labeled data's training loader, such as its order.

        Raises:
            ValueError: for values out of range.
        """
        check_at_least(1, every_n_epochs=every_n_epochs, k=k)
        check_at_least(0, seed=seed)
        if pooling not in ('class', 'mean'):
            raise ValueError(f"pooling: expected 'class' or 'mean', got {pooling!r}.")
        self.data, self.every_n_epochs, self.k, self.temperature = data, every_n_epochs, k, temperature
        self.pooling, self.seed = pooling, seed
        self._loaders: tuple[Any, Any] | None = None
        self._first: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set up the labeled data.

        Raises:
            ValueError: for the datamodule that is trained on, whose loaders would lose their position; or a task
                without Clay.
        """
        if stage != 'fit':
            return
        if any(data.trainer is trainer for data in (self.data, getattr(self.data, 'datamodule', self.data))):
            raise ValueError('KNNEvaluation: expected a datamodule of its own, got the one that is trained on.')
        _encoder(pl_module)
        with isolate_rng():
            if trainer.local_rank == 0:
                self.data.prepare_data()
            trainer.strategy.barrier('KNNEvaluation')
            self.data.setup('fit')
            self._loaders = self.data.train_dataloader(), self.data.val_dataloader()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate before training."""
        self._first = self._evaluate(trainer, pl_module)
        text = ', '.join(f'{name} {value:.3f}' for name, value in self._first.items())
        rank_zero_info(f'KNNEvaluation: {text} before training.')

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate, and log."""
        if trainer.state.fn != 'fit' or not self._due(trainer):
            return
        # nothing was trained between the start and the sanity check
        figures: Mapping[str, float] = self._first if trainer.sanity_checking else self._evaluate(trainer, pl_module)
        for name, value in figures.items():
            bar = name == 'val_knn_accuracy'
            pl_module.log(name, value, prog_bar=bar, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def _due(self, trainer: Trainer) -> bool:
        """Return whether this epoch is evaluated."""
        if trainer.sanity_checking:
            return trainer.num_sanity_val_steps == float('inf')
        epoch = trainer.current_epoch + 1
        return epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Return the figures, by name."""
        assert self._loaders is not None
        encoder, order = _encoder(pl_module), pl_module.hparams.get('latlon_order', 'latlon')
        with isolate_rng(), trainer.precision_plugin.forward_context():
            torch.manual_seed(self.seed)
            (known, classes), (asked, truth) = (
                embed_labeled(encoder, self.data, loader, pooling=self.pooling, latlon_order=order)
                for loader in self._loaders
            )
        probe = knn_probe(known, classes, asked, truth, k=self.k, temperature=self.temperature)
        spread = collapse_figures(asked)
        return {
            'val_knn_accuracy': probe.accuracy,
            'val_effective_rank': spread.effective_rank,
            'val_mean_cosine': spread.mean_cosine,
        }

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the labeled data."""
        if self._loaders is not None:
            self._loaders = None
            self.data.teardown('fit')


def _encoder(pl_module: LightningModule) -> Clay:
    """Return the one Clay of a task."""
    found = find_clay(pl_module)
    if len(found) != 1:
        raise ValueError(
            f'KNNEvaluation: expected a task with one Clay, got {len(found)} in {type(pl_module).__name__}.'
        )
    return found[0]
