# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Steps whose loss or gradients are not finite leave the weights alone, and name their files."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from torchgeo_clay.datamodules.common import check_at_least, counted

__all__ = ('NonFiniteLoss',)

log = logging.getLogger(__name__)


@dataclass
class _Batch:
    """What is kept of a batch until its step is looked at; tensors stay on their device."""

    sensor: str
    index: Tensor | None
    paths: list[str]
    loss: Tensor

    def describe(self) -> str:
        """Name the batch."""
        numbers = '' if self.index is None else f' {self.index.tolist()}'
        files = ', '.join(sorted(set(self.paths))) or 'files unknown, as the datamodule does not name them'
        return f'{self.sensor}, loss {self.loss.item()}, samples{numbers} of {files}'


@dataclass
class _Step:
    """A step that was not looked at yet."""

    number: int
    batches: list[_Batch]
    bad: list[Tensor] = field(default_factory=list)  # () float, 1 where not finite on any rank; one per optimizer

    def describe(self, rank: int) -> str:
        """Name the step's batches: those whose loss is not finite, all if only gradients are not."""
        blamed = [batch for batch in self.batches if not batch.loss.isfinite()] or self.batches
        what = 'loss' if blamed[0].loss.isfinite().logical_not() else 'gradients of this or another rank'
        return f'step {self.number}, rank {rank}: {what} not finite: {"; ".join(b.describe() for b in blamed)}'


class NonFiniteLoss(Callback):
    """Skips each step whose loss or gradients are NaN or infinite, names its batch, and stops the run if asked to.

    The step is skipped on the device: a flag goes to the fused AdamW as ``found_inf``, the way a GradScaler hands it
    over, which leaves weights and moments as they are. No step waits for the host. Flags are looked at every
    ``every_n_steps`` (on a CPU at each step), so that ``stop`` may come that many steps late, with unharmed weights.
    On several ranks a step is skipped by all if it is bad on any. Learning rates go on as if it had been done.
    """

    def __init__(self, action: Literal['stop', 'skip'] = 'stop', most: int = 10, every_n_steps: int = 50) -> None:
        """Initialize a new NonFiniteLoss instance.

        Args:
            action: ``stop`` to end the run at the first bad step, ``skip`` to go on without it.
            most: with ``skip``, bad steps after which the run is stopped all the same.
            every_n_steps: how often the host looks.

        Raises:
            ValueError: for values out of range.
        """
        if action not in ('stop', 'skip'):
            raise ValueError(f"action: expected 'stop' or 'skip', got {action!r}.")
        check_at_least(0, most=most)
        check_at_least(1, every_n_steps=every_n_steps)
        self.action, self.most, self.every_n_steps = action, most, every_n_steps
        self.skipped = 0
        self._batch: dict[str, Any] = {}
        self._batches: list[_Batch] = []  # of the step that gradients are being gathered for
        self._steps: list[_Step] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse optimizers that cannot skip a step on the device.

        Raises:
            ValueError: for float16, whose scaler skips such steps itself, or an optimizer that is not fused.
        """
        if trainer.precision == '16-mixed':
            raise ValueError(
                "NonFiniteLoss: expected another precision than '16-mixed', whose gradient scaler skips infinite "
                "steps itself and makes some on purpose. Use 'bf16-mixed', or leave this callback out."
            )
        for optimizer in trainer.optimizers:
            if not optimizer.defaults.get('fused'):
                raise ValueError(
                    f'NonFiniteLoss: expected an optimizer that can skip a step on the device, such as '
                    f'AdamW(fused=True), got {type(optimizer).__name__} without fused=True.'
                )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Keep the batch at hand."""
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss and the names of the batch."""
        batch = self._batch
        paths = list(batch.get('paths', []))
        self._batches.append(_Batch(batch.get('sensor', 'a batch'), batch.get('index'), paths, loss.detach()))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Set the optimizer's flag, on the device, that skips the step."""
        grads = [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        finite = torch.stack([batch.loss.isfinite() for batch in self._batches]).all()
        finite = finite & get_total_norm(grads, norm_type=float('inf')).isfinite()
        bad = finite.logical_not().to(torch.float32)
        if trainer.world_size > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        optimizer.found_inf = bad  # type: ignore[attr-defined]  # read by fused optimizers, see torch.amp.GradScaler
        if not self._steps or self._steps[-1].batches is not self._batches:
            self._steps.append(_Step(trainer.global_step, self._batches))
        self._steps[-1].bad.append(bad)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Look, if it is time."""
        if self._steps and self._steps[-1].batches is self._batches:  # the step has been done
            self._batches = []
        if len(self._steps) >= (1 if pl_module.device.type == 'cpu' else self.every_n_steps):
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the remaining steps."""
        self._look(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the optimizers."""
        for optimizer in trainer.optimizers:
            if hasattr(optimizer, 'found_inf'):
                del optimizer.found_inf

    def _look(self, trainer: Trainer) -> None:
        """Name the bad steps and count them; the one place that waits for the device."""
        steps, self._steps = self._steps, []
        if not steps:
            return
        flags = torch.stack([torch.stack(step.bad).amax() for step in steps]).tolist()
        bad = [step for step, flag in zip(steps, flags, strict=True) if flag]
        if not bad:
            return
        lines = _from_all_ranks([step.describe(trainer.global_rank) for step in bad], trainer.world_size)
        self.skipped += len(bad)
        if self.action == 'skip' and self.skipped <= self.most:
            if trainer.is_global_zero:
                for line in lines:
                    log.warning('Skipped %s (%d of at most %d)', line, self.skipped, self.most)
            return
        limit = '' if self.action == 'stop' else f', more than most={self.most}'
        raise FloatingPointError(
            f'{counted(self.skipped, "step")} had a loss or gradients that are not finite{limit}; the weights were '
            'left as they were before each:\n  ' + '\n  '.join(lines) + '\nLook at these files. If they are well, '
            "lower the learning rate or set trainer.gradient_clip_val; action: 'skip' goes on without such steps."
        )


def _from_all_ranks(lines: list[str], world_size: int) -> list[str]:
    """The lines of all ranks, without those of ranks that only took part, if any is to blame."""
    if world_size > 1:
        gathered: list[list[str]] = [[] for _ in range(world_size)]
        dist.all_gather_object(gathered, lines)
        lines = [line for step in zip(*gathered, strict=True) for line in step]
    return [line for line in lines if ': loss not finite' in line] or lines
