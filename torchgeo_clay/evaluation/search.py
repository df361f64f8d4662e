# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Chips similar to a chip, by cosine. Shapes: N rows, D width, Q queries."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
from shapely import Point
from torch import Tensor

from torchgeo_clay.evaluation.collapse import unit_rows
from torchgeo_clay.evaluation.inputs import Embeddings, Labels, as_embeddings, as_labels

__all__ = ('Neighbors', 'nearest_neighbors', 'similar')

#: Queries whose cosines to all rows are in memory at once.
_CHUNK = 256


def similar(
    table: gpd.GeoDataFrame | str | os.PathLike[str],
    *,
    to: int | Point | tuple[float, float] | pd.Series[Any] | gpd.GeoDataFrame | npt.NDArray[Any] | Tensor,
    top: int = 10,
) -> gpd.GeoDataFrame:
    """Find the chips of a table that are most similar to a chip.

    Example::

        chips = torchgeo_clay.embed('scenes')
        torchgeo_clay.similar(chips, to=0, top=5)

    Args:
        table: of :func:`torchgeo_clay.embed`, or a GeoParquet file of one.
        to: the position of a row of the table, which is not its own neighbor; a place, as (longitude, latitude) or a
            point, for the chip there; a row or rows of such a table, or embeddings (D,) or (Q, D), for the mean of
            their directions.
        top: chips wanted at most.

    Returns:
        The rows of the table with the column ``cosine``, the most similar first.

    Raises:
        ValueError: for a row or place that is not in the table, another width, or ``top`` below 1.
    """
    rows = table if isinstance(table, gpd.GeoDataFrame) else gpd.read_parquet(table)
    if top < 1:
        raise ValueError(f'top: expected 1 or more, got {top}.')
    unit, own = unit_rows(as_embeddings(rows)), None
    if isinstance(to, tuple):
        to = Point(to)
    if isinstance(to, Point):
        there = np.flatnonzero(rows.intersects(to))
        if not there.size:
            raise ValueError(f'to: expected a place (longitude, latitude) inside a chip of the table, got {to.wkt}.')
        to = int(there[0])
    if isinstance(to, int | np.integer):
        if not -len(rows) <= to < len(rows):
            raise ValueError(f'to: expected a row, 0 to {len(rows) - 1}, got {to}.')
        own, query = int(to) % len(rows), unit[to]
    else:
        wanted = to.to_frame().T if isinstance(to, pd.Series) else to
        given = as_embeddings(wanted if isinstance(wanted, pd.DataFrame) or wanted.ndim == 2 else wanted[None])
        if given.shape[1] != unit.shape[1]:
            raise ValueError(f'to: expected a width of {unit.shape[1]}, as the table has, got {given.shape[1]}.')
        query = unit_rows(unit_rows(given).mean(axis=0, keepdims=True))[0]
    cosines = (unit @ query).clip(-1, 1)
    order = [i for i in np.argsort(-cosines, kind='stable').tolist() if i != own][:top]
    return rows.iloc[order].assign(cosine=cosines[order])


class Neighbors(NamedTuple):
    """The rows nearest to each query, the nearest first.

    Attributes:
        indices: (Q, k) rows of the table.
        cosines: (Q, k) to the query, falling.
    """

    indices: npt.NDArray[np.int64]
    cosines: npt.NDArray[np.float64]


def nearest_neighbors(
    table: Embeddings, queries: Sequence[int] | Embeddings, k: int = 5, *, groups: Labels | None = None
) -> Neighbors:
    """Find the rows whose embeddings have the largest cosine to each query's.

    Args:
        table: (N, D), see :func:`torchgeo_clay.evaluation.as_embeddings`.
        queries: numbers of rows of the table, which are not their own neighbors, or other embeddings (Q, D).
        k: neighbors of each.
        groups: (N,) such as each row's scene: neighbors of a query that is a row are of other groups than its own, as
            chips of one scene are near for its date and place alone. None for no condition.

    Returns:
        Their numbers and cosines. Of equal cosines the smaller number comes first.

    Raises:
        ValueError: for rows that are not there, another width, or a query with less than k rows to choose from.
    """
    rows = as_embeddings(table)
    owner = np.arange(len(rows)) if groups is None else as_labels(groups, len(rows), 'groups')
    wanted, own = _queries(queries, rows, owner)
    unit, wanted = unit_rows(rows), unit_rows(wanted)
    parts = []
    for start in range(0, len(wanted), _CHUNK):
        some = slice(start, start + _CHUNK)
        cosines = (wanted[some] @ unit.T).astype(np.float64).clip(-1, 1)
        if own is not None:
            cosines[own[some, None] == owner] = -np.inf
        most = np.isfinite(cosines).sum(axis=1).min()
        if not 1 <= k <= most:
            raise ValueError(
                f'k: expected 1 to {most}, the rows that a query has to choose from (without itself and its group), '
                f'got {k}.'
            )
        order = np.argsort(-cosines, axis=1, kind='stable')[:, :k]
        parts.append((order, np.take_along_axis(cosines, order, 1)))
    indices, cosines = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Neighbors(indices, cosines)


def _queries(
    queries: Sequence[int] | Embeddings, rows: npt.NDArray[Any], owner: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Return embeddings of the queries (Q, D), and the groups (Q,) of those that are rows of the table."""
    if isinstance(queries, Sequence | np.ndarray) and not isinstance(queries, str) and np.ndim(queries) == 1:
        asked = np.asarray(queries)
        if not asked.size or asked.dtype.kind not in 'iu' or asked.min() < 0 or asked.max() >= len(rows):
            raise ValueError(f'queries: expected numbers of rows, 0 to {len(rows) - 1}, got {asked.tolist()[:5]}.')
        return rows[asked], owner[asked]
    wanted = as_embeddings(cast(Embeddings, queries))
    if wanted.shape[1] != rows.shape[1]:
        raise ValueError(f'queries: expected a width of {rows.shape[1]}, as the table has, got {wanted.shape[1]}.')
    return wanted, None
