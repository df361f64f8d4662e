# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay with decoders: any size, nothing in the encoder's view that is not the image, no checkerboard."""

from collections.abc import Callable

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.models.clay import find_clay, pad_image
from torchgeo_clay.models.decoders import DECODERS, ChangeClay, DenseClay, pad_map, round_up

TINY = 'clay_tiny_patch8'
WAVELENGTHS = torch.tensor([0.665, 0.56, 0.493])


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def run(model: nn.Module, x: Tensor, gsd: float = 10.0) -> Tensor:
    (clay,) = find_clay(model)
    with torch.no_grad(), clay.conditioned_on(Conditioning(WAVELENGTHS, gsd)):
        return model.eval()(x)


@pytest.fixture(scope='module')
def models() -> dict[str, DenseClay]:
    torch.manual_seed(0)
    return {name: DenseClay(TINY, name, 2).eval() for name in DECODERS}


# sizes ----------------------------------------------------------------------------------------------------------------


@given(st.integers(8, 40), st.integers(8, 40))
def test_padding_adds_less_than_a_patch(height: int, width: int) -> None:
    x = noise(1, 2, height, width)
    padded = pad_image(x)
    assert padded.shape == (1, 2, round_up(height, 8), round_up(width, 8))
    assert padded.shape[-2] - height < 8
    assert padded.shape[-1] - width < 8
    assert torch.equal(padded[..., :height, :width], x)
    mirrored = F.pad(x, (0, -width % 8, 0, -height % 8), mode='reflect')
    assert torch.equal(padded, mirrored)
    bigger = pad_map(x, height + 3, width + 1)
    assert torch.equal(bigger[..., height:, :width], x[..., -1:, :].expand(-1, -1, 3, -1))
    assert torch.equal(bigger[..., :height, width:], x[..., -1:])


@pytest.mark.parametrize('name', DECODERS)
@settings(max_examples=4)
@given(height=st.integers(8, 70), width=st.integers(8, 70))
def test_the_output_has_the_images_size(models: dict[str, DenseClay], name: str, height: int, width: int) -> None:
    x = noise(1, 3, height, width)
    assert run(models[name], x).shape == (1, 2, height, width)


@pytest.mark.parametrize('name', DECODERS)
def test_a_size_that_decoders_take_is_what_smp_does(models: dict[str, DenseClay], name: str) -> None:
    torch.manual_seed(1)
    options = {'decoder_interpolation': 'bilinear'} if name == 'unet' else {}
    theirs = smp.create_model(DECODERS[name], f'tu-{TINY}', encoder_weights=None, classes=2, **options)
    if name == 'dpt':
        theirs.decoder.reassemble_blocks[0].upsample = nn.Upsample(scale_factor=2, mode='bilinear')
    ours = models[name].state_dict()
    theirs.load_state_dict(ours)
    x = noise(1, 3, 32, 64)
    torch.testing.assert_close(run(models[name], x), run(theirs, x))


@pytest.mark.parametrize('name', ['unet', 'dpt'])
def test_the_encoder_sees_the_image_alone(models: dict[str, DenseClay], name: str) -> None:
    """Padding to a decoder's grid is added behind the encoder."""
    model, seen = models[name], []
    handle = model.clay.patch_embed.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    x = noise(1, 3, 40, 21)
    run(model, x)
    handle.remove()
    assert [tuple(s.shape) for s in seen] == [(1, 3, 40, 24)]
    assert torch.equal(seen[0][..., :21], x)


def test_an_image_smaller_than_a_patch(models: dict[str, DenseClay]) -> None:
    with pytest.raises(ValueError, match=r'at least one patch, 8 × 8 pixels, got 30 × 5'):
        run(models['unet'], noise(1, 3, 30, 5))


def test_two_dates_of_an_odd_size() -> None:
    torch.manual_seed(0)
    assert run(ChangeClay(TINY, 'segformer', 3), noise(2, 2, 3, 19, 41)).shape == (2, 3, 19, 41)


# checkerboards --------------------------------------------------------------------------------------------------------


def lattice(out: Tensor, period: int) -> float:
    """Standard deviation between phases of a lattice, after slow changes are subtracted."""
    window = out[..., 64:-64, 64:-64]  # far from the border, which convolutions pad with zeros
    margin = 64 - period // 2
    slow = F.avg_pool2d(out[..., margin:-margin, margin:-margin], period + 1, 1)
    h, w = (n // period for n in window.shape[-2:])
    phases = (window - slow)[..., : h * period, : w * period].unfold(-2, period, period).unfold(-2, period, period)
    means = phases.mean((2, 3)).flatten(1)
    return (means.amax(1) - means.amin(1)).mean().item()


def pattern(make: Callable[[], nn.Module]) -> float:
    """The strongest lattice of a constant image's output, over the spread of the output for noise."""
    torch.manual_seed(0)
    model = make()
    # of a GSD this small the position code is the same everywhere, and so are the tokens of a constant image
    constant = run(model, torch.ones(1, 3, 192, 192), gsd=1e-6)
    return max(lattice(constant, p) for p in (2, 4, 8)) / run(model, noise(1, 3, 192, 192), gsd=1e-6).std().item()


@pytest.mark.parametrize('name', DECODERS)
def test_no_checkerboard(name: str) -> None:
    assert pattern(lambda: DenseClay(TINY, name, 2)) < 0.01


def test_a_checkerboard_would_be_seen() -> None:
    """That of the transposed convolution in smp's own dpt."""
    assert pattern(lambda: smp.create_model('dpt', f'tu-{TINY}', encoder_weights=None, classes=2)) > 0.05
