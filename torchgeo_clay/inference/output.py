# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The one way from a model's answers to files, for ``torchgeo predict``, the command line and Python alike.

Shapes: B chips.
"""

from __future__ import annotations

import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from torchgeo_clay.datamodules.common import counted
from torchgeo_clay.datamodules.scenes import SceneDataModule, SceneLoader
from torchgeo_clay.datamodules.sigterm import EXIT_CODE
from torchgeo_clay.datasets import SceneError
from torchgeo_clay.models.weights import tensor_digest
from torchgeo_clay.sensors import Sensor
from torchgeo_clay.writers.atomic import exclusive

__all__ = (
    'ANSWER',
    'OnSkipped',
    'SceneOutput',
    'SkippedScenesError',
    'choose_device',
    'evaluating',
    'predict',
    'report_skipped',
    'stop_if_asked',
    'trained_sensors',
    'transferred',
    'weights_digest',
)

#: What is printed when a SIGTERM comes.
ANSWER = 'SIGTERM: stops after the part in work, or after a second signal at once; what is not finished is then lost.'

#: Standard deviations from the mean beyond which a pixel is no measurement. In float32 its square hides all others.
_FAR = 1e6

OnSkipped = Literal['raise', 'warn']


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


def trained_sensors(model: nn.Module, *, any_sensor: bool, loaded: bool) -> Mapping[str, Sequence[str]] | None:
    """Return the sensors that a model may predict, name → bands; None for all.

    Args:
        model: a task, or any other module, whose training nothing here can tell.
        any_sensor: whether it may predict scenes of sensors that it was not trained on.
        loaded: whether a checkpoint was loaded into it.

    Raises:
        ValueError: for a task that was never trained, unless its weights are random on purpose.
    """
    trained_on = getattr(model, 'trained_on', None)
    is_random = isinstance(model, LightningModule) and getattr(model, 'weights', False) is not False
    if trained_on is None and is_random and not loaded:
        raise ValueError(
            f'{type(model).__name__}: expected a trained model, got one whose decoder is random, and so would its maps '
            'be. Give --ckpt_path (or map_scenes a checkpoint) of a training run. To map with random weights, give the '
            'task weights: false.'
        )
    return None if any_sensor else trained_on


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights.

    Raises:
        ValueError: for weights that are not finite, of which every answer would be NaN.
    """
    state = model.state_dict()
    if wrong := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ValueError(
            f'{type(model).__name__}: expected weights that are finite numbers, got NaN or infinity in {len(wrong)} '
            f'tensors, first {wrong[0]}. The training diverged: use a checkpoint from before that.'
        )
    return tensor_digest(state)


def _unknown_sensor(trained_on: Mapping[str, Sequence[str]] | None, sensor: Sensor) -> str:
    """Return why a model trained on sensors (name → bands) does not predict another's scenes; empty if it does."""
    if not trained_on:
        return ''
    bands, known = list(sensor.band_names), trained_on.get(sensor.name)
    if known and set(known) == set(bands):
        return ''
    trained = '; '.join(f'{name} ({", ".join(b)})' for name, b in trained_on.items())
    remedy = f'Give sensor={sensor.name!r}, bands={known}' if known else 'Train on this sensor'
    return (
        f'expected a sensor and bands that the model was trained on, {trained}, got {sensor.name} '
        f'({", ".join(bands)}). {remedy}, or any_sensor: true to predict it all the same.'
    )


class SceneOutput(ABC):
    """Output of a run over scenes, unit by unit. A scene that cannot be read is skipped as a whole.

    Call :meth:`prepare` on one process and :meth:`start` on each, :meth:`add` for each batch, :meth:`finish` on one
    process when all have added theirs; :meth:`close` and :meth:`release` in any case.

    Attributes:
        loader: whose units are written.
        out: the file or folder.
        pending: position of a unit → its windows that are still to come.
        failed: path of a scene → why it is skipped.
        trained_on: what :func:`trained_sensors` returns for the model.
    """

    #: Whether a unit has to be a whole scene.
    whole_scenes = False

    trained_on: Mapping[str, Sequence[str]] | None = None

    def __init__(self, loader: SceneLoader, out: str | os.PathLike[str]) -> None:
        """Initialize a new SceneOutput instance; nothing is written yet.

        Raises:
            ValueError: for scenes cut into units where whole ones are needed.
        """
        self.loader, self.data, self.out = loader, loader.data, Path(out)
        self._lock = ExitStack()
        if self.whole_scenes and self.data.unit_size is not None:
            raise ValueError(
                f'Maps and objects are of whole scenes: give the datamodule unit_size: null, not {self.data.unit_size}.'
            )
        self.pending: dict[int, int] = {}
        self.failed = dict(self.data.skipped)
        self.count = self.empty = 0
        self.started = time.monotonic()

    def prepare(self) -> set[str]:
        """Lock the output for this run, and :meth:`begin`; :meth:`release` gives it back."""
        self._lock.enter_context(exclusive(self.out))
        return self.begin()

    def release(self) -> None:
        """Unlock the output."""
        self._lock.close()

    @abstractmethod
    def begin(self) -> set[str]:
        """Check the output folder, and return the keys of the existing units."""

    def skip_sensors(self) -> set[str]:
        """Skip scenes of sensors that the model was not trained on, and return the keys of their units.

        Raises:
            ValueError: if no scene is left.
        """
        reasons = {name: _unknown_sensor(self.trained_on, sensor) for name, sensor in self.data.selected.items()}
        if all(reasons.values()):
            raise ValueError(f'No scene to predict: {next(iter(reasons.values()))}')
        skipped = [unit for unit in self.data.units if reasons[unit.sensor]]
        self.failed |= {unit.source: reasons[unit.sensor] for unit in skipped}
        return {unit.key for unit in skipped}

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
            self._fail(place, reason)
        if batch['unit']:
            self.take(outputs, batch)
        for place in (*batch['unit'], *batch['empty']):
            if place in self.pending:  # else done in an earlier run, or unreadable
                self.pending[place] -= 1
                if not self.pending[place]:
                    self.complete(place)
                    del self.pending[place]
        self.count, self.empty = self.count + len(batch['unit']), self.empty + len(batch['empty'])

    def _fail(self, place: int, reason: str) -> None:
        """Skip the scene of a unit, which is discarded."""
        if self.pending.pop(place, None) is not None:
            source = self.loader.units[place].source
            self.failed[source] = reason.removeprefix(f'{source}: ')
            self.drop(place)

    def skip_not_finite(self, batch: Mapping[str, Any], values: npt.NDArray[np.float32] | None = None) -> None:
        """Skip the scenes of chips whose pixels are no measurements, or whose answers are not finite numbers.

        Args:
            batch: B chips, normalized.
            values: (B, ...) of the model; None where they show nothing, as of a detector, which then finds no object.
        """
        far = batch['image'].abs().amax((1, 2, 3)).float().cpu().numpy()
        wrong = ~(far < _FAR)
        if values is not None:
            wrong |= ~np.isfinite(values).reshape(len(values), -1).all(1)
        for i in np.flatnonzero(wrong):
            row, col = batch['corner'][i]
            self._fail(
                batch['unit'][i],
                f'in the chip at row {row}, column {col}, pixels are up to {far[i]:.3g} standard deviations from the '
                'mean, or the model answers NaN or infinity. Is there a nodata value that the file does not name, or '
                'another scale? If the pixels are right, use --trainer.precision 32-true.',
            )

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
        out.start(out.prepare())
        with torch.inference_mode(), tqdm(total=len(loader.batches), unit='batch', disable=None) as bar:
            for loaded in loader:
                batch = transferred(data, loaded, device)
                out.add(model(batch), batch)
                bar.update()
        failed = out.finish(out.failed, len(out.pending))
        stop_if_asked(len(out.pending), asked=loader.stopped)
        return failed
    except RuntimeError as error:
        data.on_exception(error)
        raise
    finally:
        out.close()
        out.release()
        data.teardown('predict')


def stop_if_asked(missing: int, *, asked: bool, code: int = EXIT_CODE) -> None:
    """End a process after a SIGTERM, at which its loader ends early, unless it was through by then.

    Args:
        missing: units that are still to be computed.
        asked: whether the signal came, to this process or one that it works with.
        code: exit code of this process.

    Raises:
        SystemExit: with that code.
    """
    if asked and missing:
        rank_zero_info(
            f'SIGTERM: stopped, {counted(missing, "part")} before the end. What is finished is kept; the same command '
            f'goes on with the rest. Exit code {EXIT_CODE}.'
        )
        raise SystemExit(code)


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
