# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Chips similar to a chip, by cosine. Shapes: N rows, D width, Q queries."""

from __future__ import annotations

import os
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
from shapely import Point
from sklearn.preprocessing import normalize
from torch import Tensor

from torchgeo_clay.evaluation.inputs import as_embeddings

__all__ = ('similar',)


def similar(
    table: gpd.GeoDataFrame | str | os.PathLike[str],
    *,
    to: int | list[int] | Point | tuple[float, float] | pd.Series[Any] | gpd.GeoDataFrame | npt.NDArray[Any] | Tensor,
    top: int = 10,
    other_scenes: bool = False,
) -> gpd.GeoDataFrame:
    """Find the chips of a table that are most similar to a chip.

    Example::

        chips = torchgeo_clay.embed('scenes')
        torchgeo_clay.similar(chips, to=0, top=5)

    Args:
        table: of :func:`torchgeo_clay.embed`, or a GeoParquet file of one.
        to: the position of a row of the table; a place, as (longitude, latitude) or a point, for the chip there; a row
            of such a table; or an embedding (D,). Of several, the mean of their directions. Rows of the table are not
            their own neighbors.
        top: chips wanted at most.
        other_scenes: whether to skip chips of the scenes of ``to``, which are near for their date and place alone.

    Returns:
        The rows of the table with the column ``cosine``, the most similar first.

    Raises:
        ValueError: for a row or place that is not in the table, another width, or ``top`` below 1.
    """
    rows = table if isinstance(table, gpd.GeoDataFrame) else gpd.read_parquet(table)
    if top < 1:
        raise ValueError(f'top: expected 1 or more, got {top}.')
    unit, own = normalize(as_embeddings(rows)), _positions(rows, to)
    if own:
        given = unit[own]
    else:
        like: Any = to.to_frame().T if isinstance(to, pd.Series) else to
        given = normalize(as_embeddings(like if isinstance(like, pd.DataFrame) or like.ndim == 2 else like[None]))
        if given.shape[1] != unit.shape[1]:
            raise ValueError(f'to: expected a width of {unit.shape[1]}, as the table has, got {given.shape[1]}.')
    cosines = (unit @ normalize(given.mean(axis=0, keepdims=True))[0]).clip(-1, 1)
    skipped = np.isin(np.arange(len(rows)), own)
    if other_scenes:
        skipped |= rows['source'].isin(rows['source'].iloc[own]).to_numpy()
    order = [i for i in np.argsort(-cosines, kind='stable').tolist() if not skipped[i]][:top]
    return rows.iloc[order].assign(cosine=cosines[order])


def _positions(rows: gpd.GeoDataFrame, to: Any) -> list[int]:
    """Return the rows of the table that are meant; none if ``to`` is something else."""
    if isinstance(to, tuple):
        to = Point(to)
    if isinstance(to, Point):
        there: list[int] = np.flatnonzero(rows.intersects(to)).tolist()
        if not there:
            raise ValueError(f'to: expected a place (longitude, latitude) inside a chip of the table, got {to.wkt}.')
        return there[:1]
    wanted = [to] if isinstance(to, int | np.integer) else to if isinstance(to, list) else []
    if not all(-len(rows) <= i < len(rows) for i in wanted):
        raise ValueError(f'to: expected rows, 0 to {len(rows) - 1}, got {to}.')
    return [int(i) % len(rows) for i in wanted]
