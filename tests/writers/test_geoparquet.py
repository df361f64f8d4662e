# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""GeoParquet read back with geopandas, pyarrow, and TorchGeo's own dataset."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar
from unittest import mock

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
import torch
from pyproj import CRS
from torchgeo.datasets import ClayEmbeddings as TorchGeoClayEmbeddings

from torchgeo_clay.datasets import ClayEmbeddings
from torchgeo_clay.writers import OutputError, PartStore, Rows, embedding_table, read_metadata, write_geoparquet
from torchgeo_clay.writers.atomic import exclusive

WGS84 = CRS.from_epsg(4326)
RUN = {'model': 'clay_tiny_patch8', 'weights': 'abc'}


def rows(n: int = 5, dim: int = 6, seed: int = 0, *, known: bool = True) -> Rows:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-60, 60, (n, 2))
    return Rows(
        embedding=rng.normal(size=(n, dim)).astype(np.float32),
        geometry=[shapely.box(x, y, x + 1, y + 2) if known else shapely.Polygon() for x, y in corners],
        time=np.full(n, 1.6e9 if known else np.nan) + np.arange(n),
        sensor=['naip'] * n,
        gsd=np.full(n, 0.6, np.float32),
        source=[f'scene{seed}.tif'] * n,
        row=np.arange(n) * 8,
        col=np.arange(n) * 16,
        valid=np.linspace(0.5, 1, n, dtype=np.float32),
    )


def test_geopandas_and_pyarrow_read_it(tmp_path: Path) -> None:
    path, given = tmp_path / 'e.parquet', rows()
    assert write_geoparquet(path, [embedding_table(given)], crs=WGS84, metadata=RUN) == 5
    frame = gpd.read_parquet(path)
    assert frame.crs == WGS84
    np.testing.assert_array_equal(np.stack(frame['embedding']), given.embedding)
    assert frame.geometry.geom_equals_exact(gpd.GeoSeries(list(given.geometry), crs=WGS84), 0).all()
    assert list(frame['datetime']) == list(pd.to_datetime(given.time, unit='s', utc=True))
    for name in ('sensor', 'gsd', 'source', 'row', 'col', 'valid'):
        assert list(frame[name]) == list(getattr(given, name))
    file = pq.ParquetFile(path)
    assert str(file.schema_arrow.field('embedding').type).startswith('fixed_size_list<')
    assert file.schema_arrow.field('embedding').type.list_size == 6
    assert file.metadata.row_group(0).column(0).compression == 'ZSTD'
    geo = json.loads(file.metadata.metadata[b'geo'])
    assert geo['version'] == '1.1.0'
    assert geo['columns']['geometry']['geometry_types'] == ['Polygon']
    np.testing.assert_allclose(geo['columns']['geometry']['bbox'], frame.total_bounds)
    assert read_metadata(path) == RUN
    assert [p.name for p in tmp_path.iterdir()] == ['e.parquet']


def test_the_covering_lets_geopandas_read_a_part(tmp_path: Path) -> None:
    path, given = tmp_path / 'e.parquet', rows(50)
    write_geoparquet(path, [embedding_table(given)], crs=WGS84, metadata=RUN, row_group=8)
    assert pq.ParquetFile(path).num_row_groups == 7
    box = given.geometry[17].bounds
    frame = gpd.read_parquet(path, bbox=box)
    expected = [shapely.box(*box).intersects(g) for g in given.geometry]
    assert list(frame['row']) == list(given.row[expected])
    assert 0 < len(frame) < 50


def test_the_box_of_a_chip_across_the_antimeridian_begins_in_the_west(tmp_path: Path) -> None:
    across = shapely.MultiPolygon([shapely.box(178.5, 0, 180, 1), shapely.box(-180, 0, -179, 1)])
    around_pole = shapely.box(-180, 80, 180, 90)
    of_two_parts = shapely.MultiPolygon([shapely.box(-180, 80, -16, 90), shapely.box(-16, 80, 180, 90)])
    given = dataclasses.replace(rows(4), geometry=[across, around_pole, shapely.Polygon(), of_two_parts])
    boxes = embedding_table(given)['bbox'].to_pylist()
    assert boxes[0] == {'xmin': 178.5, 'ymin': 0, 'xmax': -179, 'ymax': 1}
    assert boxes[1] == boxes[3] == {'xmin': -180, 'ymin': 80, 'xmax': 180, 'ymax': 90}
    assert set(boxes[2].values()) == {None}


def test_tables_are_put_together(tmp_path: Path) -> None:
    parts = [rows(n, seed=i) for i, n in enumerate((3, 9, 1, 20))]
    path = tmp_path / 'e.parquet'
    write_geoparquet(path, map(embedding_table, parts), crs=WGS84, metadata=RUN, row_group=10)
    found = np.stack(gpd.read_parquet(path)['embedding'])
    np.testing.assert_array_equal(found, np.concatenate([p.embedding for p in parts]))
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [10, 10, 10, 3]


def test_torchgeo_reads_it(tmp_path: Path) -> None:
    path, given = tmp_path / 'e.parquet', rows()
    write_geoparquet(path, [embedding_table(given)], crs=WGS84, metadata=RUN)
    theirs, ours = TorchGeoClayEmbeddings(path), ClayEmbeddings(path)
    assert len(theirs) == len(ours) == 5
    for i in range(5):
        assert torch.equal(theirs[i]['embedding'], torch.from_numpy(given.embedding[i]))
        assert torch.equal(ours[i]['embedding'], theirs[i]['embedding'])
        for key in ('x', 'y', 't'):
            torch.testing.assert_close(ours[i][key].float(), theirs[i][key].float())
    np.testing.assert_array_equal(ours.embeddings, given.embedding)


@pytest.mark.parametrize(('precision', 'error'), [('float16', 1e-3), ('int8', 0.5 / 127)])
def test_rounded_embeddings(tmp_path: Path, precision: str, error: float) -> None:
    path, given = tmp_path / 'e.parquet', rows(20, 64)
    given.embedding[3] = 0
    write_geoparquet(path, [embedding_table(given, precision)], crs=WGS84, metadata=RUN)
    assert pq.read_schema(path).field('embedding').type.value_type == ('int8' if precision == 'int8' else 'halffloat')
    ours = ClayEmbeddings(path)
    largest = np.abs(given.embedding).max(axis=1, keepdims=True)
    assert (np.abs(ours.embeddings - given.embedding) <= error * largest * 1.001).all()
    assert torch.equal(ours[7]['embedding'], torch.from_numpy(ours.embeddings[7]))


def test_what_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / 'e.parquet'
    write_geoparquet(path, [embedding_table(rows(3, known=False)), embedding_table(rows(2))], crs=WGS84, metadata=RUN)
    frame = gpd.read_parquet(path)
    assert list(frame['datetime'].isna()) == [True] * 3 + [False] * 2
    assert list(frame.geometry.is_empty) == [True] * 3 + [False] * 2
    sample = ClayEmbeddings(path)[0]
    assert all(torch.isnan(sample[key]) for key in ('x', 'y', 't'))


def test_no_crs(tmp_path: Path) -> None:
    path = tmp_path / 'e.parquet'
    write_geoparquet(path, [embedding_table(rows())], crs=None, metadata=RUN)
    assert gpd.read_parquet(path).crs is None


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='precision'):
        embedding_table(rows(), 'float8')
    with pytest.raises(ValueError, match='no row'):
        write_geoparquet(tmp_path / 'e.parquet', [], crs=WGS84, metadata=RUN)
    (tmp_path / 'x.parquet').write_text('no')
    with pytest.raises(ValueError, match='not readable as Parquet'):
        read_metadata(tmp_path / 'x.parquet')


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / 'e.parquet'
    write_geoparquet(path, [embedding_table(rows())], crs=WGS84, metadata=RUN)
    before = path.read_bytes()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        mock.patch('torchgeo_clay.writers.atomic.os.fsync', side_effect=full),
        pytest.raises(OutputError, match=r'e\.parquet.*No space left.*room on the disk'),
    ):
        write_geoparquet(path, [embedding_table(rows(9))], crs=WGS84, metadata=RUN)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['e.parquet']


class TestParts:
    """A table in parts."""

    parts: ClassVar = {'a': 'scene0.tif', 'b': 'scene0.tif', 'c': 'scene1.tif'}

    def store(self, folder: Path, **run: str) -> PartStore:
        return PartStore(folder / 'out/e.parquet', {**RUN, **run})

    def test_a_run_in_two_goes(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        assert not store.begin(list(self.parts))
        store.write('b', embedding_table(rows(2, seed=1)))
        (store.folder / '.a.123.partial.parquet').write_text('half')  # as a kill leaves it
        again = self.store(tmp_path)
        assert not again.begin(list(self.parts))
        assert again.done() == {'b'}
        again.write('a', embedding_table(rows(3, seed=0)))
        again.write('c', embedding_table(rows(4, seed=2)))
        assert again.finish(self.parts, {}, crs=WGS84) == 9
        found = np.stack(gpd.read_parquet(store.path)['embedding'])
        expected = [rows(n, seed=i).embedding for i, n in enumerate((3, 2, 4))]
        np.testing.assert_array_equal(found, np.concatenate(expected))
        assert [p.name for p in store.path.parent.iterdir()] == ['e.parquet']
        assert read_metadata(store.path)['parts'] == list(self.parts)
        assert self.store(tmp_path).begin(list(self.parts))

    def test_scenes_that_fail_are_skipped_whole(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        store.begin(list(self.parts))
        store.write('a', embedding_table(rows(3)))
        store.write('c', embedding_table(rows(4, seed=2)))
        assert store.finish(self.parts, {'scene0.tif': 'truncated'}, crs=WGS84) == 4
        assert read_metadata(store.path)['failed'] == {'scene0.tif': 'truncated'}

    def test_another_run_is_refused(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        store.begin(list(self.parts))
        other = self.store(tmp_path, weights='def')
        with pytest.raises(OutputError, match="weights is 'abc' there, 'def' here"):
            other.begin(list(self.parts))
        for key in self.parts:
            store.write(key, embedding_table(rows()))
        store.finish(self.parts, {}, crs=WGS84)
        with pytest.raises(OutputError, match="weights is 'abc' there, 'def' here"):
            other.begin(list(self.parts))
        with pytest.raises(OutputError, match='other scenes'):
            store.begin(['a'])
        assert not other.begin(list(self.parts), overwrite=True)

    def test_a_file_of_someone_else_is_left(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        store.path.parent.mkdir()
        gpd.GeoDataFrame({'a': [1]}, geometry=[shapely.Point(1, 2)], crs=4326).to_parquet(store.path)
        with pytest.raises(OutputError, match='found other Parquet'):
            store.begin(list(self.parts))
        assert len(gpd.read_parquet(store.path)) == 1

    def test_a_folder_that_can_not_be(self, tmp_path: Path) -> None:
        (tmp_path / 'out').write_text('')
        with pytest.raises(OutputError, match='can be written to'):
            self.store(tmp_path).begin(list(self.parts))

    @pytest.mark.parametrize('description', [None, '{"model', '[1]'])
    def test_parts_say_themselves_of_which_run_they_are(
        self, tmp_path: Path, description: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Without a description, or with a damaged one, those of another run are made again, one by one."""
        store, other = self.store(tmp_path), self.store(tmp_path, weights='def')
        other.begin(list(self.parts))
        other.write('a', embedding_table(rows(3)))
        pq.write_table(embedding_table(rows(3)), store.folder / 'c.parquet')  # of nobody
        if description is None:
            (store.folder / 'run.json').unlink()
        else:
            (store.folder / 'run.json').write_text(description)
        assert not store.begin(list(self.parts))
        store.write('b', embedding_table(rows(2)))
        assert store.done() == {'b'}
        assert '2 of 3 parts were damaged or of another run' in caplog.text
        assert [path.name for path in store.folder.glob('*.parquet')] == ['b.parquet']

    def test_a_damaged_part_is_made_again(self, tmp_path: Path) -> None:
        """A flipped bit in its numbers, which Parquet does not notice by itself, and a lost end."""
        store = self.store(tmp_path)
        store.begin(list(self.parts))
        for key in self.parts:
            store.write(key, embedding_table(rows(50)))
        flipped, cut = (store.folder / f'{key}.parquet' for key in 'ab')
        content = bytearray(flipped.read_bytes())
        content[len(content) // 4] ^= 1
        flipped.write_bytes(content)
        cut.write_bytes(cut.read_bytes()[:-100])
        assert store.done() == {'c'}

    def test_what_a_kill_after_the_table_left_goes(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        store.begin(list(self.parts))
        for key in self.parts:
            store.write(key, embedding_table(rows()))
        shutil.copytree(store.folder, tmp_path / 'kept')
        store.finish(self.parts, {}, crs=WGS84)
        shutil.copytree(tmp_path / 'kept', store.folder)
        assert self.store(tmp_path).begin(list(self.parts))
        assert [path.name for path in store.path.parent.iterdir()] == ['e.parquet']


HOLDER = """
import sys, time
from torchgeo_clay.writers.atomic import exclusive
with exclusive(sys.argv[1]):
    print('held', flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize('name', ['e.parquet', 'maps'])
def test_two_runs_into_one_output(tmp_path: Path, name: str) -> None:
    """The second is refused by the first's process; a lock that a kill left is free."""
    out = tmp_path / 'out' / name
    with subprocess.Popen([sys.executable, '-c', HOLDER, str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'held\n'
        refused = pytest.raises(
            OutputError, match=rf'another run writes .*{name} \(process {process.pid} on .*, since 2'
        )
        with refused, exclusive(out):
            pass
        with exclusive(out.with_name(f'other-{name}')):
            pass
        process.kill()
    with exclusive(out), pytest.raises(OutputError, match='another run'), exclusive(out):
        pass
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]
