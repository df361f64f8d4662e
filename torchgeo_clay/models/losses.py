# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Losses of the masked autoencoder, always in float32. Shapes: B samples, M masked patches, K = C·p·p numbers each."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ('masked_l1', 'representation_loss')


def masked_l1(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    normalise: bool = False,
    share: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Mean absolute error: mean per patch, then mean over patches, in float32.

    Args:
        prediction: (B, M, K) pixels of the masked patches.
        target: (B, M, K) what they should be.
        valid: (B, M, K) bool, False where the target is nodata; a patch without any valid pixel does not count.
        normalise: compare with each patch's target brought to zero mean and unit variance (``norm_pix_loss``).
        share: makes of the number of patches that count here, (), the number to divide by. On several ranks it is the
            mean over them, so that the mean of their losses is the loss of all their samples, whereas a mean of means
            gives more weight to patches of the rank with more nodata. None for this number itself.

    Returns:
        () loss; zero if nothing is valid.
    """
    prediction, target = prediction.float(), target.float()
    if valid is None:
        if normalise:
            mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6) ** 0.5
        return (prediction - target).abs().mean(-1).mean()
    weight = valid.float()
    count = weight.sum(-1, keepdim=True)
    target = torch.where(valid, target, 0)  # nodata may be NaN, which a weight of zero would not silence
    if normalise:
        mean = target.sum(-1, keepdim=True) / count.clamp(min=1)
        variance = (weight * (target - mean) ** 2).sum(-1, keepdim=True) / (count - 1).clamp(min=1)
        target = (target - mean) / (variance + 1e-6) ** 0.5
    per_patch = (weight * (prediction - target).abs()).sum(-1) / count.squeeze(-1).clamp(min=1)
    seen = (count.squeeze(-1) > 0).float()
    divisor = seen.sum() if share is None else share(seen.sum())
    return (per_patch * seen).sum() / torch.where(divisor > 0, divisor, 1)


def representation_loss(projection: Tensor, target: Tensor) -> Tensor:
    """1 - cosine similarity, averaged over samples, in float32: (B, T) and (B, T) → ()."""
    return 1.0 - F.cosine_similarity(projection.float(), target.float()).mean()
