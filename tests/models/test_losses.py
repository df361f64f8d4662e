# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The loss of parts of a batch, as ranks have them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgeo_clay.models.mae import masked_l1


@settings(max_examples=40)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 2**31), st.booleans(), st.floats(0, 1))
def test_ranks_together_have_the_loss_of_all_their_samples(sizes, seed, normalize, nodata):
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    prediction, target = (torch.randn(total, 5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    valid = torch.rand(total, 5, 1, generator=generator).expand(-1, -1, 8) >= nodata
    whole = masked_l1(prediction, target, valid, normalize)
    parts = list(zip(*(x.split(sizes) for x in (prediction, target, valid)), strict=True))
    patches = sum(part[2].any(-1).sum() for part in parts)
    shares = [lambda _, n=size: patches * n / total for size in sizes]
    losses = [masked_l1(*part, normalize, share) for part, share in zip(parts, shares, strict=True)]
    weighted = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / total
    assert weighted.item() == pytest.approx(whole.item(), rel=1e-5, abs=1e-7)


def test_a_mean_of_means_would_be_another():
    prediction, target = torch.tensor([[[1.0]], [[3.0]], [[5.0]], [[7.0]]]).repeat(1, 2, 1), torch.zeros(4, 2, 1)
    valid = torch.tensor([[1, 1], [1, 1], [1, 0], [0, 0]]).bool()[..., None]
    means = [masked_l1(prediction[part], target[part], valid[part]) for part in (slice(0, 2), slice(2, 4))]
    assert torch.stack(means).mean() == 3.5
    assert masked_l1(prediction, target, valid) == pytest.approx((1 + 1 + 3 + 3 + 5) / 5)
