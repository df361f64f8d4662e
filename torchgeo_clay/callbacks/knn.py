# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Tells while Clay is pretrained what its embeddings are good for. Shapes: N chips, D width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng

from torchgeo_clay.datamodules.arguments import check_at_least
from torchgeo_clay.evaluation import collapse_figures, knn_probe
from torchgeo_clay.inference.embedding import embed_labelled
from torchgeo_clay.models import Clay
from torchgeo_clay.models.clay import find_clay

__all__ = ('KNNEvaluation',)


class KNNEvaluation(Callback):
    """Tells the classes of labelled chips by their nearest neighbours, with the encoder as it is being trained.

    Logged, with the validation of every nth epoch: ``val_knn_accuracy``, of the chips that validate by those that train
    (see :func:`torchgeo_clay.evaluation.knn_probe`); and of the embeddings of those that validate
    ``val_effective_rank`` and ``val_mean_cosine`` (see :class:`torchgeo_clay.evaluation.CollapseFigures`). All of it is
    done once before training starts, so that a mistake in the labelled data shows then; the log says what came out,
    loggers get it where the sanity check is the whole validation (``num_sanity_val_steps: -1``).

    Training is as it would be without: the data are a datamodule of their own, what torch draws there is drawn from a
    seed, the same each time, and the state of all generators is put back. Every process does all of it.

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
        """Initialise.

        Args:
            data: a datamodule for classification, whose batches follow the contract of
                :mod:`torchgeo_clay.conditioning` and have ``label`` (B,):
                :class:`~torchgeo_clay.datamodules.SyntheticDataModule`, or
                :class:`~torchgeo_clay.datamodules.SensorDataModule` around one of TorchGeo's. Not the one trained on.
            every_n_epochs: how often; the last epoch always counts.
            k: neighbours that vote.
            temperature: see :func:`torchgeo_clay.evaluation.knn_probe`.
            pooling: ``class`` for the class token, ``mean`` for the mean of the patches.
            seed: of what the labelled data's training loader draws, such as its order.

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
        """Set up the labelled data.

        Args:
            trainer: the trainer.
            pl_module: the task.
            stage: only ``fit`` matters.

        Raises:
            ValueError: for the datamodule that is trained on, whose loaders would lose their position; for a task
                without Clay.
        """
        if stage != 'fit':
            return
        own = getattr(trainer, 'datamodule', None)
        if self.data is own or getattr(self.data, 'datamodule', self.data) is own:
            raise ValueError('KNNEvaluation: expected a datamodule of its own, got the one that is trained on.')
        _encoder(pl_module)
        with isolate_rng():
            if trainer.local_rank == 0:
                self.data.prepare_data()
            trainer.strategy.barrier('KNNEvaluation')
            self.data.setup('fit')
            self._loaders = self.data.train_dataloader(), self.data.val_dataloader()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate before training, to fail before it if at all."""
        self._first = self._evaluate(trainer, pl_module)
        said = ', '.join(f'{name} {value:.3f}' for name, value in self._first.items())
        rank_zero_info(f'KNNEvaluation: {said} before training goes on.')

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
        """Whether it is the turn of this epoch."""
        if trainer.sanity_checking:
            return trainer.num_sanity_val_steps == float('inf')
        epoch = trainer.current_epoch + 1
        return epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """The figures, by name."""
        assert self._loaders is not None
        encoder, order = _encoder(pl_module), pl_module.hparams.get('latlon_order', 'latlon')
        with isolate_rng(), trainer.precision_plugin.forward_context():
            torch.manual_seed(self.seed)
            (known, classes), (asked, truth) = (
                embed_labelled(encoder, self.data, loader, pooling=self.pooling, latlon_order=order)
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
        """Close the labelled data."""
        if self._loaders is not None:
            self._loaders = None
            self.data.teardown('fit')


def _encoder(pl_module: LightningModule) -> Clay:
    """The one Clay of a task."""
    found = find_clay(pl_module)
    if len(found) != 1:
        raise ValueError(
            f'KNNEvaluation: expected a task with one Clay, got {len(found)} in {type(pl_module).__name__}.'
        )
    return found[0]
