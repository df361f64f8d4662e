# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay folded for one sensor: equal to Clay, without the network that makes kernels, and exportable."""

import copy

import pytest
import torch
from torch import Tensor

from torchgeo_clay.models import Clay, FoldedClay, clay_tiny_patch8
from torchgeo_clay.models.clay import WaveKernels
from torchgeo_clay.sensors import get_sensor

BANDS = {
    'sentinel-2-l2a': None,
    'sentinel-1-rtc': None,
    'naip': ['N', 'R', 'G'],
    'modis': None,
}


@pytest.fixture(scope='module')
def clay() -> Clay:
    torch.manual_seed(0)
    return clay_tiny_patch8(num_classes=5).eval()


def inputs(channels: int, batch: int = 3, height: int = 32, width: int = 48) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, channels, height, width, generator=generator)
    gsd = torch.rand(batch, generator=generator) * 20 + 1
    time, latlon = torch.randn(2, batch, 4, generator=generator)
    return x, gsd, time, latlon


@pytest.mark.parametrize('name', BANDS)
def test_tokens_and_logits_are_equal(clay: Clay, name: str) -> None:
    sensor = get_sensor(name).select(BANDS[name])
    x, gsd, time, latlon = inputs(len(sensor))
    folded = clay.fold(name, BANDS[name])
    with torch.no_grad():
        expected = clay.forward_features(x, sensor.wavelengths, gsd, time, latlon)
        assert torch.equal(folded.forward_features(x, gsd, time, latlon), expected)
        assert torch.equal(folded(x, gsd, time, latlon), clay(x, sensor.wavelengths, gsd, time, latlon))
        assert torch.equal(folded(x, 10.0), clay(x, sensor.wavelengths, 10.0))


def test_it_is_a_plain_vision_transformer(clay: Clay) -> None:
    folded = clay.fold('naip')
    assert not any(isinstance(m, WaveKernels) for m in folded.modules())
    assert type(folded.patch_embed.proj) is torch.nn.Conv2d
    assert folded.patch_embed.proj.weight.shape == (192, 4, 8, 8)
    assert not folded.training
    assert folded.num_classes == 5
    kernels = sum(p.numel() for p in clay.patch_embed.parameters())
    convolution = sum(p.numel() for p in folded.patch_embed.parameters())
    parameters = sum(p.numel() for p in folded.parameters())
    assert parameters == sum(p.numel() for p in clay.parameters()) - kernels + convolution


def test_intermediates_are_equal(clay: Clay) -> None:
    sensor = get_sensor('naip')
    x, gsd, time, latlon = inputs(4)
    folded = clay.fold('naip')
    with torch.no_grad():
        expected = clay.forward_intermediates(
            x, indices=[1, 4], wavelengths=sensor.wavelengths, gsd=gsd, time=time, latlon=latlon
        )
        found = folded.forward_intermediates(x, indices=[1, 4], gsd=gsd, time=time, latlon=latlon)
    assert torch.equal(found[0], expected[0])
    assert [m.shape for m in found[1]] == [(3, 192, 4, 6)] * 2
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))
    assert folded.conditioning is None


def test_copied_or_shared(clay: Clay) -> None:
    model = copy.deepcopy(clay)
    copied, shared = model.fold('naip'), FoldedClay(model, get_sensor('naip'))
    with torch.no_grad():
        model.cls_token.add_(1)
        model.norm.weight.add_(1)
    assert torch.equal(copied.norm.weight, clay.norm.weight)
    assert torch.equal(copied.cls_token, clay.cls_token)
    assert shared.norm.weight is model.norm.weight
    assert shared.cls_token is model.cls_token


def test_folding_is_the_same_under_autocast(clay: Clay) -> None:
    with torch.autocast('cpu', torch.bfloat16):
        folded = clay.fold('naip')
    assert torch.equal(folded.patch_embed.proj.weight, clay.fold('naip').patch_embed.proj.weight)


def test_export_with_any_batch(clay: Clay) -> None:
    folded = clay.fold('sentinel-1-rtc')
    batch = torch.export.Dim('batch')
    program = torch.export.export(folded, inputs(2, batch=2), dynamic_shapes=tuple({0: batch} for _ in range(4)))
    with torch.no_grad():
        for size in (1, 2, 5):
            given = inputs(2, batch=size)
            torch.testing.assert_close(program.module()(*given), folded(*given), rtol=0, atol=1e-6)


def test_export_without_time_and_place(clay: Clay) -> None:
    folded = clay.fold('sentinel-1-rtc')
    batch = torch.export.Dim('batch')
    x, gsd, _, _ = inputs(2, batch=2)
    program = torch.export.export(folded, (x, gsd), dynamic_shapes=({0: batch}, {0: batch}))
    x, gsd, _, _ = inputs(2, batch=4)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x, gsd), folded(x, gsd), rtol=0, atol=1e-6)


def test_mistakes(clay: Clay) -> None:
    folded = clay.fold('sentinel-1-rtc')
    with pytest.raises(ValueError, match='one wavelength per channel'):
        folded(torch.zeros(1, 3, 16, 16), 10.0)
    with pytest.raises(ValueError, match='multiples of 8'):
        folded(torch.zeros(1, 2, 16, 20), 10.0)
    with pytest.raises(ValueError, match='gsd'):
        folded(torch.zeros(1, 2, 16, 16), float('nan'))
    with pytest.raises(ValueError, match='Unknown sensor'):
        clay.fold('sentinel-9')
    with pytest.raises(ValueError, match='no band'):
        clay.fold('naip', ['SWIR'])


def test_padding_is_kept() -> None:
    model = clay_tiny_patch8(dynamic_img_pad=True).eval()
    x, gsd, time, latlon = inputs(4, height=20, width=30)
    with torch.no_grad():
        expected = model(x, get_sensor('naip').wavelengths, gsd, time, latlon)
        assert torch.equal(model.fold('naip')(x, gsd, time, latlon), expected)


def test_folded_type(clay: Clay) -> None:
    assert isinstance(clay.fold('naip'), FoldedClay)
