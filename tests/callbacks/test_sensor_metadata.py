# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The callback that tells the Clay inside any task about each batch."""

import json
import logging
from typing import Any

import jsonargparse
import kornia.augmentation as K
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import NonGeoDataset
from torchgeo.tasks import ChangeDetection, Classification

from torchgeo_clay.callbacks import SensorMetadata
from torchgeo_clay.conditioning import Conditioning, batch_conditioning, encode_latlon, encode_time
from torchgeo_clay.datamodules import SensorDataModule
from torchgeo_clay.models import Clay
from torchgeo_clay.sensors import get_sensor

WAVELENGTHS = [0.665, 0.56]
JUNE, JULY = 1_560_000_000.0, 1_563_000_000.0


def batch(**kwargs: Any) -> dict[str, Any]:
    """Two samples as TorchGeo collates them, with all that may be known."""
    known = {
        'image': torch.zeros(2, 2, 8, 8),
        'wavelength': torch.tensor([WAVELENGTHS, WAVELENGTHS]),
        'res': torch.tensor([10.0, 20.0]),
        'lat': torch.tensor([50.0, 51.0], dtype=torch.float64),
        'lon': torch.tensor([14.0, 15.0], dtype=torch.float64),
        'time': torch.tensor([JUNE, JULY], dtype=torch.float64),
    }
    return {k: v for k, v in (known | kwargs).items() if v is not None}


class Task(LightningModule):
    """Records the conditioning of the model in each step."""

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model or Clay(embed_dim=48, depth=1, num_heads=2, mlp_ratio=1)
        self.told: list[tuple[str, Conditioning | None]] = []
        self.fail = False

    def _step(self, name: str, samples: dict[str, Any]) -> Tensor:
        self.told.append((name, self.model.patch_embed.conditioning))
        if self.fail:
            raise RuntimeError('the step fails')
        return self.model(samples['image']).mean()

    def training_step(self, samples: dict[str, Any], batch_idx: int) -> Tensor:
        return self._step('train', samples)

    def validation_step(self, samples: dict[str, Any], batch_idx: int) -> None:
        self._step('validate', samples)

    def test_step(self, samples: dict[str, Any], batch_idx: int) -> None:
        self._step('test', samples)

    def predict_step(self, samples: dict[str, Any], batch_idx: int) -> Tensor:
        return self._step('predict', samples)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(Callback):
    """Records the conditioning between the steps; must follow the callback under test."""

    def __init__(self) -> None:
        self.told: list[Conditioning | None] = []

    def _note(self, trainer: Trainer, pl_module: Task, *args: Any, **kwargs: Any) -> None:
        self.told.append(pl_module.model.patch_embed.conditioning)

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _note


def trainer(*callbacks: Callback) -> Trainer:
    return Trainer(
        accelerator='cpu',
        max_epochs=1,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def loader(*batches: dict[str, Any]) -> DataLoader:
    return DataLoader(list(batches or [batch()]), batch_size=None)


def test_every_step_is_told_and_nothing_is_left() -> None:
    task, watch = Task(), Watch()
    runner = trainer(SensorMetadata(), watch)
    runner.fit(task, loader(batch(), batch(res=torch.tensor([1.0, 2.0]))), loader())
    runner.validate(task, loader(), verbose=False)
    runner.test(task, loader(), verbose=False)
    runner.predict(task, loader())
    assert [name for name, _ in task.told] == ['train', 'train', 'validate', 'validate', 'test', 'predict']
    assert [c.gsd.tolist() for _, c in task.told] == [[10, 20], [1, 2], *[[10, 20]] * 4]
    for _, told in task.told:
        assert told.wavelengths.tolist() == pytest.approx(WAVELENGTHS)
        assert torch.equal(told.time, encode_time([JUNE, JULY]))
        assert torch.equal(told.latlon, encode_latlon([50.0, 51.0], [14.0, 15.0]))
    assert watch.told == [None] * 6


def test_predicts_as_the_model_called_by_hand() -> None:
    torch.manual_seed(0)
    task, samples = Task().eval(), batch(image=torch.randn(2, 2, 8, 8))
    (predicted,) = trainer(SensorMetadata()).predict(task, loader(samples))
    with torch.no_grad():
        codes = encode_time([JUNE, JULY]), encode_latlon([50.0, 51.0], [14.0, 15.0])
        assert predicted == task.model(samples['image'], WAVELENGTHS, samples['res'], *codes).mean()


def test_nothing_is_left_where_a_step_fails() -> None:
    task = Task()
    task.fail = True
    with pytest.raises(RuntimeError, match='the step fails'):
        trainer(SensorMetadata()).predict(task, loader())
    assert task.told[0][1] is not None
    assert task.model.patch_embed.conditioning is None


def test_nothing_is_left_of_the_batch_before_a_refused_one() -> None:
    task, callback = Task(), SensorMetadata()
    callback.on_train_batch_start(trainer(), task, batch(), 0)
    assert task.model.patch_embed.conditioning is not None
    with pytest.raises(ValueError, match="no 'res'"):
        callback.on_train_batch_start(trainer(), task, batch(res=None), 1)
    assert task.model.patch_embed.conditioning is None


def test_outer_scope_comes_back() -> None:
    task, outer = Task(), Conditioning(gsd=3.0)
    with task.model.conditioned_on(outer):
        trainer(SensorMetadata()).predict(task, loader())
        assert task.model.patch_embed.conditioning is outer
    assert task.told[0][1].gsd.tolist() == [10, 20]


def test_every_clay_is_told() -> None:
    task = Task()
    task.second = Clay(embed_dim=48, depth=1, num_heads=2, mlp_ratio=1)
    SensorMetadata().on_test_batch_start(trainer(), task, batch(), 0)
    assert task.second.patch_embed.conditioning is task.model.patch_embed.conditioning is not None


def test_fixed_where_the_batch_says_nothing() -> None:
    task, callback = Task(), SensorMetadata('sentinel-2-l2a', ['B04', 'B03'], gsd=60)
    trainer(callback).predict(task, loader(batch(wavelength=None, res=None), batch()))
    (_, fixed), (_, own) = task.told
    assert fixed.wavelengths.tolist() == pytest.approx([0.665, 0.56])
    assert fixed.gsd.tolist() == [60, 60]
    assert torch.equal(fixed.time, own.time)
    assert own.gsd.tolist() == [10, 20]  # the batch's own comes first


def test_half_of_the_metadata_may_be_fixed() -> None:
    assert batch_conditioning(batch(res=None), gsd=5.0).gsd.tolist() == [5, 5]
    assert batch_conditioning(batch(lat=None)).latlon is None
    assert batch_conditioning(batch(time=None)).time is None
    naip = get_sensor('naip').select(['nir', 'red'])
    assert batch_conditioning(batch(wavelength=None), naip.wavelengths).gsd.tolist() == [10, 20]


def test_two_dates() -> None:
    dates = torch.zeros(2, 2, 2, 8, 8)  # (B, T, C, H, W)
    assert batch_conditioning(batch(image=dates)).wavelengths.shape == (2,)
    assert torch.equal(batch_conditioning(batch(image=dates)).time, encode_time([JUNE, JULY]))
    one = torch.tensor([[JUNE], [JULY]], dtype=torch.float64)
    assert torch.equal(batch_conditioning(batch(image=dates[:, :1], time=one)).time, encode_time([JUNE, JULY]))


def test_times_of_two_dates_are_left_out_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    task, callback = Task(), SensorMetadata()
    both = torch.tensor([[JUNE, JULY]] * 2, dtype=torch.float64)
    with caplog.at_level(logging.INFO):
        for i in range(2):
            callback.on_test_batch_start(trainer(), task, batch(image=torch.zeros(2, 2, 2, 8, 8), time=both), i)
    assert task.model.patch_embed.conditioning.time is None
    assert task.model.patch_embed.conditioning.latlon is not None
    assert caplog.text.count('Times of 2 dates are left out') == 1


@pytest.mark.parametrize(
    ('known', 'fixed', 'message'),
    [
        ({'wavelength': None}, {}, r"no 'wavelength'.*SensorMetadata\(sensor='sentinel-2-l2a', bands=\['B04'"),
        ({'res': None}, {}, r"no 'res'.*SensorMetadata\(gsd=10\)"),
        ({'wavelength': None, 'res': None}, {'sensor': 'naip', 'bands': ['red', 'nir']}, r"no 'res'.*gsd=10"),
        ({'wavelength': None}, {'gsd': 10}, "no 'wavelength'"),
        ({'wavelength': None}, {'sensor': 'naip'}, r'got \(4,\) wavelengths for 2 channels.*bands='),
        ({'image': torch.zeros(2, 4, 8, 8)}, {}, r'got \(2,\) wavelengths for 4 channels.*Dates stacked as channels'),
        ({'image': None}, {}, "Expected a batch with 'image'.*'res'"),
        ({'image': torch.zeros(2, 8, 8)}, {}, r"Expected a batch with 'image'.*with image \(2, 8, 8\)"),
        ({'res': torch.tensor([10.0, float('nan')])}, {}, 'gsd: expected positive'),
    ],
)
def test_refused(known: dict[str, Any], fixed: dict[str, Any], message: str) -> None:
    task = Task()
    with pytest.raises(ValueError, match=message):
        trainer(SensorMetadata(**fixed)).predict(task, loader(batch(**known)))
    assert task.told == []
    assert task.model.patch_embed.conditioning is None


def test_refused_that_is_no_mapping() -> None:
    with pytest.raises(ValueError, match=r"Expected a batch with 'image'.*got list"):
        batch_conditioning([torch.zeros(2, 2, 8, 8)])


def test_refused_without_clay() -> None:
    with pytest.raises(ValueError, match=r'no Clay in Task.*clay_base_patch8'):
        SensorMetadata().on_test_batch_start(trainer(), Task(nn.Identity()), batch(), 0)


@pytest.mark.parametrize('model', ['unet', 'segformer', 'dpt'])
def test_refused_where_dates_are_stacked(model: str) -> None:
    small = {'backbone': 'tu-clay_tiny_patch8', 'in_channels': 2}
    with pytest.raises(ValueError, match=f"model='{model}'.* stacks the 2 dates as 4 channels.*fcsiamconc.*changevit"):
        SensorMetadata().on_test_batch_start(
            trainer(), ChangeDetection(model=model, **small), batch(image=torch.zeros(2, 2, 2, 8, 8)), 0
        )


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'sensor': 'sentinel-2'}, "Unknown sensor 'sentinel-2'.*Did you mean 'sentinel-2-l2a'"),
        ({'sensor': 'naip', 'bands': ['swir']}, "naip has no band 'swir'"),
        ({'bands': ['red']}, 'need a sensor'),
        ({'gsd': 0.0}, 'gsd: expected positive'),
    ],
)
def test_refused_when_made(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SensorMetadata(**kwargs)


def _collect(callbacks: list[Callback]) -> list[Callback]:
    return callbacks


def test_made_from_yaml(tmp_path: Any) -> None:
    """As Lightning's command makes it, the path of a sensor's YAML included."""
    own = tmp_path / 'own.yaml'
    own.write_text('{name: own, gsd: 3, bands: {pan: {wavelength: 0.6, mean: 1, std: 1}}}')
    entries = [
        {'class_path': 'torchgeo_clay.callbacks.SensorMetadata'},
        {
            'class_path': 'torchgeo_clay.callbacks.SensorMetadata',
            'init_args': {'sensor': 'sentinel-2-l2a', 'bands': ['B04', 'B03'], 'gsd': 10},
        },
        {'class_path': 'torchgeo_clay.callbacks.SensorMetadata', 'init_args': {'sensor': str(own)}},
    ]
    bare, fixed, path = jsonargparse.auto_cli(
        _collect, as_positional=False, args=[f'--callbacks={json.dumps(entries)}']
    )
    assert (bare.sensor, bare.gsd) == (None, None)
    assert (fixed.sensor.band_names, fixed.gsd) == (('red', 'green'), 10)
    assert path.sensor.name == 'own'


class Photos(NonGeoDataset):
    """Digital numbers of NAIP's red, green and blue."""

    bands = ('red', 'green', 'blue')

    def __init__(self, split: str = 'train') -> None:
        self.split = split

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pixels = torch.randint(1, 255, (3, 32, 32), generator=torch.Generator().manual_seed(index))
        return {'image': pixels.float(), 'label': torch.tensor(index % 2)}


def test_a_bare_datamodule_is_refused() -> None:
    """TorchGeo's own normalization is not the sensor's; wrapped, or with the sensor's numbers, it is."""
    callback = SensorMetadata('naip', ['red', 'green', 'blue'], gsd=1)
    task = Classification(model='clay_tiny_patch8', num_classes=2)
    with pytest.raises(
        ValueError,
        match=r'NonGeoDataModule normalizes images with its own mean \[0\] and std \[255\]; Clay expects those of '
        r'naip.*SensorDataModule, init_args: \{sensor: naip, bands: \[red, green, blue\], datamodule: \{class_path: '
        r'torchgeo\.datamodules\.geo\.NonGeoDataModule',
    ):
        trainer(callback).fit(task, datamodule=NonGeoDataModule(Photos, 2))
    wrapped = SensorDataModule(NonGeoDataModule(Photos, 2), 'naip', ['red', 'green', 'blue'], gsd=1.0)
    trainer(SensorMetadata()).fit(task, datamodule=wrapped)
    own, naip = NonGeoDataModule(Photos, 2), get_sensor('naip').select(['red', 'green', 'blue'])
    own.mean, own.std = torch.tensor(naip.mean), torch.tensor(naip.std)
    own.aug = K.AugmentationSequential(K.Normalize(own.mean, own.std), data_keys=None, keepdim=True)
    trainer(callback).fit(task, datamodule=own)
    assert not any(module._forward_hooks for module in own.aug.modules())


@pytest.mark.filterwarnings('ignore:The images of the first batch')  # from 0 to 1
def test_a_normalization_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading its numbers means waiting for a device, which no step should do."""
    compared: list[list[float]] = []
    monkeypatch.setattr(SensorMetadata, '_compare', lambda self, kind, mean, std: compared.append(mean.tolist()))
    data = NonGeoDataModule(Photos, 1)  # four batches
    trainer(SensorMetadata('naip', ['red', 'green', 'blue'], gsd=1)).fit(
        Classification(model='clay_tiny_patch8', num_classes=2), datamodule=data
    )
    assert compared == [[0.0]]


def test_a_normalization_that_cannot_be_compared_is_named() -> None:
    class Known(Photos):
        def __getitem__(self, index: int) -> dict[str, Tensor]:
            known = {'wavelength': torch.tensor([0.65, 0.56, 0.48]), 'res': torch.tensor(1.0)}
            return {**super().__getitem__(index), **known}

    data = NonGeoDataModule(Known, 2)
    data.aug = K.AugmentationSequential(K.Normalize(torch.tensor(100.0), torch.tensor(50.0)), data_keys=None)
    task = Classification(model='clay_tiny_patch8', num_classes=2)
    with pytest.warns(UserWarning, match=r'its own mean \[100\.0\].*no sensor is given to compare them with\. Wrap'):
        trainer(SensorMetadata()).fit(task, datamodule=data)


@pytest.mark.parametrize('values', [(0.1, 0.9), (0.0, 3000.0)])
def test_values_of_no_normalization_are_named(values: tuple[float, float]) -> None:
    image = torch.empty(2, 2, 8, 8).uniform_(*values)
    with pytest.warns(UserWarning, match='which are not normalized for a sensor'):
        trainer(SensorMetadata()).predict(Task(), loader(batch(image=image)))
