# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Accepted forms of embeddings. Shapes: N rows, D width."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from torchgeo_clay.datasets import ClayEmbeddings
from torchgeo_clay.datasets.embeddings import embedding_matrix

__all__ = ('Embeddings', 'as_embeddings')

#: A table of embeddings: an array or tensor (N, D), a GeoParquet file or its table, or such a file as a dataset.
type Embeddings = npt.NDArray[Any] | Tensor | pd.DataFrame | ClayEmbeddings | str | os.PathLike[str]


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
    if isinstance(source, Tensor):
        half = source.is_floating_point() and source.element_size() < 4  # numpy has no bfloat16
        source = (source.detach().float() if half else source.detach()).cpu().numpy()
    values = np.asarray(source)
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
