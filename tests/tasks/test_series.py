# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay's tasks on series of images, by the steps of TorchGeo's."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tiny_batches import DATES, TINY, TinyDataModule, image, labelled, loss_of, mask, masked, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchgeo.tasks import SpatioTemporalSegmentation

from torchgeo_clay.models.temporal import Temporal
from torchgeo_clay.tasks import ClayClassification, ClayPixelwiseRegression, ClayRegression, ClaySemanticSegmentation

DAY = 86400.0
TIMES = 1.6e9 + 30 * DAY * torch.arange(3, dtype=torch.float64)


class Series(TinyDataModule):
    """Four series, of three dates or padded to them, two a batch."""

    def __init__(self, target: Any, lengths: tuple[int, ...] = (3, 1, 2, 3)) -> None:
        super().__init__(target, (3, 3, 32, 32), **DATES | {'time': TIMES})
        for sample, length in zip(self.samples, lengths, strict=True):
            sample['length'] = torch.tensor(length)
            sample['image'][length:] = torch.nan  # would spread if it were looked at
            sample['time'] = torch.where(torch.arange(3) < length, TIMES, torch.nan)

    def _loader(self) -> DataLoader:
        return DataLoader(self.samples, batch_size=2)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


TASKS: dict[str, tuple[Any, Series]] = {
    'classification': (lambda t: ClayClassification(TINY, num_classes=3, temporal=t), Series(labelled)),
    'multilabel': (
        lambda t: ClayClassification(TINY, task='multilabel', num_labels=4, loss='bce', pooling='mean', temporal=t),
        Series(lambda i: {'label': mask((4,), 2, i)}),
    ),
    'regression': (lambda t: ClayRegression(TINY, temporal=t), Series(lambda i: {'label': image(1, seed=i)})),
    'segmentation': (lambda t: ClaySemanticSegmentation('unet', TINY, num_classes=3, temporal=t), Series(masked())),
    'binary': (
        lambda t: ClaySemanticSegmentation('deeplabv3+', TINY, task='binary', loss='bce', temporal=t),
        Series(masked(classes=2)),
    ),
    'pixelwise': (
        lambda t: ClayPixelwiseRegression('upernet', TINY, temporal=t),
        Series(lambda i: {'mask': image(32, 32, seed=i)}),
    ),
}


class Gradients(Callback):
    """Collects what is trained and has no gradient, as distributed training refuses."""

    def __init__(self) -> None:
        self.missing: list[str] = []

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.missing.extend(k for k, p in pl_module.named_parameters() if p.requires_grad and p.grad is None)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def predicted(task: Any, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        found = task.eval().predict_step(batch, 0)
    return found['probabilities'] if isinstance(found, dict) else found


@pytest.mark.parametrize('name', TASKS)
@pytest.mark.parametrize('temporal', get_args(Temporal))
def test_fit_plot_and_predict(name: str, temporal: Temporal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, data = TASKS[name]
    task = make(temporal)
    shown = []
    monkeypatch.setattr(data, 'plot', lambda sample: shown.append(sample), raising=False)
    gradients = Gradients()
    run = trainer(gradients, logger=TensorBoardLogger(tmp_path), num_sanity_val_steps=0, log_every_n_steps=1)
    run.fit(task, data)
    assert torch.isfinite(run.callback_metrics['train_loss'])
    assert torch.isfinite(run.callback_metrics['val_loss'])
    assert gradients.missing == []
    assert [sample['image'].shape[0] for sample in shown] == [3, 2]  # without padding
    target = 'mask' if 'mask' in shown[0] else 'label'
    assert shown[0]['prediction'].shape == shown[0][target].shape
    torch.testing.assert_close(shown[0]['image'] / 255, data.samples[0]['image'])
    assert all(torch.isfinite(predicted(task, batch)).all() for batch in data.predict_dataloader())
    assert task.clay.patch_embed.conditioning is None


@pytest.mark.parametrize('name', TASKS)
@pytest.mark.parametrize('temporal', get_args(Temporal))
def test_a_padded_sample_is_predicted_as_alone(name: str, temporal: Temporal) -> None:
    make, data = TASKS[name]
    task, batch = make(temporal), data.batch()
    got = predicted(task, batch)
    for i, length in enumerate(batch['length'].tolist()):
        row = slice(i, i + 1)
        dates = {'image': batch['image'][row, :length], 'time': batch['time'][row, :length]}
        alone = {k: v[row] for k, v in batch.items() if k != 'length'} | dates
        torch.testing.assert_close(got[row], predicted(task, alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['classification', 'segmentation'])
@pytest.mark.parametrize('temporal', ['mean', 'max'])
def test_permuted_dates_are_predicted_alike(name: str, temporal: Temporal) -> None:
    make, data = TASKS[name]
    batch = {k: v[:1] for k, v in data.batch().items()}
    task, order = make(temporal), torch.tensor([2, 0, 1])
    other = batch | {'image': batch['image'][:, order], 'time': batch['time'][:, order]}
    torch.testing.assert_close(predicted(task, batch), predicted(task, other), rtol=1e-5, atol=1e-6)
    shuffled_times = batch | {'time': batch['time'][:, order]}
    assert not torch.equal(predicted(task, batch), predicted(task, shuffled_times))


def test_one_date_is_that_date() -> None:
    series, single = ClayClassification(TINY, num_classes=3, temporal='mean'), ClayClassification(TINY, num_classes=3)
    single.model.load_state_dict(series.clay.state_dict())
    batch = TASKS['classification'][1].batch()
    one = batch | {'image': batch['image'][:, :1], 'time': batch['time'][:, :1], 'length': torch.ones(2).long()}
    image_batch = {k: v for k, v in one.items() if k != 'length'} | {
        'image': one['image'][:, 0],
        'time': one['time'][:, 0],
    }
    torch.testing.assert_close(predicted(series, one), predicted(single, image_batch))


@pytest.mark.parametrize('name', ['classification', 'multilabel', 'regression', 'segmentation'])
def test_a_batch_of_one_sample_is_trained(name: str) -> None:
    """As the last of an epoch may be; the attention's batch norm has no variance then."""
    make, data = TASKS[name]
    task = make('ltae').train()
    batch = {key: value[:1] for key, value in data.batch().items()}
    loss = loss_of(task, batch)
    loss.backward()
    assert torch.isfinite(loss)
    norms = [m for m in task.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert norms
    loss_of(task, data.batch())
    assert all(norm.training for norm in norms)


@pytest.mark.parametrize(
    'options', [{'freeze_backbone': True}, {'trainable_blocks': 1}, {'layer_decay': 0.75}], ids=str
)
def test_partial_training_of_the_encoder(options: dict[str, Any]) -> None:
    for make, data in (
        (lambda: ClayClassification(TINY, num_classes=3, temporal='ltae', **options), TASKS['classification'][1]),
        (
            lambda: ClaySemanticSegmentation(backbone=TINY, num_classes=3, temporal='ltae', **options),
            TASKS['segmentation'][1],
        ),
    ):
        task = make()
        trainer().fit(task, data)
        attention: list[nn.Module] = [m for m in task.modules() if type(m).__name__ == 'DateAttention']
        assert attention
        assert all(p.requires_grad for m in attention for p in m.parameters())
        frozen = not task.clay.patch_embed.kernels.weight_tokens.requires_grad
        assert frozen == ('layer_decay' not in options)


def test_torchgeos_own_task_takes_the_same_batches() -> None:
    data = Series(masked())
    for sample in data.samples:
        sample['image'] = sample['image'].nan_to_num()
    run = trainer()
    run.fit(SpatioTemporalSegmentation(in_channels=3, num_classes=3, hidden_dim=4), data)
    assert torch.isfinite(run.callback_metrics['val_loss'])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'image': image(2, 3, 16, 16)}, r'Expected images \(B, T, C, H, W\), several dates, got \(2, 3, 16, 16\)'),
        ({'time': TIMES.repeat(2, 2)}, r'time: expected \(2,\) or one per date \(2, 3\), got \(2, 6\)\. Pad or cut'),
        ({'length': torch.tensor([3, 0])}, r'length: expected 1 to 3 dates, .*got 0 for sample 1\. Leave samples'),
        ({'length': torch.tensor([4, 1])}, r'length: expected 1 to 3 dates, .*got 4 for sample 0'),
        ({'length': torch.tensor([1])}, r'length: expected \(2,\) integers, .* got \(1,\) torch\.int64'),
        ({'length': torch.tensor([1.0, 2.0])}, r'length: expected \(2,\) integers, .*float32'),
        ({'time': None, 'batch_positions': torch.arange(6).reshape(2, 3)}, r"'batch_positions', days .*86400"),
        ({'time': torch.tensor([[0.0, 100, 200]] * 2)}, r'time: expected seconds UTC since 1970, got 0 to 200, .*days'),
    ],
)
def test_mistakes_in_a_series(change: dict[str, Any], message: str) -> None:
    batch = TASKS['classification'][1].batch() | change
    with pytest.raises(ValueError, match=message):
        loss_of(TASKS['classification'][0]('mean'), batch)


@pytest.mark.parametrize('name', TASKS)
def test_a_series_without_temporal_is_refused(name: str) -> None:
    make, data = TASKS[name]
    with pytest.raises(
        ValueError, match=r"Expected images \(B, C, H, W\), one date, .*task's temporal: mean, max or ltae"
    ):
        loss_of(make(None), data.batch())


def test_unknown_times_are_zeros() -> None:
    task, batch = TASKS['classification'][0]('mean'), TASKS['classification'][1].batch()
    unknown = predicted(task, batch | {'time': torch.full((2, 3), torch.nan, dtype=torch.float64)})
    torch.testing.assert_close(unknown, predicted(task, {k: v for k, v in batch.items() if k != 'time'}))
    assert not torch.equal(unknown, predicted(task, batch))
