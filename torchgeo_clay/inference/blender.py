# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A model's answer for every pixel of a scene, row by row: overlapping windows, smoothly blended.

Shapes: B windows, C bands, K channels of the answer, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import batched
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from torchgeo_clay.conditioning import Conditioning, check_batch
from torchgeo_clay.datasets import SensorRaster
from torchgeo_clay.datasets.raster.windows import starts
from torchgeo_clay.inference.blending import axis_weights
from torchgeo_clay.models.clay import find_clay
from torchgeo_clay.sensors import Sensor
from torchgeo_clay.sensors.normalization import normalize

__all__ = ('Blender', 'Rows', 'answer', 'blended_rows', 'check_answer', 'device_of', 'prepare')

#: First row of a block, its pixels (K, H, W) float32, and whether each is valid (H, W).
Rows = tuple[int, npt.NDArray[np.float32], npt.NDArray[np.bool_]]


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters lie; the CPU for one that has none."""
    parameter = next(model.parameters(), None)
    return torch.device('cpu') if parameter is None else parameter.device


def prepare(batch: dict[str, Any], sensor: Sensor, device: torch.device) -> tuple[Tensor, Conditioning]:
    """Normalised images and what they are conditioned on, on a device.

    Args:
        batch: of samples of :class:`~torchgeo_clay.datasets.SensorRaster`, collated.
        sensor: their sensor, with the bands of the images.
        device: where to put them.

    Returns:
        (B, C, H, W) float32, zero where not valid, and the conditioning.
    """
    check_batch(batch)  # while it is on the host
    moved = {k: v.to(device) for k, v in batch.items()}
    mean, std = (torch.tensor(s, dtype=torch.float32, device=device) for s in (sensor.mean, sensor.std))
    return normalize(moved['image'], moved['valid'], mean, std), Conditioning.from_batch(moved)


def answer(model: nn.Module, images: Tensor, conditioning: Conditioning) -> Tensor:
    """Ask a model about images, telling every Clay inside it what they are.

    Args:
        model: takes (B, C, H, W).
        images: normalised.
        conditioning: of the images.

    Returns:
        (B, K, H, W).

    Raises:
        ValueError: if the answer is not one of every pixel.
    """
    with ExitStack() as scopes:
        for clay in find_clay(model):
            scopes.enter_context(clay.conditioned_on(conditioning))
        return check_answer(model(images), images)


def check_answer(found: Any, images: Tensor) -> Tensor:
    """A model's answer, if it is one of every pixel.

    Args:
        found: what it gave, (B, K, H, W) or (B, H, W).
        images: (B, C, H, W) that it is about.

    Returns:
        (B, K, H, W).

    Raises:
        ValueError: for any other.
    """
    if isinstance(found, Tensor) and found.ndim == 3:
        found = found[:, None]
    expected = images.shape[0], *images.shape[2:]
    if not isinstance(found, Tensor) or found.ndim != 4 or (found.shape[0], *found.shape[2:]) != expected:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f'model: expected one that answers for every pixel, ({expected[0]}, K, {expected[1]}, {expected[2]}) for '
            f'images {tuple(images.shape)}, got {shape}. For one answer per chip use ClayEmbedding.'
        )
    return found


class Blender:
    """Windows of a scene that come from top to bottom, smoothly blended.

    It holds as many rows as a window is high, whatever the scene's height.
    """

    def __init__(self, height: int, width: int, chip: int, stride: int, align: int = 1) -> None:
        """Begin without windows.

        Args:
            height: rows of the scene.
            width: columns of the scene.
            chip: see :func:`torchgeo_clay.datasets.raster.windows.starts`, as for the next two.
            stride: pixels from one window to the next.
            align: what windows begin at multiples of.
        """
        self.height, self.width, self.chip = height, width, chip
        weights = []
        for length in (height, width):
            first = starts(length, chip, stride, align)
            weights.append(dict(zip(first, axis_weights(first, chip), strict=True)))
        self._row_weights, self._col_weights = weights
        self._top, self._across = 0, max(self._col_weights) + chip
        self._sums: npt.NDArray[np.float32] | None = None
        self._valid = np.zeros((chip, self._across), bool)

    def add(self, row: int, col: int, values: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]) -> Iterator[Rows]:
        """Add a window, none of whose rows is above that of one before. To be gone through to its end.

        Args:
            row: first row of the window.
            col: first column.
            values: (K, chip, chip).
            valid: (chip, chip), which pixels hold data.

        Yields:
            The rows that are finished, as no window from now on holds them.
        """
        yield from self._move(row)
        if self._sums is None:
            self._sums = np.zeros((len(values), self.chip, self._across), np.float32)
        weights = np.outer(self._row_weights[row], self._col_weights[col]).astype(np.float32)
        self._sums[:, :, col : col + self.chip] += values * weights
        self._valid[:, col : col + self.chip] |= valid

    def finish(self) -> Iterator[Rows]:
        """Yield what is left, after the last window."""
        yield from self._move(self._top + self.chip)

    def _move(self, top: int) -> Iterator[Rows]:
        """Let the rows begin at another one; those above it are finished, and none of them if none holds data."""
        done = min(top - self._top, self.chip)
        if not done:
            return
        height = min(done, self.height - self._top)
        if self._sums is not None and self._valid[:height].any():
            yield self._top, self._sums[:, :height, : self.width].copy(), self._valid[:height, : self.width].copy()
        for array, axis in ((self._sums, 1), (self._valid, 0)):
            if array is not None:
                kept = np.roll(array, -done, axis)
                kept[..., self.chip - done :, :] = 0
                array[...] = kept
        self._top = top


def blended_rows(
    model: nn.Module,
    raster: SensorRaster,
    scene: int = 0,
    *,
    chip: int,
    stride: int,
    batch_size: int,
    device: torch.device,
    activation: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[Sequence[Any]], Any] | None = None,
) -> Iterator[Rows]:
    """The model's answer for a scene from top to bottom.

    Memory holds one row of windows, whatever the scene's height. Windows without a valid pixel are not looked at.

    Args:
        model: takes (B, C, H, W), answers (B, K, H, W), in eval mode.
        raster: that the scene is read from.
        scene: position in its ``scenes``.
        chip: pixels per side of a window.
        stride: pixels from one window to the next.
        batch_size: windows that the model sees at once.
        device: where the model lies.
        activation: of the answer (B, K, H, W), before blending, such as a softmax.
        progress: called with each row's windows when they are done.

    Yields:
        Blocks of rows. Some without a valid pixel are left out.
    """
    where = raster.scenes[scene]
    blender = Blender(where.height, where.width, chip, stride)
    cols = starts(where.width, chip, stride)
    for row in starts(where.height, chip, stride):
        for some in batched(cols, batch_size):
            samples = [(col, raster.patch(scene, row, col, (chip, chip))) for col in some]
            samples = [s for s in samples if s[1]['valid'].any()]
            if not samples:
                continue
            batch = default_collate([sample for _, sample in samples])
            found = answer(model, *prepare(batch, raster.sensor, device)).float()
            found = found if activation is None else activation(found)
            for (col, sample), values in zip(samples, found.cpu().numpy(), strict=True):
                yield from blender.add(row, col, values, sample['valid'][0].numpy())
        if progress is not None:
            progress(cols)
    yield from blender.finish()
