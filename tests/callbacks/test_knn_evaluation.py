# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""kNN during pretraining: what is logged, and that training does not notice."""

import json
import math
import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import scipy.stats
import torch
from lightning.pytorch.loggers import Logger
from sklearn.neighbors import KNeighborsClassifier

from torchgeo_clay.callbacks import KNNEvaluation
from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.datamodules import ClayPretrainDataModule, SyntheticDataModule
from torchgeo_clay.inference import embed_labeled
from torchgeo_clay.models import clay_tiny_patch8
from torchgeo_clay.tasks import ClayPretraining

FIGURES = {'val_knn_accuracy', 'val_effective_rank', 'val_mean_cosine'}


class Drawing(SyntheticDataModule):
    """Labeled data that take from every global generator there is, as others' do."""

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        return batch


def labeled(scenes: dict[str, Any], kind: type = SyntheticDataModule, **options: Any) -> SyntheticDataModule:
    """16 chips in each split, half of them as labels are."""
    settings = {'batch_size': 5, 'patch_size': 16, 'val_split': 0.3, 'test_split': 0.3, 'min_share': 0, **options}
    return kind(scenes['root'], 'naip', synthetic=scenes['synthetic'], **settings)


class Trace(pl.Callback):
    """Everything after each step that could have been disturbed."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        loader = trainer.datamodule.state_dict()['train_loader']
        position = loader['epoch'], loader['step'], batch['index'].tolist()
        generators = torch.get_rng_state().sum().item(), np.random.get_state()[2], hash(random.getstate())  # noqa: NPY002
        modes = [module.training for module in pl_module.modules()]
        self.steps.append((outputs['loss'].item(), position, generators, modes))
        torch.rand(2), np.random.rand(2), random.random()  # noqa: NPY002 - so that the states move on


class Lines(Logger):
    """Keeps what is logged: step → figures."""

    name, version = 'lines', 0

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if found := {k: v for k, v in metrics.items() if k in FIGURES}:
            self.lines.append((step, found))


def fit(folder: Path, scenes: dict[str, Any], *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        **{
            'accelerator': 'cpu',
            'callbacks': list(callbacks),
            'logger': False,
            'default_root_dir': folder,
            'enable_checkpointing': False,
            'enable_progress_bar': False,
            'enable_model_summary': False,
            'limit_train_batches': 2,
            'limit_val_batches': 2,
            'max_epochs': 2,
            **options,
        }
    )
    trainer.fit(ClayPretraining('clay_mae_tiny_patch8', lr=1e-3), datamodule=ClayPretrainDataModule(**scenes))
    return trainer


@pytest.fixture(autouse=True)
def _seed_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's seed_everything leaves the seed in the environment."""
    for name in ('PL_GLOBAL_SEED', 'PL_SEED_WORKERS'):
        monkeypatch.setenv(name, '0')
    state = np.random.get_state(), random.getstate()  # noqa: NPY002
    yield
    np.random.set_state(state[0])  # noqa: NPY002
    random.setstate(state[1])


def test_training_does_not_notice(tiny_scenes, tmp_path):
    without, beside = Trace(), Trace()
    fit(tmp_path, tiny_scenes, without)
    fit(tmp_path, tiny_scenes, KNNEvaluation(labeled(tiny_scenes, Drawing), k=3), beside)
    assert len(without.steps) == 4
    assert beside.steps == without.steps


def test_figures_are_those_of_scikit_learn_and_scipy_with_the_weights_of_that_time(tiny_scenes, tmp_path, caplog):
    options = {'max_epochs': 1, 'num_sanity_val_steps': 0}
    trainer = fit(tmp_path, tiny_scenes, KNNEvaluation(labeled(tiny_scenes), k=3), **options)
    encoder = trainer.lightning_module.model.encoder.eval()
    data = labeled(tiny_scenes)
    data.setup('fit')
    sensor = data.train_dataset.sensor
    mean, std = (torch.tensor(values)[:, None, None] for values in (sensor.mean, sensor.std))
    found = []
    for loader in (data.train_dataloader(), data.val_dataloader()):
        embedded, labels = [], []
        for batch in loader:
            assert batch['valid'].all()
            image = (batch['image'].float() - mean) / std
            with torch.no_grad():
                embedded.append(encoder(image, **Conditioning.from_batch(batch).arguments))
            labels.append(batch['label'])
        found.append((torch.cat(embedded).numpy(), torch.cat(labels).numpy()))
    data.teardown('fit')
    (known, classes), (asked, truth) = found
    assert (len(known), len(asked)) == (15, 16)  # the last batch of those that train is left out
    assert len(np.unique(classes)) > 1
    told = KNeighborsClassifier(3, metric='cosine').fit(known, classes).predict(asked)
    rank = np.exp(scipy.stats.entropy(np.linalg.svd(asked.astype(np.float64))[1]))
    assert trainer.callback_metrics['val_knn_accuracy'].item() == pytest.approx((told == truth).mean())
    assert trainer.callback_metrics['val_effective_rank'].item() == pytest.approx(rank, rel=1e-5)
    unit = asked / np.linalg.norm(asked, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[~np.eye(16, dtype=bool)]
    assert trainer.callback_metrics['val_mean_cosine'].item() == pytest.approx(cosines.mean(), abs=1e-5)


def test_it_is_logged_when_it_is_its_turn_and_before_training(tiny_scenes, tmp_path):
    lines = Lines()
    options = {'max_epochs': 3, 'num_sanity_val_steps': -1, 'limit_train_batches': 1, 'logger': lines}
    fit(tmp_path, tiny_scenes, KNNEvaluation(labeled(tiny_scenes), every_n_epochs=2, k=3, pooling='mean'), **options)
    assert [step for step, _ in lines.lines] == [0, 1, 2]  # before; of the second epoch; of the last
    assert all(set(found) == FIGURES for _, found in lines.lines)
    assert all(math.isfinite(value) for _, found in lines.lines for value in found.values())
    assert lines.lines[0][1] != lines.lines[1][1]


class Untouched(pl.Callback):
    """Fails the test if anything is trained."""

    def on_train_batch_start(self, *args: Any) -> None:
        raise AssertionError('a batch was trained on')


@pytest.mark.parametrize(
    ('data', 'k', 'said'),
    [
        ({'task': 'segmentation'}, 3, r"Expected batches with 'label'.*mask"),
        ({'task': 'regression'}, 3, 'whole number.*float32'),
        ({}, 16, 'k: expected 1 to 15'),
    ],
)
def test_mistakes_show_before_training(tiny_scenes, tmp_path, data, k, said):
    with pytest.raises(ValueError, match=said):
        fit(tmp_path, tiny_scenes, Untouched(), KNNEvaluation(labeled(tiny_scenes, **data), k=k))


def test_the_datamodule_of_training_is_refused(tiny_scenes, tmp_path):
    data = ClayPretrainDataModule(**tiny_scenes)
    trainer = pl.Trainer(
        accelerator='cpu', logger=False, max_epochs=1, enable_checkpointing=False, callbacks=[KNNEvaluation(data)]
    )
    with pytest.raises(ValueError, match='of its own'):
        trainer.fit(ClayPretraining('clay_mae_tiny_patch8'), datamodule=data)


@pytest.mark.parametrize('wrong', [{'every_n_epochs': 0}, {'k': 0}, {'seed': -1}, {'pooling': 'max'}])
def test_values_out_of_range_are_refused(tiny_scenes, wrong):
    with pytest.raises(ValueError, match=f'{next(iter(wrong))}: expected'):
        KNNEvaluation(labeled(tiny_scenes), **wrong)


def test_embedding_leaves_the_encoder_as_it_was_and_knows_nodata(tiny_scenes):
    torch.manual_seed(0)
    encoder = clay_tiny_patch8().train()
    encoder.blocks[0].eval()
    modes = [module.training for module in encoder.modules()]
    data = labeled(tiny_scenes)
    data.setup('validate')
    first = next(iter(data.val_dataloader()))
    first['valid'][0, :, :8, :] = False  # the upper two patches of the first chip
    embeddings, labels = embed_labeled(encoder, data, [first], pooling='mean')
    assert [module.training for module in encoder.modules()] == modes
    assert all(parameter.grad is None for parameter in encoder.parameters())
    np.testing.assert_array_equal(labels, first['label'])
    batch = data.on_after_batch_transfer(first, 0)
    with torch.no_grad():
        tokens = encoder.eval().forward_features(batch['image'], **Conditioning.from_batch(batch).arguments)
    np.testing.assert_allclose(embeddings[0], tokens[0, 3:].mean(dim=0), atol=1e-5)  # class token, two patches
    np.testing.assert_allclose(embeddings[1:], tokens[1:, 1:].mean(dim=1), atol=1e-5)
    with pytest.raises(ValueError, match='no batch'):
        embed_labeled(encoder, data, [])
    data.teardown('validate')


def test_it_is_written_in_a_configuration(repo_root, tiny_scenes, tmp_path, torchgeo_command):
    init = {'root': tiny_scenes['root'], 'sensor': 'naip', 'synthetic': tiny_scenes['synthetic'], 'patch_size': 16}
    init |= {'val_split': 0.3, 'test_split': 0.3, 'min_share': 0, 'batch_size': 5, 'hide_metadata': 1}
    data = {'class_path': 'torchgeo_clay.datamodules.SyntheticDataModule', 'init_args': init}
    callback = {'class_path': 'torchgeo_clay.callbacks.KNNEvaluation', 'init_args': {'data': data, 'k': 3}}
    logger = {'class_path': 'lightning.pytorch.loggers.CSVLogger', 'init_args': {'save_dir': str(tmp_path)}}
    torchgeo_command(
        'fit', f'--config={repo_root}/configs/clay_pretrain.yaml', f'--trainer.callbacks={json.dumps([callback])}',
        *(f'--data.{name}={json.dumps(value)}' for name, value in tiny_scenes.items() if name != 'root'),
        f'--data.root={tiny_scenes["root"]}', f'--trainer.logger={json.dumps(logger)}', '--trainer.accelerator=cpu',
        '--trainer.max_epochs=1', '--trainer.limit_train_batches=2', '--trainer.limit_val_batches=2',
        '--trainer.num_sanity_val_steps=0', '--trainer.enable_progress_bar=false',
        '--trainer.enable_checkpointing=false', f'--trainer.default_root_dir={tmp_path}',
    )  # fmt: skip
    (metrics,) = tmp_path.rglob('metrics.csv')
    assert set(metrics.read_text().splitlines()[0].split(',')) >= FIGURES
