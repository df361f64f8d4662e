# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Probes, against votes counted by numpy and scikit-learn used by hand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from torchgeo_clay.evaluation import knn_probe, logistic_probe

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 80)
ROWS = RNG.normal(size=(80, 6)) + LABELS[:, None] * 0.7
TRAIN, TEST = slice(0, 50), slice(50, 80)
SPLIT = ROWS[TRAIN], LABELS[TRAIN], ROWS[TEST], LABELS[TEST]


def votes(temperature: float | None, k: int) -> np.ndarray:
    """Classes by the votes of the k largest cosines."""
    unit = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    cosines = unit[TEST] @ unit[TRAIN].T
    nearest = np.argsort(-cosines, axis=1)[:, :k]
    weight = np.ones_like(cosines) if temperature is None else np.exp(cosines / temperature)
    weight = np.take_along_axis(weight, nearest, 1)
    for_one = (weight * (LABELS[TRAIN][nearest] == 1)).sum(axis=1)
    return (for_one > weight.sum(axis=1) / 2).astype(int)


@pytest.mark.parametrize(('temperature', 'k'), [(None, 1), (None, 7), (0.07, 8), (0.07, 50), (1e-4, 50)])
def test_knn_counts_the_votes_of_the_nearest(temperature, k):
    result = knn_probe(*SPLIT, k=k, temperature=temperature)
    expected = votes(temperature or None, k) if temperature != 1e-4 else votes(None, 1)  # the nearest alone counts
    np.testing.assert_array_equal(result.prediction, expected)
    assert result.accuracy == (expected == LABELS[TEST]).mean()
    assert 0.5 < result.accuracy < 1


def test_knn_does_not_see_lengths():
    longer = ROWS[TEST] * RNG.uniform(0.1, 10, (30, 1))
    np.testing.assert_array_equal(knn_probe(*SPLIT[:2], longer, SPLIT[3]).prediction, knn_probe(*SPLIT).prediction)


def test_the_logistic_probe_is_scikit_learns_on_standardised_rows():
    mean, std = ROWS[TRAIN].mean(axis=0), ROWS[TRAIN].std(axis=0)
    model = LogisticRegression(C=0.25).fit((ROWS[TRAIN] - mean) / std, LABELS[TRAIN])
    result = logistic_probe(*SPLIT, strength=4)
    np.testing.assert_array_equal(result.prediction, model.predict((ROWS[TEST] - mean) / std))
    shifted = logistic_probe(ROWS[TRAIN] * 100 + 5, SPLIT[1], ROWS[TEST] * 100 + 5, SPLIT[3], strength=4)
    np.testing.assert_array_equal(shifted.prediction, result.prediction)


@pytest.mark.parametrize('probe', [knn_probe, logistic_probe])
def test_results_come_with_their_baselines(probe):
    names = np.where(LABELS == 1, 'forest', 'water')
    result = probe(torch.from_numpy(ROWS[TRAIN]), list(names[TRAIN]), torch.from_numpy(ROWS[TEST]), names[TEST])
    assert result.balanced_accuracy == pytest.approx(balanced_accuracy_score(names[TEST], result.prediction))
    most = max(('forest', 'water'), key=list(names[TRAIN]).count)
    assert result.majority == pytest.approx((names[TEST] == most).mean())
    assert set(result.prediction) == {'forest', 'water'}


def test_a_class_that_only_one_side_has_is_no_warning():
    result = knn_probe(ROWS[TRAIN], LABELS[TRAIN], ROWS[TEST], np.full(30, 1), k=3)
    assert result.balanced_accuracy == result.accuracy


@pytest.mark.parametrize(
    ('probe', 'split', 'options', 'message'),
    [
        (knn_probe, SPLIT, {'k': 51}, 'expected 1 to 50'),
        (knn_probe, SPLIT, {'k': 0}, 'expected 1 to 50'),
        (knn_probe, SPLIT, {'temperature': 0}, 'positive'),
        (logistic_probe, SPLIT, {'strength': 0}, 'positive'),
        (logistic_probe, (ROWS[TRAIN], np.ones(50, int), *SPLIT[2:]), {}, 'two classes'),
        (knn_probe, (*SPLIT[:2], ROWS[TEST, :4], SPLIT[3]), {}, 'width of 6'),
        (knn_probe, (*SPLIT[:3], LABELS), {}, r'test_labels: expected one per embedding, \(30,\)'),
        (logistic_probe, (SPLIT[0], ROWS[TRAIN, 0], *SPLIT[2:]), {}, 'train_labels.*digitize'),
    ],
)
def test_mistakes(probe, split, options, message):
    with pytest.raises(ValueError, match=message):
        probe(*split, **options)
