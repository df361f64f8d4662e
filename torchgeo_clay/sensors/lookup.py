# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Sensors by name, and as a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from torchgeo_clay.sensors.band import suggest
from torchgeo_clay.sensors.released import SENSORS
from torchgeo_clay.sensors.sensor import Sensor

__all__ = ('get_sensor', 'sensor_table')


def get_sensor(sensor: str | os.PathLike[str] | Sensor) -> Sensor:
    """Return a sensor by name or from a YAML file; a :class:`Sensor` is returned as given.

    Args:
        sensor: a name of :data:`SENSORS`, a path to a ``.yaml`` (see :meth:`Sensor.from_yaml`), or a sensor.

    Raises:
        ValueError: for an unknown name; the message suggests the nearest.
    """
    if isinstance(sensor, Sensor):
        return sensor
    name = os.fspath(sensor)
    if name in SENSORS:
        return SENSORS[name]
    if name.endswith(('.yaml', '.yml')):
        return Sensor.from_yaml(name)
    raise ValueError(
        f'Unknown sensor {name!r}.{suggest(name, list(SENSORS))} Known: {", ".join(SENSORS)}; '
        'or describe your own in a .yaml and give its path.'
    )


def sensor_table(sensors: Iterable[Sensor] | None = None) -> str:
    """Format sensors as a Markdown table, a row per band.

    Args:
        sensors: the sensors to list; None for :data:`SENSORS`.
    """

    def rows() -> Iterator[str]:
        yield '| sensor | gsd [m] | band | wavelength [µm] | mean | std | also known as |'
        yield '|---|---|---|---|---|---|---|'
        for s in SENSORS.values() if sensors is None else sensors:
            for i, b in enumerate(s.bands):
                head = f'{s.name} | {s.gsd:g}' if i == 0 else ' | '
                yield f'| {head} | {b.name} | {b.wavelength:g} | {b.mean:g} | {b.std:g} | {", ".join(b.aliases)} |'

    return '\n'.join(rows())
