# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The graded position code, and that weights never meet the other code unnoticed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from torchgeo_clay.models import CheckpointError, Clay, clay_mae_tiny_patch8, clay_tiny_patch8, save_encoder
from torchgeo_clay.models.clay import graded_code, grid_code, position_code
from torchgeo_clay.tasks import ClayClassification, ClayObjectDetection, ClayPretraining, ClaySemanticSegmentation

WIDTHS = (96 - 8, 192 - 8, 384 - 8, 512 - 8, 768 - 8, 1024 - 8)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 12), st.lists(st.floats(0.05, 2000), min_size=1, max_size=3),
    st.sampled_from(WIDTHS),
)  # fmt: skip
def test_a_larger_grid_begins_with_the_smaller(height: int, width: int, gsd: list[float], dim: int) -> None:
    small = graded_code(height, width, torch.tensor(gsd), dim).unflatten(1, (height, width))
    large = graded_code(height + 3, width + 5, torch.tensor(gsd), dim).unflatten(1, (height + 3, width + 5))
    assert small.shape == (len(gsd), height, width, dim)
    torch.testing.assert_close(small, large[:, :height, :width])
    assert small.abs().max() <= 1
    # each pair of sine and cosine has length 1, so that all patches have codes of one length
    torch.testing.assert_close(small.norm(dim=-1), torch.full(small.shape[:3], (dim / 2) ** 0.5))


@pytest.mark.parametrize('gsd', [0.5, 10.0, 500.0])
def test_near_patches_have_like_codes_at_any_gsd(gsd: float) -> None:
    graded = graded_code(1, 33, torch.tensor([gsd]), 184)[0, :, :-16]
    likeness = cosine_similarity(graded[:1], graded)
    assert (likeness[1:9].diff() < 0).all()  # falls with the distance, from neighbor to neighbor
    assert likeness[1] > 0.9
    if gsd >= 10:  # which the release's code does not do
        assert cosine_similarity(*grid_code(1, 2, torch.tensor([gsd]), 184)[0, :, None])[0] < 0.9


def test_no_two_of_300_patches_a_side_are_alike() -> None:
    column = graded_code(300, 1, torch.tensor([10.0]), 184)[0].double()
    assert torch.cdist(column, column).fill_diagonal_(9).min() > 0.05


def test_gsd_is_in_channels_of_its_own() -> None:
    one, ten = graded_code(4, 4, torch.tensor([1.0, 10.0]), 184)
    assert torch.equal(one[:, :-16], ten[:, :-16])
    assert not torch.isclose(one[:, -16:], ten[:, -16:]).all()
    assert (ten[:, -16:] == ten[0, -16:]).all()


def test_time_and_place_follow() -> None:
    time, latlon = torch.rand(2, 4), torch.rand(2, 4)
    code = position_code(2, 3, torch.tensor([10.0]), time, latlon, 2, 192, 'graded')
    torch.testing.assert_close(code[..., :-8], graded_code(2, 3, torch.tensor([10.0]), 184).expand(2, -1, -1))
    torch.testing.assert_close(code[:, 5, -8:], torch.cat([time, latlon], dim=1))


def test_folding_keeps_the_code() -> None:
    torch.manual_seed(0)
    model = clay_tiny_patch8(position='graded').eval()
    x, gsd = torch.randn(2, 4, 24, 32), torch.tensor([1.0, 3.0])
    folded = model.fold('naip')
    assert torch.equal(folded(x, gsd), model(x, folded.wavelengths, gsd))
    assert not torch.isclose(folded(x, gsd), folded(x, gsd.flip(0))).all()


@pytest.fixture
def graded(tmp_path: Path) -> Path:
    """A checkpoint of a pretraining with the graded code."""
    torch.save(
        {'state_dict': ClayPretraining('clay_mae_tiny_patch8', position='graded').state_dict()}, tmp_path / 'g.ckpt'
    )
    return tmp_path / 'g.ckpt'


def test_files_say_which_code_they_are_of(graded: Path, tmp_path: Path) -> None:
    encoder = clay_tiny_patch8(graded)
    assert encoder.position == clay_mae_tiny_patch8(graded).encoder.position == 'graded'
    save_encoder(encoder, tmp_path / 'g.safetensors')
    assert clay_tiny_patch8(tmp_path / 'g.safetensors').position == 'graded'
    save_encoder(clay_tiny_patch8(), tmp_path / 'r.safetensors')
    assert clay_tiny_patch8(tmp_path / 'r.safetensors').position == 'release'
    assert clay_tiny_patch8().position == 'release'


@pytest.mark.parametrize('build', [clay_tiny_patch8, clay_mae_tiny_patch8])
def test_the_other_code_is_refused(build: Callable[..., Any], graded: Path) -> None:
    with pytest.raises(CheckpointError, match="trained with the position code 'graded', the model has 'release'"):
        build(graded, position='release')
    with pytest.raises(ValueError, match=r"'graded', the model has 'release'.*Build it with position='graded'"):
        build().load_state_dict(build(graded).state_dict())
    with pytest.raises(ValueError, match="'release', the model has 'graded'"):
        build(position='graded').load_state_dict(build().state_dict())


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(ValueError, match="position: expected 'release' or 'graded', got 'fine'"):
        clay_tiny_patch8(position='fine')


@pytest.mark.parametrize(
    'make',
    [
        lambda **kw: ClayPretraining('clay_mae_tiny_patch8', **kw),
        lambda **kw: ClayClassification('clay_tiny_patch8', num_classes=3, **kw),
        lambda **kw: ClayClassification('clay_tiny_patch8', num_classes=3, temporal='mean', **kw),
        lambda **kw: ClaySemanticSegmentation(backbone='clay_tiny_patch8', num_classes=3, **kw),
        lambda **kw: ClayObjectDetection(backbone='clay_tiny_patch8', num_classes=3, **kw),
    ],
    ids=['pretraining', 'classification', 'series', 'segmentation', 'detection'],
)
def test_checkpoints_of_tasks_bring_it_back(make: Callable[..., Any], graded: Path, tmp_path: Path) -> None:
    task = make(weights=graded)
    trainer = pl.Trainer(logger=False, accelerator='cpu', enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(tmp_path / 'task.ckpt')
    again = type(task).load_from_checkpoint(tmp_path / 'task.ckpt', map_location='cpu')
    (encoder,) = (module for module in again.modules() if isinstance(module, Clay))
    assert encoder.position == 'graded'
