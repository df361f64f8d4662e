# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Ranks that see other data than the others are found out before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist

from torchgeo_clay.datamodules.pretrain.regions import SensorScenes

__all__ = ('DisagreementError', 'check_agreement', 'describe_parts')

#: How many of the ranks that differ, and of their differences, an error names.
SHOWN = 5


class DisagreementError(ValueError):
    """Ranks of one run see different data."""


def describe_parts(parts: Mapping[str, Mapping[str, SensorScenes]]) -> dict[str, tuple[int, str]]:
    """What has to be the same on all ranks.

    Args:
        parts: ``train`` and ``val`` → sensor → its scenes.

    Returns:
        Part and sensor, in words → number of scenes and a fingerprint of their names, sizes and weights and of the
        sensor.
    """
    return {
        f'{name} ({split})': (len(part), part.digest(part.sensor))
        for split, sensors in parts.items()
        for name, part in sensors.items()
    }


def check_agreement(look: Callable[[], Mapping[str, tuple[int, str]]]) -> None:
    """Look at the data on every rank and raise, on all of them, unless all have found the same.

    A rank that fails on its own tells the others, who would wait for it until the time limit of the process group.

    Args:
        look: looks at this rank's data and describes it, see :func:`describe_parts`.

    Raises:
        DisagreementError: naming ranks and what differs.
        ValueError: whatever ``look`` raises on the only rank there is.
        OSError: likewise.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        look()
        return
    found: dict[str, Any] | str
    failure = None
    try:
        found = dict(look())
    except (ValueError, OSError) as error:
        failure, found = error, f'{type(error).__name__}: {error}'
    everyone: list[dict[str, Any] | str] = [''] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    if differences := _differences(everyone):
        shown = '\n'.join(f'  {line}' for line in differences[:SHOWN])
        more = f'\n  … and {len(differences) - SHOWN} more' if len(differences) > SHOWN else ''
        raise DisagreementError(
            f'Expected all {len(everyone)} ranks to find the same scenes, got\n{shown}{more}\nEvery rank reads the '
            'scenes of any sensor: put them on storage that all machines share, or copy them whole to each, under the '
            'same names, and give all ranks the same root.'
        ) from failure


def _differences(everyone: list[dict[str, Any] | str]) -> list[str]:
    """A line for each difference from the first rank that could look at its data, and each failure."""
    lines = [f'rank {rank}: {found}' for rank, found in enumerate(everyone) if isinstance(found, str)]
    good = [(rank, found) for rank, found in enumerate(everyone) if not isinstance(found, str)]
    if not good:
        return lines
    first, expected = good[0]
    for rank, found in good[1:]:
        for name in sorted({*expected, *found}):
            if found.get(name) == expected.get(name):
                continue
            here, there = found.get(name, (0, ''))[0], expected.get(name, (0, ''))[0]
            what = f'{here} scenes of {name}, rank {first} {there}'
            if here == there:
                what = f'other scenes of {name} than rank {first}: {here} on both, of other names, sizes or weights'
            lines.append(f'rank {rank}: {what}')
    return lines
