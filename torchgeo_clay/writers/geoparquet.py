# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Tables of embeddings as GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0/). Shapes: N rows, D width."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from pyarrow.dataset import dataset, field
from pyproj import CRS

from torchgeo_clay.writers.atomic import atomic

__all__ = ('KEY', 'Rows', 'embedding_batches', 'embedding_table', 'read_metadata', 'write_geoparquet')

Precision = Literal['float32', 'float16', 'int8']

#: Name of this package's own entry in a file's metadata, JSON.
KEY = b'torchgeo_clay'

_ROW_GROUP = 8192
_BBOX = ('xmin', 'ymin', 'xmax', 'ymax')


@dataclass(frozen=True)
class Rows:
    """Embeddings of N windows of scenes, and their metadata.

    Attributes:
        embedding: (N, D) float32.
        geometry: N footprints, empty where the place is unknown.
        time: (N,) seconds since 1970-01-01 UTC; NaN for unknown.
        sensor: N names.
        gsd: (N,) meters per pixel.
        source: N paths or URLs of the scenes.
        row: (N,) first row of each window in its scene.
        col: (N,) first column.
        valid: (N,) share of its pixels that hold data.
    """

    embedding: npt.NDArray[np.float32]
    geometry: Sequence[Any]
    time: npt.NDArray[np.float64]
    sensor: Sequence[str]
    gsd: npt.NDArray[np.float32]
    source: Sequence[str]
    row: npt.NDArray[np.int64]
    col: npt.NDArray[np.int64]
    valid: npt.NDArray[np.float32]


def embedding_table(rows: Rows, precision: Precision = 'float32') -> pa.Table:
    """Make a table of embeddings, a row per window.

    Args:
        rows: the windows.
        precision: of the embeddings: ``float32``, ``float16``, or ``int8``, to be multiplied by the column ``scale``.

    Returns:
        Columns ``embedding`` (a list of fixed size), ``geometry`` (WKB), ``datetime``, ``sensor``, ``gsd``, ``source``,
        ``row``, ``col``, ``valid``, with int8 ``scale``, and ``bbox``, which covers the geometry.

    Raises:
        ValueError: for an unknown precision.
    """
    values, scale = _quantized(rows.embedding, precision)
    geometry = np.asarray(rows.geometry, dtype=object)
    known = np.isfinite(rows.time)
    milliseconds = np.where(known, np.nan_to_num(rows.time) * 1000, 0).round().astype(np.int64)
    columns = {
        'embedding': pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]),
        'geometry': pa.array(shapely.to_wkb(geometry), pa.binary()),
        'datetime': pa.array(milliseconds, pa.timestamp('ms', tz='UTC'), mask=~known),
        'sensor': pa.array(rows.sensor, pa.string()),
        'gsd': pa.array(rows.gsd, pa.float32()),
        'source': pa.array(rows.source, pa.string()),
        'row': pa.array(rows.row, pa.int32()),
        'col': pa.array(rows.col, pa.int32()),
        'valid': pa.array(rows.valid, pa.float32()),
    }
    if scale is not None:
        columns['scale'] = pa.array(scale, pa.float32())
    bounds = _bounds(geometry)
    unknown = np.isnan(bounds[:, 0])
    parts = [pa.array(bounds[:, i], pa.float64(), mask=unknown) for i in range(4)]
    columns['bbox'] = pa.StructArray.from_arrays(parts, names=list(_BBOX))
    return pa.table(columns)


def _bounds(geometry: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return xmin, ymin, xmax, ymax (N, 4); xmin > xmax where a footprint is cut at the antimeridian, by GeoParquet."""
    bounds: npt.NDArray[np.float64] = shapely.bounds(geometry)
    for i in np.flatnonzero(
        (bounds[:, 0] == -180) & (bounds[:, 2] == 180) & (shapely.get_num_geometries(geometry) > 1)
    ):
        parts = shapely.bounds(shapely.get_parts(geometry[i]))
        east = parts[:, 2] == 180  # in the eastern hemisphere, where the footprint begins
        bounds[i, 0], bounds[i, 2] = parts[east, 0].min(), parts[~east, 2].max()
    return bounds


def _quantized(
    embedding: npt.NDArray[np.float32], precision: Precision
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32] | None]:
    """Return embeddings as they are stored, and the factor of each row."""
    if precision not in ('float32', 'float16', 'int8'):
        raise ValueError(f"precision: expected 'float32', 'float16' or 'int8', got {precision!r}.")
    if precision != 'int8':
        return embedding.astype(precision), None
    scale = np.abs(embedding).max(axis=1, initial=0).astype(np.float32) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1))
    return np.rint(embedding / scale[:, None]).astype(np.int8), scale


def _bounds(geometry: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Bounds (N, 4); of geometries cut at the antimeridian xmin > xmax, as GeoParquet and RFC 7946 ask."""
    bounds: npt.NDArray[np.float64] = shapely.bounds(geometry)
    multiple = shapely.get_type_id(geometry) == shapely.GeometryType.MULTIPOLYGON
    for i in np.flatnonzero(multiple & (bounds[:, 0] == -180) & (bounds[:, 2] == 180)):
        parts = shapely.bounds(shapely.get_parts(geometry[i]))
        west, east = parts[:, 2] == 180, parts[:, 0] == -180
        if not (west & east).any():
            bounds[i, 0], bounds[i, 2] = parts[west, 0].min(), parts[east, 2].max()
    return bounds


def write_geoparquet(
    path: str | os.PathLike[str],
    tables: Iterable[pa.Table],
    *,
    crs: CRS | None,
    metadata: Mapping[str, Any],
    row_group: int = _ROW_GROUP,
) -> int:
    """Write tables as one GeoParquet file, atomically, with one row group in memory.

    Args:
        path: the file; replaced if it exists.
        tables: of :func:`embedding_table`, all of one schema.
        crs: of the geometries; None for unknown.
        metadata: written into the file as JSON, such as the model and its weights.
        row_group: rows of a row group.

    Returns:
        The number of rows.

    Raises:
        ValueError: if there is no table.
        OutputError: if the file can't be written.
    """
    seen: tuple[set[str], list[npt.NDArray[np.float64]]] = set(), []
    count = 0
    with atomic(path) as partial:
        writer: pq.ParquetWriter | None = None
        try:
            for table in _grouped(tables, row_group):
                if writer is None:
                    dictionaries = ['sensor', 'source']
                    writer = pq.ParquetWriter(partial, table.schema, compression='zstd', use_dictionary=dictionaries)
                writer.write_table(table, row_group_size=row_group)
                _record(table, *seen)
                count += table.num_rows
            if writer is None:
                raise ValueError(f'{os.fspath(path)}: there is no row to write, as no pixel holds data.')
            writer.add_key_value_metadata({'geo': json.dumps(_geo(crs, *seen)), KEY.decode(): json.dumps(metadata)})
        finally:
            if writer is not None:
                writer.close()
    return count


def _grouped(tables: Iterable[pa.Table], rows: int) -> Iterable[pa.Table]:
    """Concatenate small tables until they fill a row group."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(t.num_rows for t in waiting) >= rows:
            together = pa.concat_tables(waiting)
            whole = together.num_rows // rows * rows
            yield together.slice(0, whole)
            waiting = [together.slice(whole)] if whole < together.num_rows else []
    if any(t.num_rows for t in waiting):
        yield pa.concat_tables(waiting)


def _record(table: pa.Table, types: set[str], bounds: list[npt.NDArray[np.float64]]) -> None:
    """Record the types of a table's geometries and their bounds."""
    geometry = shapely.from_wkb(table['geometry'].to_numpy(zero_copy_only=False))
    names = {3: 'Polygon', 6: 'MultiPolygon'}
    types.update(names[i] for i in set(shapely.get_type_id(geometry).tolist()))
    box = shapely.total_bounds(geometry)
    if np.isfinite(box).all():
        bounds.append(box)


def _geo(crs: CRS | None, types: set[str], bounds: Sequence[npt.NDArray[np.float64]]) -> dict[str, Any]:
    """Return the metadata that makes a Parquet file GeoParquet."""
    column: dict[str, Any] = {
        'encoding': 'WKB',
        'geometry_types': sorted(types),
        'crs': None if crs is None else crs.to_json_dict(),
        'covering': {'bbox': {side: ['bbox', side] for side in _BBOX}},
    }
    if bounds:
        every = np.array(bounds)
        column['bbox'] = [*every[:, :2].min(axis=0).tolist(), *every[:, 2:].max(axis=0).tolist()]
    return {'version': '1.1.0', 'primary_column': 'geometry', 'columns': {'geometry': column}}


def embedding_batches(
    path: str | os.PathLike[str], source: str | None = None, rows: int = _ROW_GROUP
) -> Iterator[tuple[npt.NDArray[np.float32], list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Read a table of embeddings in batches.

    Args:
        path: of :func:`write_geoparquet`.
        source: the scene whose rows are wanted; None for all.
        rows: rows per batch.

    Yields:
        Embeddings (N, D), and of each its scene, row and column.
    """
    table = dataset(path)
    columns = ['embedding', 'source', 'row', 'col', *(['scale'] if 'scale' in table.schema.names else [])]
    wanted = None if source is None else field('source') == source
    for batch in table.to_batches(columns=columns, filter=wanted, batch_size=rows, use_threads=False):
        if not len(batch):
            continue
        values = batch['embedding'].flatten().to_numpy(zero_copy_only=False)
        embedding = values.astype(np.float32).reshape(len(batch), -1)
        if 'scale' in batch.schema.names:
            embedding = embedding * batch['scale'].to_numpy()[:, None]
        row, col = (batch[name].to_numpy().astype(np.int64) for name in ('row', 'col'))
        yield embedding, batch['source'].to_pylist(), row, col


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the ``metadata`` that :func:`write_geoparquet` was given.

    Args:
        path: a Parquet file.

    Raises:
        ValueError: if the file is not one of this package.
    """
    try:
        found = (pq.read_metadata(path).metadata or {}).get(KEY)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f'{os.fspath(path)}: not readable as Parquet ({error}).') from error
    if found is None:
        raise ValueError(f'{os.fspath(path)}: expected embeddings written by torchgeo_clay, found other Parquet.')
    metadata: dict[str, Any] = json.loads(found)
    return metadata
