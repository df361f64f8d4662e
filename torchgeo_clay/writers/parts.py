# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A table that is written in parts, so that a killed run continues and several processes write at once.

Beside ``OUT.parquet`` the folder ``OUT.parquet.parts`` holds one file per part, each written atomically, and
``run.json``, which identifies the run. When all parts are there they become one file and the folder is removed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyproj import CRS

from torchgeo_clay.writers.atomic import OutputError, atomic, check_writable
from torchgeo_clay.writers.geoparquet import read_metadata, write_geoparquet

__all__ = ('PartStore',)

_RUN = 'run.json'


class PartStore:
    """The parts of a table on their way to one file.

    Attributes:
        path: the file that they become.
        folder: where they are until then.
        run: settings that all parts share, JSON values; parts of another run are refused.
    """

    def __init__(self, path: str | os.PathLike[str], run: Mapping[str, Any]) -> None:
        """Initialize a new PartStore instance; nothing is written.

        Args:
            path: the final file.
            run: what identifies the run: model, weights, settings.

        Raises:
            ValueError: for another suffix than ``.parquet``.
        """
        self.path = Path(path)
        if self.path.suffix != '.parquet':
            raise ValueError(f'out: expected a path that ends in .parquet, got {self.path}.')
        self.folder = self.path.with_name(f'{self.path.name}.parts')
        self.run: dict[str, Any] = json.loads(json.dumps(run))  # as it is read back

    def begin(self, keys: Sequence[str], *, overwrite: bool = False) -> bool:
        """Prepare the folder. Call it on one process, before the others write.

        Args:
            keys: of all parts of the table.
            overwrite: whether a table or parts of another run are deleted.

        Returns:
            Whether the table is there already, complete and of this run.

        Raises:
            OutputError: if another table or parts of another run are there, or the folder can't be written to.
        """
        check_writable(self.path.parent)
        if self.path.exists() and not overwrite:
            self._check_same(_metadata_of(self.path), self.path)
            if read_metadata(self.path).get('parts') != list(keys):
                raise OutputError(
                    f'out: {self.path} is there already, of other scenes or other versions of them. Choose another '
                    'name, remove it, or give overwrite: true.'
                )
            return True
        if overwrite and self.folder.exists() and self._other():
            shutil.rmtree(self.folder)
        check_writable(self.folder)
        description = self.folder / _RUN
        if description.exists():
            self._check_same(json.loads(description.read_text()), self.folder)
        with atomic(description) as partial:
            partial.write_text(json.dumps(self.run, indent=1))
        halves = [*self.folder.glob('.*.partial.*'), *self.path.parent.glob(f'.{self.path.stem}.*.partial.parquet')]
        for half in halves:  # of a run that was killed
            half.unlink()
        return False

    def _other(self) -> bool:
        """Return whether the folder holds parts of another run."""
        description = self.folder / _RUN
        return not description.exists() or json.loads(description.read_text()) != self.run

    def _check_same(self, found: Mapping[str, Any], where: Path) -> None:
        """Raise for another run than this one, naming what differs."""
        differing = [key for key in {**self.run, **found} if self.run.get(key) != found.get(key)]
        if differing:
            what = '; '.join(f'{key} is {found.get(key)!r} there, {self.run.get(key)!r} here' for key in differing)
            raise OutputError(
                f'out: {where} is of another run ({what}). Choose another name, remove it, or give overwrite: true.'
            )

    def done(self) -> set[str]:
        """Return the keys of the parts that are there."""
        return {path.stem for path in self.folder.glob('*.parquet') if not path.name.startswith('.')}

    def write(self, key: str, table: pa.Table) -> None:
        """Write a part atomically; it may have no rows.

        Args:
            key: of the part.
            table: its rows.

        Raises:
            OutputError: if it can't be written.
        """
        with atomic(self.folder / f'{key}.parquet') as partial:
            pq.write_table(table, partial, compression='zstd')

    def finish(self, parts: Mapping[str, str], failed: Mapping[str, str], *, crs: CRS | None) -> int:
        """Make one file of all parts, in their order, and remove the folder. Call it on one process.

        Args:
            parts: key of a part → its scene, in the order of the table.
            failed: scene → reason, of scenes that are skipped as a whole.
            crs: of the geometries; None for unknown.

        Returns:
            The number of rows.

        Raises:
            OutputError: if the file can't be written.
            ValueError: if no row is left.
        """
        wanted = [key for key, source in parts.items() if source not in failed]

        def tables() -> Iterator[pa.Table]:
            for key in wanted:
                table = pq.read_table(self.folder / f'{key}.parquet')
                if table.num_rows:
                    yield table

        about = {
            'torchgeo_clay': version('torchgeo-clay'),
            'run': sorted(self.run),
            'parts': [*parts],
            'failed': failed,
        }
        count = write_geoparquet(self.path, tables(), crs=crs, metadata={**self.run, **about})
        shutil.rmtree(self.folder)
        return count


def _metadata_of(path: Path) -> dict[str, Any]:
    """Return the run metadata stored in a table."""
    try:
        metadata = read_metadata(path)
    except ValueError as error:
        raise OutputError(f'out: {error} It is left as it is; choose another name.') from error
    return {key: metadata[key] for key in metadata.get('run', [])}
