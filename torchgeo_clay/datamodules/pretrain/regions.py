# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Scenes of one sensor: where patches can be taken, and which train and which validate."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from torchgeo_clay.sensors import Sensor

__all__ = ('PatchSource', 'Region', 'SensorScenes', 'read_weights', 'split_scenes')


class PatchSource(Protocol):
    """What patches are read from: rasters (:class:`~torchgeo_clay.datasets.SensorRaster`) or chips."""

    sensor: Sensor

    def patch(self, scene: int, row: int, col: int, size: tuple[int, int]) -> Mapping[str, Any]:
        """Read a patch of (height, width) pixels whose upper left pixel is (row, col) of a scene."""

    def close(self) -> None:
        """Close the files; they are opened again when read."""


@dataclass(frozen=True)
class Region:
    """A rectangle of a scene that patches are taken from, in pixels.

    Attributes:
        path: file of the scene.
        source: position of the source in :attr:`SensorScenes.sources`.
        scene: position of the scene in the source.
        top: first row.
        left: first column.
        height: number of rows.
        width: number of columns.
    """

    path: str
    source: int
    scene: int
    top: int
    left: int
    height: int
    width: int

    def windows(self, patch_size: int) -> list[tuple[int, int]]:
        """Upper left corners (row, col) of the whole patches side by side; of one patch if the region is smaller."""
        rows = range(0, max(self.height - patch_size, 0) + 1, patch_size)
        cols = range(0, max(self.width - patch_size, 0) + 1, patch_size)
        return list(product(rows, cols))

    def cover(self, patch_size: int) -> Iterator[tuple[int, int]]:
        """Upper left corners (row, col) of patches that cover the region, those at its ends overlapping others.

        Those near the centre come first, as it is the edges of a scene where data is missing.
        """
        ends = [max(side - patch_size, 0) for side in (self.height, self.width)]
        rows, cols = ({*range(0, end, patch_size), end} for end in ends)
        return iter(sorted(product(rows, cols), key=lambda w: abs(w[0] - ends[0] / 2) + abs(w[1] - ends[1] / 2)))

    def count(self, patch_size: int) -> int:
        """Number of whole patches side by side, at least 1."""
        return max(1, self.height // patch_size) * max(1, self.width // patch_size)


@dataclass(frozen=True)
class SensorScenes:
    """All scenes of one sensor that serve one purpose.

    Attributes:
        sensor: the sensor, with its bands in the order they are read in.
        sources: what the scenes are read from.
        regions: where patches are taken.
        weights: share of each region in the draws of training; None for shares by area.
    """

    sensor: Sensor
    sources: tuple[PatchSource, ...]
    regions: tuple[Region, ...]
    weights: tuple[float, ...] | None = None

    def __len__(self) -> int:
        """Number of regions."""
        return len(self.regions)

    def pick(self, chosen: Sequence[Region]) -> SensorScenes:
        """The same with these regions; weights follow the files."""
        if self.weights is None:
            return replace(self, regions=tuple(chosen))
        weight = {region.path: w for region, w in zip(self.regions, self.weights, strict=True)}
        return replace(self, regions=tuple(chosen), weights=tuple(weight[r.path] for r in chosen))

    def close(self) -> None:
        """Close the files of this process; they are opened again when read."""
        for source in self.sources:
            source.close()

    def digest(self, *more: object) -> str:
        """A short fingerprint of the scenes, their order, sizes and weights: names of files without their folders."""
        names = [(Path(r.path).name, *astuple(r)[1:]) for r in self.regions]
        return hashlib.sha256(repr((names, self.weights, more)).encode()).hexdigest()[:16]


def split_scenes(
    regions: Sequence[Region], share: float, *, seed: int, patch_size: int, root: str | os.PathLike[str]
) -> tuple[list[Region], list[Region]]:
    """Split the scenes of one sensor into training and validation.

    Whole scenes are dealt out, by a hash of (seed, name of the file), so that adding a scene moves few others. A
    sensor with one scene gives a strip at the end of its longer side instead, if both parts hold a patch.

    Args:
        regions: one per scene.
        share: of the scenes that validate, in [0, 1).
        seed: seed of the run.
        patch_size: pixels per side of a patch.
        root: folder that names of files are relative to, so that moving the data changes nothing.

    Returns:
        Regions of training and of validation. Of two scenes or more one at least validates and one at least trains
        (if ``share`` is not 0); of a single scene too small to divide, nothing validates.
    """
    if share == 0:
        return list(regions), []
    if len(regions) == 1:
        return _split_region(regions[0], share, patch_size)

    def hashed(region: Region) -> bytes:
        name = Path(os.path.relpath(region.path, root)).as_posix()
        return hashlib.sha256(f'{seed}:{name}'.encode()).digest()

    count = min(max(1, round(share * len(regions))), len(regions) - 1)
    validating = {id(region) for region in sorted(regions, key=hashed)[:count]}
    return (
        [region for region in regions if id(region) not in validating],
        [region for region in regions if id(region) in validating],
    )


def _split_region(region: Region, share: float, patch_size: int) -> tuple[list[Region], list[Region]]:
    """Cut a strip off the end of the longer side."""
    longer = max(region.height, region.width)
    strip = max(patch_size, round(share * longer))
    if longer - strip < patch_size:
        return [region], []
    if region.height >= region.width:
        keep = region.height - strip
        parts = replace(region, height=keep), replace(region, top=region.top + keep, height=strip)
    else:
        keep = region.width - strip
        parts = replace(region, width=keep), replace(region, left=region.left + keep, width=strip)
    return [parts[0]], [parts[1]]


def read_weights(
    table: Mapping[str, float] | str | os.PathLike[str], folder: str | os.PathLike[str]
) -> dict[str, float]:
    """Weights of the scenes of a folder.

    Args:
        table: file → weight, or a CSV file with the columns ``file`` and ``weight``.
        folder: the sensor's folder, which names of files are relative to.

    Returns:
        Path of the file → weight.

    Raises:
        ValueError: for missing columns, a file named twice or absent from the folder, weights that are negative or
            not finite, or all zero.
    """
    where = f'weights of {os.fspath(folder)}'
    if not isinstance(table, Mapping):
        where = os.fspath(table)
        frame = pd.read_csv(table)
        if missing := {'file', 'weight'} - set(frame.columns):
            raise ValueError(f'{where}: expected the columns file and weight, missing {sorted(missing)}.')
        if frame['file'].duplicated().any():
            raise ValueError(f'{where}: {frame["file"][frame["file"].duplicated()].iloc[0]} is named more than once.')
        table = dict(zip(frame['file'].astype(str), pd.to_numeric(frame['weight'], errors='coerce'), strict=True))
    weights = {}
    for name, value in table.items():
        path = Path(folder) / name
        if not path.is_file():
            raise ValueError(
                f'{where}: expected names of files in {os.fspath(folder)}, got {name!r}, which is not there.'
            )
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(f'{where}: expected a weight of 0 or more, got {value} for {name}.')
        weights[str(path)] = float(value)
    if not sum(weights.values()) > 0:
        raise ValueError(f'{where}: expected at least one positive weight.')
    return weights
