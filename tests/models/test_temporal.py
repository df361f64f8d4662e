# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Aggregation over dates beside plain means, maxima and TorchGeo's own LTAE; padding changes nothing."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torchgeo.models import LTAE

from torchgeo_clay.conditioning import Conditioning, encode_time, select_dates
from torchgeo_clay.models import Clay, clay_tiny_patch8
from torchgeo_clay.models.temporal import Aggregation, DateAttention, DenseSeries, ImageSeries, Temporal

TEMPORAL = get_args(Temporal)
LENGTHS = (3, 1, 4)
TIMES = torch.tensor([1.60e9, 1.605e9, 1.61e9, torch.nan], dtype=torch.float64)
BANDS = torch.tensor([0.665, 0.56, 0.493])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditioning(times: Tensor, lengths: tuple[int, ...] | None) -> Conditioning:
    return Conditioning(BANDS, 10.0, encode_time(times), lengths=lengths)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize('shape', [(32,), (32, 2, 3)], ids=['tokens', 'maps'])
@pytest.mark.parametrize('temporal', TEMPORAL)
def test_a_padded_batch_equals_each_sample_alone(temporal: Temporal, shape: tuple[int, ...]) -> None:
    aggregation = Aggregation(temporal, 32).eval()
    x = noise(sum(LENGTHS), *shape)
    got = aggregation(x, LENGTHS)
    assert got.shape == (3, *shape)
    for row, dates in zip(got, x.split(list(LENGTHS)), strict=True):
        torch.testing.assert_close(row, aggregation(dates, [len(dates)])[0], rtol=1e-5, atol=1e-6)
        if temporal == 'mean':
            torch.testing.assert_close(row, dates.mean(0))
        elif temporal == 'max':
            assert torch.equal(row, dates.amax(0))


@pytest.mark.parametrize('temporal', ['mean', 'max'])
def test_the_order_of_the_dates_does_not_matter(temporal: Temporal) -> None:
    x = noise(5, 32, 2, 2)
    aggregation = Aggregation(temporal, 32)
    torch.testing.assert_close(aggregation(x, [5]), aggregation(x[torch.randperm(5)], [5]))


def test_attention_is_torchgeos() -> None:
    ours, theirs = DateAttention(32).eval(), LTAE(32, n_neurons=(32, 32), d_model=None).eval()
    theirs.load_state_dict(ours.state_dict())
    x = noise(4, 6, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    padded = torch.cat([x, 1e3 * noise(4, 3, 32)], 1)
    torch.testing.assert_close(ours(padded, torch.arange(9).expand(4, 9) < 6), ours(x), rtol=1e-5, atol=1e-6)


def test_attention_of_maps_is_that_of_each_cell() -> None:
    aggregation = Aggregation('ltae', 32).eval()
    x = noise(5, 32, 2, 3)
    got = aggregation(x, (2, 3))
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(got[..., i, j], aggregation(x[..., i, j], (2, 3)), rtol=1e-5, atol=1e-6)


def test_each_date_is_encoded_with_its_own_time() -> None:
    encoder: Clay = clay_tiny_patch8(num_classes=2).eval()
    model = ImageSeries(encoder, 'mean').eval()
    x = noise(2, 4, 3, 20, 16)
    lengths = (4, 2)
    times = select_dates(TIMES.expand(2, 4), lengths)
    seen: list[Tensor] = []
    model.aggregation.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad(), encoder.conditioned_on(conditioning(times, lengths)):
        got = model(x)
    assert seen[0].shape == (6, encoder.embed_dim)
    encoder.reset_classifier(0)
    images = torch.nn.functional.pad(select_dates(x, lengths), (0, 0, 0, 4), mode='reflect')
    for token, image, time in zip(seen[0], images, times, strict=True):
        with torch.no_grad():
            alone = encoder(image[None], BANDS, 10.0, encode_time(time[None]))[0]
        torch.testing.assert_close(token, alone, rtol=1e-5, atol=1e-6)
    assert got.shape == (2, 2)


@pytest.mark.parametrize('decoder', ['unet', 'dpt', 'deeplabv3+'])
@pytest.mark.parametrize('temporal', TEMPORAL)
def test_maps_of_a_padded_batch_equal_those_of_each_sample(temporal: Temporal, decoder: str) -> None:
    model = DenseSeries('clay_tiny_patch8', decoder, 2, temporal=temporal).eval()
    x = noise(2, 4, 3, 40, 32)
    lengths = (2, 4)
    with torch.no_grad():
        with model.clay.conditioned_on(conditioning(select_dates(TIMES.expand(2, 4), lengths), lengths)):
            got = model(x)
        for i, length in enumerate(lengths):
            with model.clay.conditioned_on(conditioning(TIMES[:length], None)):
                alone = model(x[i : i + 1, :length])
            torch.testing.assert_close(got[i : i + 1], alone, rtol=0, atol=1e-5 * float(alone.abs().max()))
    assert got.shape == (2, 2, 40, 32)


@pytest.mark.parametrize('make', [lambda: ImageSeries(clay_tiny_patch8(), 'mode'), lambda: Aggregation('', 32)])  # type: ignore[arg-type]
def test_another_aggregation_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match='temporal: expected one of mean, max, ltae, got '):
        make()
