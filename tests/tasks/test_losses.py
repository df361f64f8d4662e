# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Losses and metrics beside TorchGeo's and torchmetrics' own of the pixels that are left."""

from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from tiny_batches import TINY, TinyDataModule, image, labelled, loss_of, mask, masked, trainer
from torchgeo.tasks import SemanticSegmentation
from torchmetrics.functional import mean_absolute_error, mean_squared_error

from torchgeo_clay.tasks import (
    ClayChangeDetection,
    ClayClassification,
    ClayPixelwiseRegression,
    ClayRegression,
    ClaySemanticSegmentation,
)
from torchgeo_clay.tasks.losses import metrics_without_nodata

IGNORED = 255
LOSSES = [
    *(('multiclass', loss) for loss in ('ce', 'jaccard', 'focal', 'dice')),
    *(('binary', loss) for loss in ('bce', 'jaccard', 'focal', 'dice')),
]


def stock_loss(task: str, loss: str) -> torch.nn.Module:
    """TorchGeo's criterion without an ignored label."""
    options: dict[str, Any] = {'num_classes': 3} if task == 'multiclass' else {}
    stock = SemanticSegmentation('unet', 'resnet18', in_channels=3, task=task, loss=loss, **options)
    return stock.criterion


def ours(task: str, loss: str, **options: Any) -> torch.nn.Module:
    classes: dict[str, Any] = {'num_classes': 3} if task == 'multiclass' else {}
    return ClaySemanticSegmentation(
        'segformer', TINY, task=task, loss=loss, ignore_index=IGNORED, **classes, **options
    ).criterion


@pytest.mark.parametrize(('task', 'loss'), LOSSES)
def test_an_ignored_label_is_left_out_of_every_loss(task: str, loss: str) -> None:
    """The loss is TorchGeo's of an image that holds only the other pixels."""
    logits = image(2, 3, 8, 8) if task == 'multiclass' else image(2, 8, 8)
    target = mask((2, 8, 8), 3 if task == 'multiclass' else 2)
    target[:, :, 5:] = IGNORED
    seen, truth = logits[..., :5].clone(), target[..., :5].clone()
    logits, seen = logits.requires_grad_(), seen.requires_grad_()
    if loss == 'bce':
        target, truth = target.float(), truth.float()
    result, expected = ours(task, loss)(logits, target), stock_loss(task, loss)(seen, truth)
    torch.testing.assert_close(result, expected)
    result.backward()
    expected.backward()
    torch.testing.assert_close(logits.grad[..., :5], seen.grad)
    assert not logits.grad[..., 5:].any()


@pytest.mark.parametrize(('task', 'loss'), LOSSES)
def test_a_batch_that_is_all_ignored_teaches_nothing(task: str, loss: str) -> None:
    logits = (image(2, 3, 8, 8) if task == 'multiclass' else image(2, 8, 8)).requires_grad_()
    target = torch.full((2, 8, 8), IGNORED)
    result = ours(task, loss)(logits, target.float() if loss == 'bce' else target)
    result.backward()
    assert result == 0
    assert not logits.grad.any()


def test_class_weights_hold_beside_an_ignored_label() -> None:
    logits, target = image(2, 3, 8, 8), mask((2, 8, 8))
    target[0] = IGNORED
    weights = torch.tensor([1.0, 2.0, 3.0])
    expected = torch.nn.functional.cross_entropy(logits[1:], target[1:], weights)
    torch.testing.assert_close(ours('multiclass', 'ce', class_weights=[1.0, 2.0, 3.0])(logits, target), expected)


def test_an_ignored_label_is_left_out_of_change_detection() -> None:
    torch.manual_seed(0)
    task = ClayChangeDetection('unet', TINY, task='binary', loss='bce', ignore_index=IGNORED)
    data = TinyDataModule(lambda i: {'mask': mask((1, 32, 32), 2, i)}, (2, 3, 32, 32))
    batch = data.batch()
    batch['mask'][:, :, 8:] = IGNORED
    assert 0 < loss_of(task, batch) < 2


@pytest.mark.parametrize('nodata', [None, -9999.0])
def test_targets_without_a_value_are_left_out_of_loss_and_metrics(nodata: float | None) -> None:
    torch.manual_seed(0)
    task = ClayPixelwiseRegression('segformer', TINY, nodata=nodata)
    batch = TinyDataModule(lambda i: {'mask': image(32, 32, seed=i)}).batch()
    batch['mask'][0, :16] = torch.nan if nodata is None else nodata
    batch['mask'][1, :, :8] = torch.inf
    known = torch.isfinite(batch['mask']) & (batch['mask'] != -9999)
    with task.clay.conditioned_on(task.conditioning(batch)), torch.no_grad():
        prediction = task(batch['image']).squeeze(1)
    expected = mean_squared_error(prediction[known], batch['mask'][known])
    loss = loss_of(task, batch)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())
    result = task.train_metrics.compute()
    torch.testing.assert_close(result['train_MSE'].squeeze(), expected)
    torch.testing.assert_close(result['train_RMSE'].squeeze(), expected.sqrt())
    torch.testing.assert_close(
        result['train_MAE'].squeeze(), mean_absolute_error(prediction[known], batch['mask'][known])
    )


def test_metrics_of_several_outputs_count_the_values_of_each() -> None:
    metrics = metrics_without_nodata(2, ['height', 'mass'], None)
    batches = [(image(5, 2, seed=i), image(5, 2, seed=i + 9)) for i in range(3)]
    for i, (prediction, target) in enumerate(batches):
        target[: i + 1, 0] = torch.nan
        metrics.update(prediction, target)
    prediction, target = (torch.cat(part) for part in zip(*batches, strict=True))
    for output, name in enumerate(('height', 'mass')):
        known = target[:, output].isfinite()
        error = (prediction - target)[known, output].double().numpy()
        result = metrics.compute()
        assert result[f'MSE_{name}'] == pytest.approx(np.square(error).mean(), rel=1e-5)
        assert result[f'MAE_{name}'] == pytest.approx(np.abs(error).mean(), rel=1e-5)


def test_regression_of_images_survives_a_batch_without_any_value() -> None:
    task = ClayRegression(TINY, num_outputs=2)
    batch = TinyDataModule(lambda i: {'label': torch.full((2,), torch.nan)}).batch()
    loss = loss_of(task, batch)
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool])
@pytest.mark.parametrize('channel', [False, True])
def test_masks_of_any_integer_type_give_the_same_loss(dtype: torch.dtype, channel: bool) -> None:
    torch.manual_seed(0)
    task = ClaySemanticSegmentation('segformer', TINY, num_classes=2)
    batch = TinyDataModule(masked(classes=2)).batch()
    expected = loss_of(task, batch)
    batch['mask'] = (batch['mask'].unsqueeze(1) if channel else batch['mask']).to(dtype)
    torch.testing.assert_close(loss_of(task, batch), expected)


def test_labels_that_are_fractions_are_refused() -> None:
    task = ClayClassification(TINY, num_classes=3)
    batch = TinyDataModule(labelled).batch()
    batch['label'] = batch['label'] + 0.5
    with pytest.raises(TypeError, match=r'label: expected labels, which are integers or bool, got torch\.float32'):
        loss_of(task, batch)


def test_lightning_unfreezes_the_backbone_under_the_default_schedule() -> None:
    """The group that the callback adds falls along the same cosine as the others."""
    task = ClayClassification(TINY, num_classes=3, lr=1e-3, warmup=0.2)
    callback = BackboneFinetuning(unfreeze_backbone_at_epoch=1, lambda_func=lambda epoch: 1.0, backbone_initial_lr=5e-4)
    rates: list[list[float]] = []
    before = {name: value.clone() for name, value in task.clay.named_parameters()}

    def record(*args: Any) -> None:
        rates.append([group['lr'] for group in task.trainer.optimizers[0].param_groups])

    task.on_train_batch_end = record  # type: ignore[method-assign]
    trainer(callback, max_epochs=3).fit(task, datamodule=TinyDataModule(labelled))
    assert any(not torch.equal(before[name], value) for name, value in task.clay.named_parameters())
    assert len(rates[-1]) > len(rates[0])
    assert rates[-1] == pytest.approx([0] * len(rates[-1]), abs=4e-4)
