# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What a SIGTERM does to a run of a task: it stops at the next batch, saves, says so, and exits with 143."""

from __future__ import annotations

import os
from itertools import count
from math import inf
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from torchgeo_clay.datamodules.scenes import SceneLoader
from torchgeo_clay.datamodules.sigterm import EXIT_CODE, SIGTERM

__all__ = ('StopAtSigterm', 'exit_code', 'listen')

#: Where Lightning's checkpoints hold how far the validation within a training has come.
_VALIDATION = 'epoch_loop.val_loop.batch_progress'

#: Steps after which several devices ask each other, as the host waits for a device's answer.
_ASK_EVERY = 16


class StopAtSigterm(Checkpoint):
    """Brought along by this package's tasks. A resumed run goes on as if it had not been stopped.

    Lightning's own handler ends the run without a checkpoint and with the exit code 0, and where there are several
    processes it exchanges messages from within the handler, while they may be at different steps. Here a signal is
    counted only, and processes agree at the end of a batch. Being a checkpoint callback it comes after the others,
    which have saved what is due by then.
    """

    #: Lightning asks every checkpoint callback for it.
    best_model_path = ''

    def __init__(self) -> None:
        """Initialize a new StopAtSigterm instance."""
        self._agreed = self._repeat_validation = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, in place of Lightning's handler, which is there by now."""
        listen(trainer)

    on_train_start = on_validation_start = on_test_start = on_predict_start = on_sanity_check_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop, unless gradients are being accumulated, or a validation is due, in whose first batch it stops then."""
        on_host = trainer.world_size == 1 or trainer.strategy.root_device.type == 'cpu'
        if on_host or trainer.global_step % _ASK_EVERY == 0:  # the same step on all ranks
            asked = bool(SIGTERM)
            self._agreed = self._agreed or trainer.strategy.reduce_boolean_decision(asked, all=False)
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        validates = trainer.is_last_batch or (batch_idx + 1) % (trainer.val_check_batch or inf) == 0
        if self._agreed and is_step and not validates:
            self._stop_training(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop; several processes only if they have agreed before, as each may have another number of batches."""
        alone = trainer.world_size == 1
        if trainer.state.fn != TrainerFn.FITTING or (trainer.sanity_checking and alone):
            self._stop(trainer)
        elif self._agreed or (alone and SIGTERM):
            self._repeat_validation = True
            self._stop_training(trainer)

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop."""
        self._stop(trainer)

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop, but leave scenes to what writes them."""
        if not isinstance(trainer.predict_dataloaders, SceneLoader):
            self._stop(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a validation that was stopped be repeated from its first batch.

        Lightning returns to a validation that was stopped within a step, and would begin with its first batch, but
        count as many fewer as had been done.
        """
        if self._repeat_validation:
            progress = checkpoint['loops']['fit_loop'][_VALIDATION]
            for part in ('total', 'current'):
                progress[part] = dict.fromkeys(progress[part], 0)
            progress['total'] |= {'ready': 1, 'started': 1}
            progress['is_last_batch'] = False

    def _stop(self, trainer: Trainer) -> None:
        """Stop if asked to, where there is nothing to keep."""
        if SIGTERM:
            rank_zero_info(
                f'SIGTERM: stopped, with nothing to keep. Run the same command again. Exit code {EXIT_CODE}.'
            )
            raise SIGTERMException(exit_code(trainer))

    def _stop_training(self, trainer: Trainer) -> None:
        """Save a checkpoint, and stop."""
        path = self._save(trainer)
        kept = (
            f'Saved to {path}; the same command with --ckpt_path {path} goes on from there.'
            if path
            else 'Nothing was saved, as enable_checkpointing is off.'
        )
        rank_zero_info(f'SIGTERM: stopped after step {trainer.global_step}. {kept} Exit code {EXIT_CODE}.')
        raise SIGTERMException(exit_code(trainer))

    def _save(self, trainer: Trainer) -> str | None:
        """Save under the name that ``--ckpt_path last`` looks for, and return it; None without checkpoints."""
        callback = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        if callback is None or callback.dirpath is None:
            return None
        path: str = trainer.strategy.broadcast(callback.last_model_path or _free_name(callback))
        if trainer.is_global_zero and os.path.islink(path):  # of save_last: link, through which another would be lost
            os.unlink(path)
        callback.last_model_path = path  # before saving, as the checkpoint holds it
        trainer.save_checkpoint(path, weights_only=False)
        return path


def listen(trainer: Trainer, answer: str = '') -> None:
    """Count SIGTERMs from now on, in place of Lightning's handler; see :meth:`StopRequest.listen`."""
    SIGTERM.listen(answer, forward=getattr(trainer.strategy.launcher, 'kill', None))
    SIGTERM.count = max(SIGTERM.count, int(trainer.received_sigterm))  # which came before this handler was there


def exit_code(trainer: Trainer) -> int:
    """Return the exit code; 0 in children of Lightning's own launcher, which kills itself if theirs is another."""
    environment = getattr(trainer.strategy, 'cluster_environment', None)  # of strategies of several processes
    return 0 if trainer.local_rank > 0 and isinstance(environment, LightningEnvironment) else EXIT_CODE


def _free_name(callback: ModelCheckpoint) -> str:
    """Return a name for a callback's first ``last`` checkpoint, which no other run has taken."""
    names = (callback.CHECKPOINT_NAME_LAST + (f'-v{number}' if number else '') for number in count())
    paths = (Path(str(callback.dirpath), name + callback.FILE_EXTENSION) for name in names)
    return str(next(path for path in paths if not path.exists()))
