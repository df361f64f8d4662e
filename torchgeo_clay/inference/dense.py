# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A model's answer for every pixel of a scene, row by row: overlapping windows, smoothly blended.

Shapes: B windows, C bands, K channels of the answer, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import batched, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from torchgeo_clay.datamodules.transforms import normalize
from torchgeo_clay.datasets import SensorRaster
from torchgeo_clay.datasets.windows import starts
from torchgeo_clay.inference.blending import axis_weights
from torchgeo_clay.metadata import Conditioning, check_batch
from torchgeo_clay.models.scope import find_clay
from torchgeo_clay.sensors import Sensor

__all__ = ('Rows', 'answer', 'blended_rows', 'device_of', 'prepare')

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
        found = model(images)
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


class _Band:
    """The rows that windows are being added to: as many as a chip is high, and no more."""

    def __init__(self, chip: int, width: int) -> None:
        """Begin without windows: chip rows, width columns."""
        self.chip, self.width = chip, width
        self.sums: npt.NDArray[np.float32] | None = None
        self.valid = np.zeros((chip, width), bool)

    def add(self, col: int, values: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]) -> None:
        """Add a window, weighted: values (K, H, W), valid (H, W)."""
        if self.sums is None:
            self.sums = np.zeros((len(values), self.chip, self.width), np.float32)
        self.sums[:, :, col : col + self.chip] += values
        self.valid[:, col : col + self.chip] |= valid

    def take(self, rows: int) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.bool_]]:
        """The uppermost rows, which are finished; the rest moves up."""
        done, valid = None if self.sums is None else self.sums[:, :rows].copy(), self.valid[:rows].copy()
        for array, axis in ((self.sums, 1), (self.valid, 0)):
            if array is not None:
                kept = np.roll(array, -rows, axis)
                kept[..., self.chip - rows :, :] = 0
                array[...] = kept
        return done, valid


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
        Blocks of rows. Rows above the first valid pixel of the scene are left out.
    """
    where = raster.scenes[scene]
    rows, cols = starts(where.height, chip, stride), starts(where.width, chip, stride)
    row_weights, col_weights = axis_weights(rows, chip), axis_weights(cols, chip)
    band = _Band(chip, cols[-1] + chip)
    for i, (row, following) in enumerate(pairwise([*rows, rows[-1] + chip])):
        for some in batched(enumerate(cols), batch_size):
            samples = [(j, col, raster.patch(scene, row, col, (chip, chip))) for j, col in some]
            samples = [s for s in samples if s[2]['valid'].any()]
            if not samples:
                continue
            batch = default_collate([s for _, _, s in samples])
            found = answer(model, *prepare(batch, raster.sensor, device)).float()
            found = found if activation is None else activation(found)
            for (j, col, sample), values in zip(samples, found.cpu().numpy(), strict=True):
                weights = np.outer(row_weights[i], col_weights[j]).astype(np.float32)
                band.add(col, values * weights, sample['valid'][0].numpy())
        done, valid = band.take(following - row)
        if progress is not None:
            progress(cols)
        if done is not None:
            height = min(following, where.height) - row
            yield row, done[:, :height, : where.width], valid[:height, : where.width]
