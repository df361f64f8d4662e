# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Effective rank and collapse, against scipy and scikit-learn, and the laws they obey."""

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import assume, given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import normalize

from torchgeo_clay.evaluation import as_embeddings, collapse_figures, effective_rank

RNG = np.random.default_rng(0)
NUMBERS = st.floats(-1000, 1000).map(lambda v: round(v, 6))
MATRICES = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=7), elements=NUMBERS)


def rotation(width: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


@pytest.mark.parametrize('shape', [(40, 7), (7, 40), (12, 12), (1, 5)])
def test_effective_rank_is_exp_of_scipys_entropy_of_the_singular_values(shape):
    matrix = RNG.normal(size=shape) * np.linspace(0.1, 3, shape[1])
    values = np.linalg.svd(matrix)[1]
    assert effective_rank(matrix) == pytest.approx(np.exp(scipy.stats.entropy(values)), rel=1e-9)


def test_effective_rank_of_simple_matrices():
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(4 / 3**0.75)  # shares 3/4 and 1/4
    assert effective_rank(np.eye(6)) == pytest.approx(6)
    assert effective_rank(np.outer([1.0, 2, 3], [4.0, 5])) == pytest.approx(1)
    assert effective_rank(np.zeros((3, 2))) == 0
    same = np.repeat(RNG.normal(size=(1, 9)), 30, axis=0)
    assert effective_rank(same) == pytest.approx(1)
    assert effective_rank(same, center=True) == 0  # not the rank of the rounding that the mean leaves


@given(MATRICES, st.integers(0, 5), st.sampled_from([-1e150, -2.5, 1e-6, 3, 1e12]), st.booleans())
@settings(max_examples=60)
def test_effective_rank_keeps_its_laws(matrix, seed, factor, center):
    assume(np.abs(matrix - matrix.mean(0) * center).max() > 1e-3)
    rank = effective_rank(matrix, center=center)
    assert 1 <= rank <= min(matrix.shape)
    for other in (
        factor * matrix,
        matrix @ rotation(matrix.shape[1], seed),
        matrix[np.random.default_rng(seed).permutation(len(matrix))],
    ):
        assert effective_rank(other, center=center) == pytest.approx(rank, rel=1e-6)


@given(MATRICES)
@settings(max_examples=40)
def test_figures_stay_in_their_bounds(matrix):
    assume(len(matrix) > 1)
    figures = collapse_figures(matrix)
    assert -1 <= figures.mean_cosine <= 1
    assert 0 <= figures.spread <= 1 + 1e-9
    assert 0 <= figures.constant_dimensions <= 1


def test_figures_are_those_of_scikit_learn_and_numpy():
    matrix = RNG.normal(size=(50, 8)).astype(np.float32) + 0.5
    matrix[:, 3] = 2.0
    figures = collapse_figures(torch.from_numpy(matrix))
    cosines = cosine_similarity(matrix.astype(np.float64))
    assert (figures.count, figures.width) == (50, 8)
    assert figures.mean_cosine == pytest.approx(cosines[~np.eye(50, dtype=bool)].mean(), abs=1e-9)
    assert figures.spread == pytest.approx(normalize(matrix.astype(np.float64)).std(axis=0).mean() * 8**0.5)
    assert figures.constant_dimensions == 1 / 8
    assert figures.effective_rank_centered == pytest.approx(effective_rank(matrix - matrix.mean(0)), rel=1e-5)


def test_figures_of_a_collapse_and_of_none():
    collapsed = collapse_figures(np.repeat(RNG.normal(size=(1, 16)), 20, axis=0))
    assert (collapsed.mean_cosine, collapsed.effective_rank) == pytest.approx((1, 1))
    assert (collapsed.spread, collapsed.effective_rank_centered) == pytest.approx((0, 0), abs=1e-7)
    assert collapsed.constant_dimensions == 1
    free = collapse_figures(RNG.normal(size=(3000, 16)))
    assert free.mean_cosine == pytest.approx(0, abs=0.01)
    assert free.spread == pytest.approx(1, abs=0.01)
    assert free.effective_rank == pytest.approx(16, rel=0.01)
    assert free.constant_dimensions == 0


@pytest.mark.parametrize(
    ('table', 'message'),
    [
        (np.zeros(3), r'expected \(N, D\).*\(3,\)'),
        (np.zeros((2, 3, 4)), 'tokens'),
        (np.zeros((0, 4)), r'\(0, 4\)'),
        (np.array([[1.0, 2], [np.nan, 1]]), 'NaN or infinity in 1 rows, as 1'),
    ],
)
def test_mistakes(table, message):
    with pytest.raises(ValueError, match=message):
        effective_rank(table)


def test_one_row_is_refused():
    with pytest.raises(ValueError, match='2 rows or more'):
        collapse_figures(np.ones((1, 3)))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_precision_are_taken(dtype):
    values = as_embeddings(torch.ones(2, 3, dtype=dtype, requires_grad=True))
    assert values.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    np.testing.assert_array_equal(values, 1)
