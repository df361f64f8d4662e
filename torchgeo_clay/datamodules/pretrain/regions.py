# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Scenes of one sensor: where patches can be taken, and which train and which validate."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from torchgeo_clay.datasets import SceneError
from torchgeo_clay.sensors import Sensor

__all__ = (
    'READ_ERRORS',
    'PatchSource',
    'Region',
    'SensorScenes',
    'find_data',
    'read_patch',
    'split_scenes',
    'windows_with_data',
)

log = logging.getLogger(__name__)

#: What reading a broken file raises.
READ_ERRORS = (SceneError, RasterioError, OSError)


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
        top, left: first row and column.
        height, width: number of rows and columns.
        anchor: row and column, in the region, of a patch that holds data.
        has_gaps: False if no pixel of the scene can be without data.
    """

    path: str
    source: int
    scene: int
    top: int
    left: int
    height: int
    width: int
    anchor: tuple[int, int] = (0, 0)
    has_gaps: bool = True

    def grid(self, patch_size: int) -> list[tuple[int, int]]:
        """Upper left corners (row, col) of the whole patches side by side, at least one, row by row."""
        rows, cols = (range(0, max(side - patch_size, 0) + 1, patch_size) for side in (self.height, self.width))
        return list(product(rows, cols))

    def count(self, patch_size: int) -> int:
        """Number of whole patches side by side, at least one; no list is made, as a mosaic may have millions."""
        return max(self.height // patch_size, 1) * max(self.width // patch_size, 1)

    def cover(self, patch_size: int) -> Iterator[tuple[int, int]]:
        """Yield upper left corners of patches that cover the region, those at its ends overlapping others.

        Patches near the center come first, as data is missing at the edges of scenes.
        """
        rows, cols = (
            sorted({*range(0, end, patch_size), end}, key=lambda start: abs(start - end / 2))
            for end in (max(side - patch_size, 0) for side in (self.height, self.width))
        )
        for ring in range(len(rows) + len(cols) - 1):
            for i in range(max(0, ring - len(cols) + 1), min(ring + 1, len(rows))):
                yield rows[i], cols[ring - i]


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


def read_patch(source: PatchSource, region: Region, row: int, col: int, patch_size: int) -> dict[str, Any]:
    """Read a patch at (row, col) of a region, smaller than a patch if the region is; only finite values are valid."""
    size = (min(patch_size, region.height), min(patch_size, region.width))
    sample = dict(source.patch(region.scene, region.top + row, region.left + col, size))
    if sample['image'].is_floating_point():  # integers are finite, and looking takes as long as reading them
        finite = torch.isfinite(sample['image'])
        sample['image'] = torch.where(finite, sample['image'], 0)
        sample['valid'] = sample['valid'] & finite.all(dim=0, keepdim=True)
    return {**sample, 'path': region.path}


def _with_data(
    source: PatchSource, region: Region, places: Iterable[tuple[int, int]], patch_size: int
) -> Iterator[tuple[int, int, float]]:
    """Yield row, column and share of valid pixels of the patches that hold data."""
    for row, col in places:
        share = read_patch(source, region, row, col, patch_size)['valid'].float().mean().item()
        if share > 0:
            yield row, col, share


def find_data(source: PatchSource, region: Region, patch_size: int) -> Region | None:
    """Set a region's anchor to its most central patch that holds data; None if no pixel is valid."""
    for row, col, _ in _with_data(source, region, region.cover(patch_size), patch_size):
        return replace(region, anchor=(row, col))
    return None


def windows_with_data(scenes: SensorScenes, patch_size: int, min_valid: float) -> NDArray[np.int64]:
    """Choose the windows that validate: patches side by side with a share of ``min_valid`` pixels. Each is read once.

    Returns:
        (n, 3) position of the region, row and column in it. A region where no window has enough data gives the one
        with the most; where the patches side by side have none, one of those that cover it. A scene that cannot be
        read gives none.
    """
    chosen = []
    for position, region in enumerate(scenes.regions):
        places = region.grid(patch_size)
        if region.has_gaps:
            try:
                source = scenes.sources[region.source]
                found = list(_with_data(source, region, places, patch_size))
                found = found or list(_with_data(source, region, region.cover(patch_size), patch_size))
            except READ_ERRORS as error:
                log.warning('Skipped %s in validation, which cannot be read: %s', region.path, error)
                continue
            best = max(found, key=lambda window: window[2], default=(*region.anchor, 0.0))
            places = [(row, col) for row, col, share in found if share >= min_valid] or [best[:2]]
        chosen += [(position, *place) for place in places]
    return np.array(chosen, np.int64).reshape(-1, 3)


def split_scenes(
    scenes: SensorScenes, share: float, *, seed: int, patch_size: int, root: str | os.PathLike[str]
) -> tuple[SensorScenes, SensorScenes]:
    """Split the scenes of one sensor into training and validation.

    Whole scenes are dealt out, by a hash of (seed, name of the file), so that adding a scene moves few others. A
    sensor with one scene gives a strip at the end of its longer side instead, if both parts hold a patch with data.

    Args:
        scenes: all scenes.
        share: of the scenes that validate, in [0, 1); if not 0, at least one of several scenes.
        seed: seed of the run.
        patch_size: pixels per side of a patch.
        root: folder that names of files are relative to, so that moving the data changes nothing.

    Returns:
        Scenes of training, at least one, and of validation, none if a single scene is too small to divide.
    """
    regions = scenes.regions
    if share == 0:
        return scenes, scenes.pick([])
    if len(regions) == 1:
        return _split_scene(scenes, share, patch_size)

    def hashed(position: int) -> bytes:
        name = Path(os.path.relpath(regions[position].path, root)).as_posix()
        return hashlib.sha256(f'{seed}:{name}'.encode()).digest()

    count = min(max(1, round(share * len(regions))), len(regions) - 1)
    held = set(sorted(range(len(regions)), key=hashed)[:count])
    train, val = ([region for i, region in enumerate(regions) if (i in held) == holds] for holds in (False, True))
    return scenes.pick(train), scenes.pick(val)


def _split_scene(scenes: SensorScenes, share: float, patch_size: int) -> tuple[SensorScenes, SensorScenes]:
    """Cut a strip off the end of the longer side of the part of the only scene that holds data."""
    region = scenes.regions[0]
    source = scenes.sources[region.source]
    data = _crop_to_data(source, region, patch_size)
    longer = max(data.height, data.width)
    strip = max(patch_size, round(share * longer))
    keep = longer - strip
    if keep < patch_size:
        return scenes, scenes.pick([])
    if data.height >= data.width:
        parts = replace(data, height=keep), replace(data, top=data.top + keep, height=strip)
    else:
        parts = replace(data, width=keep), replace(data, left=data.left + keep, width=strip)
    train, val = (find_data(source, part, patch_size) for part in parts)
    return (scenes.pick([train]), scenes.pick([val])) if train and val else (scenes, scenes.pick([]))


def _crop_to_data(source: PatchSource, region: Region, patch_size: int) -> Region:
    """The smallest rectangle of patches that holds all data."""
    if not region.has_gaps:
        return region
    found = list(_with_data(source, region, region.cover(patch_size), patch_size))
    rows, cols = [row for row, _, _ in found], [col for _, col, _ in found]
    top, left = min(rows), min(cols)
    height = min(max(rows) + patch_size, region.height) - top
    width = min(max(cols) + patch_size, region.width) - left
    return replace(region, top=region.top + top, left=region.left + left, height=height, width=width, anchor=(0, 0))
