# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Tables of embeddings as GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0/). Shapes: N rows, D width.

A table is written at once, or in parts, so that a killed run continues and several processes write at once: beside
``OUT.parquet`` the folder ``OUT.parquet.parts`` holds one file per part, each written atomically and with the digest of
its run, and ``run.json``, which describes the run. When complete they become one file and the folder is removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from pyarrow.dataset import dataset, field
from pyproj import CRS

from torchgeo_clay.writers.atomic import OutputError, atomic, check_writable, differences, remove_remains

__all__ = (
    'KEY',
    'PartStore',
    'Rows',
    'check_suffix',
    'embedding_batches',
    'embedding_table',
    'placed_columns',
    'read_metadata',
    'write_geoparquet',
)

_log = logging.getLogger(__name__)

Precision = Literal['float32', 'float16', 'int8']

#: Name of this package's own entry in a file's metadata, JSON.
KEY = b'torchgeo_clay'

_ROW_GROUP = 8192
_RUN = 'run.json'
_DIGEST = b'torchgeo_clay_run_sha256'
_BBOX = ('xmin', 'ymin', 'xmax', 'ymax')
#: Degrees that parts of a polygon around a pole are apart at most, by rounding.
_MEETING = 1e-9


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
    placed = placed_columns(rows.geometry, rows.time)
    columns = {
        'embedding': pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]),
        'geometry': placed['geometry'],
        'datetime': placed['datetime'],
        'sensor': pa.array(rows.sensor, pa.string()),
        'gsd': pa.array(rows.gsd, pa.float32()),
        'source': pa.array(rows.source, pa.string()),
        'row': pa.array(rows.row, pa.int32()),
        'col': pa.array(rows.col, pa.int32()),
        'valid': pa.array(rows.valid, pa.float32()),
    }
    if scale is not None:
        columns['scale'] = pa.array(scale, pa.float32())
    return pa.table({**columns, 'bbox': placed['bbox']})


def placed_columns(geometry: Sequence[Any], time: npt.NDArray[np.float64]) -> dict[str, pa.Array]:
    """Return the columns ``geometry``, ``datetime`` and ``bbox`` of N geometries and times, NaN for unknown."""
    shapes = np.array([*geometry, None], dtype=object)[:-1]  # of objects, however few
    known = np.isfinite(time)
    milliseconds = np.where(known, np.nan_to_num(time) * 1000, 0).round().astype(np.int64)
    bounds = _bounds(shapes)
    unknown = np.isnan(bounds[:, 0])
    parts = [pa.array(bounds[:, i], pa.float64(), mask=unknown) for i in range(4)]
    return {
        'geometry': pa.array(shapely.to_wkb(shapes), pa.binary()),
        'datetime': pa.array(milliseconds, pa.timestamp('ms', tz='UTC'), mask=~known),
        'bbox': pa.StructArray.from_arrays(parts, names=list(_BBOX)),
    }


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
    """Return bounds (N, 4), with xmin > xmax where a geometry is cut at the antimeridian, as GeoParquet requires."""
    bounds: npt.NDArray[np.float64] = shapely.bounds(geometry)
    multiple = shapely.get_type_id(geometry) == shapely.GeometryType.MULTIPOLYGON
    for i in np.flatnonzero(multiple & (bounds[:, 0] == -180) & (bounds[:, 2] == 180)):
        parts = shapely.bounds(shapely.get_parts(geometry[i]))
        west, east = parts[:, 2] == 180, parts[:, 0] == -180
        left, right = parts[west, 0].min(), parts[east, 2].max()
        if left > right + _MEETING:  # else the parts lie around a pole
            bounds[i, 0], bounds[i, 2] = left, right
    return bounds


def write_geoparquet(
    path: str | os.PathLike[str],
    tables: Iterable[pa.Table],
    *,
    crs: CRS | None,
    metadata: Mapping[str, Any],
    row_group: int = _ROW_GROUP,
    empty: bool = False,
) -> int:
    """Write tables as one GeoParquet file, atomically, with one row group in memory.

    Args:
        path: the file; replaced if it exists.
        tables: of :func:`embedding_table`, all of one schema.
        crs: of the geometries; None for unknown.
        metadata: written into the file as JSON, such as the model and its weights.
        row_group: rows per row group.
        empty: whether a table without rows is written, too.

    Returns:
        The number of rows.

    Raises:
        ValueError: if there is no row, unless ``empty``.
        OutputError: if the file cannot be written.
    """
    seen: tuple[set[str], list[npt.NDArray[np.float64]]] = set(), []
    count = 0
    with atomic(path) as partial:
        writer: pq.ParquetWriter | None = None
        try:
            for table in _grouped(tables, row_group, empty):
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


def _grouped(tables: Iterable[pa.Table], rows: int, empty: bool) -> Iterable[pa.Table]:
    """Concatenate small tables until they fill a row group."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(t.num_rows for t in waiting) >= rows:
            together = pa.concat_tables(waiting)
            whole = together.num_rows // rows * rows
            yield together.slice(0, whole)
            waiting = [together.slice(whole)] if whole < together.num_rows else []
    if any(t.num_rows for t in waiting) or (empty and waiting):
        yield pa.concat_tables(waiting)


def _record(table: pa.Table, types: set[str], bounds: list[npt.NDArray[np.float64]]) -> None:
    """Record the types of a table's geometries and their bounds."""
    if not table.num_rows:
        return
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


def check_suffix(out: str | os.PathLike[str]) -> None:
    """Raise for a file that does not end in ``.parquet``."""
    if Path(out).suffix != '.parquet':
        raise ValueError(f'out: expected a path that ends in .parquet, got {os.fspath(out)}.')


class PartStore:
    """The parts of a table on their way to one file.

    Attributes:
        path: the file that they become.
        folder: where they are until then.
        run: settings that all parts share, JSON values; parts of another run are refused.
        digest: SHA-256 of the run, which each part holds.
    """

    def __init__(self, path: str | os.PathLike[str], run: Mapping[str, Any]) -> None:
        """Initialize a new PartStore instance; nothing is written.

        Args:
            path: the final file; see :func:`check_suffix`.
            run: what identifies the run: model, weights, settings.
        """
        self.path = Path(path)
        self.folder = self.path.with_name(f'{self.path.name}.parts')
        self.run: dict[str, Any] = json.loads(json.dumps(run))  # as it is read back
        self.digest = hashlib.sha256(json.dumps(self.run, sort_keys=True).encode()).hexdigest().encode()

    def begin(self, keys: Sequence[str], *, overwrite: bool = False) -> bool:
        """Prepare the folder. Call it on one process, before the others write.

        Args:
            keys: of all parts of the table.
            overwrite: whether a table or parts of another run are deleted.

        Returns:
            True if a complete table of this run exists.

        Raises:
            OutputError: if another table or parts of another run exist, or the folder cannot be written to.
        """
        check_writable(self.path.parent)
        if self.path.exists() and not overwrite:
            try:
                found = read_metadata(self.path)
            except ValueError as error:
                raise OutputError(f'out: {error} It is left as it is; choose another name.') from error
            self._check_same({key: found[key] for key in found.get('run', [])}, self.path)
            if found.get('parts') != list(keys):
                raise OutputError(
                    f'out: {self.path} is there already, of other scenes or other versions of them. Choose another '
                    'name, remove it, or give overwrite: true.'
                )
            if self._described() in (None, self.run):  # a kill came between the table and the end of its parts
                shutil.rmtree(self.folder, ignore_errors=True)
            return True
        described = self._described()
        if overwrite and self.folder.exists() and described != self.run:
            shutil.rmtree(self.folder)
        elif described is not None:
            self._check_same(described, self.folder)
        with atomic(self.folder / _RUN) as partial:
            partial.write_text(json.dumps(self.run, indent=1))
        remove_remains([self.path])
        for half in self.folder.glob('.*.partial.*'):  # of a run that was killed
            half.unlink()
        return False

    def _described(self) -> dict[str, Any] | None:
        """Return the run that the folder describes; None where there is no description, or a damaged one."""
        try:
            found = json.loads((self.folder / _RUN).read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _check_same(self, found: Mapping[str, Any], where: Path) -> None:
        """Raise for another run than this one, naming what differs."""
        if what := differences(found, self.run):
            raise OutputError(
                f'out: {where} is of another run ({what}). Choose another name, remove it, or give overwrite: true.'
            )

    def done(self) -> set[str]:
        """Return the keys of the parts of this run; parts that are damaged or of another run are removed."""
        found, wrong = set(), []
        for path in self.folder.glob('[!.]*.parquet'):
            try:
                is_ours = (self._read(path.stem).schema.metadata or {}).get(_DIGEST) == self.digest
            except (pa.ArrowException, OSError):
                is_ours = False
            if is_ours:
                found.add(path.stem)
            else:
                wrong.append(path)
        for path in wrong:
            path.unlink()
        if wrong:
            text = '%s: %d of %d parts were damaged or of another run, and are made again.'
            _log.warning(text, self.folder, len(wrong), len(wrong) + len(found))
        return found

    def _read(self, key: str) -> pa.Table:
        """Read a part, whose pages are checked against their checksums."""
        return pq.read_table(self.folder / f'{key}.parquet', page_checksum_verification=True)

    def count(self, key: str) -> int:
        """Return the number of rows of an existing part."""
        return int(pq.read_metadata(self.folder / f'{key}.parquet').num_rows)

    def write(self, key: str, table: pa.Table) -> None:
        """Write a part atomically; it may have no rows.

        Args:
            key: of the part.
            table: its rows.

        Raises:
            OutputError: if it cannot be written.
        """
        named = table.replace_schema_metadata({_DIGEST: self.digest})
        with atomic(self.folder / f'{key}.parquet') as partial:
            pq.write_table(named, partial, compression='zstd', write_page_checksum=True)

    def finish(
        self, parts: Mapping[str, str], failed: Mapping[str, str], *, crs: CRS | None, empty: bool = False
    ) -> int:
        """Make one file of all parts, in their order, and remove the folder. Call it on one process.

        Args:
            parts: key of a part → its scene, in the order of the table.
            failed: scene → reason, of scenes that are skipped as a whole.
            crs: of the geometries; None for unknown.
            empty: whether a table without rows is written, too.

        Returns:
            The number of rows.

        Raises:
            OutputError: if the file cannot be written.
            ValueError: if no row is left.
        """
        wanted = [key for key, source in parts.items() if source not in failed]

        def tables() -> Iterator[pa.Table]:
            for key in wanted:
                table = self._read(key).replace_schema_metadata(None)
                if table.num_rows or empty:
                    yield table

        about = {
            'torchgeo_clay': version('torchgeo-clay'),
            'run': sorted(self.run),
            'parts': [*parts],
            'failed': failed,
        }
        count = write_geoparquet(self.path, tables(), crs=crs, metadata={**self.run, **about}, empty=empty)
        shutil.rmtree(self.folder)
        return count
