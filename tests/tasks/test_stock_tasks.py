# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""TorchGeo's own tasks, unchanged, with Clay by name and SensorMetadata among the callbacks."""

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import kornia.augmentation as K
import pytest
import torch
import torchgeo.tasks
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.tasks import (
    ChangeDetection,
    Classification,
    PixelwiseRegression,
    Regression,
    SemanticSegmentation,
    SimCLR,
)

from torchgeo_clay.callbacks import SensorMetadata
from torchgeo_clay.conditioning import Conditioning, encode_latlon
from torchgeo_clay.models import CheckpointError
from torchgeo_clay.models.clay import find_clay

SIZE = 32
DECODERS = ['unet', 'deeplabv3+', 'upernet', 'segformer', 'dpt']


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


def test_classification_frozen() -> None:
    """A linear probe: nothing but the head learns."""
    task = Classification(model='clay_tiny_patch8', task='multiclass', num_classes=3, freeze_backbone=True)
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    _trainer(SensorMetadata()).fit(task, TinyData('label', lambda i: torch.tensor(i % 3), **KNOWN))
    assert {k for k, v in task.model.state_dict().items() if not torch.equal(v, before[k])} == {
        'head.weight',
        'head.bias',
    }


def _label(i: int) -> Tensor:
    return torch.tensor(i % 2)


TAKEN = {
    'Classification': ('label', _label, (2, 2), {'num_classes': 2}),
    'Regression': ('label', lambda i: torch.tensor([float(i)]), (2, 1), {}),
    'SemanticSegmentation': ('mask', _mask, (2, 2, SIZE, SIZE), {'num_classes': 2}),
    'PixelwiseRegression': ('mask', lambda i: _mask(i).float(), (2, 1, SIZE, SIZE), {}),
    'ChangeDetection': ('mask', lambda i: _mask(i)[None], (2, 1, SIZE, SIZE), {'dates': 2}),
}
CONTRASTIVE = {'MoCo': (1, 2, 3), 'SimCLR': (1, 2)}
#: (task, model) → the error that a user sees, and the arguments that lead to it.
NO_ENCODER = r"SensorMetadata found no Clay in {}\. .*'fcn' has no encoder, use unet"
STACKED = r'stacks the 2 dates as 6 channels.*Write model: fcsiamconc, fcsiamdiff or changevit'
REFUSED: dict[tuple[str, str], str] = {
    ('SemanticSegmentation', 'fcn'): NO_ENCODER.format('SemanticSegmentation'),
    ('PixelwiseRegression', 'fcn'): NO_ENCODER.format('PixelwiseRegression'),
    ('ChangeDetection', 'fcn'): NO_ENCODER.format('ChangeDetection'),
    ('ChangeDetection', 'btc'): 'Invalid swin size: tu-clay_tiny_patch8',
    **{('ChangeDetection', model): STACKED for model in DECODERS},
    ('BYOL', 'any'): 'BYOL, which runs its model while it is built, takes no Clay: use MoCo or SimCLR',
    ('MAE', 'any'): r'no patch_embed\.proj.*use torchgeo_clay\.tasks\.ClayPretraining',
    ('ObjectDetection', 'any'): "Backbone type 'clay_tiny_patch8' is not valid",
    ('InstanceSegmentation', 'any'): "Invalid backbone type 'clay_tiny_patch8'",
    ('SpatioTemporalSegmentation', 'any'): 'use ClaySemanticSegmentation with temporal: ltae',
    ('SpatioTemporalPixelwiseRegression', 'any'): 'use ClayPixelwiseRegression with temporal: ltae',
    ('TemporalRegression', 'any'): 'use ClayRegression with temporal: ltae',
    ('IOBench', 'any'): 'found no Clay in IOBench.*or leave the callback out',
    **{(name, 'any'): '' for name in ('BaseTask', 'ClassificationMixin', 'RegressionMixin')},
}


def _table() -> dict[tuple[str, str], bool]:
    """Rows of the table in docs/backbone.md: task and model → whether it takes Clay."""
    page = (Path(__file__).parents[2] / 'docs/backbone.md').read_text()
    rows: dict[tuple[str, str], bool] = {}
    for line in page.splitlines():
        if not line.startswith('|') or line.count('|') != 5 or line.split('|')[3].strip() not in ('yes', 'no'):
            continue
        tasks, models, takes = line.split('|')[1:4]
        for task in tasks.split(','):
            for model in models.split(','):
                rows[task.strip(' `'), model.strip(' `')] = takes.strip() == 'yes'
    return rows


TABLE = _table()


def test_the_table_names_every_task() -> None:
    assert {task for task, _ in TABLE} == set(torchgeo.tasks.__all__)
    assert {row for row, takes in TABLE.items() if not takes} == set(REFUSED)
    models = get_args(inspect.signature(ChangeDetection).parameters['model'].annotation)
    assert {model for task, model in TABLE if task == 'ChangeDetection'} == set(models)


@pytest.mark.parametrize(('task', 'model'), TABLE)
def test_every_row_of_the_table(task: str, model: str) -> None:
    kind = getattr(torchgeo.tasks, task)
    if task in CONTRASTIVE:
        for version in CONTRASTIVE[task]:
            check_views(task, version)
        return
    if model == 'any':
        named = {'backbone' if task in ('ObjectDetection', 'InstanceSegmentation') else 'model': 'clay_tiny_patch8'}
    else:
        named = {'model': model, 'backbone': 'clay_tiny_patch8' if model == 'changevit' else 'tu-clay_tiny_patch8'}
    target, value, shape, options = TAKEN.get(task, ('label', _label, (), {}))
    dates = options.get('dates')
    rest = {key: option for key, option in options.items() if key != 'dates'}
    if TABLE[task, model]:
        check(kind(**named, **rest), target, value, shape, **({'dates': dates} if dates else {}))
    elif not REFUSED[task, model]:
        assert inspect.isabstract(kind) or not hasattr(kind, 'training_step') or task.endswith('Mixin')
    else:
        if 'Temporal' in task or task == 'IOBench':  # nothing there names an encoder
            named = {'num_classes': 2} if task == 'SpatioTemporalSegmentation' else {}
        with pytest.raises((ValueError, TypeError), match=f'(?s){REFUSED[task, model]}'):
            _trainer(SensorMetadata()).fit(kind(**named, **rest), TinyData(target, value, dates, **KNOWN))


def check_views(task: str, version: int) -> None:
    """Train a step; each view's code has the GSD and the place of its crop, which is found on a ramp of pixels."""
    memory = {'memory_bank_size': 0, 'hidden_dim': 16, 'output_dim': 8, 'size': SIZE, 'lr': 0.01, 'weight_decay': 0.0}
    with warnings.catch_warnings(category=UserWarning, action='ignore'):  # about sizes other than the papers'
        model = getattr(torchgeo.tasks, task)('clay_tiny_patch8', version=version, **memory)
    encoders = find_clay(model)
    before = encoders[0].patch_embed.kernels.weight_tokens.clone()
    seen: list[tuple[Tensor, Conditioning]] = []
    handles = [
        encoder.patch_embed.register_forward_hook(
            lambda embed, inputs, _: seen.append((inputs[0].clone(), embed.conditioning))
        )
        for encoder in encoders
    ]
    data = TinyData('label', _label, **KNOWN)
    _trainer(SensorMetadata()).fit(model, data)
    assert not torch.equal(before, encoders[0].patch_embed.kernels.weight_tokens)
    assert len(seen) == (4 if version == 3 else 2)
    gsd = torch.stack([known.gsd for _, known in seen])
    assert gsd.unique().numel() > 2  # each view of each image has its own
    assert (gsd < 10.5).all()
    for view, known in seen:
        for other, same in seen:
            assert not torch.equal(view, other) or torch.equal(known.gsd, same.gsd)
    assert not any(encoder._forward_pre_hooks for encoder in encoders)
    assert encoders[0].patch_embed.conditioning is None
    for handle in handles:
        handle.remove()


def test_views_of_known_crops() -> None:
    """A crop of half the side, twice as fine; its center is found in the pixels, which are rows and columns."""
    crop = K.AugmentationSequential(
        K.RandomResizedCrop((SIZE, SIZE), scale=(0.25, 0.25), ratio=(1.0, 1.0)), data_keys=['input']
    )
    task = SimCLR('clay_tiny_patch8', in_channels=2, version=1, layers=2, memory_bank_size=0, augmentations=crop)
    (clay,) = find_clay(task)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing='ij')
    ramp = torch.stack([rows, columns]).float().expand(4, -1, -1, -1)
    known = {key: value.expand(4) for key, value in KNOWN.items() if key != 'wavelength'}
    callback = SensorMetadata('sentinel-1-rtc')
    with pytest.warns(UserWarning, match='not normalized for a sensor'):
        callback.on_train_batch_start(_trainer(), task, {'image': ramp - 15.5 + 40, **known}, 0)
    view = task.augmentations(ramp)
    clay(view)
    told: list[Conditioning] = []
    clay.patch_embed.register_forward_hook(lambda embed, *_: told.append(embed.conditioning))
    clay(view)
    with pytest.raises(ValueError, match='SimCLR gave Clay an image that none of augmentations returned'):
        clay(ramp)
    callback.on_train_batch_end()
    assert told[0].gsd.tolist() == pytest.approx([5.0] * 4, rel=0.04)
    down, right = (view.mean((2, 3)) - (SIZE - 1) / 2).T.double() * 10.0
    lat = 50 - down / 111_320
    lon = 14 + right / 111_320 / torch.cos(torch.deg2rad(lat))
    assert torch.allclose(told[0].latlon, encode_latlon(lat, lon), atol=1e-7)


def test_views_of_other_augmentations_are_refused() -> None:
    task = SimCLR('clay_tiny_patch8', version=1, layers=2, memory_bank_size=0, augmentations=torch.nn.Identity())
    with pytest.raises(ValueError, match=r'augmentations: expected an augmentation of kornia.*got Identity'):
        _trainer(SensorMetadata()).fit(task, TinyData('label', _label, **KNOWN))


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
