# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A datamodule that takes a killed run to where it was in its epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from torchgeo.datamodules import BaseDataModule

from torchgeo_clay.datamodules.pretrain.loader import WORKER_DIED, ResumableLoader, of_dead_worker

__all__ = ('ResumableDataModule',)


class ResumableDataModule(BaseDataModule):
    """Keeps the position of its training loader in checkpoints.

    Lightning keeps it too, but does not give it back to a loader that was made before it read the loops' state, which
    is so whenever ``configure_optimizers`` asks for ``trainer.estimated_stepping_batches`` (``FitLoop.setup_data`` of
    Lightning 2.6 returns early the second time): the epoch would begin anew. A datamodule's state is read before.
    """

    _train_loader: ResumableLoader | None = None
    _position: Mapping[str, Any] | None = None

    def resumed(self, loader: ResumableLoader) -> ResumableLoader:
        """Take a new training loader to the position of the checkpoint that training goes on from, if it does.

        Args:
            loader: the loader, at the beginning of the first epoch.

        Returns:
            The same loader.

        Raises:
            ValueError: if the rest of that epoch can't be the same.
        """
        if self._position is not None:
            loader.load_state_dict(self._position)
        self._train_loader, self._position = loader, None
        return loader

    def state_dict(self) -> dict[str, Any]:
        """The position of the training loader, for Lightning's checkpoints."""
        return {} if self._train_loader is None else {'train_loader': self._train_loader.state_dict()}

    def on_exception(self, exception: BaseException) -> None:
        """Say what can be done where a worker process died; PyTorch raises that from wherever training is.

        Args:
            exception: what ends the run.
        """
        if of_dead_worker(exception) and WORKER_DIED not in str(exception):
            exception.add_note(WORKER_DIED)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a position for the training loader that will be made; validating and testing have no use for it.

        Args:
            state_dict: what :meth:`state_dict` returned in another run.
        """
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._position = state_dict.get('train_loader')
