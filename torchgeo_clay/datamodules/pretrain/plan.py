# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The plan of an epoch: which samples of which sensor make which batch, from (seed, epoch) alone.

Pure functions. A *global batch* is what all ranks train on in one step: batch_size × world size samples of ONE sensor.
The plan knows global batches only and a rank takes its part of each, so that a run on N ranks and a run on one rank
with an N times larger batch size train on the same samples in the same order.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = (
    'EpochPlan',
    'PatchKey',
    'Shares',
    'count_batches',
    'describe_plan',
    'plan_epoch',
    'plan_evaluation',
    'rank_part',
    'rng_of',
)

#: ``equal``, ``size``, or a weight per sensor.
Shares = str | Mapping[str, float]


class PatchKey(NamedTuple):
    """Names one sample: with the seed it is all that anything random about the sample is drawn from.

    Attributes:
        sensor: name of the sensor's folder.
        epoch: number of the epoch, 0 for evaluation.
        number: number of the sample among the sensor's samples of that epoch.
        counts: False for a sample that only keeps a rank busy which has none of its own, see :func:`rank_part`.
    """

    sensor: str
    epoch: int
    number: int
    counts: bool = True


def rng_of(purpose: str, seed: int, sensor: str = '', epoch: int = 0, number: int = 0) -> np.random.Generator:
    """A new random generator, a function of its arguments alone; two purposes never share a stream."""
    names = [zlib.crc32(name.encode()) for name in (purpose, sensor)]
    return np.random.default_rng([*names, epoch, number, seed])


@dataclass(frozen=True)
class EpochPlan:
    """Global batches of one epoch, in order.

    Attributes:
        epoch: number of the epoch.
        sensors: the sensor of each step.
        numbers: of each step's samples.
    """

    epoch: int
    sensors: tuple[str, ...]
    numbers: tuple[NDArray[np.int64], ...]

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.sensors)

    def keys(self, step: int) -> list[PatchKey]:
        """Keys of the global batch of a step."""
        return [PatchKey(self.sensors[step], self.epoch, int(i)) for i in self.numbers[step]]


def count_batches(sizes: Mapping[str, int], global_batch: int, shares: Shares = 'equal') -> dict[str, int]:
    """Number of global batches of each sensor in an epoch, each at least 1.

    Args:
        sizes: number of samples an epoch holds of each sensor.
        global_batch: samples per step over all ranks.
        shares: ``equal``: every sensor gets as many batches as the largest fills, so smaller ones are drawn more than
            once (from other places of their scenes). ``size``: every sensor gets the batches it fills. A mapping
            of sensor to weight: as many batches in all as ``size``, in proportion to the weights; at least one each.
    """
    if not sizes:
        raise ValueError('Expected at least one sensor with samples, got none.')
    if global_batch < 1:
        raise ValueError(f'Expected a batch of at least one sample, got {global_batch}.')
    for name, size in sizes.items():
        if size < global_batch:
            raise ValueError(
                f'{name}: expected at least one batch of {global_batch} samples (batch_size × number of devices), got '
                f'{size} patches per epoch (all sensors: {dict(sizes)}). Lower batch_size or patch_size, add scenes, '
                'or set patches_per_scene, to draw more patches of each scene.'
            )
    full = {name: size // global_batch for name, size in sizes.items()}
    if shares == 'size':
        return full
    if shares == 'equal':
        return dict.fromkeys(full, max(full.values()))
    if isinstance(shares, str):
        raise ValueError(f"shares: expected 'equal', 'size' or a weight per sensor, got {shares!r}.")
    if set(shares) != set(sizes):
        raise ValueError(f'shares: expected a weight for each of {sorted(sizes)}, got {sorted(shares)}.')
    for name, weight in shares.items():
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(
                f'shares: expected a positive weight, got {weight} for {name}. Leave a sensor out with sensors=.'
            )
    unit = sum(full.values()) / math.fsum(shares.values())
    return {name: max(1, round(unit * shares[name])) for name in sizes}


def plan_epoch(
    sizes: Mapping[str, int], global_batch: int, shares: Shares = 'equal', *, seed: int = 0, epoch: int = 0
) -> EpochPlan:
    """Plan one epoch of training.

    A sensor's batches are spread evenly over the epoch, in a random order. Within a sensor every sample is visited
    once before any is visited again. The number of a visit is unique: visit r of sample s has the number r·size + s.

    Args: as :func:`count_batches`; seed and number of the epoch.
    """
    parts = {}
    for name, count in count_batches(sizes, global_batch, shares).items():
        rng = rng_of('order', seed, name, epoch)
        rounds = math.ceil(count * global_batch / sizes[name])
        visits = np.concatenate([rng.permutation(sizes[name]) + r * sizes[name] for r in range(rounds)])
        parts[name] = list(visits[: count * global_batch].reshape(count, global_batch))
    return _interleave(parts, epoch, rng_of('sensors', seed, epoch=epoch))


def plan_evaluation(sizes: Mapping[str, int], global_batch: int) -> EpochPlan:
    """Plan an evaluation: every sample once, in order, the sensors spread evenly over the steps.

    Args: as :func:`count_batches`; the last step of a sensor may hold fewer samples.
    """
    parts = {
        name: [np.arange(start, min(start + global_batch, size)) for start in range(0, size, global_batch)]
        for name, size in sizes.items()
    }
    return _interleave(parts, 0, None)


def _interleave(
    parts: Mapping[str, Sequence[NDArray[np.int64]]], epoch: int, rng: np.random.Generator | None
) -> EpochPlan:
    """Spread each sensor's batches evenly: batch j of n falls at (j + u) / n of the epoch, u random or 1/2."""
    steps = [(name, j, len(part)) for name, part in parts.items() for j in range(len(part))]
    offset = np.full(len(steps), 0.5) if rng is None else rng.random(len(steps))
    place = [(j + u) / n for (_, j, n), u in zip(steps, offset, strict=True)]
    ordered = [steps[i][:2] for i in np.argsort(place, kind='stable')]
    return EpochPlan(epoch, tuple(name for name, _ in ordered), tuple(parts[name][j] for name, j in ordered))


def describe_plan(sizes: Mapping[str, int], global_batch: int, shares: Shares = 'equal') -> list[str]:
    """Say in a line per sensor how many batches an epoch has, and how often it draws each sample.

    Args: as :func:`count_batches`.
    """
    lines = []
    for name, count in count_batches(sizes, global_batch, shares).items():
        times = count * global_batch / sizes[name]
        how = 'oversampled, at other places of the scenes each time' if times > 1 else 'none twice'
        lines.append(
            f'{name}: {count} batches of {global_batch} per epoch from {sizes[name]} patches, each drawn {times:.2f} '
            f'times on average ({how})'
        )
    return lines


def rank_part(keys: list[PatchKey], rank: int, world_size: int) -> list[PatchKey]:
    """The part of a global batch that one rank takes: equal parts in training, whose batches divide.

    In the last batch of a sensor's evaluation parts may differ by one, and where it holds fewer keys than there are
    ranks, those without one take the first with ``counts=False``: without a batch they would leave the others waiting
    in a collective call.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f'Expected a rank from 0 to {world_size - 1}, got {rank}.')
    start, stop = (math.ceil(r * len(keys) / world_size) for r in (rank, rank + 1))
    return keys[start:stop] or [keys[0]._replace(counts=False)]
