# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The one way from a model's answers to files, for ``torchgeo predict``, the command line and Python alike.

Shapes: B chips.
"""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from torchgeo_clay.datamodules.scenes import SceneDataModule, SceneLoader
from torchgeo_clay.datasets import SceneError

__all__ = (
    'OnSkipped',
    'SceneOutput',
    'SkippedScenesError',
    'choose_device',
    'counted',
    'evaluating',
    'predict',
    'report_skipped',
    'transferred',
)

OnSkipped = Literal['raise', 'warn']


def counted(count: int, what: str) -> str:
    """Return a number with a noun, in the plural unless it is 1."""
    return f'{count} {what}{"" if count == 1 else "s"}'


class SkippedScenesError(SceneError):
    """Everything possible was written, but some scenes could not be used; the message names them."""


def report_skipped(failed: Mapping[str, str], written: str, on_skipped: OnSkipped) -> None:
    """Name the scenes that could not be used, if there are any.

    Args:
        failed: path → reason.
        written: where the others are.
        on_skipped: whether that is an error.

    Raises:
        SkippedScenesError: for ``on_skipped='raise'``.
    """
    if not failed:
        return
    lines = ''.join(f'\n  {path}: {reason}' for path, reason in failed.items())
    text = f'{counted(len(failed), "file")} could not be used; {written} holds all others:{lines}'
    if on_skipped == 'raise':
        raise SkippedScenesError(text)
    warnings.warn(text, stacklevel=3)


class SceneOutput(ABC):
    """Output of a run over scenes, unit by unit. A scene that cannot be read is skipped as a whole.

    Call :meth:`begin` on one process and :meth:`start` on each, :meth:`add` for each batch, :meth:`finish` on one
    process when all have added theirs; :meth:`close` in any case.

    Attributes:
        loader: whose units are written.
        pending: position of a unit → its windows that are still to come.
        failed: path of a scene → why it is skipped.
    """

    def __init__(self, loader: SceneLoader) -> None:
        """Initialize a new SceneOutput instance; nothing is written yet."""
        self.loader, self.data = loader, loader.data
        self.pending: dict[int, int] = {}
        self.failed = dict(self.data.skipped)
        self.count = self.empty = 0
        self.started = time.monotonic()

    @abstractmethod
    def begin(self) -> set[str]:
        """Check the output folder, and return the keys of the existing units."""

    def start(self, done: set[str]) -> None:
        """Skip the units that :meth:`begin` returned."""
        if there := [unit for unit in self.data.units if unit.key in done and unit.source not in self.failed]:
            rank_zero_info(f'{len(there)} of {len(self.data.units)} parts exist already and are not computed again.')
        self.loader.skip(done)
        self.pending = {i: len(u.corners) for i, u in enumerate(self.loader.units) if u.key not in done}
        self.started = time.monotonic()

    def add(self, outputs: Any, batch: Mapping[str, Any]) -> None:
        """Take a batch's answers, and write the units that are complete.

        Args:
            outputs: of the model, for B chips.
            batch: of :class:`~torchgeo_clay.datamodules.SceneDataModule`.
        """
        for place, reason in batch['failed']:
            if self.pending.pop(place, None) is not None:
                source = self.loader.units[place].source
                self.failed[source] = reason.removeprefix(f'{source}: ')
                self.drop(place)
        if batch['unit']:
            self.take(outputs, batch)
        for place in (*batch['unit'], *batch['empty']):
            if place in self.pending:  # else done in an earlier run, or unreadable
                self.pending[place] -= 1
                if not self.pending[place]:
                    self.complete(place)
                    del self.pending[place]
        self.count, self.empty = self.count + len(batch['unit']), self.empty + len(batch['empty'])

    @abstractmethod
    def take(self, outputs: Any, batch: Mapping[str, Any]) -> None:
        """Take the answers for the chips of a batch; those of units that are not :attr:`pending` are ignored."""

    @abstractmethod
    def complete(self, place: int) -> None:
        """Write a unit whose windows are all there."""

    @abstractmethod
    def drop(self, place: int) -> None:
        """Discard what there is of a unit."""

    @abstractmethod
    def finish(self, failed: Mapping[str, str], missing: int) -> dict[str, str]:
        """Finish the files of all processes, and log the numbers.

        Args:
            failed: as :attr:`failed`, of all processes.
            missing: units that are still to be computed, of all processes.

        Returns:
            ``failed``, and what failed in an earlier run.
        """

    def close(self) -> None:
        """Discard incomplete output, however the run ended."""
        for place in [*self.pending]:
            self.drop(place)

    @property
    def rate(self) -> float:
        """Chips per second since the start."""
        return self.count / max(time.monotonic() - self.started, 1e-9)

    @property
    def summary(self) -> str:
        """What was done, in words."""
        return (
            f'{counted(self.count, "chip")} in {time.monotonic() - self.started:.1f} s, {self.rate:.1f} chips/s on '
            f'this process; {self.empty} without data were skipped'
        )


def predict(
    model: Callable[[dict[str, Any]], Any],
    data: SceneDataModule,
    output: Callable[[SceneLoader], SceneOutput],
    device: torch.device,
) -> dict[str, str]:
    """Run a model over scenes in this process.

    Args:
        model: from a batch to the answers for its chips, in eval mode and on the device.
        data: the scenes, set up.
        output: makes the output of a loader.
        device: where the model lies.

    Returns:
        Path → reason of the scenes that could not be used.
    """
    loader = data.predict_dataloader()
    out = output(loader)
    try:
        out.start(out.begin())
        with torch.inference_mode(), tqdm(total=len(loader.batches), unit='batch', disable=None) as bar:
            for loaded in loader:
                batch = transferred(data, loaded, device)
                out.add(model(batch), batch)
                bar.update()
        return out.finish(out.failed, len(out.pending))
    finally:
        out.close()
        data.teardown('predict')


def choose_device(device: str | None) -> torch.device:
    """Return a device by PyTorch's name; for None a GPU if there is one."""
    return torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))


def transferred(data: LightningDataModule, batch: Any, device: torch.device) -> Any:
    """Pass a batch through the datamodule's hooks, in Lightning's order; without a trainer none augments."""
    batch = data.on_before_batch_transfer(batch, 0)
    return data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode; afterwards every part of it has the mode it had before."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training
