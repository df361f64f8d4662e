# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Check that all ranks found the same data, before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist

from torchgeo_clay.datamodules.pretrain.regions import SensorScenes

__all__ = ('DisagreementError', 'check_agreement', 'describe_parts')

#: Differences that an error names.
SHOWN = 5


class DisagreementError(ValueError):
    """Ranks of one run see different data."""


def describe_parts(parts: Mapping[str, Mapping[str, SensorScenes]]) -> dict[str, tuple[int, str]]:
    """What has to be the same on all ranks.

    Args:
        parts: ``train`` and ``val`` → sensor → its scenes.

    Returns:
        Sensor and part, in words → number of scenes and a fingerprint of them and of the sensor.
    """
    return {
        f'{name} ({split})': (len(part), part.digest(part.sensor))
        for split, sensors in parts.items()
        for name, part in sensors.items()
    }


def check_agreement(look: Callable[[], Mapping[str, tuple[int, str]]]) -> None:
    """Look at the data on every rank and raise, on all of them, unless all have found the same.

    A rank that fails reports it to the others, which would else wait until the time limit of the process group.

    Args:
        look: looks at this rank's data and describes it, see :func:`describe_parts`.

    Raises:
        DisagreementError: naming ranks and differences.
        ValueError: whatever ``look`` raises on a single rank.
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
    """A line for each failure, and for each difference from the first rank without one."""
    lines = [f'rank {rank}: {found}' for rank, found in enumerate(everyone) if isinstance(found, str)]
    good = [(rank, found) for rank, found in enumerate(everyone) if not isinstance(found, str)]
    for rank, found in good[1:]:
        first, expected = good[0]
        for name in sorted({*expected, *found}):
            here, there = (ranks.get(name, (0, '')) for ranks in (found, expected))
            if here[0] != there[0]:
                lines.append(f'rank {rank}: {here[0]} scenes of {name}, rank {first} {there[0]}')
            elif here != there:
                how = f'{here[0]} on both, of other names, sizes or weights'
                lines.append(f'rank {rank}: other scenes of {name} than rank {first}: {how}')
    return lines
