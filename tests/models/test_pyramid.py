# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay as timm's features_only gives it: strides, sizes, blocks, and what the maps are conditioned on."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.models import Clay, clay_tiny_patch8
from torchgeo_clay.models.clay import find_clay
from torchgeo_clay.models.pyramid import Pyramid, PyramidLevel

RGB = Conditioning(torch.tensor([0.665, 0.56, 0.493]), 10.0)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def pyramid(**kwargs: object) -> Pyramid:
    torch.manual_seed(0)
    return timm.create_model('clay_tiny_patch8', features_only=True, **kwargs).eval()


def run(model: Pyramid, x: Tensor) -> list[Tensor]:
    """The maps of a red, green and blue image of 10 m."""
    with model.model.conditioned_on(RGB):
        return model(x)


@pytest.fixture(scope='module')
def model() -> Pyramid:
    return pyramid()


@pytest.mark.parametrize(
    ('size', 'blocks'), [('tiny', 6), ('small', 6), ('base', 12), ('large', 24), ('large_patch8.v1_5', 24)]
)
def test_what_timm_reports(size: str, blocks: int) -> None:
    name = f'clay_{size}' if '.' in size else f'clay_{size}_patch8'
    with torch.device('meta'):
        model = timm.create_model(name, features_only=True)
    assert isinstance(model, Pyramid)
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert model.feature_info.channels() == [256] * 4
    # a quarter of the blocks between one map and the next, the last block for the last
    assert list(model.blocks.values()) == [blocks // 4 - 1, blocks // 2 - 1, blocks * 3 // 4 - 1, blocks - 1]


@given(height=st.integers(1, 70), width=st.integers(1, 70))
@settings(max_examples=10)
def test_any_size(model: Pyramid, height: int, width: int) -> None:
    with torch.no_grad():
        maps = run(model, images(1, 3, height, width))
    assert [m.shape for m in maps] == [(1, 256, -(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]


def test_padded_with_zeros_right_and_below(model: Pyramid) -> None:
    x = images(2, 3, 37, 58)
    with torch.no_grad():
        maps, padded = run(model, x), run(model, F.pad(x, (0, 6, 0, 3)))
    for a, b in zip(maps, padded, strict=True):
        torch.testing.assert_close(a, b[..., : a.shape[-2], : a.shape[-1]], rtol=0, atol=0)


@pytest.mark.parametrize(('output_stride', 'reductions'), [(8, [4, 8, 8, 8]), (16, [4, 8, 16, 16])])
def test_output_stride(output_stride: int, reductions: list[int]) -> None:
    model = pyramid(output_stride=output_stride)
    assert model.feature_info.reduction() == reductions
    with torch.no_grad():
        assert [64 // m.shape[-1] for m in run(model, images(1, 3, 64, 64))] == reductions


@pytest.mark.parametrize(
    ('out_indices', 'reductions', 'blocks'),
    [((0, 1), [4, 8], 3), (2, [16, 32], 6), ((-2, 0), [4, 16], 4), ([3], [32], 6)],
)
def test_out_indices(out_indices: object, reductions: list[int], blocks: int) -> None:
    """Blocks that no map needs are not computed."""
    model = pyramid(out_indices=out_indices)
    assert model.feature_info.reduction() == reductions
    assert len(model.model.blocks) == blocks
    with torch.no_grad():
        assert [32 // m.shape[-1] for m in run(model, images(1, 3, 32, 32))] == reductions


@pytest.mark.parametrize('out_indices', [(0, 4), (-5,), (), 5, 0])
def test_out_indices_that_there_are_not(out_indices: object) -> None:
    with pytest.raises(ValueError, match=r"expected some of 0, 1, 2, 3.*feature_cls='getter'"):
        pyramid(out_indices=out_indices)


@pytest.mark.parametrize('output_stride', [4, 64])
def test_output_stride_that_there_is_not(output_stride: int) -> None:
    with pytest.raises(ValueError, match=f'expected 8, 16 or 32, got {output_stride}'):
        pyramid(output_stride=output_stride)


def test_fewer_blocks_than_maps() -> None:
    clay = Clay(embed_dim=48, depth=2, num_heads=2, mlp_ratio=1)
    model = Pyramid(clay, channels=8)
    with torch.no_grad():
        assert [m.shape[-1] for m in run(model, images(1, 3, 32, 32))] == [8, 4, 2, 1]


def test_maps_come_from_their_blocks(model: Pyramid) -> None:
    """What the fourth block does is seen by the maps from it on, and by no finer one."""
    x = images(1, 3, 32, 32)
    changed = pyramid()
    changed.load_state_dict(model.state_dict())
    with torch.no_grad():
        changed.model.blocks[3].mlp.fc2.bias.add_(images(192))
        same = [torch.equal(a, b) for a, b in zip(run(model, x), run(changed, x), strict=True)]
    assert same == [True, True, False, False]


@pytest.mark.parametrize('reduction', [4, 8, 16, 32])
def test_no_checkerboard(reduction: int) -> None:
    """Equal tokens make an equal map, whatever the weights; the kernels of a transposed convolution would show."""
    torch.manual_seed(0)
    level = PyramidLevel(8, 6, 8, reduction)
    nn.init.normal_(level.smooth.weight)
    tokens = images(1, 8, 1, 1).expand(1, 8, 12, 12)
    inner = level(tokens)[..., 1:-1, 1:-1]  # the border sees the convolution's zeros
    assert inner.shape[-1] == 12 * 8 // reduction - 2
    torch.testing.assert_close(inner, inner[..., :1, :1].expand_as(inner))


def test_starts_as_a_rotation_of_the_tokens() -> None:
    """So that freeze_backbone of TorchGeo's tasks, which freezes the pyramid too, puts no noise before the decoder."""
    torch.manual_seed(0)
    level = PyramidLevel(16, 32, 8, 8)
    tokens = images(1, 16, 4, 4)
    shown = level.smooth(level.resample(level.project(level.enter(tokens))))
    torch.testing.assert_close(shown.norm(dim=1), level.enter(tokens).norm(dim=1))


def test_every_parameter_learns() -> None:
    """Also that of the blocks and tokens; one left without a gradient would stop distributed training."""
    model = pyramid().train()
    sum(m[:, :7].sum() for m in run(model, images(1, 3, 32, 32))).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_gradient_checkpointing(model: Pyramid) -> None:
    x = images(1, 3, 16, 16)
    checkpointed = pyramid().train()
    checkpointed.load_state_dict(model.state_dict())
    checkpointed.set_grad_checkpointing()
    assert checkpointed.model.grad_checkpointing
    for a, b in zip(run(model, x), run(checkpointed, x), strict=True):
        torch.testing.assert_close(a, b)


def test_conditioned_through_find_clay() -> None:
    model = timm.create_model('clay_tiny_patch8', features_only=True).eval()
    x = images(1, 2, 16, 16)
    with pytest.raises(ValueError, match='wavelengths of the images are unknown'):
        model(x)
    (clay,) = find_clay(model)
    maps = []
    for gsd in (0.6, 10.0):
        with torch.no_grad(), clay.conditioned_on(Conditioning(torch.tensor([0.665, 0.56]), gsd)):
            maps.append(model(x))
    assert not any(torch.allclose(a, b) for a, b in zip(*maps, strict=True))


def test_find_clay() -> None:
    unet = smp.Unet('tu-clay_tiny_patch8', encoder_weights=None)
    dpt = smp.DPT('tu-clay_tiny_patch8', encoder_weights=None, decoder_intermediate_channels=(8, 8, 8, 8))
    assert find_clay(unet) == [unet.encoder.model.model]
    assert find_clay(dpt) == [dpt.encoder.model]
    assert find_clay(nn.ModuleList([unet, dpt, unet])) == [unet.encoder.model.model, dpt.encoder.model]
    clay = clay_tiny_patch8()
    assert find_clay(clay) == [clay]
    assert find_clay(torch.compile(clay, backend='eager')) == [clay]
    assert find_clay(nn.Linear(1, 1)) == []
