# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The autoencoder beyond the reference: masking, what is computed for which patches, nodata, teacher, compilation."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torchgeo_clay.models import ClayMAE, clay_mae_tiny_patch8
from torchgeo_clay.models.clay import patchify, unpatchify
from torchgeo_clay.models.mae import Masking, masked_l1
from torchgeo_clay.models.teacher import make_teacher, teacher_rgb
from torchgeo_clay.sensors import SENSORS

NAIP = torch.tensor(SENSORS['naip'].wavelengths)


class Mean(nn.Module):
    """A teacher: the mean of each channel."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-2:] == (518, 518)
        return x.mean((2, 3)) * self.scale


@pytest.fixture(scope='module')
def model() -> ClayMAE:
    torch.manual_seed(0)
    return clay_mae_tiny_patch8().eval()


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(patches=st.integers(2, 200), ratio=st.floats(0.01, 0.99), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_masking(patches: int, ratio: float, seed: int) -> None:
    noise = torch.rand(3, patches, generator=torch.Generator().manual_seed(seed))
    count = int(ratio * patches)
    if count == 0:
        with pytest.raises(ValueError, match='some patches masked'):
            Masking.from_noise(noise, ratio)
        return
    masking = Masking.from_noise(noise, ratio)
    mask = masking.mask
    assert mask.sum(1).tolist() == [count] * 3
    for row in range(3):
        smallest = np.argsort(noise[row].numpy())[:count]
        assert sorted(masking.masked[row].tolist()) == sorted(smallest.tolist())
        assert sorted([*masking.masked[row].tolist(), *masking.visible[row].tolist()]) == list(range(patches))
        # put back in order, [masked | visible] is every patch at its place
        shuffled = torch.cat([masking.masked[row], masking.visible[row]])
        assert shuffled[masking.restore[row]].tolist() == list(range(patches))
    # `mask` is 1 just where a patch is masked
    assert torch.equal(mask.gather(1, masking.masked), torch.ones(3, count))


@pytest.mark.parametrize('ratio', [0.0, 1.0, -0.1, 1.5, float('nan')])
def test_mask_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match='mask_ratio: expected a share between 0 and 1'):
        clay_mae_tiny_patch8(mask_ratio=ratio)


def test_weight_out_of_range() -> None:
    with pytest.raises(ValueError, match='representation_weight'):
        clay_mae_tiny_patch8(representation_weight=5)


@given(c=st.integers(1, 4), h=st.integers(1, 4), w=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_patches_and_back(c: int, h: int, w: int) -> None:
    x = images(2, c, h * 8, w * 8)
    patches = patchify(x, 8)
    assert torch.equal(patches, torch.nn.functional.unfold(x, 8, stride=8).transpose(1, 2))
    assert torch.equal(unpatchify(patches, h, w, 8), x)


def test_what_is_masked_is_not_seen(model: ClayMAE) -> None:
    x, noise = images(1, 4, 32, 40), torch.rand(1, 20)
    mask = model(x, NAIP, 1.0, noise=noise).mask
    hidden = unpatchify(mask[..., None].expand(-1, -1, 4 * 64), 4, 5, 8).bool()
    changed = torch.where(hidden, x + 5, x)
    first, second = (model.reconstruct(y, NAIP, 1.0, noise=noise) for y in (x, changed))
    assert torch.equal(first, second)
    assert not torch.equal(first, model.reconstruct(x + 5 * ~hidden, NAIP, 1.0, noise=noise))


def test_only_visible_patches_are_embedded_and_masked_ones_predicted(model: ClayMAE) -> None:
    seen = {}
    hooks = [
        model.encoder.blocks[0].register_forward_hook(lambda m, args, out: seen.update(encoder=args[0].shape)),
        model.decoder.head.register_forward_hook(lambda m, args, out: seen.update(head=args[0].shape)),
    ]
    model(images(2, 4, 64, 64), NAIP, 1.0)
    for hook in hooks:
        hook.remove()
    assert seen == {'encoder': (2, 1 + 16, 192), 'head': (2, 48, 96)}


def test_prediction_and_image_agree(model: ClayMAE) -> None:
    x, noise = images(2, 4, 24, 48), torch.rand(2, 18)
    output = model(x, NAIP, 1.0, noise=noise)
    patches = patchify(model.reconstruct(x, NAIP, 1.0, noise=noise), 8)
    masked = Masking.from_noise(noise, 0.75).masked
    torch.testing.assert_close(patches.gather(1, masked[..., None].expand(-1, -1, 256)), output.prediction)
    expected = (output.prediction - patchify(x, 8).gather(1, masked[..., None].expand(-1, -1, 256))).abs().mean()
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(model(x, NAIP, 1.0, noise=noise, loss_scale=0.1).loss, expected * 0.1)


def test_the_target_has_no_dropped_bands(model: ClayMAE) -> None:
    x, noise = images(1, 4, 32, 32), torch.rand(1, 16)
    dropped = x.clone()
    dropped[:, 1] = 0
    output = model(dropped, NAIP, 1.0, noise=noise, target=x)
    masked = Masking.from_noise(noise, 0.75).masked
    expected = (output.prediction - patchify(x, 8).gather(1, masked[..., None].expand(-1, -1, 256))).abs().mean()
    torch.testing.assert_close(output.reconstruction_loss, expected)


@given(seed=st.integers(0, 99), normalize=st.booleans())
@settings(max_examples=20, deadline=None)
def test_loss_without_nodata_is_the_plain_loss(seed: int, normalize: bool) -> None:
    prediction, target = images(2, 3, 5, 64, seed=seed)
    every = torch.ones_like(target, dtype=torch.bool)
    torch.testing.assert_close(
        masked_l1(prediction, target, every, normalize), masked_l1(prediction, target, None, normalize)
    )


def test_nodata_is_left_out() -> None:
    prediction, target = images(2, 1, 3, 64)
    valid = torch.rand(1, 3, 64) > 0.4
    valid[0, 2] = False  # a patch without any
    difference = (prediction - target).abs()
    expected = torch.stack([difference[0, i][valid[0, i]].mean() for i in range(2)]).mean()
    poisoned = torch.where(valid, target, torch.nan).requires_grad_()
    prediction.requires_grad_()
    loss = masked_l1(prediction, poisoned, valid)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert prediction.grad.isfinite().all()
    assert (prediction.grad[~valid] == 0).all()
    assert masked_l1(prediction, target, torch.zeros_like(valid)) == 0


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


@pytest.mark.parametrize('channels', [1, 4])
def test_valid_reaches_the_loss(model: ClayMAE, channels: int) -> None:
    x, noise = images(1, 4, 32, 32), torch.rand(1, 16)
    valid = torch.ones(1, channels, 32, 32, dtype=torch.bool)
    valid[..., :16] = False
    loss = model(x, NAIP, 1.0, noise=noise, target=torch.where(valid, x, torch.nan), valid=valid).loss
    right = Masking.from_noise(noise, 0.75).mask.unflatten(1, (4, 4))[..., 2:].bool()
    pixels = (model.reconstruct(x, NAIP, 1.0, noise=noise) - x).abs()
    patches = patchify(pixels, 8).mean(-1).unflatten(1, (4, 4))[..., 2:]
    torch.testing.assert_close(loss, patches[right].mean())


def test_padding_is_left_out_of_the_loss() -> None:
    model = clay_mae_tiny_patch8(dynamic_img_pad=True).eval()
    x, noise = images(1, 4, 27, 32), torch.rand(1, 16)
    image = model.reconstruct(x, NAIP, 1.0, noise=noise)
    assert image.shape == x.shape
    mask = unpatchify(Masking.from_noise(noise, 0.75).mask[..., None].expand(-1, -1, 64), 4, 4, 8)[..., :27, :].bool()
    error = (image - x).abs().mean(1, keepdim=True)
    rows = [slice(8 * i, min(8 * i + 8, 27)) for i in range(4)]
    cells = [error[0, 0, r, c : c + 8].mean() for r in rows for c in range(0, 32, 8) if mask[0, 0, r.start, c]]
    torch.testing.assert_close(model(x, NAIP, 1.0, noise=noise).loss, torch.stack(cells).mean())


def test_norm_pix_loss() -> None:
    """The target's own brightness and contrast do not matter."""
    model = clay_mae_tiny_patch8(norm_pix_loss=True).eval()
    x, noise = images(1, 4, 32, 32), torch.rand(1, 16)
    plain = model(x, NAIP, 1.0, noise=noise).loss
    torch.testing.assert_close(plain, model(x, NAIP, 1.0, noise=noise, target=3 * x + 7).loss, atol=1e-5, rtol=0)


def test_teacher() -> None:
    teacher = Mean()
    model = clay_mae_tiny_patch8(teacher=teacher, representation_weight=0.05)
    x, noise = images(2, 4, 32, 32), torch.rand(2, 16)
    output = model(x, NAIP, 1.0, noise=noise, rgb=x[:, :3])
    torch.testing.assert_close(output.loss, 0.95 * output.reconstruction_loss + 0.05 * output.representation_loss)
    output.loss.backward()
    assert teacher.scale.grad is None
    assert not teacher.training
    assert model.train().training
    assert not teacher.training
    assert model.proj.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match='rgb'):
        model(x, NAIP, 1.0)


def test_cached_teacher_target() -> None:
    torch.manual_seed(0)
    model = clay_mae_tiny_patch8(teacher_dim=3).eval()
    live = clay_mae_tiny_patch8(teacher=Mean()).eval()
    live.load_state_dict({**live.state_dict(), **model.state_dict()})
    x, noise = images(2, 4, 32, 32), torch.rand(2, 16)
    with torch.no_grad():
        target = live._teacher_embedding(x[:, :3])
    a = model(x, NAIP, 1.0, noise=noise, teacher_target=target)
    b = live(x, NAIP, 1.0, noise=noise, rgb=x[:, :3])
    assert torch.equal(a.loss, b.loss)
    with pytest.raises(ValueError, match='teacher_target'):
        model(x, NAIP, 1.0, rgb=x[:, :3])


def test_teacher_rgb() -> None:
    x = images(1, 7, 8, 8)
    assert torch.equal(teacher_rgb(x, SENSORS['modis']), x[:, [0, 3, 2]])
    radar = teacher_rgb(x[:, :2], SENSORS['sentinel-1-rtc'])
    assert torch.equal(radar, torch.stack([x[:, 0], x[:, 1], (x[:, 0] + x[:, 1]) / 2], 1))
    with pytest.raises(ValueError, match='no rgb bands'):
        teacher_rgb(x[:, :1], SENSORS['naip'].select(['nir']))


@pytest.mark.parametrize('name', ['no_such_model', 'vit_tiny_patch16_224.augreg_in21k'])
def test_teacher_that_cannot_be_had(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(ValueError, match=r'teacher.*could not be built.*teacher=None'):
        make_teacher(name)


def test_noise_of_the_wrong_length(model: ClayMAE) -> None:
    with pytest.raises(ValueError, match=r'noise: expected one number per patch, \(1, 16\)'):
        model(images(1, 4, 32, 32), NAIP, 1.0, noise=torch.rand(1, 15))


def test_too_small_to_mask(model: ClayMAE) -> None:
    with pytest.raises(ValueError, match='Use larger images'):
        model(images(1, 4, 8, 8), NAIP, 1.0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_compiles_whole_with_gradients(model: ClayMAE, dtype: torch.dtype) -> None:
    x, noise = images(2, 4, 32, 48), torch.rand(2, 24)
    valid = torch.rand(2, 1, 32, 48) > 0.1
    gsd, time = torch.tensor([1.0, 2.0]), torch.rand(2, 4)
    losses, gradients = [], []
    for run in (lambda m: m, lambda m: torch.compile(m, backend='aot_eager', fullgraph=True)):
        other = copy.deepcopy(model)
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = run(other)(x, NAIP, gsd, time, time, noise=noise, valid=valid).loss
        assert loss.dtype == torch.float32
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in other.parameters() if p.grad is not None]))
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(losses[0], losses[1], rtol=tolerance, atol=tolerance)
    assert (gradients[0] - gradients[1]).norm() <= 10 * tolerance * gradients[0].norm()


def test_no_gradient_reaches_what_is_not_used(model: ClayMAE) -> None:
    """The decoder's bias token only attends; every other weight learns."""
    other = copy.deepcopy(model)
    other(images(2, 4, 32, 32), NAIP, 1.0).loss.backward()
    assert [n for n, p in other.named_parameters() if p.grad is None] == []
