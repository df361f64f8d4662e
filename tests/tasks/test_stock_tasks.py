# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""TorchGeo's own tasks, unchanged, with Clay by name and SensorMetadata among the callbacks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.tasks import ChangeDetection, Classification, PixelwiseRegression, Regression, SemanticSegmentation

from torchgeo_clay.callbacks import SensorMetadata
from torchgeo_clay.models import CheckpointError
from torchgeo_clay.models.clay import find_clay

SIZE = 32
DECODERS = ['unet', 'deeplabv3+', 'upernet', 'segformer', 'dpt']
SIAMESE = [
    ('fcsiamconc', 'tu-clay_tiny_patch8'),
    ('fcsiamdiff', 'tu-clay_tiny_patch8'),
    ('changevit', 'clay_tiny_patch8'),
]


class TinyData(LightningDataModule):
    """Four samples of noise in memory, in TorchGeo's keys."""

    def __init__(self, target: str, value: Callable[[int], Tensor], dates: int | None = None, **metadata: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = (3, SIZE, SIZE) if dates is None else (dates, 3, SIZE, SIZE)
        self.samples = [
            {'image': torch.randn(shape, generator=generator), target: value(i), **metadata} for i in range(4)
        ]

    def _loader(self) -> DataLoader:
        return DataLoader(self.samples, batch_size=2)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


KNOWN = {
    'wavelength': torch.tensor([0.665, 0.56, 0.493]),
    'res': torch.tensor(10.0),
    'lat': torch.tensor(50.0, dtype=torch.float64),
    'lon': torch.tensor(14.0, dtype=torch.float64),
    'time': torch.tensor(1.6e9, dtype=torch.float64),
}


def _mask(i: int) -> Tensor:
    return torch.randint(0, 2, (SIZE, SIZE), generator=torch.Generator().manual_seed(i))


def _trainer(*callbacks: Any) -> Trainer:
    return Trainer(
        accelerator='cpu',
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=1,
        limit_predict_batches=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _predict(task: LightningModule, data: TinyData, *callbacks: Any) -> Tensor:
    (prediction,) = _trainer(*(callbacks or [SensorMetadata()])).predict(task, data)
    return prediction['probabilities'] if isinstance(prediction, dict) else prediction


def check(task: LightningModule, target: str, value: Callable[[int], Tensor], shape: tuple[int, ...], **kwargs: Any):
    """Fit, test and predict; the encoder learns, and the prediction follows what the batch says of itself."""
    data = TinyData(target, value, **kwargs, **KNOWN)
    (clay,) = find_clay(task)
    before = clay.patch_embed.kernels.weight_tokens.clone()
    trainer = _trainer(SensorMetadata())
    trainer.fit(task, data)
    assert not torch.equal(before, clay.patch_embed.kernels.weight_tokens)
    (metrics,) = trainer.test(task, data, verbose=False)
    assert torch.isfinite(torch.tensor(metrics['test_loss']))
    prediction = _predict(task, data)
    assert prediction.shape == shape
    for key, other in {
        'res': torch.tensor(0.6),
        'wavelength': torch.tensor([0.9, 1.6, 2.2]),
        'lat': torch.tensor(-20.0, dtype=torch.float64),
        'time': torch.tensor(1.61e9, dtype=torch.float64),
    }.items():
        told = _predict(task, TinyData(target, value, **kwargs, **KNOWN | {key: other}))
        assert not torch.equal(prediction, told), f'{key} makes no difference'
    assert torch.equal(prediction, _predict(task, data))
    assert clay.patch_embed.conditioning is None


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_classification() -> None:
    task = Classification(model='clay_tiny_patch8', task='multiclass', num_classes=3)
    check(task, 'label', lambda i: torch.tensor(i % 3), (2, 3))


def test_classification_frozen() -> None:
    """A linear probe: nothing but the head learns."""
    task = Classification(model='clay_tiny_patch8', task='multiclass', num_classes=3, freeze_backbone=True)
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    _trainer(SensorMetadata()).fit(task, TinyData('label', lambda i: torch.tensor(i % 3), **KNOWN))
    assert {k for k, v in task.model.state_dict().items() if not torch.equal(v, before[k])} == {
        'head.weight',
        'head.bias',
    }


def test_regression() -> None:
    check(Regression(model='clay_tiny_patch8', num_outputs=1), 'label', lambda i: torch.tensor([float(i)]), (2, 1))


@pytest.mark.parametrize('model', DECODERS)
def test_semantic_segmentation(model: str) -> None:
    task = SemanticSegmentation(model=model, backbone='tu-clay_tiny_patch8', task='multiclass', num_classes=2)
    check(task, 'mask', _mask, (2, 2, SIZE, SIZE))


@pytest.mark.parametrize('model', DECODERS)
def test_pixelwise_regression(model: str) -> None:
    task = PixelwiseRegression(model=model, backbone='tu-clay_tiny_patch8')
    check(task, 'mask', lambda i: _mask(i).float(), (2, 1, SIZE, SIZE))


@pytest.mark.parametrize(('model', 'backbone'), SIAMESE)
def test_change_detection(model: str, backbone: str) -> None:
    task = ChangeDetection(model=model, backbone=backbone)
    check(task, 'mask', lambda i: _mask(i)[None], (2, 1, SIZE, SIZE), dates=2)


def test_change_detection_that_stacks_dates() -> None:
    task = ChangeDetection(model='unet', backbone='tu-clay_tiny_patch8')
    with pytest.raises(ValueError, match=r'Write model: fcsiamconc, fcsiamdiff or changevit'):
        _predict(task, TinyData('mask', lambda i: _mask(i)[None], dates=2, **KNOWN))


def test_fixed_sensor_stands_in() -> None:
    """The same numbers, once from the batch and once from the callback."""
    task = SemanticSegmentation(model='unet', backbone='tu-clay_tiny_patch8', task='binary')
    told = TinyData('mask', _mask, wavelength=KNOWN['wavelength'], res=torch.tensor(20.0))
    fixed = SensorMetadata('sentinel-2-l2a', ['B04', 'B03', 'B02'], gsd=20)
    assert torch.equal(_predict(task, told), _predict(task, TinyData('mask', _mask), fixed))


@pytest.mark.parametrize(
    ('make', 'target'),
    [
        (lambda: Classification(model='clay_tiny_patch8', task='binary'), 'label'),
        (lambda: SemanticSegmentation(model='unet', backbone='tu-clay_tiny_patch8', task='binary'), 'mask'),
    ],
)
def test_not_told(make: Callable[[], LightningModule], target: str) -> None:
    """No guess: neither by the model without the callback, nor by the callback without a sensor."""
    data = TinyData(target, _mask)
    with pytest.raises(ValueError, match=r'wavelengths of the images are unknown\. Give wavelengths='):
        _trainer().predict(make(), data)
    with pytest.raises(ValueError, match=r"SensorMetadata\(sensor='sentinel-2-l2a', bands="):
        _predict(make(), data)


# smp's advice to its own users: TorchGeo says 'imagenet' for any weights
@pytest.mark.filterwarnings("ignore:For 'tu-' .timm universal. encoders:UserWarning")
@pytest.mark.parametrize(
    'make',
    [
        lambda: Classification(model='clay_tiny_patch8', weights=True, num_classes=2),
        lambda: Regression(model='clay_tiny_patch8', weights=True),
        lambda: SemanticSegmentation(model='unet', backbone='tu-clay_tiny_patch8', weights=True, num_classes=2),
        lambda: PixelwiseRegression(model='dpt', backbone='tu-clay_tiny_patch8', weights=True),
        lambda: ChangeDetection(model='changevit', backbone='clay_tiny_patch8', weights=True),
    ],
)
def test_weights_never_released(make: Callable[[], LightningModule]) -> None:
    with pytest.raises(CheckpointError, match=r'no released weights of clay_tiny_patch8.*clay_large_patch8'):
        make()
