# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Embeddings of patches as rasters on the patch grid. Shapes: D width, h × w patches."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rasterio import Affine

from torchgeo_clay.writers.cog import CogStream, Layout
from torchgeo_clay.writers.geoparquet import embedding_batches, read_metadata

__all__ = ('write_patch_cogs',)


def write_patch_cogs(
    folder: str | os.PathLike[str], table: str | os.PathLike[str], scenes: Sequence[Any], patch_size: int = 8
) -> list[Path]:
    """Write the embeddings of each scene's patches as a COG of one pixel per patch.

    Values are collected in a temporary file next to the COG, not in memory.

    Args:
        folder: of the COGs, ``NAME_i.tif`` for the ith scene; existing ones are replaced.
        table: embeddings of every patch, of :func:`torchgeo_clay.writers.write_geoparquet`.
        scenes: of :class:`torchgeo_clay.datasets.Scene`; those that are not in the table are skipped.
        patch_size: pixels per side of a patch.

    Returns:
        The paths.

    Raises:
        ValueError: if the table's rows are no patches.
        OutputError: if a COG cannot be written.
    """
    if (pooling := read_metadata(table).get('pooling')) != 'patches':
        raise ValueError(f'{os.fspath(table)}: expected embeddings of every patch, pooling: patches, got {pooling!r}.')
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder, f'{Path(scene.path).stem}_{i}.tif') for i, scene in enumerate(scenes)]
    return [path for path, scene in zip(paths, scenes, strict=True) if _write(path, table, scene, patch_size)]


def _write(path: Path, table: str | os.PathLike[str], scene: Any, p: int) -> bool:
    """Write a scene's patches; return whether there are any."""
    h, w, t = -(-scene.height // p), -(-scene.width // p), scene.transform
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.stem}.') as scratch:
        grid: np.memmap | None = None
        for embedding, _, rows, cols in embedding_batches(table, scene.path):
            if grid is None:
                grid = np.memmap(f'{scratch}/grid', np.float32, 'w+', shape=(h, w, embedding.shape[1]))
                grid[:] = np.nan
            grid[rows // p, cols // p] = embedding
        if grid is None:
            return False
        scaled = Affine(t.a * p, t.b * p, t.c, t.d * p, t.e * p, t.f)
        layout = Layout(h, w, scene.crs, scaled, 'float32', grid.shape[2], float('nan'), tags={'SOURCE': scene.path})
        with CogStream(path, layout) as stream:
            for row in range(0, h, 16):
                stream.write(row, np.ascontiguousarray(np.moveaxis(grid[row : row + 16], 2, 0)))
        del grid
    return True
