# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Embeddings of patches as rasters on the patch grid. Shapes: D width, h × w patches."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from pyproj import CRS
from rasterio import Affine

from torchgeo_clay.writers.cog import CogStream, Layout
from torchgeo_clay.writers.geoparquet import read_metadata
from torchgeo_clay.writers.principal import embedding_batches, principal_components, scores

__all__ = ('write_patch_cog',)


def write_patch_cog(
    path: str | os.PathLike[str],
    table: str | os.PathLike[str],
    source: str,
    *,
    height: int,
    width: int,
    crs: CRS | None,
    transform: Affine,
    components: int | None = None,
    patch_size: int = 8,
) -> Path:
    """Write the embeddings of a scene's patches as a COG of one pixel per patch.

    Numbers wait in a file beside the COG, not in memory.

    Args:
        path: the COG; one that is there already is replaced.
        table: embeddings of every patch, of :func:`torchgeo_clay.writers.write_geoparquet`.
        source: the scene, as in the table's column.
        height: rows of the scene.
        width: columns of the scene.
        crs: of the scene.
        transform: of the scene.
        components: how many principal components of the whole table to write; None for all D dimensions.
        patch_size: pixels per side of a patch.

    Returns:
        The path.

    Raises:
        ValueError: if the table has no patch of the scene, or its rows are no patches.
        OutputError: if the COG can't be written.
    """
    path, p = Path(path), patch_size
    h, w = -(-height // p), -(-width // p)
    if (pooling := read_metadata(table).get('pooling')) != 'patches':
        raise ValueError(f'{os.fspath(table)}: expected embeddings of every patch, pooling: patches, got {pooling!r}.')
    basis = None if components is None else principal_components(table, components)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.stem}.') as folder:
        grid: np.memmap | None = None
        for embedding, sources, rows, cols in embedding_batches(table):
            mine = np.array([s == source for s in sources])
            if not mine.any():
                continue
            values = embedding[mine] if basis is None else scores(embedding[mine], *basis)
            if grid is None:
                grid = np.memmap(f'{folder}/grid', np.float32, 'w+', shape=(h, w, values.shape[1]))
                grid[:] = np.nan
            grid[rows[mine] // p, cols[mine] // p] = values
        if grid is None:
            raise ValueError(f'{os.fspath(table)}: there is no patch of {source} in it.')
        scaled = Affine(transform.a * p, transform.b * p, transform.c, transform.d * p, transform.e * p, transform.f)
        layout = Layout(h, w, crs, scaled, 'float32', grid.shape[2], float('nan'), tags={'SOURCE': source})
        with CogStream(path, layout) as stream:
            for row in range(0, h, 16):
                stream.write(row, np.ascontiguousarray(np.moveaxis(grid[row : row + 16], 2, 0)))
        del grid
    return path
