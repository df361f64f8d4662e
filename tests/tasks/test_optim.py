# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Learning rates step by step, and what is decayed."""

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from torchgeo_clay.models import clay_mae_tiny_patch8
from torchgeo_clay.sensors import get_sensor
from torchgeo_clay.tasks.optim import cosine, published, warm_cosine


def rates(optimizer, scheduler, steps: int) -> list[float]:
    """The rate of each training step."""
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    return seen


def test_published_rate_rises_a_hundredfold_and_comes_back():
    seen = rates(*published(nn.Linear(2, 2), lr=1e-5), 7001)
    # torch's formula: eta_min + (lr - eta_min) · (1 + cos(π · T_cur / T_i)) / 2, with eta_min = 100 · lr
    expected = [
        1e-3 + (1e-5 - 1e-3) * (1 + math.cos(math.pi * t / n)) / 2 for n in (1000, 2000, 4000) for t in range(n)
    ]
    assert seen == pytest.approx([*expected, 1e-5], rel=1e-9)
    for start, end in ((0, 1000), (1000, 3000), (3000, 7000)):
        assert seen[start] == pytest.approx(1e-5)
        assert seen[start:end] == sorted(seen[start:end])
        assert seen[end - 1] > 90e-5
        assert seen[end] == pytest.approx(1e-5)


def test_published_recipe_is_that_of_the_release():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    model[0].bias.requires_grad_(False)
    optimizer, scheduler = published(model)
    (group,) = optimizer.param_groups
    assert [id(p) for p in group['params']] == [id(p) for p in model.parameters() if p.requires_grad]
    assert (group['initial_lr'], group['weight_decay'], group['betas']) == (1e-5, 0.05, (0.9, 0.95))
    assert (scheduler.T_0, scheduler.T_mult) == (1000, 2)
    assert scheduler.eta_min == pytest.approx(1e-3)


def test_cosine_rate_rises_then_falls_as_torch_says():
    optimizer, scheduler = cosine(nn.Linear(2, 2), steps=200, lr=0.2)
    seen = rates(optimizer, scheduler, 201)
    assert seen[:11] == pytest.approx([0.2 * (step + 1) / 11 for step in range(10)] + [0.2])
    outsider = SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    assert seen[10:] == pytest.approx(rates(outsider, CosineAnnealingLR(outsider, T_max=190), 191))
    assert seen[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('warmup', [-0.1, 1.0])
def test_a_warm_up_is_a_share_of_the_steps(warmup):
    with pytest.raises(ValueError, match='warmup: expected a share'):
        warm_cosine(SGD([nn.Parameter(torch.zeros(1))], lr=0.2), 10, warmup)


def test_norms_biases_and_tokens_are_not_decayed():
    model = clay_mae_tiny_patch8(teacher_dim=3)
    tokens = {f'encoder.{name}' for name in model.encoder.no_weight_decay()}
    optimizer, _ = cosine(model, steps=10, lr=0.1, no_decay=tokens)
    name_of = {id(p): name for name, p in model.named_parameters()}
    decayed = {name_of[id(p)]: group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    assert decayed.keys() == set(name_of.values())
    free = {name for name, decay in decayed.items() if decay == 0}
    assert set(decayed.values()) == {0, 0.05}
    assert free >= {'encoder.cls_token', 'encoder.patch_embed.kernels.weight_tokens', 'decoder.mask_token'}
    assert not any(name.endswith('.weight') and p.ndim > 1 and name in free for name, p in model.named_parameters())
    assert all(name in free for name, p in model.named_parameters() if name.endswith('bias') or 'norm' in name)


def test_networks_that_make_kernels_have_a_rate_of_their_own():
    model = clay_mae_tiny_patch8()
    optimizer, _ = cosine(model, steps=10, lr=0.1, kernel_rate=0.25)
    rate_of = {id(p): group['initial_lr'] for group in optimizer.param_groups for p in group['params']}
    assert len(rate_of) == sum(p.requires_grad for p in model.parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            made = '.kernels.' in name
            assert rate_of[id(parameter)] == pytest.approx(0.025 if made else 0.1), name


def test_kernels_do_not_outgrow_the_position_code():
    """What the rate of their own is for: without it the embedding soon is many times as long as the code."""
    x = torch.randn(4, 10, 64, 64, generator=torch.Generator().manual_seed(0)) + 1
    waves = list(get_sensor('sentinel-2-l2a').wavelengths)
    lengths = {}
    for rate in (1.0, 0.1):
        torch.manual_seed(0)
        model = clay_mae_tiny_patch8()
        optimizer, _ = cosine(model, steps=15, lr=2e-3, kernel_rate=rate)
        for _ in range(15):
            optimizer.zero_grad()
            model(x, waves, 10.0, noise=torch.rand(4, 64)).loss.backward()
            optimizer.step()
        with torch.no_grad():
            lengths[rate] = model.encoder.patch_embed(x, torch.tensor(waves)).norm(dim=-1).mean()
    code = math.sqrt(192 / 2)  # D / 2 pairs of sine and cosine
    assert lengths[0.1] < 5 * code
    assert lengths[1.0] > 10 * code
