# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Ours against the released model's own code, live, in float32 on the CPU."""

from collections.abc import Callable

import pytest
import torch
from pair import Pair, draw
from torch import Tensor

from torchgeo_clay.models.teacher import teacher_rgb
from torchgeo_clay.models.weights import released_name
from torchgeo_clay.sensors import SENSORS

MakePair = Callable[[str], Pair]

SMALL_SIZES = ('tiny', 'small')


@pytest.mark.parametrize('pixels', [64, 128, 224, 256])
@pytest.mark.parametrize('sensor', SENSORS)
@pytest.mark.parametrize('size', SMALL_SIZES)
def test_tokens_are_equal(make_pair: MakePair, size: str, sensor: str, pixels: int) -> None:
    pair = make_pair(size)
    s = SENSORS[sensor]
    x, time, latlon, _ = draw(s, pixels)
    with torch.no_grad():
        ours = pair.encoder().forward_features(x, torch.tensor(s.wavelengths), s.gsd, time, latlon)
    assert torch.equal(ours, pair.their_tokens(x, s, time, latlon))


@pytest.mark.parametrize(
    ('sensor', 'pixels'), [*[(s, 64) for s in SENSORS], *[('sentinel-2-l2a', pixels) for pixels in (128, 224, 256)]]
)
def test_base_tokens_are_equal(make_pair: MakePair, sensor: str, pixels: int) -> None:
    """Parity is a matter of code paths, of which this size has none of its own: not every sensor at every size."""
    pair = make_pair('base')
    s = SENSORS[sensor]
    x, time, latlon, _ = draw(s, pixels, batch=1)
    with torch.no_grad():
        ours = pair.encoder().forward_features(x, torch.tensor(s.wavelengths), s.gsd, time, latlon)
    assert torch.equal(ours, pair.their_tokens(x, s, time, latlon))


def _their_gradients(pair: Pair) -> dict[str, Tensor]:
    return {k: p.grad for k, p in pair.theirs.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ('size', 'sensor', 'pixels'),
    [
        *[('tiny', s, 64) for s in SENSORS],
        ('tiny', 'sentinel-2-l2a', 256),
        *[('small', s, 128) for s in ('sentinel-2-l2a', 'sentinel-1-rtc', 'modis')],
        ('base', 'naip', 64),
    ],
)
def test_losses_and_gradients(make_pair: MakePair, size: str, sensor: str, pixels: int) -> None:
    pair = make_pair(size)
    s = SENSORS[sensor]
    x, time, latlon, noise = draw(s, pixels)

    pair.theirs.zero_grad()
    theirs = pair.their_losses(x, s, time, latlon, noise)
    theirs[0].backward()
    gradients = _their_gradients(pair)

    model = pair.autoencoder()
    wavelengths = torch.tensor(s.wavelengths)
    output = model(x, wavelengths, s.gsd, time, latlon, noise=noise, rgb=teacher_rgb(x, s), loss_scale=s.loss_scale)
    output.loss.backward()

    for ours, reference in zip(output[:3], theirs, strict=True):
        assert abs(ours.item() - reference.item()) <= 1e-6
    for name, parameter in model.named_parameters():
        module, _, rest = name.partition('.')
        there = f'{module}.{released_name(rest)}' if module in ('encoder', 'decoder') else name
        if parameter.grad is None:
            assert there not in gradients
            continue
        reference = gradients.pop(there)
        assert (parameter.grad - reference).norm() <= 1e-5 * reference.norm(), name
    assert not gradients


@pytest.mark.parametrize('size', SMALL_SIZES)
@pytest.mark.parametrize('sensor', SENSORS)
def test_decoder_output(make_pair: MakePair, size: str, sensor: str) -> None:
    """All patches, in their order, and the masked ones in the order of their noise."""
    pair = make_pair(size)
    s = SENSORS[sensor]
    x, time, latlon, noise = draw(s, 64)
    seen: list[Tensor] = []
    hook = pair.theirs.decoder.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    with torch.no_grad():
        pair.their_losses(x, s, time, latlon, noise)
    hook.remove()
    (pixels,) = seen
    model = pair.autoencoder()
    wavelengths = torch.tensor(s.wavelengths)
    with torch.no_grad():
        image = model.reconstruct(x, wavelengths, s.gsd, time, latlon, noise=noise)
        output = model(x, wavelengths, s.gsd, time, latlon, noise=noise, rgb=teacher_rgb(x, s))
    theirs = torch.nn.functional.fold(pixels.transpose(1, 2), (64, 64), 8, stride=8)
    assert (image - theirs).abs().max() <= 1e-6
    order = noise.argsort(1)[:, : output.prediction.shape[1]]
    masked = pixels.gather(1, order[..., None].expand(-1, -1, pixels.shape[-1]))
    assert (output.prediction - masked).abs().max() <= 1e-6
    assert torch.equal(output.mask.sum(1), torch.full((2,), 48.0))


@pytest.mark.parametrize('bands', [['nir', 'red'], ['swir22', 'blue', 'rededge1', 'green'], ['red']])
def test_a_subset_of_bands_is_the_reference_on_that_subset(make_pair: MakePair, bands: list[str]) -> None:
    pair = make_pair('tiny')
    s = SENSORS['sentinel-2-l2a'].select(bands)
    x, time, latlon, _ = draw(s, 64)
    with torch.no_grad():
        ours = pair.encoder().forward_features(x, s.wavelengths, s.gsd, time, latlon)
    assert torch.equal(ours, pair.their_tokens(x, s, time, latlon))


@pytest.mark.slow
@pytest.mark.xdist_group('large')
def test_large(make_pair: MakePair) -> None:
    """The released size, once: tokens equal; losses and gradients as for the others."""
    pair = make_pair('large')
    s = SENSORS['sentinel-2-l2a']
    x, time, latlon, _ = draw(s, 64, batch=1)
    encoder = pair.encoder()
    with torch.no_grad():
        ours = encoder.forward_features(x, torch.tensor(s.wavelengths), s.gsd, time, latlon)
    assert torch.equal(ours, pair.their_tokens(x, s, time, latlon))
    assert sum(p.numel() for p in encoder.parameters()) == 311_442_944
    del encoder, ours
    test_losses_and_gradients(make_pair, 'large', 'naip', 64)


def test_place_and_time_codes_match_the_chips(make_pair: MakePair) -> None:
    """Unknown place and time are zeros, which the reference is given as such."""
    pair = make_pair('tiny')
    s = SENSORS['naip']
    x, *_ = draw(s, 64)
    zeros = torch.zeros(2, 4)
    with torch.no_grad():
        ours = pair.encoder().forward_features(x, torch.tensor(s.wavelengths), s.gsd)
    assert torch.equal(ours, pair.their_tokens(x, s, zeros, zeros))
