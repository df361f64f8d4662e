# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Loaders that follow a plan, and one that resumes a killed run in mid-epoch.

They hold a DataLoader and are none, so that Lightning leaves the sampling alone, whatever ``use_distributed_sampler``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset, Sampler

from torchgeo_clay.datamodules.common import MetadataDataModule
from torchgeo_clay.datamodules.pretrain.dataset import collate
from torchgeo_clay.datamodules.pretrain.plan import EpochPlan, PatchKey, Shares, plan_epoch, plan_evaluation, rank_part
from torchgeo_clay.datamodules.workers import WORKER_DIED, ignore_sigterm, is_dead_worker

__all__ = ('PlannedLoader', 'ResumableDataModule', 'ResumableLoader')

log = logging.getLogger(__name__)

_RESUME = (
    'Resume from the last checkpoint with --ckpt_path: no sample is lost, and none is seen twice but those of the step '
    'in flight.'
)


class _RankBatches(Sampler[list[PatchKey]]):
    """The keys of a rank's batches, from step ``start`` of a plan to its end."""

    def __init__(self, plan: EpochPlan, rank: int, world_size: int) -> None:
        """Initialize a new _RankBatches instance."""
        self.plan, self.rank, self.world_size, self.start = plan, rank, world_size, 0

    def __iter__(self) -> Iterator[list[PatchKey]]:
        """Yield the keys of each batch."""
        for step in range(self.start, len(self.plan)):
            yield rank_part(self.plan.keys(step), self.rank, self.world_size)


class PlannedLoader:
    """Yields a rank's batches of a plan, and counts the scenes that cannot be read."""

    def __init__(
        self,
        dataset: Dataset[dict[str, Any]],
        plan: Callable[[int], EpochPlan],
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        max_failures: int = 10,
    ) -> None:
        """Initialize a new PlannedLoader instance.

        Args:
            dataset: takes a :class:`~torchgeo_clay.datamodules.pretrain.plan.PatchKey`.
            plan: number of the epoch → its plan; all plans have the same number of steps.
            rank, world_size: of this process.
            num_workers: worker processes; 0 to load in this one.
            max_failures: scenes of this rank that may fail before the run is stopped.
        """
        self.dataset, self.plan = dataset, plan
        self.num_workers, self.max_failures = num_workers, max_failures
        self.failures: dict[str, str] = {}
        self.batch_sampler = _RankBatches(plan(0), rank, world_size)
        self._loader: DataLoader[dict[str, Any]] | None = None

    def __len__(self) -> int:
        """Number of batches of a whole epoch."""
        return len(self.batch_sampler.plan)

    def _open(self) -> DataLoader[dict[str, Any]]:
        """The DataLoader, made at first use and kept, so that its workers live on from epoch to epoch."""
        if self._loader is None:
            self._loader = DataLoader(
                self.dataset,
                batch_sampler=self.batch_sampler,
                num_workers=self.num_workers,
                collate_fn=collate,
                pin_memory=torch.cuda.is_available(),
                persistent_workers=self.num_workers > 0,
                worker_init_fn=ignore_sigterm,
                generator=torch.Generator(),  # else every epoch takes a number from the global generator
            )
        return self._loader

    def close(self) -> None:
        """Stop the workers."""
        self._loader = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches; PyTorch reports a dead worker directly or as a broken pipe."""
        batches = iter(self._open())
        while True:
            try:
                batch = next(batches, None)
            except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
                if not is_dead_worker(error, waiting=self.num_workers > 0):
                    raise  # an error of the data
                raise RuntimeError(f'{str(error).strip()} {WORKER_DIED} {_RESUME}') from error
            if batch is None:
                return
            self._count_failures(batch.pop('failures'))
            yield batch

    def _count_failures(self, failures: list[tuple[str, str]]) -> None:
        """Name each scene that failed once, and stop the run above ``max_failures`` of them."""
        for path, reason in failures:
            if path not in self.failures:
                self.failures[path] = reason
                log.warning('Skipped %s, which cannot be read (scene %d): %s', path, len(self.failures), reason)
        if len(self.failures) > self.max_failures:
            raise OSError(
                f'{len(self.failures)} scenes could not be read, more than max_failures={self.max_failures}: '
                f'{sorted(self.failures)}. Repair or remove them, or raise max_failures.'
            )


class ResumableLoader(PlannedLoader):
    """A planned loader that counts epochs and keeps a position, which Lightning saves in its checkpoints.

    It counts epochs itself: resumed with ``max_steps`` at the end of an epoch, Lightning counts one that is empty. The
    position saved is that of the last batch trained on. It is neither what workers have read ahead nor what was handed
    out: a run that dies within a step repeats that step.
    """

    def __init__(
        self,
        dataset: Dataset[dict[str, Any]],
        plan: Callable[[int], EpochPlan],
        *,
        identity: Mapping[str, Any],
        trainer: Trainer | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize a new ResumableLoader instance.

        Args: as :class:`PlannedLoader`, and
            identity: all the plan depends on but the epoch, in plain types; a resumed run must have the same.
            trainer: it knows which batches were trained on; None counts those handed out.
        """
        super().__init__(dataset, plan, **kwargs)
        self.identity, self.trainer = dict(identity), trainer
        # with `overfit_batches` Lightning expects the same batches in every epoch
        self._repeats = getattr(trainer, 'overfit_batches', 0) > 0
        self._epoch = -1  # of the batches handed out last; none yet
        self._handed_out = 0
        self._resume = False

    def _begin(self) -> None:
        """Go to the next epoch, or after loading a state to what is left of its epoch."""
        # `limit_train_batches` may end an epoch early
        batches = len(self) if self.trainer is None else min(len(self), self.trainer.num_training_batches)
        if not self._resume or self._handed_out >= batches:
            if self._epoch < 0 and self.trainer is not None:
                self._epoch = self.trainer.current_epoch
            else:
                self._epoch += 1
            self._handed_out = 0
        self._resume = False
        self.batch_sampler.plan = self.plan(0 if self._repeats else self._epoch)
        self.batch_sampler.start = self._handed_out

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of the next epoch. A generator: an iterator that Lightning never asks counts for none."""
        self._begin()
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position: number of the epoch, of its batches trained on, and what the plan was made from."""
        step = self._handed_out
        if self.trainer is not None and not self._resume:
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress  # Lightning declares its base class only
            step = min(step, progress.current.processed)
        return {'epoch': max(self._epoch, 0), 'step': step, 'identity': self.identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position; raise if something the plan is made from has changed."""
        saved = state['identity']
        changed = sorted(k for k in {*saved, *self.identity} if saved.get(k) != self.identity.get(k))
        if changed:
            differences = '; '.join(f'{k}: expected {saved.get(k)}, got {self.identity.get(k)}' for k in changed)
            raise ValueError(
                f'The checkpoint was written in mid-epoch, and the rest of that epoch would differ: {differences}. '
                'Resume with the settings and data of the killed run (on another number of devices keep batch_size × '
                'devices), from a checkpoint at the end of an epoch, or start a new run with its weights.'
            )
        self._epoch, self._handed_out, self._resume = state['epoch'], state['step'], True


class ResumableDataModule(MetadataDataModule):
    """Keeps the position of its training loader in checkpoints.

    Lightning keeps it too, but does not give it back to a loader made before it read the state of its loops, as with
    any task whose ``configure_optimizers`` asks for ``trainer.estimated_stepping_batches`` (``FitLoop.setup_data`` of
    Lightning 2.6 returns early the second time). The state of a datamodule is read before that.
    """

    seed: int
    _train_loader: ResumableLoader | None = None
    _position: Mapping[str, Any] | None = None

    def __init__(self, *args: Any) -> None:
        """Initialize a new ResumableDataModule instance."""
        super().__init__(*args)
        self._loaders: list[PlannedLoader] = []

    @property
    def _world(self) -> tuple[int, int]:
        """Number of this rank and number of ranks."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _training_loader(
        self, dataset: Dataset[dict[str, Any]], sizes: Mapping[str, int], shares: Shares, **options: Any
    ) -> ResumableLoader:
        """This rank's loader of training, at the position that a checkpoint says, if any."""
        rank, world = self._world
        total, seed = self.batch_size * world, self.seed
        options['identity'] = {'batch_size × devices': total, 'seed': seed, **options['identity']}
        loader = ResumableLoader(
            dataset,
            lambda epoch: plan_epoch(sizes, total, shares, seed=seed, epoch=epoch),
            rank=rank,
            world_size=world,
            num_workers=self.num_workers,
            trainer=self.trainer,
            **options,
        )
        if self._position is not None:
            loader.load_state_dict(self._position)
        self._train_loader, self._position = loader, None
        self._loaders.append(loader)
        return loader

    def _evaluation_loader(
        self, dataset: Dataset[dict[str, Any]], sizes: Mapping[str, int], **options: Any
    ) -> PlannedLoader:
        """This rank's loader of every sample once, in order."""
        rank, world = self._world
        plan = plan_evaluation(sizes, self.batch_size * world)
        options['num_workers'] = self.num_workers
        loader = PlannedLoader(dataset, lambda epoch: plan, rank=rank, world_size=world, **options)
        self._loaders.append(loader)
        return loader

    def teardown(self, stage: str) -> None:
        """Stop the workers."""
        while self._loaders:
            self._loaders.pop().close()

    def state_dict(self) -> dict[str, Any]:
        """The position of the training loader, for Lightning's checkpoints."""
        return {} if self._train_loader is None else {'train_loader': self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a position for the training loader; validating and testing have no use for it."""
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._position = state_dict.get('train_loader')

    def on_exception(self, exception: BaseException) -> None:
        """Add a remedy where a worker process died; PyTorch raises that from wherever training is."""
        if is_dead_worker(exception) and WORKER_DIED not in str(exception):
            exception.add_note(f'{WORKER_DIED} {_RESUME}')
