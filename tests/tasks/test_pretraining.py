# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The pretraining task: what is logged, saved, restored and refused."""

import logging
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from torchgeo_clay.conditioning import Conditioning, batch_sensor
from torchgeo_clay.datamodules import ClayPretrainDataModule
from torchgeo_clay.models import builders, clay_mae_tiny_patch8
from torchgeo_clay.models.weights import released_name
from torchgeo_clay.tasks import ClayPretraining

TINY = 'clay_mae_tiny_patch8'
SENSOR_NAMES = ('naip', 'sentinel-1-rtc', 'modis')


class Mean(nn.Module):
    """A teacher: the mean of each channel, times a weight that is not to change."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-2:] == (518, 518)
        return x.mean((2, 3)) * self.scale


@pytest.fixture
def teachers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the teachers that were asked for, each of which is `Mean`."""
    asked: list[str] = []

    def make_teacher(teacher: Any, pretrained: bool = True) -> nn.Module | None:
        if teacher is None:
            return None
        asked.append(teacher)
        return Mean()

    monkeypatch.setattr(builders, 'make_teacher', make_teacher)
    return asked


def make_task(**options: Any) -> ClayPretraining:
    torch.manual_seed(0)
    return ClayPretraining(TINY, **options)


def make_trainer(folder: Path, **options: Any) -> pl.Trainer:
    defaults = {
        'accelerator': 'cpu', 'default_root_dir': folder, 'logger': False, 'enable_checkpointing': False,
        'enable_progress_bar': False, 'enable_model_summary': False, 'max_epochs': 1, 'limit_train_batches': 3,
    }  # fmt: skip
    return pl.Trainer(**defaults | options)


def fit(task: ClayPretraining, scenes: dict[str, Any], folder: Path, **options: Any) -> pl.Trainer:
    trainer = make_trainer(folder, **options)
    trainer.fit(task, datamodule=ClayPretrainDataModule(**scenes))
    return trainer


def batches(trainer: pl.Trainer, task: ClayPretraining) -> list[dict[str, Any]]:
    """The batches of validation, as the task is given them."""
    data = trainer.datamodule
    return [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]


# what is logged -------------------------------------------------------------------------------------------------------


def test_losses_are_logged_in_all_and_per_sensor(tiny_scenes, tmp_path):
    task = make_task()
    trainer = fit(task, tiny_scenes, tmp_path)
    kinds = ('loss', 'reconstruction_loss')
    keys = {f'{kind}{of}' for kind in kinds for of in ('', *(f'/{name}' for name in SENSOR_NAMES))}
    logged = trainer.callback_metrics
    assert set(logged) == {f'{split}_{key}' for split in ('train', 'val') for key in keys} | {'lr'}

    expected: dict[str, list[float]] = {}
    task.eval()
    for batch in batches(trainer, task):
        with torch.no_grad():
            loss = task.reconstruction(batch).loss.item()
        expected.setdefault(batch['sensor'], []).extend([loss] * len(batch['image']))
    for name, losses in expected.items():
        assert logged[f'val_loss/{name}'].item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    everything = [loss for losses in expected.values() for loss in losses]
    assert logged['val_loss'].item() == pytest.approx(sum(everything) / len(everything), rel=1e-5)
    tested = trainer.test(task, datamodule=trainer.datamodule, verbose=False)[0]
    assert tested.keys() == {f'test_{key}' for key in keys}
    assert tested['test_loss'] == pytest.approx(logged['val_loss'].item(), rel=1e-5)


def test_each_sensor_has_its_own_scale_and_bands(tiny_scenes, tmp_path):
    task = make_task().eval()
    trainer = make_trainer(tmp_path)
    data = ClayPretrainDataModule(**tiny_scenes, readers={'naip': {'bands': ['nir', 'red']}})
    trainer.validate(task, datamodule=data, verbose=False)
    seen = {batch['sensor']: batch for batch in batches(trainer, task)}
    assert batch_sensor(seen['naip']).band_names == ('nir', 'red')
    assert task.reconstruction(seen['naip']).prediction.shape[-1] == 2 * 64
    for name, scale in (('modis', 0.1), ('naip', 1)):
        batch = seen[name]
        with torch.no_grad():
            output = task.reconstruction(batch)
            pixels = task.model.reconstruct(
                batch['image'], **Conditioning.from_batch(batch).arguments, noise=batch['noise']
            )
        masked = output.mask.reshape(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).bool()
        error = (pixels - batch['target']).abs()[masked.expand_as(pixels)]
        assert batch['valid'].all()
        assert output.reconstruction_loss.item() == pytest.approx(scale * error.mean().item(), rel=1e-5)


def test_validation_is_the_same_twice_and_without_chance(tiny_scenes, tmp_path):
    task = make_task()
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainer = make_trainer(tmp_path)
        data = ClayPretrainDataModule(**tiny_scenes)
        results.append(trainer.validate(task, datamodule=data, verbose=False)[0])
    assert results[0] == results[1]
    for batch in batches(trainer, task):
        assert batch['band_mask'].all()
        assert torch.equal(batch['image'], batch['target'])
        assert not any(batch[key].isnan().any() for key in ('lat', 'lon', 'time'))


@pytest.mark.filterwarnings('ignore:Experiment logs directory')
@pytest.mark.parametrize('steps', [-1, 2])
def test_the_losses_before_training_are_logged_where_all_is_validated(tiny_scenes, tmp_path, steps):
    data = ClayPretrainDataModule(**tiny_scenes)
    untrained = make_trainer(tmp_path).validate(make_task(), datamodule=data, verbose=False)[0]
    logger = CSVLogger(tmp_path, name='', version='')
    fit(make_task(), tiny_scenes, tmp_path, logger=logger, num_sanity_val_steps=steps)
    losses = pd.read_csv(tmp_path / 'metrics.csv').dropna(subset='val_loss')
    assert losses['step'].tolist() == ([0, 2] if steps == -1 else [2])
    if steps == -1:
        for name, value in untrained.items():
            assert losses[name].iloc[0] == pytest.approx(value, rel=1e-5)


# training -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings('ignore:Experiment logs directory')
def test_published_recipe_steps_once_per_batch(tiny_scenes, tmp_path):
    logger = CSVLogger(tmp_path, name='', version='')
    task = make_task(recipe='published', lr=1e-6)
    fit(task, tiny_scenes, tmp_path, logger=logger, log_every_n_steps=1, limit_train_batches=5, limit_val_batches=0)
    rates = pd.read_csv(tmp_path / 'metrics.csv')['lr'].dropna().tolist()
    rising = [1e-4 + (1e-6 - 1e-4) * (1 + math.cos(math.pi * step / 1000)) / 2 for step in range(5)]
    assert rates == pytest.approx(rising, rel=1e-6)


def test_cosine_recipe_spans_the_run(tiny_scenes, tmp_path):
    task = make_task(lr=0.01)
    trainer = fit(task, tiny_scenes, tmp_path, limit_train_batches=4, limit_val_batches=0, max_epochs=2)
    assert trainer.global_step == 8
    assert task.lr_schedulers().get_last_lr()[0] == pytest.approx(0, abs=1e-9)
    by_id = {id(p): name for name, p in task.model.named_parameters()}
    groups = trainer.optimizers[0].param_groups
    free = {by_id[id(p)] for group in groups if group['weight_decay'] == 0 for p in group['params']}
    tokens = {
        'encoder.cls_token', 'decoder.mask_token', 'decoder.head.kernels.weight_tokens',
        'decoder.head.kernels.bias_token', 'encoder.patch_embed.kernels.weight_tokens',
        'encoder.patch_embed.kernels.bias_token',
    }  # fmt: skip
    assert tokens <= free
    vectors = {name for name, p in task.model.named_parameters() if p.ndim == 1}  # norms and biases
    assert free == tokens | vectors


def test_default_rates_are_the_recipes():
    for recipe, lr in (('cosine', 1.5e-4), ('published', 1e-5)):
        task = make_task(recipe=recipe)
        task._trainer = type('Trainer', (), {'estimated_stepping_batches': 10})()
        assert task.configure_optimizers()['optimizer'].param_groups[0]['initial_lr'] == pytest.approx(lr)


def test_gradients_accumulate_and_are_clipped_as_lightning_has_it(tiny_scenes, tmp_path):
    norms = []

    class Norm(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))

    trainer = fit(
        make_task(), tiny_scenes, tmp_path, callbacks=[Norm()], limit_train_batches=4, limit_val_batches=0,
        accumulate_grad_batches=2, gradient_clip_val=1e-3,
    )  # fmt: skip
    assert trainer.global_step == len(norms) == 2


def test_grad_checkpointing_is_passed_on():
    assert make_task(grad_checkpointing=True).model.encoder.grad_checkpointing
    assert not make_task().model.encoder.grad_checkpointing


# checkpoints ----------------------------------------------------------------------------------------------------------


# the teacher is frozen on purpose
@pytest.mark.filterwarnings('ignore:Found 1 module.s. in eval mode at the start of training')
def test_the_teacher_is_not_saved_and_comes_back(tiny_scenes, tmp_path, teachers):
    task = make_task(teacher='mean')
    trainer = fit(task, tiny_scenes, tmp_path)
    logged = trainer.callback_metrics
    assert 'train_representation_loss' in logged
    for name in ('', *(f'/{name}' for name in SENSOR_NAMES)):
        loss, pixels, summary = (
            logged[f'val_{kind}loss{name}'].item() for kind in ('', 'reconstruction_', 'representation_')
        )
        assert loss == pytest.approx(0.95 * pixels + 0.05 * summary, rel=1e-5)
    assert task.model.teacher.scale.tolist() == [1, 2, 3]  # training left it alone
    path = tmp_path / 'saved.ckpt'
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    assert not any('teacher' in key for key in saved['state_dict'])
    assert saved['hyper_parameters']['teacher'] == 'mean'

    again = ClayPretraining.load_from_checkpoint(path)
    assert teachers == ['mean', 'mean']
    state, restored = task.state_dict(), again.state_dict()
    assert state.keys() == restored.keys()
    assert all(torch.equal(value, restored[key]) for key, value in state.items())
    other = make_task(teacher='mean')
    trainer = make_trainer(tmp_path)
    result = trainer.validate(other, datamodule=ClayPretrainDataModule(**tiny_scenes), ckpt_path=path, verbose=False)
    assert result[0]['val_loss'] == pytest.approx(logged['val_loss'].item())


def test_weights_go_on_from_the_released_layout_and_from_our_own(tiny_scenes, tmp_path):
    torch.manual_seed(1)
    model = clay_mae_tiny_patch8()
    released = tmp_path / 'released.ckpt'
    layout = {
        f'model.{part}.{released_name(key)}': value
        for part in ('encoder', 'decoder')
        for key, value in getattr(model, part).state_dict().items()
    }
    torch.save({'state_dict': layout, 'hyper_parameters': {}}, released)
    first = make_task(weights=released)
    assert all(torch.equal(value, first.model.state_dict()[key]) for key, value in model.state_dict().items())

    trainer = fit(first, tiny_scenes, tmp_path, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / 'own.ckpt')
    second = make_task(weights=str(tmp_path / 'own.ckpt'))
    trained = first.model.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in second.model.state_dict().items())
    assert not all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())
    assert 'weights' not in second.hparams
    before = {key: value.clone() for key, value in trained.items()}
    fit(second, tiny_scenes, tmp_path, limit_val_batches=0)
    assert any(not torch.equal(value, before[key]) for key, value in second.model.state_dict().items())


# mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'model': 'clay_mae_huge_patch8'},
            r"expected one of clay_mae_tiny_patch8, .*got 'clay_mae_huge_patch8'",
        ),
        ({'model': 'clay_tiny_patch8'}, 'model: expected one of clay_mae_tiny_patch8'),
        ({'recipe': 'sgd'}, r"recipe: expected 'cosine' or 'published', got 'sgd'"),
        ({'weights': 'nowhere.ckpt'}, r'nowhere\.ckpt'),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        ClayPretraining(**{'model': TINY} | options)


@pytest.mark.parametrize('precision', ['bf16-true', '16-true'])
def test_half_precision_names_the_mixed_one(tiny_scenes, tmp_path, precision):
    with pytest.raises(ValueError, match=f"Use '{precision.split('-')[0]}-mixed'"):
        fit(make_task(), tiny_scenes, tmp_path, precision=precision)


def test_mixed_precision_trains(tiny_scenes, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = fit(make_task(), tiny_scenes, tmp_path, precision='bf16-mixed', limit_val_batches=3)
    assert torch.isfinite(trainer.callback_metrics['train_loss'])
    assert next(trainer.model.parameters()).dtype == torch.float32


def test_without_a_datamodule_the_channels_have_to_be_all_of_the_sensors():
    batch = {'image': torch.zeros(1, 4, 16, 16), 'sensor': 'naip'}
    assert batch_sensor(batch).band_names == ('red', 'green', 'blue', 'nir')
    with pytest.raises(ValueError, match=r'the 4 bands of naip .* got 3 channels'):
        batch_sensor({**batch, 'image': torch.zeros(1, 3, 16, 16)})
