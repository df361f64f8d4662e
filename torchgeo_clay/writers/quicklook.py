# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Pictures of a table of embeddings by its principal components. Shapes: N rows, D width, K components."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.image import imsave

from torchgeo_clay.writers.atomic import atomic
from torchgeo_clay.writers.geoparquet import embedding_batches

__all__ = ('pca_picture', 'principal_components', 'scores', 'write_quicklooks')

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

#: Points drawn at most; more would only cover each other.
_POINTS = 20000


def principal_components(path: str | os.PathLike[str], components: int) -> tuple[Floats, Floats]:
    """Compute mean and first principal components of a table, exactly, with memory for D × D numbers.

    Args:
        path: a table of :func:`torchgeo_clay.writers.write_geoparquet`.
        components: K.

    Returns:
        (D,) and (K, D), of falling variance; the largest entry of each component is positive, so that pictures of the
        same table are the same.

    Raises:
        ValueError: for more components than the embeddings are wide, or none.
    """
    count, total, products = 0, np.zeros(0), np.zeros((0, 0))
    for embedding, *_ in embedding_batches(path):
        values = embedding.astype(np.float64)
        if not count:
            total, products = np.zeros(values.shape[1]), np.zeros((values.shape[1],) * 2)
        count, total, products = count + len(values), total + values.sum(0), products + values.T @ values
    width = len(total)
    if not 1 <= components <= width:
        raise ValueError(f'components: expected 1 to {width}, the width of the embeddings, got {components}.')
    mean = total / count
    _, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    first = vectors[:, ::-1][:, :components].T
    signs = np.sign(np.take_along_axis(first, np.abs(first).argmax(1)[:, None], 1))
    return mean.astype(np.float32), (first * signs).astype(np.float32)


def scores(embedding: Floats, mean: Floats, components: Floats) -> Floats:
    """Project embeddings (N, D) on components (K, D): (N, K)."""
    return np.asarray((embedding - mean) @ components.T, np.float32)


def pca_picture(values: Floats, rows: Ints, cols: Ints, low: Floats, high: Floats) -> npt.NDArray[np.uint8]:
    """Show three components as red, green and blue where they lie in the scene.

    Args:
        values: (N, 3).
        rows: (N,) first rows of the windows.
        cols: (N,) first columns.
        low: (3,) shown as 0.
        high: (3,) shown as 255.

    Returns:
        (rows, columns, 4), a pixel per window; transparent elsewhere.
    """
    (every_row, y), (every_col, x) = (np.unique(axis, return_inverse=True) for axis in (rows, cols))
    picture = np.zeros((len(every_row), len(every_col), 4), np.uint8)
    shares = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    picture[y, x, :3], picture[y, x, 3] = np.rint(255 * shares), 255
    return picture


def write_quicklooks(table: str | os.PathLike[str], folder: str | os.PathLike[str]) -> list[Path]:
    """Draw the first three principal components of each scene, and all rows by the first two.

    Colors mean the same in all scenes: the components are the whole table's.

    Args:
        table: of :func:`torchgeo_clay.writers.write_geoparquet`.
        folder: of the PNGs: ``…_pca.png`` for each scene, and ``scatter.png``.

    Returns:
        Their paths.

    Raises:
        ValueError: if embeddings have less than three dimensions.
        OutputError: if the folder cannot be written to.
    """
    basis = principal_components(table, 3)
    parts = [(scores(e, *basis), s, r, c) for e, s, r, c in embedding_batches(table)]
    values, rows, cols = (np.concatenate([part[i] for part in parts]) for i in (0, 2, 3))
    sources = np.array([s for part in parts for s in part[1]])
    low, high = np.percentile(values, [2, 98], axis=0).astype(np.float32)
    written = []
    members = {source: sources == source for source in dict.fromkeys(sources.tolist())}
    stems = [Path(source).stem for source in members]
    names = {s: t if stems.count(t) == 1 else f'{t}_{i}' for i, (s, t) in enumerate(zip(members, stems, strict=True))}
    for source, mine in members.items():
        picture = pca_picture(values[mine], rows[mine], cols[mine], low, high)
        times = max(1, 256 // max(picture.shape[:2]))  # small pictures are enlarged
        written.append(Path(folder) / f'{names[source]}_pca.png')
        with atomic(written[-1]) as partial:
            imsave(partial, picture.repeat(times, 0).repeat(times, 1))
    written.append(Path(folder) / 'scatter.png')
    with atomic(written[-1]) as partial:
        _scatter(values, {names[s]: m for s, m in members.items()}).savefig(partial, dpi=120)
    return written


def _scatter(values: Floats, members: Mapping[str, npt.NDArray[np.bool_]]) -> Figure:
    """Draw rows by their first two components, colored by scene."""
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
