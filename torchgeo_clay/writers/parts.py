# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A table that is written in parts, so that a run that was killed goes on, and several processes write at once.

Beside ``OUT.parquet`` the folder ``OUT.parquet.parts`` holds one file per part, each whole or not there, and
``run.json``, which says of what run they are. When all parts are there they become one file and the folder goes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
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
        run: what all parts have in common, JSON values; parts of another run are refused.
    """

    def __init__(self, path: str | os.PathLike[str], run: Mapping[str, Any]) -> None:
        """Initialise; nothing is touched.

        Args:
            path: the file to be.
            run: what makes a part one of this run: model, weights, settings.

        Raises:
            ValueError: for another suffix than ``.parquet``.
        """
        self.path = Path(path)
        if self.path.suffix != '.parquet':
            raise ValueError(f'out: expected a path that ends in .parquet, got {self.path}.')
        self.folder = self.path.with_name(f'{self.path.name}.parts')
        self.run: dict[str, Any] = json.loads(json.dumps(run))  # as it is read back

    def begin(self, keys: Sequence[str], *, overwrite: bool = False) -> bool:
        """Prepare the folder, or find that nothing is left to do. One process does so, the others wait for it.

        Args:
            keys: of all the parts that make the table.
            overwrite: whether a table or parts of another run are thrown away.

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
        for left in [*halves, *self.folder.glob('*.failed')]:
            left.unlink()  # of a run that was killed, or of scenes that are tried again
        return False

    def _other(self) -> bool:
        """Whether the parts that are there are of another run."""
        description = self.folder / _RUN
        return not description.exists() or json.loads(description.read_text()) != self.run

    def _check_same(self, found: Mapping[str, Any], where: Path) -> None:
        """Raise unless what is there is of this run, naming what differs."""
        differing = [key for key in {**self.run, **found} if self.run.get(key) != found.get(key)]
        if differing:
            said = '; '.join(f'{key} is {found.get(key)!r} there, {self.run.get(key)!r} here' for key in differing)
            raise OutputError(
                f'out: {where} is of another run ({said}). Choose another name, remove it, or give overwrite: true.'
            )

    def done(self) -> set[str]:
        """Keys of the parts that are there."""
        return {path.stem for path in self.folder.glob('*.parquet') if not path.name.startswith('.')}

    def write(self, key: str, table: pa.Table) -> None:
        """Write a part, whole or not at all; one without rows counts as there too.

        Args:
            key: of the part.
            table: its rows.

        Raises:
            OutputError: if it can't be written.
        """
        with atomic(self.folder / f'{key}.parquet') as partial:
            pq.write_table(table, partial, compression='zstd')

    def fail(self, key: str, source: str, reason: str) -> None:
        """Take down that a part can't be made.

        Args:
            key: of the part.
            source: the scene.
            reason: what was wrong with it.
        """
        with atomic(self.folder / f'{key}.failed') as partial:
            partial.write_text(json.dumps([source, reason]))

    def failures(self) -> dict[str, str]:
        """Scenes of which parts can't be made, and why."""
        return dict(json.loads(path.read_text()) for path in sorted(self.folder.glob('*.failed')))

    def finish(self, parts: Mapping[str, str], *, crs: CRS | None, metadata: Mapping[str, Any]) -> int | None:
        """Make one file of all parts, in their order, and remove the folder.

        Scenes that failed in part are left out as a whole. Done by one process, when all have written.

        Args:
            parts: key of a part → its scene, in the order of the table.
            crs: of the geometries; None for unknown.
            metadata: written into the file besides :attr:`run`.

        Returns:
            The number of rows; None if parts are missing, and nothing was done.

        Raises:
            OutputError: if the file can't be written.
            ValueError: if no row is left.
        """
        failed = self.failures()
        wanted = [key for key, source in parts.items() if source not in failed]
        if set(wanted) - self.done():
            return None

        def tables() -> Iterator[pa.Table]:
            for key in wanted:
                table = pq.read_table(self.folder / f'{key}.parquet')
                if table.num_rows:
                    yield table

        every = {**self.run, **metadata, 'run': sorted(self.run), 'parts': list(parts), 'failed': failed}
        count = write_geoparquet(self.path, tables(), crs=crs, metadata=every)
        shutil.rmtree(self.folder)
        return count


def _metadata_of(path: Path) -> dict[str, Any]:
    """What says of which run a table is; empty for a file of someone else."""
    try:
        metadata = read_metadata(path)
    except ValueError as error:
        raise OutputError(f'out: {error} It is left as it is; choose another name.') from error
    return {key: metadata[key] for key in metadata.get('run', [])}
