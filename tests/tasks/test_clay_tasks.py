# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay's tasks compared with TorchGeo's own, with the same weights and batches, and their conditioning."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from tiny_batches import DATES, KNOWN, TINY, TinyDataModule, image, labelled, loss_of, mask, masked, told, trainer
from torchgeo.tasks import ChangeDetection, Classification, PixelwiseRegression, Regression, SemanticSegmentation
from torchgeo.tasks.base import BaseTask

from torchgeo_clay.callbacks import SensorMetadata
from torchgeo_clay.conditioning import Conditioning, encode_latlon, encode_time
from torchgeo_clay.tasks import (
    ClayChangeDetection,
    ClayClassification,
    ClayPixelwiseRegression,
    ClayRegression,
    ClaySemanticSegmentation,
)

TU = f'tu-{TINY}'
PAIRS: dict[str, tuple[Any, Any, TinyDataModule]] = {
    'multiclass': (
        lambda: ClayClassification(TINY, num_classes=3, labels=['a', 'b', 'c']),
        lambda: Classification(TINY, num_classes=3, labels=['a', 'b', 'c']),
        TinyDataModule(labelled),
    ),
    'multilabel': (
        lambda: ClayClassification(TINY, task='multilabel', num_labels=4, loss='bce'),
        lambda: Classification(TINY, task='multilabel', num_labels=4, loss='bce'),
        TinyDataModule(lambda i: {'label': mask((4,), 2, i)}),
    ),
    'regression': (
        lambda: ClayRegression(TINY, num_outputs=2, loss='mae'),
        lambda: Regression(TINY, num_outputs=2, loss='mae'),
        TinyDataModule(lambda i: {'label': image(2, seed=i)}),
    ),
    'segmentation': (
        lambda: ClaySemanticSegmentation('upernet', TINY, num_classes=3, ignore_index=0, class_weights=[1, 2, 3]),
        lambda: SemanticSegmentation('upernet', TU, num_classes=3, ignore_index=0, class_weights=[1, 2, 3]),
        TinyDataModule(masked()),
    ),
    'binary': (
        lambda: ClaySemanticSegmentation('segformer', TINY, task='binary', loss='bce'),
        lambda: SemanticSegmentation('segformer', TU, task='binary', loss='bce'),
        TinyDataModule(masked(classes=2)),
    ),
    'pixelwise': (
        lambda: ClayPixelwiseRegression('deeplabv3+', TINY),
        lambda: PixelwiseRegression('deeplabv3+', TU),
        TinyDataModule(lambda i: {'mask': image(32, 32, seed=i)}),
    ),
    'change': (
        lambda: ClayChangeDetection('unet', TINY),
        lambda: ChangeDetection('fcsiamdiff', TU),
        # stock tasks cannot tell the dates apart, so neither has a time here
        TinyDataModule(
            lambda i: {'mask': mask((1, 32, 32), 2, i)},
            (2, 3, 32, 32),
            **{k: v for k, v in KNOWN.items() if k != 'time'},
        ),
    ),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def same_weights(stock: LightningModule, task: LightningModule) -> None:
    """Give TorchGeo's task the weights of ours."""
    stock.model.load_state_dict(task.model.state_dict())
    for block in getattr(getattr(stock.model, 'decoder', None), 'blocks', ()):
        block.interpolation_mode = 'bilinear'


@pytest.mark.parametrize('name', PAIRS)
def test_the_losses_and_metrics_are_torchgeos(name: str) -> None:
    make, make_stock, data = PAIRS[name]
    task, stock = make(), make_stock()
    same_weights(stock, task)
    (ours,) = trainer().validate(task, data, verbose=False)
    (theirs,) = trainer(SensorMetadata()).validate(stock, data, verbose=False)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 2
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), key
    got = trainer().predict(task, data)[0]
    expected = trainer(SensorMetadata()).predict(stock, data)[0]
    if isinstance(expected, dict):
        got, expected = got['probabilities'], expected['probabilities']
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize('name', PAIRS)
def test_training_changes_all_that_is_trained(name: str) -> None:
    """Every weight that is trained has a gradient, as distributed training wants, and changes."""
    make, _, data = PAIRS[name]
    task = make()
    before = {k: v.clone() for k, v in task.named_parameters()}
    missing = []

    class Gradients(SensorMetadata):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            missing.extend(k for k, p in pl_module.named_parameters() if p.requires_grad and p.grad is None)

    run = trainer(Gradients())
    run.fit(task, data)
    assert missing == []
    assert torch.isfinite(run.callback_metrics['train_loss'])
    same = [k for k, p in task.named_parameters() if p.requires_grad and torch.equal(p, before[k])]
    # a bias before a batch norm has no gradient but rounding's; nothing else stands still
    assert len(same) <= 2, same
    assert task.clay.patch_embed.conditioning is None


@pytest.mark.parametrize('name', PAIRS)
def test_what_is_saved_are_the_arguments(name: str) -> None:
    task = PAIRS[name][0]()
    classes = [c for c in type(task).__mro__ if issubclass(c, BaseTask) and '__init__' in vars(c)]
    arguments = {name for c in classes for name in inspect.signature(c.__init__).parameters}
    assert set(task.hparams) == arguments - {'self', 'kwargs', *task.ignore}


@pytest.mark.parametrize('name', ['multiclass', 'segmentation', 'pixelwise', 'change'])
def test_plots_are_torchgeos(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchGeo's steps show the datamodule a sample with its prediction."""
    make, _, data = PAIRS[name]
    shown = []
    monkeypatch.setattr(data, 'plot', lambda sample: shown.append(sample), raising=False)
    logger = TensorBoardLogger(tmp_path)
    trainer(logger=logger).validate(make(), data, verbose=False)
    assert len(shown) == 2
    target = 'label' if name == 'multiclass' else 'mask'
    assert shown[0]['prediction'].shape == shown[0][target].shape
    torch.testing.assert_close(shown[0]['image'] / 255, data.samples[0]['image'])  # denormalized by its statistics


# conditioning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['multiclass', 'segmentation', 'change'])
@pytest.mark.parametrize(
    'other',
    [
        {'res': torch.tensor(0.6)},
        {'wavelength': torch.tensor([0.9, 1.6, 2.2])},
        {'lat': torch.tensor(-20.0, dtype=torch.float64)},
        {'time': torch.tensor(1.61e9, dtype=torch.float64)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_predictions_follow_what_the_batch_says(name: str, other: dict[str, Any]) -> None:
    make, _, data = PAIRS[name]
    task = make().eval()
    if name == 'change' and 'time' in other:
        other = {'time': torch.tensor([1.6e9, 1.61e9], dtype=torch.float64)}
    batch = data.batch()
    rows = {k: v.expand(2, *v.shape) for k, v in other.items()}
    predictions = [task.predict_step(b, 0) for b in (batch, batch | rows, batch)]
    first, second, again = (p['probabilities'] if isinstance(p, dict) else p for p in predictions)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_each_sample_and_date_is_told_its_own() -> None:
    """Two dates give what one gets from showing the encoder each image by itself."""
    task = ClayChangeDetection('unet', TINY).eval()
    batch = {
        'image': image(2, 2, 3, 32, 32),
        'wavelength': KNOWN['wavelength'].expand(2, 3),
        'res': torch.tensor([[10.0, 20.0], [0.6, 10.0]]),
        'lat': torch.tensor([50.0, float('nan')], dtype=torch.float64),
        'lon': torch.tensor([14.0, 10.0], dtype=torch.float64),
        'time': torch.tensor([[1.6e9, 1.61e9], [float('nan'), 1.5e9]], dtype=torch.float64),
    }
    got = task.predict_step(batch, 0)
    for i in range(2):
        maps = []
        for t in range(2):
            row = slice(i, i + 1)
            conditioning = Conditioning(
                KNOWN['wavelength'],
                batch['res'][row, t],
                encode_time(batch['time'][row, t]),
                encode_latlon(batch['lat'][row], batch['lon'][row]),
            )
            with told(task, conditioning), torch.no_grad():
                maps.append(task.model.encoder(batch['image'][row, t])[2:])
        differences = [after - before for before, after in zip(*maps, strict=True)]
        empty = [torch.empty(1, 0, 32, 32), torch.empty(1, 0, 16, 16)]
        expected = task.model.segmentation_head(task.model.decoder([*empty, *differences])).sigmoid()
        torch.testing.assert_close(got[row], expected)


def test_dates_that_are_alike_differ_in_nothing() -> None:
    task = ClayChangeDetection('unet', TINY).eval()
    batch = TinyDataModule(masked(classes=2), (2, 3, 32, 32), **KNOWN).batch()
    batch['image'][:, 1] = batch['image'][:, 0]
    seen = []
    task.model.decoder.register_forward_pre_hook(lambda module, args: seen.extend(args[0][2:]))
    task.predict_step(batch | {'time': torch.full((2, 2), 1.6e9, dtype=torch.float64)}, 0)
    assert len(seen) == 4
    assert not any(m.any() for m in seen)
    task.predict_step(batch | {'time': DATES['time'].expand(2, 2)}, 0)
    assert all(m.any() for m in seen[4:])


def test_multiclass_change() -> None:
    task = ClayChangeDetection('unet', TINY, task='multiclass', num_classes=3, loss='ce')
    data = TinyDataModule(lambda i: {'mask': mask((1, 24, 40), 3, i)}, (2, 3, 24, 40))
    run = trainer()
    run.fit(task, data)
    assert torch.isfinite(run.callback_metrics['val_loss'])
    assert trainer().predict(task, data)[0].shape == (2, 3, 24, 40)


@pytest.mark.parametrize(
    ('task', 'data', 'bare'),
    [
        (
            lambda: ClaySemanticSegmentation('unet', TINY, num_classes=3),
            TinyDataModule(masked(), **KNOWN | {'res': torch.tensor(20.0)}),
            TinyDataModule(masked(), **{k: KNOWN[k] for k in ('lat', 'lon', 'time')}),
        ),
        (
            lambda: ClayChangeDetection('unet', TINY),
            TinyDataModule(masked(classes=2), (2, 3, 32, 32), **DATES | {'res': torch.tensor(20.0)}),
            TinyDataModule(masked(classes=2), (2, 3, 32, 32), **{k: DATES[k] for k in ('lat', 'lon', 'time')}),
        ),
    ],
    ids=['segmentation', 'change'],
)
def test_the_callback_serves_where_the_batch_does_not_say(task: Any, data: Any, bare: Any) -> None:
    task = task()
    sensor = SensorMetadata('sentinel-2-l2a', ['B04', 'B03', 'B02'], gsd=20)
    (told_by_batch, by_callback) = (trainer(*c).predict(task, d)[0] for c, d in (((), data), ((sensor,), bare)))
    if isinstance(told_by_batch, dict):
        told_by_batch, by_callback = told_by_batch['probabilities'], by_callback['probabilities']
    assert torch.equal(told_by_batch, by_callback)
    with pytest.raises(ValueError, match=r"no 'wavelength'.*SensorMetadata\(sensor="):
        trainer().predict(task, bare)


# mistakes in a batch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'image': image(2, 6, 16, 16)}, r'\(3,\) wavelengths for 6 channels\..*Dates stacked as channels'),
        ({'image': image(2, 2, 3, 16, 16)}, r'Expected images \(B, C, H, W\), one date, .*ClayChangeDetection'),
        ({'image': image(2, 3, 7, 16)}, r'at least one patch, 8 × 8 pixels, got 7 × 16'),
        ({'res': None}, r'gsd'),
        ({'label': torch.tensor([0, 3])}, r'label: found the label 3 .*expected 0 to 2 for num_classes=3'),
        ({'label': torch.tensor([-1, 0])}, r'label: found the label -1 .*ignore_index: -1 if they mean no data'),
    ],
)
def test_mistakes_in_a_batch(change: dict[str, Any], message: str) -> None:
    batch = {'image': image(2, 3, 16, 16), **{k: v.expand(2, *v.shape) for k, v in KNOWN.items()}}
    task = ClayClassification(TINY, num_classes=3)
    with pytest.raises(ValueError, match=message):
        loss_of(task, batch | {'label': torch.tensor([0, 1])} | change)


def test_mistakes_in_dates() -> None:
    task = ClayChangeDetection('unet', TINY)
    batch = TinyDataModule(masked(classes=2), (2, 3, 32, 32)).batch()
    for change, message in (
        ({'image': batch['image'].flatten(1, 2)}, r'dates stacked as channels cannot be distinguished'),
        ({'image': image(2, 3, 3, 16, 16)}, '3 dates'),
        ({'time': torch.zeros(2, 3, dtype=torch.float64)}, r'time: expected .*one per date \(2, 2\), got \(2, 3\)'),
        ({'mask': batch['mask'] * 255}, r'mask: found the label 255'),
    ):
        with pytest.raises(ValueError, match=message):
            loss_of(task, batch | change)


def test_labels_may_be_ignored() -> None:
    task = ClaySemanticSegmentation('segformer', TINY, num_classes=3, ignore_index=255)
    good = mask((2, 8, 8))
    good[0, 0, 0] = 255
    task.check_labels({'mask': good})
    bad = good.clone()
    bad[1, 1, 1] = 4
    with pytest.raises(ValueError, match=r'mask: found the label 4 .*num_classes=3 and ignore_index=255'):
        task.check_labels({'mask': bad})
    task.check_labels({'image': image(1)})  # to be predicted
    multilabel = ClayClassification(TINY, task='multilabel', num_labels=5)
    multilabel.check_labels({'label': mask((2, 5), 2)})
    with pytest.raises(ValueError, match=r'label: found the label 2'):
        multilabel.check_labels({'label': mask((2, 5), 2) + 1})
