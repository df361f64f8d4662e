# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Which bands of a file are a sensor's: by their descriptions, else by their order."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torchgeo_clay.datasets.raster.files import SceneError
from torchgeo_clay.sensors import Sensor

__all__ = ('match_bands',)

# What writers put where nobody named the bands: "Band 1", "Layer_2", "3".
_GENERIC = re.compile(r'(?:band|layer)?[ _-]?\d+', re.IGNORECASE)


def match_bands(
    sensor: Sensor, descriptions: Sequence[str | None], bands: Sequence[str] | None = None, alpha: Sequence[int] = ()
) -> tuple[tuple[int, ...], bool]:
    """Find a sensor's bands in a file.

    Where descriptions name bands of the sensor they decide. Where there are none, the file's bands are ``bands`` if
    there are as many, else all of the sensor's bands in the order of the training data if there are as many.

    Args:
        sensor: the sensor, with all its bands.
        descriptions: of the file's bands, None for bands without.
        bands: names or aliases of the bands wanted, in the order wanted; None for all of the sensor's.
        alpha: the file's alpha bands, from 1: left out where the count fits only without them.

    Returns:
        The file's bands (from 1) in the order of ``sensor.select(bands)``, and whether descriptions decided.

    Raises:
        SceneError: if no or not all bands are found, one is found twice, or the count does not fit.
        ValueError: if ``bands`` names a band the sensor does not have.
    """
    wanted = sensor.select(bands)
    found: dict[str, list[int]] = {}
    for i, text in enumerate(descriptions, start=1):
        position = None if text is None else sensor.find(text)
        if position is not None:
            found.setdefault(sensor.bands[position].name, []).append(i)
    if found:
        return _by_description(sensor, wanted, descriptions, found), True
    named = [text for text in descriptions if text and not _GENERIC.fullmatch(text.strip())]
    if named:
        raise SceneError(
            f'no band matches: the file has {", ".join(named)}; {sensor.name} has '
            f'{", ".join("/".join(b.names) for b in sensor.bands)}. Is it in the right sensor folder? Else describe '
            'its bands in a sensor of your own.'
        )
    return _by_order(sensor, wanted, len(descriptions), alpha), False


def _by_description(
    sensor: Sensor, wanted: Sensor, descriptions: Sequence[str | None], found: dict[str, list[int]]
) -> tuple[int, ...]:
    """The file's bands by name."""
    missing = [name for name in wanted.band_names if name not in found]
    if missing:
        there = [name for name in sensor.band_names if name in found]
        raise SceneError(
            f'bands {", ".join(missing)} of {sensor.name} are missing; the file has '
            f'{", ".join(d or "(unnamed)" for d in descriptions)}. To use what is there give bands={there}.'
        )
    for name in wanted.band_names:
        if len(found[name]) > 1:
            names = ', '.join(f'{i} ({descriptions[i - 1]})' for i in found[name])
            raise SceneError(f'{name} is in the file {len(found[name])} times, as bands {names}; once is right.')
    return tuple(found[name][0] for name in wanted.band_names)


def _by_order(sensor: Sensor, wanted: Sensor, count: int, alpha: Sequence[int]) -> tuple[int, ...]:
    """The file's bands by count."""
    every = tuple(range(1, count + 1))
    for there in (every, tuple(i for i in every if i not in alpha)):
        if len(there) == len(wanted):
            return there
        if len(there) == len(sensor):
            return tuple(there[sensor.index(name)] for name in wanted.band_names)
    few = 'few' if count < len(sensor) else 'many'
    raise SceneError(
        f'too {few} bands: the file has {count} without names, {sensor.name} has {len(sensor)} '
        f'({", ".join(sensor.band_names)}). Name them in the file (band descriptions), or give bands=[…] with one name '
        'per band of the file, in its order.'
    )
