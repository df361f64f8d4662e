# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Loaders that follow a plan, and one that a killed run resumes in mid-epoch.

They hold a DataLoader and are none, so that Lightning leaves the sampling alone, whatever ``use_distributed_sampler``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset, Sampler

from torchgeo_clay.datamodules.pretrain.dataset import collate
from torchgeo_clay.datamodules.pretrain.plan import EpochPlan, PatchKey, rank_part

__all__ = ('PlannedLoader', 'Progress', 'ResumableLoader')

log = logging.getLogger(__name__)

WORKER_DIED = (
    'A process that loads data died. Most often the machine ran out of memory: lower num_workers or batch_size; where '
    'shared memory is small, as in containers, give more (--shm-size). Resume from the last checkpoint with '
    '--ckpt_path: no sample is lost, and none is seen twice but those of the step in flight.'
)


def of_dead_worker(error: BaseException) -> bool:
    """Whether this is what PyTorch raises, wherever the program is, when a process that loads data dies."""
    return isinstance(error, RuntimeError) and str(error).startswith('DataLoader worker (pid')


class RankBatches(Sampler[list[PatchKey]]):
    """The keys of a rank's batches, from a step of the plan to its end."""

    def __init__(self, plan: EpochPlan, rank: int = 0, world_size: int = 1) -> None:
        """Initialise with the plan of an epoch, to be replaced epoch by epoch."""
        self.plan, self.rank, self.world_size = plan, rank, world_size
        self.start = 0
        self.on_epoch: Callable[[int], None] | None = None

    @property
    def sampler(self) -> RankBatches:
        """Itself: Lightning calls ``set_epoch`` on the sampler of a batch sampler only."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Pass the number of the epoch on to the loader."""
        if self.on_epoch is not None:
            self.on_epoch(epoch)

    def __iter__(self) -> Iterator[list[PatchKey]]:
        """Yield the keys of each batch."""
        plan = self.plan  # workers read ahead: what they were given stays theirs if the plan is replaced
        for step in range(self.start, len(plan)):
            yield rank_part(plan.keys(step), self.rank, self.world_size)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.plan) - self.start


class PlannedLoader:
    """Yields a rank's batches of a plan, and keeps count of scenes that can't be read."""

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
        """Initialise.

        Args:
            dataset: takes a :class:`~torchgeo_clay.datamodules.pretrain.plan.PatchKey`.
            plan: number of the epoch → its plan; all plans have the same number of steps.
            rank: number of this rank.
            world_size: number of ranks.
            num_workers: number of worker processes, 0 to load in this one.
            max_failures: how many scenes may fail while this rank reads them before the run is stopped.
        """
        self.dataset, self.num_workers, self.max_failures = dataset, num_workers, max_failures
        self.plan = plan
        self.failures: dict[str, str] = {}
        self.batch_sampler = RankBatches(plan(0), rank, world_size)
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
                generator=torch.Generator(),  # else every epoch takes a number from the global generator
            )
        return self._loader

    def close(self) -> None:
        """Stop the workers."""
        self._loader = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches.

        Raises:
            RuntimeError: if a worker process died.
        """
        batches = iter(self._open())
        while (batch := self._next(batches)) is not None:
            yield self._count_failures(batch)

    def _next(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        """The next batch, None at the end. Of a dead worker PyTorch tells itself, or that a pipe to it is broken."""
        try:
            return next(batches, None)
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            broken_pipe = not isinstance(error, RuntimeError) and 'in DataLoader worker process' not in str(error)
            if not (of_dead_worker(error) or (self.num_workers and broken_pipe)):
                raise  # of the data: what a live worker raises says that it is from there
            raise RuntimeError(f'{str(error).strip()} {WORKER_DIED}') from error

    def _count_failures(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Name scenes that failed, once each, and stop where they are too many.

        Raises:
            OSError: above ``max_failures`` scenes.
        """
        for path, reason in batch.pop('failures'):
            if path in self.failures:
                continue
            self.failures[path] = reason
            log.warning(
                'Skipped %s, which can not be read (scene %d of this run): %s', path, len(self.failures), reason
            )
        if len(self.failures) > self.max_failures:
            raise OSError(
                f'{len(self.failures)} scenes could not be read, more than max_failures={self.max_failures}: '
                f'{sorted(self.failures)}. Repair or remove them, or raise max_failures.'
            )
        return batch


class ResumableLoader(PlannedLoader):
    """A planned loader with an epoch and a position, which Lightning saves in its checkpoints.

    The position saved is that of the last batch trained on. It is neither what workers have read ahead nor what was
    handed out: a run that dies within a step does that step again.
    """

    def __init__(
        self,
        dataset: Dataset[dict[str, Any]],
        plan: Callable[[int], EpochPlan],
        *,
        identity: Mapping[str, Any],
        progress: Progress | None = None,
        fixed_epoch: bool = False,
        **kwargs: Any,
    ) -> None:
        """Initialise.

        Args:
            dataset: see :class:`PlannedLoader`.
            plan: see :class:`PlannedLoader`.
            identity: all the plan depends on but the epoch, in plain types; a resumed run must have the same.
            progress: how far training is; None takes batches handed out for trained on.
            fixed_epoch: whether every epoch repeats the first, as Lightning's ``overfit_batches`` wants it.
            **kwargs: see :class:`PlannedLoader`.
        """
        super().__init__(dataset, plan, **kwargs)
        self.identity, self.progress, self.fixed_epoch = dict(identity), progress, fixed_epoch
        self.batch_sampler.on_epoch = self.set_epoch
        self._start = 0
        self._handed_out = 0
        self._asked = 0  # the epoch Lightning speaks of, and by how much that is ahead of ours
        self._ahead = 0
        self._loaded: tuple[int, int] | None = None

    @property
    def epoch(self) -> int:
        """Number of the current epoch."""
        return self.batch_sampler.plan.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch, or stay where we are if it is the current one."""
        self._asked = epoch
        if epoch - self._ahead != self.epoch and not self.fixed_epoch:
            self._begin(epoch - self._ahead)

    def _begin(self, epoch: int) -> None:
        """Go to the beginning of an epoch of ours."""
        self.batch_sampler.plan = self.plan(0 if self.fixed_epoch else epoch)
        self._start = self._handed_out = 0

    def _settle(self) -> None:
        """After loading the state of an epoch that was over, go to the next one, whatever Lightning counts.

        With ``max_steps``, Lightning resumes from the end of an epoch with one epoch that has no batches.
        """
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        epoch, step = loaded
        if step >= (len(self) if self.progress is None else min(len(self), self.progress.batches)):
            self._ahead = self._asked - (epoch + 1)
            self._begin(epoch + 1)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of the current epoch, after loading a state only what was left of it.

        A generator: the first batch is asked for after Lightning has called ``set_epoch``, this method before.
        """
        self._settle()
        self.batch_sampler.start, self._start = self._start, 0
        self._handed_out = self.batch_sampler.start
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position: number of the epoch, of its batches trained on, and what the plan was made from."""
        step = self._handed_out if self.progress is None else min(self._handed_out, self.progress.trained)
        return {'epoch': self.epoch, 'step': step, 'identity': self.identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position.

        Args:
            state: what :meth:`state_dict` returned in another run, of whatever world size.

        Raises:
            ValueError: if the rest of the epoch can't be the same, as something the plan is made from has changed.
        """
        saved = state['identity']
        changed = sorted(k for k in {*saved, *self.identity} if saved.get(k) != self.identity.get(k))
        if changed:
            differences = '; '.join(f'{k}: expected {saved.get(k)}, got {self.identity.get(k)}' for k in changed)
            raise ValueError(
                f'The checkpoint was written in mid-epoch, and what remains of that epoch is not the same any more: '
                f'{differences}. Resume with the settings and data of the killed run (on another number of devices '
                'keep batch_size × devices), from a checkpoint at the end of an epoch, or start anew with its weights.'
            )
        self.batch_sampler.plan = self.plan(state['epoch'])
        self._handed_out = self._start = state['step']
        self._loaded = state['epoch'], state['step']


class Progress:
    """How far a trainer is in its epoch."""

    def __init__(self, trainer: Trainer) -> None:
        """Initialise."""
        self.trainer = trainer

    @property
    def trained(self) -> int:
        """Batches that were trained on, not counting one in which training was interrupted."""
        current: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current  # Lightning declares its base class only
        return current.processed

    @property
    def batches(self) -> float:
        """Batches that make an epoch, which ``limit_train_batches`` may make fewer."""
        return self.trainer.num_training_batches

    @property
    def repeats(self) -> bool:
        """Whether every epoch is to train on the same batches, as ``overfit_batches`` asks for."""
        return getattr(self.trainer, 'overfit_batches', 0) > 0
