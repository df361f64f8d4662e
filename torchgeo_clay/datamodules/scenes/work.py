# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The work of embedding scenes, cut into units that are done or not: windows of a scene, in order."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import batched, groupby
from typing import Any

from torchgeo_clay.datasets import Scene, SensorRaster
from torchgeo_clay.datasets.raster.windows import windows

__all__ = ('Unit', 'batches', 'plan_units')


@dataclass(frozen=True)
class Unit:
    """Windows of one scene that are done together.

    Attributes:
        key: tells it from all others: of the scene's path, size and time of change, the sensor and the windows.
        sensor: name of its sensor.
        scene: position of the scene in the sensor's raster.
        source: path of the scene.
        corners: upper left corners (row, column) of the windows.
    """

    key: str
    sensor: str
    scene: int
    source: str
    corners: tuple[tuple[int, int], ...]


def plan_units(
    raster: SensorRaster, *, chip: int, stride: int, align: int, size: int | None, settings: Mapping[str, Any]
) -> Iterator[Unit]:
    """The units of all scenes of a sensor.

    Args:
        raster: the scenes.
        chip: see :func:`torchgeo_clay.datasets.raster.windows.windows`, as for stride and align.
        stride: pixels from one window to the next.
        align: windows begin at multiples of it.
        size: windows in a unit, at most; None for all of a scene.
        settings: what else a unit's result depends on; part of its key.

    Yields:
        Units, scene by scene.
    """
    for i, scene in enumerate(raster.scenes):
        corners = windows(scene.height, scene.width, chip, stride, align)
        for some in batched(corners, len(corners) if size is None else size):
            said = [_version(scene), raster.sensor.name, raster.bands, chip, some, dict(settings)]
            key = hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()[:24]
            yield Unit(key, raster.sensor.name, i, scene.path, some)


def _version(scene: Scene) -> tuple[Any, ...]:
    """What tells a scene's file from another one, or from a later one of the same name."""
    if not os.path.isfile(scene.path):
        return scene.path, scene.height, scene.width
    found = os.stat(scene.path)
    return scene.path, scene.height, scene.width, found.st_size, found.st_mtime_ns


def batches(units: Sequence[Unit], size: int) -> list[list[tuple[int, int]]]:
    """Batches of windows, each of one sensor, in the order of the units.

    Args:
        units: the units, those of a sensor one after the other.
        size: windows in a batch, at most.

    Returns:
        Of each batch (position of the unit, position of the window in it).
    """
    found: list[list[tuple[int, int]]] = []
    for _, group in groupby(enumerate(units), key=lambda pair: pair[1].sensor):
        places = ((i, j) for i, unit in group for j in range(len(unit.corners)))
        found += [list(some) for some in batched(places, size)]
    return found
