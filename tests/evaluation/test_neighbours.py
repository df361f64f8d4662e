# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Neighbours and figures of retrieval, against scikit-learn and torchmetrics."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import rasterio
import shapely
import torch
from hypothesis import assume, given, settings
from rasterio.transform import from_origin
from sklearn.neighbors import NearestNeighbors
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_precision,
    retrieval_reciprocal_rank,
)

from torchgeo_clay.evaluation import as_embeddings, nearest_neighbours, plot_neighbours, retrieval_figures
from torchgeo_clay.evaluation.ranking import average_precisions, precisions_at, reciprocal_ranks
from torchgeo_clay.writers import Rows, embedding_table, write_geoparquet

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(60, 5))
CLASSES = RNG.integers(0, 4, 60)
SCENES = np.repeat(np.arange(6), 10)


def by_torchmetrics(k: int, groups: np.ndarray) -> np.ndarray:
    """Mean reciprocal rank, precision and mean average precision, query by query."""
    table = torch.from_numpy(TABLE)
    found = []
    for i in range(len(TABLE)):
        others = torch.from_numpy(groups != groups[i])
        cosines = 2 + torch.cosine_similarity(table[i : i + 1], table[others])  # it takes those below 0 for no answer
        target = torch.from_numpy(CLASSES)[others] == CLASSES[i]
        found.append(
            [
                retrieval_reciprocal_rank(cosines, target),
                retrieval_precision(cosines, target, top_k=k),
                retrieval_average_precision(cosines, target),
            ]
        )
    return np.mean(found, axis=0)


@pytest.mark.parametrize(('groups', 'k'), [(None, 1), (None, 10), (SCENES, 7)])
def test_figures_are_those_of_torchmetrics(groups, k):
    figures = retrieval_figures(TABLE, CLASSES, k=k, groups=groups)
    got = figures.mean_reciprocal_rank, figures.precision, figures.mean_average_precision
    np.testing.assert_allclose(got, by_torchmetrics(k, np.arange(60) if groups is None else groups), rtol=1e-5)
    assert (figures.queries, figures.unanswerable, figures.k) == (60, 0, k)


def test_figures_of_a_ranking_told_by_hand():
    relevance = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]], bool)
    np.testing.assert_allclose(reciprocal_ranks(relevance), [1 / 2, 1, 0])
    np.testing.assert_allclose(precisions_at(relevance, 3), [2 / 3, 1 / 3, 0])
    np.testing.assert_allclose(average_precisions(relevance), [(1 / 2 + 2 / 3) / 2, (1 + 2 / 4) / 2, 0])
    with pytest.raises(ValueError, match='expected 1 to 4'):
        precisions_at(relevance, 5)


@given(st.integers(2, 12), st.integers(1, 4), st.integers(1, 3), st.integers(0, 1000))
@settings(max_examples=50)
def test_figures_keep_their_laws(count, width, classes, seed):
    rng = np.random.default_rng(seed)
    table, labels = rng.normal(size=(count, width)), rng.integers(0, classes, count)
    alone = sum(1 for label in labels if (labels == label).sum() == 1)
    assume(alone < count)
    figures = retrieval_figures(table, labels, k=1)
    assert 0 < figures.mean_reciprocal_rank <= 1
    assert 0 < figures.mean_average_precision <= 1
    assert 0 <= figures.precision <= figures.mean_reciprocal_rank  # with k = 1
    assert (figures.queries, figures.unanswerable) == (count - alone, alone)
    if width > 1:  # else cosines are 1 and -1 but for rounding, and their order chance
        assert retrieval_figures(table * rng.uniform(0.1, 9, (count, 1)), 2 - labels, k=1) == figures


def test_classes_that_lie_apart_are_always_found():
    table = np.eye(3)[np.arange(30) % 3] + 0.01 * RNG.normal(size=(30, 3))
    figures = retrieval_figures(table, np.arange(30) % 3, k=9)
    assert (figures.mean_reciprocal_rank, figures.precision, figures.mean_average_precision) == (1, 1, 1)


def test_neighbours_are_those_of_scikit_learn():
    distances, indices = NearestNeighbors(n_neighbors=6, metric='cosine').fit(TABLE).kneighbors(TABLE)
    found = nearest_neighbours(TABLE, range(60), k=5)
    np.testing.assert_array_equal(found.indices, indices[:, 1:])
    np.testing.assert_allclose(found.cosines, 1 - distances[:, 1:], atol=1e-12)
    vectors = nearest_neighbours(TABLE, torch.from_numpy(TABLE), k=6)  # that happen to be in the table: near themselves
    np.testing.assert_array_equal(vectors.indices, indices)


def test_neighbours_of_a_row_may_have_to_be_of_other_scenes():
    found = nearest_neighbours(TABLE, [3, 25], k=50, groups=SCENES)
    for row, scene in zip(found.indices, (0, 2), strict=True):
        assert sorted(row) == np.flatnonzero(scene != SCENES).tolist()


def test_more_queries_than_are_held_at_once_change_nothing():
    table = RNG.normal(size=(600, 4))
    whole = nearest_neighbours(table, range(600), k=3).indices
    np.testing.assert_array_equal(whole[500], nearest_neighbours(table, [500], k=3).indices[0])


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ({'queries': [60]}, '0 to 59'),
        ({'queries': [-1]}, '0 to 59'),
        ({'queries': []}, '0 to 59'),
        ({'queries': [0.5]}, '0 to 59'),
        ({'queries': np.ones((1, 4))}, 'width of 5'),
        ({'queries': [0], 'k': 60}, 'expected 1 to 59'),
        ({'queries': [0], 'k': 0}, 'expected 1 to 59'),
        ({'queries': [0], 'k': 51, 'groups': SCENES}, 'expected 1 to 50'),
        ({'queries': [0], 'groups': SCENES[:-1]}, r'groups: expected one per embedding, \(60,\)'),
    ],
)
def test_queries_that_can_not_be_answered(arguments, said):
    with pytest.raises(ValueError, match=said):
        nearest_neighbours(TABLE, **arguments)


def test_labels_that_say_nothing():
    with pytest.raises(ValueError, match='class with two rows'):
        retrieval_figures(TABLE, np.arange(60))
    with pytest.raises(ValueError, match='digitize'):
        retrieval_figures(TABLE, TABLE[:, 0])


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
        source=[str(scene)] * n,
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


def test_the_picture_shows_the_query_and_its_neighbours(tmp_path):
    scene = tmp_path / 'scene.tif'
    pixels = RNG.integers(1, 255, (4, 64, 64)).astype(np.uint8)
    with rasterio.open(
        scene, 'w', driver='GTiff', count=4, height=64, width=64, dtype='uint8', crs='EPSG:32611',
        transform=from_origin(500_000, 3_600_000, 1, 1),
    ) as file:  # fmt: skip
        file.write(pixels)
        file.descriptions = ('red', 'green', 'blue', 'nir')
    path = write_table(tmp_path / 'table.parquet', scene, TABLE[:16])
    figure = plot_neighbours(path, 6, k=3)
    found = nearest_neighbours(TABLE[:16].astype(np.float32), [6], k=3)
    assert [axis.get_title() for axis in figure.axes] == [
        'query\nscene', *(f'cosine {cosine:.3f}\nscene' for cosine in found.cosines[0])
    ]  # fmt: skip
    chips = [pixels[:3, 16 * (i // 4) :, 16 * (i % 4) :][:, :16, :16] for i in (6, *found.indices[0])]
    low, high = np.percentile(np.stack(chips, axis=1).reshape(3, -1), (2, 98), axis=1)
    for axis, chip in zip(figure.axes, chips, strict=True):
        expected = ((chip.transpose(1, 2, 0) - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(axis.images[0].get_array(), expected, atol=1e-9)
    with pytest.raises(ValueError, match='expected 1 to 0'):
        plot_neighbours(path, 6, k=3, other_scenes=True)
    with pytest.raises(ValueError, match='size'):
        plot_neighbours(path, 6, k=3, size=0)
    scene.unlink()
    with pytest.raises(ValueError, match='not readable as a raster'):
        plot_neighbours(path, 6, k=3)
