# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The encoder beyond the reference: grids, ground sampling distances, bands, scoped state, timm's interface."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.models import Clay, clay_tiny_patch8
from torchgeo_clay.models.clay import grid_code
from torchgeo_clay.sensors import SENSORS

NAIP = torch.tensor(SENSORS['naip'].wavelengths)


@pytest.fixture(scope='module')
def model() -> Clay:
    torch.manual_seed(0)
    return clay_tiny_patch8().eval()


@pytest.fixture(autouse=True)
def _no_gradients() -> None:
    with torch.no_grad():
        yield


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(rows=st.integers(1, 5), columns=st.integers(1, 5))
@settings(max_examples=8, deadline=None)
def test_any_grid(model: Clay, rows: int, columns: int) -> None:
    tokens = model.forward_features(images(2, 4, rows * 8, columns * 8), NAIP, 1.0)
    assert tokens.shape == (2, 1 + rows * columns, 192)


def test_grid_code_is_row_major_and_not_square() -> None:
    """Sines of the column come first; they change along a row, those of the row along a column."""
    code = grid_code(3, 5, torch.tensor([10.0]), 184).unflatten(1, (3, 5))[0]
    columns, rows = code.split(92, dim=-1)
    assert torch.equal(columns[0], columns[2])
    assert torch.equal(rows[:, 0], rows[:, 4])
    assert not torch.equal(columns[0, 1], columns[0, 2])
    # the first frequency is gsd itself, at row and column 1
    assert columns[0, 1, 0] == rows[1, 0, 0] == torch.tensor(10.0).sin()


def test_grid_code_frequencies_lie_close_under_gsd() -> None:
    """The exponent divides by the width twice, as in the release."""
    omega = grid_code(1, 2, torch.tensor([1e-3], dtype=torch.float64), 1016)[0, 1, :254].asin()
    assert omega.max() == pytest.approx(1e-3)
    assert 0.98e-3 < omega.min() < omega.max()


def test_gsd_per_sample(model: Clay) -> None:
    x = images(1, 4, 32, 32).expand(3, -1, -1, -1)
    together = model(x, NAIP, torch.tensor([0.6, 1.0, 30.0]))
    alone = torch.cat([model(x[:1], NAIP, gsd) for gsd in (0.6, 1.0, 30.0)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    assert (together[0] - together[2]).abs().max() > 1e-3


@pytest.mark.parametrize('seed', range(3))
def test_the_order_of_bands_does_not_matter(model: Clay, seed: int) -> None:
    wavelengths = torch.tensor(SENSORS['sentinel-2-l2a'].wavelengths)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    x = images(2, 10, 32, 40)
    shuffled, straight = model(x[:, order], wavelengths[order], 10.0), model(x, wavelengths, 10.0)
    assert (shuffled - straight).norm() <= 1e-6 * straight.norm()


def test_a_subset_is_not_zeroed_bands(model: Clay) -> None:
    """Bands interact, so a subset has other kernels: leaving bands out is not the same as zeroing them."""
    x = images(1, 4, 32, 32)
    zeroed = x.clone()
    zeroed[:, 2:] = 0
    assert (model(x[:, :2], NAIP[:2], 1.0) - model(zeroed, NAIP, 1.0)).abs().max() > 1e-3


@pytest.mark.parametrize('size', [(30, 32), (32, 30), (7, 8), (0, 8)])
def test_sizes_that_are_not_whole_patches_are_refused(model: Clay, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r'multiples of 8 pixels.*dynamic_img_pad'):
        model(images(1, 4, *size), NAIP, 1.0)


def test_padding_where_asked(model: Clay) -> None:
    padding = clay_tiny_patch8(dynamic_img_pad=True).eval()
    padding.load_state_dict(model.state_dict())
    x = images(1, 4, 30, 21)
    zeros = torch.nn.functional.pad(x, (0, 3, 0, 2))
    assert torch.equal(padding(x, NAIP, 1.0), model(zeros, NAIP, 1.0))
    features = padding.forward_intermediates(x, [5], intermediates_only=True, wavelengths=NAIP, gsd=1.0)
    assert features[0].shape == (1, 192, 4, 3)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({}, 'wavelengths of the images are unknown'),
        ({'wavelengths': NAIP}, 'gsd of the images are unknown'),
        ({'wavelengths': NAIP * 1000, 'gsd': 1.0}, 'nanometers'),
        ({'wavelengths': [650, 560, 480, 842], 'gsd': 1.0}, 'nanometers'),
        ({'wavelengths': [3.5, 55500.0, 1.0, 2.0], 'gsd': 1.0}, 'VV as 3.5'),
        ({'wavelengths': NAIP[:3], 'gsd': 1.0}, 'one wavelength per channel'),
        ({'wavelengths': NAIP.repeat(2), 'gsd': 1.0}, 'Dates stacked'),
        ({'wavelengths': NAIP.expand(2, -1), 'gsd': 1.0}, 'one wavelength per channel'),
        ({'wavelengths': NAIP.to('meta'), 'gsd': 1.0}, 'on cpu'),
        ({'wavelengths': NAIP, 'gsd': 0.0}, 'positive meters per pixel'),
        ({'wavelengths': NAIP, 'gsd': -1.0}, 'positive meters per pixel'),
        ({'wavelengths': NAIP, 'gsd': float('nan')}, 'no code for unknown'),
        ({'wavelengths': NAIP, 'gsd': torch.tensor([1.0, float('nan')])}, 'no code for unknown'),
        ({'wavelengths': NAIP, 'gsd': torch.ones(3)}, 'gsd: expected'),
        ({'wavelengths': NAIP, 'gsd': 1.0, 'time': torch.zeros(2)}, 'encode_time'),
        ({'wavelengths': NAIP, 'gsd': 1.0, 'latlon': torch.zeros(1, 4)}, 'encode_latlon'),
        ({'wavelengths': NAIP, 'gsd': 1.0, 'latlon': torch.zeros(2, 4, device='meta')}, 'latlon: expected a tensor on'),
    ],
)
def test_wrong_conditioning_is_refused(model: Clay, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(images(2, 4, 16, 16), **arguments)


def test_raw_integers_are_refused(model: Clay) -> None:
    with pytest.raises(ValueError, match='Normalize with'):
        model(torch.zeros(1, 4, 16, 16, dtype=torch.uint8), NAIP, 1.0)


@pytest.mark.parametrize(
    'argument', [{'in_chans': 4}, {'dynamic_img_size': False}, {'class_token': False}, {'sensor': 'naip'}]
)
def test_arguments_that_cannot_be_honored_are_refused(argument: dict) -> None:
    with pytest.raises(TypeError, match=next(iter(argument))):
        clay_tiny_patch8(**argument)


def test_conditioned_on(model: Clay) -> None:
    x = images(2, 4, 16, 16)
    time, latlon = torch.rand(2, 2, 4)
    expected = model(x, NAIP, 2.0, time, latlon)
    with model.conditioned_on(Conditioning(NAIP, 2.0, time, latlon)):
        assert torch.equal(model(x), expected)
        # arguments come first, and an inner scope before the outer one
        assert torch.equal(model(x, gsd=3.0), model(x, NAIP, 3.0, time, latlon))
        with model.conditioned_on(Conditioning(NAIP, 5.0)):
            assert torch.equal(model(x), model(x, NAIP, 5.0, torch.zeros(2, 4), torch.zeros(2, 4)))
        assert torch.equal(model(x), expected)
    with pytest.raises(ValueError, match='unknown'):
        model(x)


def _leave_by_error(model: Clay) -> None:
    with model.conditioned_on(Conditioning(NAIP, 1.0)):
        raise KeyError


def test_the_scope_ends_with_an_exception(model: Clay) -> None:
    with pytest.raises(KeyError):
        _leave_by_error(model)
    with pytest.raises(ValueError, match='multiples'):
        model(images(1, 4, 9, 9), NAIP, 1.0)
    with pytest.raises(ValueError, match='unknown'):
        model(images(1, 4, 16, 16))


def test_a_copy_has_a_scope_of_its_own(model: Clay) -> None:
    other = copy.deepcopy(model)
    with model.conditioned_on(Conditioning(NAIP, 1.0)), pytest.raises(ValueError, match='unknown'):
        other(images(1, 4, 16, 16))


def test_timm_interface() -> None:
    model = clay_tiny_patch8(num_classes=5).eval()
    x, given = images(2, 4, 16, 24), {'wavelengths': NAIP, 'gsd': 1.0}
    assert model(x, **given).shape == (2, 5)
    assert model.get_classifier().out_features == 5
    assert model.num_prefix_tokens == 1
    model.reset_classifier(3)
    assert model(x, **given).shape == (2, 3)
    final, features = model.forward_intermediates(x, indices=[1, 5], norm=True, **given)
    assert [f.shape for f in features] == [(2, 192, 2, 3)] * 2
    assert torch.equal(features[1].flatten(2).transpose(1, 2), model.forward_features(x, **given)[:, 1:])
    assert torch.equal(final, model.forward_features(x, **given))
    matcher = model.group_matcher()
    assert set(matcher) == {'stem', 'blocks'}
    assert 'cls_token' in model.no_weight_decay()
    assert all(name in dict(model.named_parameters()) for name in model.no_weight_decay())
    assert model.patch_embed.grid_size == (32, 32)
    model.set_input_size((64, 32))
    assert model.patch_embed.grid_size == (8, 4)
    with pytest.raises(ValueError, match='patch size'):
        model.set_input_size(patch_size=(16, 16))


def test_gradient_checkpointing_gives_the_same_gradients(model: Clay) -> None:
    x = images(1, 4, 16, 16)
    gradients = []
    for on in (False, True):
        other = copy.deepcopy(model).train()
        other.set_grad_checkpointing(on)
        with torch.enable_grad():
            other(x, NAIP, 1.0).sum().backward()
        gradients.append([p.grad for p in other.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


class _NoLook(TorchDispatchMode):
    """Raises where a tensor's value is read, for which a device would have to be waited for."""

    def __torch_dispatch__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), func
        return func(*args, **(kwargs or {}))


def test_forward_looks_at_no_value(model: Clay) -> None:
    x, time, latlon = images(2, 4, 16, 24), torch.rand(2, 4), torch.rand(2, 4)
    with _NoLook():
        model(x, NAIP, torch.tensor([1.0, 2.0]), time, latlon)


def test_compiles_whole(model: Clay) -> None:
    model = copy.deepcopy(model)
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    x, time, latlon = images(2, 4, 16, 24), torch.rand(2, 4), torch.rand(2, 4)
    gsd = torch.tensor([1.0, 2.0])
    assert torch.equal(compiled(x, NAIP, gsd, time, latlon), model(x, NAIP, gsd, time, latlon))
    with model.conditioned_on(Conditioning(NAIP, gsd, time, latlon)):
        assert torch.equal(compiled(x), model(x))


def test_autocast_is_close(model: Clay) -> None:
    x = images(2, 4, 32, 32)
    expected = model(x, NAIP, 1.0)
    with torch.autocast('cpu', torch.bfloat16):
        got = model(x, NAIP, 1.0)
    assert torch.nn.functional.cosine_similarity(got.float(), expected).min() > 0.999


def test_bfloat16_weights(model: Clay) -> None:
    half = copy.deepcopy(model).bfloat16()
    x = images(2, 4, 32, 32)
    got = half(x.bfloat16(), NAIP, 1.0)
    assert got.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(got.float(), model(x, NAIP, 1.0)).min() > 0.995
