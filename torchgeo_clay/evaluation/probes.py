# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Scores of simple classifiers of embeddings. Shapes: N training rows, M test rows, D width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, recall_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from torch import Tensor

from torchgeo_clay.evaluation.inputs import Embeddings, as_embeddings

__all__ = ('ProbeResult', 'knn_probe', 'logistic_probe')

#: Classes of N rows: whole numbers, names or booleans.
type Labels = npt.NDArray[Any] | Tensor | Sequence[int] | Sequence[str]


@dataclass(frozen=True)
class ProbeResult:
    """Scores of a probe.

    Attributes:
        accuracy: share of the test rows whose class is predicted.
        balanced_accuracy: mean recall over the classes of the test rows.
        majority: accuracy of always predicting the most frequent training class, the floor of an accuracy.
        prediction: (M,) predicted classes.
    """

    accuracy: float
    balanced_accuracy: float
    majority: float
    prediction: npt.NDArray[Any]


def _pair(
    train: Embeddings, train_labels: Labels, test: Embeddings, test_labels: Labels
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Return training rows and classes and test rows and classes, as arrays that fit each other."""
    known, asked = as_embeddings(train), as_embeddings(test)
    if known.shape[1] != asked.shape[1]:
        raise ValueError(f'test: expected a width of {known.shape[1]}, as in train, got {asked.shape[1]}.')
    classes = _classes('train_labels', train_labels, len(known))
    return known, classes, asked, _classes('test_labels', test_labels, len(asked))


def _classes(name: str, labels: Labels, count: int) -> npt.NDArray[Any]:
    """Convert labels to an array, one per row."""
    values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if values.shape != (count,):
        raise ValueError(f'{name}: expected one per embedding, ({count},), got shape {values.shape}.')
    if values.dtype.kind not in 'iubUO':
        raise ValueError(
            f'{name}: expected classes, as whole numbers or names, got {values.dtype}. '
            'Cut a quantity into classes first, as with numpy.digitize.'
        )
    return values.astype(str) if values.dtype.kind == 'O' else values


def _result(model: Any, known: Any, classes: Any, asked: Any, truth: Any) -> ProbeResult:
    """Fit, predict, score."""
    model.fit(known, classes)
    prediction = np.asarray(model.predict(asked))
    names, counts = np.unique(classes, return_counts=True)
    recall = recall_score(truth, prediction, labels=np.unique(truth), average='macro')
    majority = float((truth == names[counts.argmax()]).mean())
    return ProbeResult(float(accuracy_score(truth, prediction)), float(recall), majority, prediction)


def knn_probe(
    train: Embeddings,
    train_labels: Labels,
    test: Embeddings,
    test_labels: Labels,
    *,
    k: int = 20,
    temperature: float | None = None,
) -> ProbeResult:
    """Predict each row's class from its k nearest rows by cosine; nothing is trained.

    As Wu et al. 2018, https://arxiv.org/abs/1805.01978, section 3.4, and DINO, https://arxiv.org/abs/2104.14294.

    Args:
        train: (N, D), see :func:`torchgeo_clay.evaluation.as_embeddings`. Of other scenes than ``test``, as chips of
            one scene are near for its date and place alone.
        train_labels: (N,) classes.
        test: (M, D).
        test_labels: (M,) classes.
        k: neighbors that vote.
        temperature: neighbors vote with exp(cosine / temperature), 0.07 in the papers; None for a vote each.

    Returns:
        The scores of scikit-learn's :class:`~sklearn.neighbors.KNeighborsClassifier`.

    Raises:
        ValueError: for a k above N, a temperature that is not positive, or tables and labels that do not fit.
    """
    known, classes, asked, truth = _pair(train, train_labels, test, test_labels)
    if not 1 <= k <= len(known):
        raise ValueError(f'k: expected 1 to {len(known)}, the number of training rows, got {k}.')
    if temperature is not None and not temperature > 0:
        raise ValueError(f'temperature: expected a positive number, or None for a vote each, got {temperature}.')

    def votes(distance: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # of rows of length 1 the squared distance is 2 - 2 cosine; relative to the nearest, so that none overflows
        near = (distance**2).min(axis=1, keepdims=True)
        return np.asarray(np.exp((near - distance**2) / (2 * temperature)))  # type: ignore[operator]

    model = KNeighborsClassifier(k, weights='uniform' if temperature is None else votes, algorithm='brute')
    return _result(model, normalize(known), classes, normalize(asked), truth)


def logistic_probe(
    train: Embeddings,
    train_labels: Labels,
    test: Embeddings,
    test_labels: Labels,
    *,
    strength: float = 1.0,
    max_iter: int = 1000,
) -> ProbeResult:
    """Predict each row's class by a logistic regression on standardized embeddings.

    As Alain & Bengio 2017, https://arxiv.org/abs/1610.01644. Tables and classes, two or more, as :func:`knn_probe`.

    Args:
        strength: of the penalty on the coefficients.
        max_iter: iterations of the solver, which warns if it does not converge.

    Returns:
        The scores of scikit-learn's :class:`~sklearn.linear_model.LogisticRegression`.

    Raises:
        ValueError: for a single training class, a strength that is not positive, or tables and labels that do not fit.
    """
    known, classes, asked, truth = _pair(train, train_labels, test, test_labels)
    if len(found := np.unique(classes)) < 2:
        raise ValueError(f'train_labels: expected two classes or more, got {found.tolist()}.')
    if not strength > 0:
        raise ValueError(f'strength: expected a positive number, got {strength}.')
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / strength, max_iter=max_iter))
    return _result(model, known.astype(np.float64), classes, asked.astype(np.float64), truth)
