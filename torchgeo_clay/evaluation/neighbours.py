# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Chips like a chip, by cosine, and how often they are of its class. Shapes: N rows, D width, Q queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from torchgeo_clay.evaluation.collapse import unit_rows
from torchgeo_clay.evaluation.inputs import Embeddings, Labels, as_embeddings, as_labels
from torchgeo_clay.evaluation.ranking import average_precisions, precisions_at, reciprocal_ranks

__all__ = ('Neighbours', 'RetrievalFigures', 'nearest_neighbours', 'retrieval_figures')

#: Queries whose cosines to all rows are in memory at once.
_CHUNK = 256


class Neighbours(NamedTuple):
    """The rows nearest to each query, the nearest first.

    Attributes:
        indices: (Q, k) rows of the table.
        cosines: (Q, k) to the query, falling.
    """

    indices: npt.NDArray[np.int64]
    cosines: npt.NDArray[np.float64]


@dataclass(frozen=True)
class RetrievalFigures:
    """How often what is near is of the same class, over all rows as queries.

    Attributes:
        mean_reciprocal_rank: mean of one over the place of the first row of the query's class; in (0, 1].
        precision: mean share of the query's class among the k nearest.
        mean_average_precision: mean over the places of all rows of the query's class; in (0, 1].
        k: of ``precision``.
        queries: rows that were asked for.
        unanswerable: rows that were not, as no other row is of their class.
    """

    mean_reciprocal_rank: float
    precision: float
    mean_average_precision: float
    k: int
    queries: int
    unanswerable: int


def _groups(groups: Labels | None, count: int) -> npt.NDArray[Any]:
    """Groups of rows; each row its own where none are given."""
    return np.arange(count) if groups is None else as_labels(groups, count, 'groups')


def nearest_neighbours(
    table: Embeddings, queries: Sequence[int] | Embeddings, k: int = 5, *, groups: Labels | None = None
) -> Neighbours:
    """Find the rows whose embeddings have the largest cosine to a query's.

    Args:
        table: (N, D), see :func:`torchgeo_clay.evaluation.as_embeddings`.
        queries: numbers of rows of the table, which are not their own neighbours, or other embeddings (Q, D).
        k: neighbours of each.
        groups: (N,) what rows must differ in from a query that is a row, such as their scene: chips of one scene have
            its date and nearly its place, so that they are near for another reason than what is on them. None for no
            condition.

    Returns:
        Their numbers and cosines. Of equal cosines the smaller number comes first.

    Raises:
        ValueError: for rows that are not there, another width, or a query with less than k rows to choose from.
    """
    rows = as_embeddings(table)
    owner = _groups(groups, len(rows))
    wanted, own = _asked(queries, rows, owner)
    unit, wanted = unit_rows(rows), unit_rows(wanted)
    parts = []
    for start in range(0, len(wanted), _CHUNK):
        some = slice(start, start + _CHUNK)
        cosines, order = _ranked(wanted[some], unit, None if own is None else own[some, None] == owner)
        _check_choice(k, np.isfinite(cosines).sum(axis=1))
        parts.append((order[:, :k], cosines[:, :k]))
    indices, cosines = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Neighbours(indices, cosines)


def _asked(
    queries: Sequence[int] | Embeddings, rows: npt.NDArray[Any], owner: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Embeddings of the queries (Q, D), and the groups (Q,) of those that are rows of the table."""
    if isinstance(queries, Sequence | np.ndarray) and not isinstance(queries, str) and np.ndim(queries) == 1:
        asked = np.asarray(queries)
        if not asked.size or asked.dtype.kind not in 'iu' or asked.min() < 0 or asked.max() >= len(rows):
            raise ValueError(f'queries: expected numbers of rows, 0 to {len(rows) - 1}, got {asked.tolist()[:5]}.')
        return rows[asked], owner[asked]
    wanted = as_embeddings(cast(Embeddings, queries))
    if wanted.shape[1] != rows.shape[1]:
        raise ValueError(f'queries: expected a width of {rows.shape[1]}, as the table has, got {wanted.shape[1]}.')
    return wanted, None


def _check_choice(k: int, choice: npt.NDArray[np.int64]) -> None:
    """Raise for a query with less than k rows to choose from."""
    if not 1 <= k <= choice.min():
        raise ValueError(
            f'k: expected 1 to {choice.min()}, the rows that a query has to choose from (itself and its group are left '
            f'out), got {k}.'
        )


def _ranked(
    queries: npt.NDArray[Any], rows: npt.NDArray[Any], excluded: npt.NDArray[np.bool_] | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Cosines (Q, N) of rows of length 1, falling, and the rows they are of; -inf, at the end, for those excluded."""
    cosines = (queries @ rows.T).astype(np.float64).clip(-1, 1)
    if excluded is not None:
        cosines[excluded] = -np.inf
    order = np.argsort(-cosines, axis=1, kind='stable')
    return np.take_along_axis(cosines, order, 1), order


def retrieval_figures(
    embeddings: Embeddings, labels: Labels, *, k: int = 10, groups: Labels | None = None
) -> RetrievalFigures:
    """Ask for the neighbours of every row, and look whether they are of its class.

    Args:
        embeddings: (N, D), see :func:`torchgeo_clay.evaluation.as_embeddings`.
        labels: (N,) classes.
        k: neighbours that count for the precision.
        groups: see :func:`nearest_neighbours`.

    Returns:
        The figures. A guess at random has as precision about the share of the query's class.

    Raises:
        ValueError: where no row has another of its class to be found, for a row with less than k to choose from, or
            labels that do not fit.
    """
    rows = as_embeddings(embeddings, least=2)
    classes, owner = as_labels(labels, len(rows)), _groups(groups, len(rows))
    unit = unit_rows(rows)
    parts = []
    for start in range(0, len(rows), _CHUNK):
        some = slice(start, start + _CHUNK)
        cosines, order = _ranked(unit[some], unit, owner[some, None] == owner)
        _check_choice(k, np.isfinite(cosines).sum(axis=1))
        relevance = (classes[order] == classes[some, None]) & np.isfinite(cosines)
        relevance = relevance[relevance.any(axis=1)]
        parts.append([reciprocal_ranks(relevance), precisions_at(relevance, k), average_precisions(relevance)])
    reciprocal, precision, average = (np.concatenate(part) for part in zip(*parts, strict=True))
    if not len(reciprocal):
        raise ValueError('labels: expected a class with two rows (of different groups) or more, got none.')
    return RetrievalFigures(
        mean_reciprocal_rank=float(reciprocal.mean()),
        precision=float(precision.mean()),
        mean_average_precision=float(average.mean()),
        k=k,
        queries=len(reciprocal),
        unanswerable=len(rows) - len(reciprocal),
    )
