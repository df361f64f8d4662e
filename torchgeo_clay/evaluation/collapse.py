# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Label-free measures of representation collapse. Shapes: N rows, D width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.preprocessing import normalize

from torchgeo_clay.evaluation.inputs import Embeddings, as_embeddings

__all__ = ('CollapseFigures', 'collapse_figures', 'effective_rank')

#: Share of the root mean square of all entries; a smaller deviation is float32's rounding.
_CONSTANT = 1e-5


@dataclass(frozen=True)
class CollapseFigures:
    """How a table of embeddings is spread.

    Attributes:
        count: rows.
        width: dimensions.
        effective_rank: see :func:`effective_rank`; 1 to min(count, width).
        effective_rank_centered: the same after subtracting the mean row.
        mean_cosine: mean cosine between two different rows, -1 to 1: 1 where all point the same way, about 0 where they
            point anywhere. The anisotropy of Ethayarajh 2019, https://arxiv.org/abs/1909.00512, section 4.1.
        spread: √D times the mean standard deviation of the dimensions of rows of length 1: 0 where all rows are the
            same, about 1 where they point anywhere. Chen & He 2021, https://arxiv.org/abs/2011.10566, section 4.1.
        constant_dimensions: share of the dimensions whose standard deviation is 0 to float32's rounding; the collapse
            that the variance term of Bardes et al. 2022 is to prevent, https://arxiv.org/abs/2105.04906.
    """

    count: int
    width: int
    effective_rank: float
    effective_rank_centered: float
    mean_cosine: float
    spread: float
    constant_dimensions: float


def effective_rank(embeddings: Embeddings, *, center: bool = False) -> float:
    """Effective dimension of the embeddings: exp of the entropy of their normalized singular values.

    Roy & Vetterli 2007, https://ieeexplore.ieee.org/document/7098875; as a measure of pretraining without labels it is
    RankMe of Garrido et al. 2023, https://arxiv.org/abs/2210.02885. It does not change with a rotation or a factor.
    It cannot be above N: compare tables of equal N, with N well above D.

    Args:
        embeddings: (N, D), see :func:`torchgeo_clay.evaluation.as_embeddings`.
        center: whether to subtract the mean row first. The papers do not, but a mean row that is larger than the rest
            makes the figure small whatever the rest.

    Returns:
        1 to min(N, D); 0 for a table of zeros.

    Raises:
        ValueError: for anything but a table of finite numbers.
    """
    matrix = as_embeddings(embeddings).astype(np.float64)
    matrix /= np.abs(matrix).max() or 1.0  # so that squares neither overflow nor vanish
    rounding = np.linalg.norm(matrix) * max(matrix.shape) * np.finfo(np.float64).eps
    if center:
        matrix = matrix - matrix.mean(axis=0)
    values = np.linalg.svd(matrix, compute_uv=False)
    shares = values[values > rounding]
    if not shares.size:
        return 0.0
    shares = shares / shares.sum()
    return float(np.clip(np.exp(-(shares * np.log(shares)).sum()), 1, shares.size))


def collapse_figures(embeddings: Embeddings) -> CollapseFigures:
    """Measure whether embeddings (N, D) of different chips differ; N is 2 or more.

    Raises:
        ValueError: for anything but a table of finite numbers, or a single row.
    """
    matrix: npt.NDArray[np.float64] = as_embeddings(embeddings, least=2).astype(np.float64)
    n, d = matrix.shape
    unit = normalize(matrix)
    pairs = (unit.sum(axis=0) ** 2).sum() - (unit**2).sum()  # all cosines at once, without those of rows to themselves
    deviation, size = matrix.std(axis=0), np.sqrt((matrix**2).mean())
    return CollapseFigures(
        count=n,
        width=d,
        effective_rank=effective_rank(matrix),
        effective_rank_centered=effective_rank(matrix, center=True),
        mean_cosine=float(np.clip(pairs / (n * (n - 1)), -1, 1)),
        spread=float(np.sqrt(d) * unit.std(axis=0).mean()),
        constant_dimensions=float((deviation <= _CONSTANT * size).mean()),
    )
