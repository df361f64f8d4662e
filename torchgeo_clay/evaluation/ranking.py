# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Figures of ranked answers. Shapes: Q queries, N answers each, the best first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ('average_precisions', 'precisions_at', 'reciprocal_ranks')

Floats = npt.NDArray[np.float64]
Relevance = npt.NDArray[np.bool_]


def reciprocal_ranks(relevance: Relevance) -> Floats:
    """One over the place of each query's first relevant answer; its mean is the mean reciprocal rank.

    Voorhees 1999, "The TREC-8 question answering track report".

    Args:
        relevance: (Q, N), whether each answer is relevant.

    Returns:
        (Q,), in (0, 1]; 0 where no answer is relevant.
    """
    return np.where(relevance.any(axis=1), 1 / (relevance.argmax(axis=1) + 1), 0.0)


def precisions_at(relevance: Relevance, k: int) -> Floats:
    """Share of each query's first k answers that are relevant.

    Args:
        relevance: see :func:`reciprocal_ranks`.
        k: 1 to N.

    Returns:
        (Q,), 0 to 1.

    Raises:
        ValueError: for another k.
    """
    if not 1 <= k <= relevance.shape[1]:
        raise ValueError(f'k: expected 1 to {relevance.shape[1]}, the number of answers, got {k}.')
    return np.asarray(relevance[:, :k].mean(axis=1), np.float64)


def average_precisions(relevance: Relevance) -> Floats:
    """Mean, over each query's relevant answers, of the precision down to each; its mean is the mean average precision.

    Manning, Raghavan & Schütze 2008, "Introduction to information retrieval", section 8.4.

    Args:
        relevance: see :func:`reciprocal_ranks`.

    Returns:
        (Q,), in (0, 1]; 0 where no answer is relevant.
    """
    found = relevance.cumsum(axis=1) / np.arange(1, relevance.shape[1] + 1)
    return np.asarray((found * relevance).sum(axis=1) / np.maximum(relevance.sum(axis=1), 1))
