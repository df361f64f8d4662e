# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Pictures of a table of embeddings. Shapes: N rows, K components."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.image import imsave

from torchgeo_clay.writers.atomic import atomic
from torchgeo_clay.writers.principal import embedding_batches, principal_components, scores

__all__ = ('pca_picture', 'write_quicklooks')

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

#: Points drawn at most; more would only cover each other.
_POINTS = 20000


def pca_picture(values: Floats, rows: Ints, cols: Ints, low: Floats, high: Floats) -> npt.NDArray[np.uint8]:
    """Three components as red, green and blue where they lie in the scene.

    Args:
        values: (N, 3).
        rows: (N,) first rows of the windows.
        cols: (N,) first columns.
        low: (3,) shown as 0.
        high: (3,) shown as 255.

    Returns:
        (rows, columns, 4), a pixel per window; transparent where there is none.
    """
    (every_row, y), (every_col, x) = (np.unique(axis, return_inverse=True) for axis in (rows, cols))
    picture = np.zeros((len(every_row), len(every_col), 4), np.uint8)
    shares = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    picture[y, x, :3], picture[y, x, 3] = np.rint(255 * shares), 255
    return picture


def write_quicklooks(table: str | os.PathLike[str], folder: str | os.PathLike[str]) -> list[Path]:
    """Draw a table: of each scene the first three principal components, and all rows by the first two.

    Colours mean the same in all scenes: the components are the whole table's.

    Args:
        table: of :func:`torchgeo_clay.writers.write_geoparquet`, with two rows or more.
        folder: where the PNGs go: ``…_pca.png`` for each scene, and ``scatter.png``.

    Returns:
        Their paths.

    Raises:
        ValueError: if embeddings have less than three dimensions.
        OutputError: if the folder can't be written to.
    """
    basis = principal_components(table, 3)
    parts = [(scores(e, *basis), s, r, c) for e, s, r, c in embedding_batches(table)]
    values, rows, cols = (np.concatenate([part[i] for part in parts]) for i in (0, 2, 3))
    sources = np.array([s for part in parts for s in part[1]])
    low, high = np.percentile(values, [2, 98], axis=0).astype(np.float32)
    written = []
    members = {source: sources == source for source in dict.fromkeys(sources.tolist())}
    names = _names(members)
    for source, mine in members.items():
        path = Path(folder) / f'{names[source]}_pca.png'
        with atomic(path) as partial:
            imsave(partial, _enlarged(pca_picture(values[mine], rows[mine], cols[mine], low, high)))
        written.append(path)
    written.append(Path(folder) / 'scatter.png')
    with atomic(written[-1]) as partial:
        _scatter(values, {names[s]: m for s, m in members.items()}).savefig(partial, dpi=120)
    return written


def _names(sources: Mapping[str, object]) -> dict[str, str]:
    """Short names of scenes, numbered where files of several folders are called the same."""
    stems = [Path(source).stem for source in sources]
    return {
        source: stem if stems.count(stem) == 1 else f'{stem}_{i}'
        for i, (source, stem) in enumerate(zip(sources, stems, strict=True))
    }


def _enlarged(picture: npt.NDArray[np.uint8], least: int = 256) -> npt.NDArray[np.uint8]:
    """A small picture, each pixel repeated."""
    times = max(1, least // max(picture.shape[:2]))
    return picture.repeat(times, 0).repeat(times, 1)


def _scatter(values: Floats, members: Mapping[str, npt.NDArray[np.bool_]]) -> Figure:
    """Rows by their first two components, coloured by scene."""
    figure = Figure(figsize=(6, 5), layout='constrained')
    axes = figure.subplots()
    step = -(-len(values) // _POINTS)
    for name, mine in members.items():
        points = values[mine][::step]
        axes.scatter(points[:, 0], points[:, 1], s=4, linewidths=0, alpha=0.6, label=name)
    axes.set(xlabel='first principal component', ylabel='second')
    if len(members) <= 10:
        axes.legend(markerscale=3, fontsize='small')
    return figure
