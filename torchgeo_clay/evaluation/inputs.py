# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Accepted forms of embeddings and labels. Shapes: N rows, D width."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from torchgeo_clay.datasets import ClayEmbeddings
from torchgeo_clay.datasets.embeddings import embedding_matrix

__all__ = ('Embeddings', 'Labels', 'as_embeddings', 'as_labels')

#: A table of embeddings: an array or tensor (N, D), a GeoParquet file or its table, or such a file as a dataset.
type Embeddings = npt.NDArray[Any] | Tensor | pd.DataFrame | ClayEmbeddings | str | os.PathLike[str]

#: Classes of N rows: whole numbers, names or booleans.
type Labels = npt.NDArray[Any] | Tensor | Sequence[int] | Sequence[str]


def as_embeddings(source: Embeddings, least: int = 1) -> npt.NDArray[np.floating[Any]]:
    """Convert embeddings to an array.

    Args:
        source: (N, D) numbers; a table of :func:`torchgeo_clay.embed`; or its GeoParquet file or a folder of them.
        least: rows needed.

    Returns:
        (N, D) float32, or float64 if given in float64.

    Raises:
        ValueError: for another shape, too few rows, or values that are not finite.
        DatasetNotFoundError: for a path without GeoParquet.
    """
    if isinstance(source, str | os.PathLike):
        source = ClayEmbeddings(os.fspath(source))
    if isinstance(source, ClayEmbeddings | pd.DataFrame):
        source = embedding_matrix(source.data if isinstance(source, ClayEmbeddings) else source)
    values = _on_host(source)
    if values.ndim != 2 or values.shape[0] < least or not values.shape[1]:
        raise ValueError(
            f'embeddings: expected (N, D) with {least} rows or more, got shape {values.shape}. '
            'Of images (B, C, H, W) make embeddings first, of tokens (B, L, D) take one: tokens[:, 0].'
        )
    values = values if values.dtype == np.float64 else values.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise ValueError(f'embeddings: expected finite numbers, got NaN or infinity in {bad.size} rows, as {bad[0]}.')
    return values


def _on_host(source: npt.NDArray[Any] | Tensor) -> npt.NDArray[Any]:
    """Convert a tensor to an array: from half precision to float32, as numpy has no bfloat16."""
    if not isinstance(source, Tensor):
        return np.asarray(source)
    half = source.is_floating_point() and source.element_size() < 4
    return (source.detach().float() if half else source.detach()).cpu().numpy()


def as_labels(labels: Labels, count: int, name: str = 'labels') -> npt.NDArray[Any]:
    """Convert labels to an array, one per row.

    Args:
        labels: (N,) whole numbers, names or booleans.
        count: N, the number of embeddings.
        name: of the argument, for messages.

    Returns:
        (N,).

    Raises:
        ValueError: for another number of them, or fractions.
    """
    values = _on_host(labels) if isinstance(labels, Tensor) else np.asarray(labels)
    if values.shape != (count,):
        raise ValueError(f'{name}: expected one per embedding, ({count},), got shape {values.shape}.')
    if values.dtype.kind not in 'iubUO':
        raise ValueError(
            f'{name}: expected classes, as whole numbers or names, got {values.dtype}. '
            'Cut a quantity into classes first, as with numpy.digitize.'
        )
    return values.astype(str) if values.dtype.kind == 'O' else values
