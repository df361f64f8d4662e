# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Principal components of a table of embeddings of any length. Shapes: N rows, D width, K components."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ('embedding_batches', 'principal_components', 'scores')

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

#: Rows in memory at once.
_BATCH = 8192


def embedding_batches(path: str | os.PathLike[str]) -> Iterator[tuple[Floats, list[str], Ints, Ints]]:
    """A table of embeddings, some rows at a time.

    Args:
        path: of :func:`torchgeo_clay.writers.write_geoparquet`.

    Yields:
        Embeddings (N, D), and of each its scene, row and column.
    """
    with pq.ParquetFile(path) as file:
        scaled = 'scale' in file.schema_arrow.names
        columns = ['embedding', 'source', 'row', 'col', *(['scale'] if scaled else [])]
        for batch in file.iter_batches(_BATCH, columns=columns):
            embedding = _matrix(batch['embedding'])
            if scaled:
                embedding = embedding * batch['scale'].to_numpy()[:, None]
            rows, cols = (batch[name].to_numpy().astype(np.int64) for name in ('row', 'col'))
            yield embedding, batch['source'].to_pylist(), rows, cols


def _matrix(column: pa.Array) -> Floats:
    """A list column of fixed size as (N, D) float32."""
    values: Floats = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), -1)
    return values


def principal_components(path: str | os.PathLike[str], components: int) -> tuple[Floats, Floats]:
    """Mean and first principal components of a table, exactly, with memory for D × D numbers.

    Args:
        path: see :func:`embedding_batches`.
        components: K.

    Returns:
        (D,) and (K, D), of falling variance; of each component the largest entry is positive, so that pictures of the
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
    """Embeddings (N, D) on components (K, D): (N, K)."""
    return np.asarray((embedding - mean) @ components.T, np.float32)
