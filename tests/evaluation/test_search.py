# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Neighbors against scikit-learn."""

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
import torch
from shapely import Point
from sklearn.neighbors import NearestNeighbors

from torchgeo_clay.evaluation import as_embeddings, similar
from torchgeo_clay.writers import Rows, embedding_table, write_geoparquet

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(60, 5))


def write_table(path: Path, scene: Path, embedding: np.ndarray, precision: Any = 'float32') -> Path:
    """Embeddings of the windows of 16 pixels, side by side, of a scene 64 pixels wide."""
    n = len(embedding)
    row, col = (16 * part for part in divmod(np.arange(n), 4))
    rows = Rows(
        embedding=embedding.astype(np.float32),
        geometry=[shapely.box(i, 0, i + 1, 1) for i in range(n)],
        time=np.full(n, np.nan),
        sensor=['naip'] * n,
        gsd=np.ones(n, np.float32),
        source=[f'{scene}{i % 4}' for i in range(n)],
        row=row,
        col=col,
        valid=np.ones(n, np.float32),
    )
    settings = {'pooling': 'class', 'chip': 16, 'offset': 0.0, 'to_db': False}
    write_geoparquet(path, [embedding_table(rows, precision)], crs=None, metadata=settings)
    return path


@pytest.mark.parametrize(('precision', 'atol'), [('float32', 1e-6), ('float16', 1e-3), ('int8', 0.02)])
def test_tables_are_read_in_any_precision(tmp_path, precision, atol):
    path = write_table(tmp_path / 'table.parquet', tmp_path / 'none.tif', TABLE[:16], precision)
    np.testing.assert_allclose(as_embeddings(path), TABLE[:16], atol=atol)


class TestSimilar:
    """Rows of a table by their cosine to one."""

    @pytest.fixture
    def table(self, tmp_path: Path) -> gpd.GeoDataFrame:
        return gpd.read_parquet(write_table(tmp_path / 'table.parquet', tmp_path / 'a.tif', TABLE[:16]))

    def test_are_those_of_scikit_learn(self, table: gpd.GeoDataFrame, tmp_path: Path) -> None:
        model = NearestNeighbors(n_neighbors=6, metric='cosine').fit(TABLE[:16])
        distances, (indices,) = model.kneighbors(TABLE[6:7])
        found = similar(table, to=6, top=5)
        assert found.index.tolist() == indices[1:].tolist()
        np.testing.assert_allclose(found['cosine'], 1 - distances[0, 1:], atol=1e-6)
        assert found.drop(columns='cosine').equals(table.iloc[indices[1:]])
        for to in (Point(6.5, 0.5), (6.5, 0.5), -10):
            assert similar(tmp_path / 'table.parquet', to=to, top=5).equals(found)
        for to in (TABLE[6], torch.from_numpy(TABLE[6:7]), table.iloc[6], table.iloc[[6]]):  # near itself
            assert similar(table, to=to, top=6).index.tolist() == indices.tolist()
        assert len(similar(table, to=0, top=99)) == 15
        others = similar(table, to=6, top=99, other_scenes=True)
        expected = [i for i in similar(table, to=6, top=99).index if i % 4 != 2]
        assert others.index.tolist() == expected

    def test_several_rows_count_alike(self, table: gpd.GeoDataFrame) -> None:
        unit = TABLE[:16] / np.linalg.norm(TABLE[:16], axis=1, keepdims=True)
        expected = unit @ (mean := unit[[2, 9, 5]].mean(axis=0)) / np.linalg.norm(mean)
        found = similar(table, to=TABLE[[2, 9, 5]] * [[1], [100], [3]], top=16)
        rest = similar(table, to=[2, 9, 5], top=16)
        assert rest.index.tolist() == [i for i in found.index if i not in (2, 9, 5)]
        assert found.index.tolist() == np.argsort(-expected).tolist()
        np.testing.assert_allclose(found['cosine'], np.sort(expected)[::-1], atol=1e-6)

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            ({'to': 16}, '0 to 15'),
            ({'to': Point(50, 50)}, 'inside a chip'),
            ({'to': np.ones(4)}, 'width of 5'),
            ({'to': 0, 'top': 0}, 'top: expected 1'),
        ],
    )
    def test_mistakes(self, table: gpd.GeoDataFrame, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            similar(table, **arguments)
