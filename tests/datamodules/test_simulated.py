# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Batches of the synthetic scenes for downstream tasks, as Lightning and a user see them."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torchgeo.tasks import Classification, PixelwiseRegression

from torchgeo_clay.callbacks import SensorMetadata
from torchgeo_clay.conditioning import check_batch
from torchgeo_clay.datamodules import SyntheticDataModule
from torchgeo_clay.datasets import SyntheticScenes
from torchgeo_clay.sensors import get_sensor

SCENES = {'sensors': ['naip', 'landsat-c2l2-sr'], 'scenes_per_sensor': 6, 'size': 64}
TASKS = ('classification', 'segmentation', 'regression')


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes of each of two sensors."""
    folder = tmp_path_factory.mktemp('synthetic') / 'scenes'
    SyntheticScenes(folder, **SCENES)
    return folder


def module(root: Path, stage: str = 'fit', **options: Any) -> SyntheticDataModule:
    """A datamodule that is set up; 16 chips train in batches of 4."""
    defaults = {'sensor': 'naip', 'task': 'segmentation', 'batch_size': 4, 'patch_size': 32, 'synthetic': SCENES}
    made = SyntheticDataModule(root, **{**defaults, **options})
    made.prepare_data()
    made.setup(stage)
    return made


def epoch(datamodule: SyntheticDataModule, number: int) -> list[dict[str, Any]]:
    """The batches of an epoch of training."""
    loader = datamodule.train_dataloader()
    for _ in range(number):
        list(loader)
    return list(loader)


@pytest.mark.parametrize('task', TASKS)
def test_batches_follow_the_contract(root: Path, task: str) -> None:
    datamodule = module(root, task=task)
    batch = datamodule.on_before_batch_transfer(next(iter(datamodule.train_dataloader())), 0)
    check_batch(batch)
    assert batch['image'].shape == (4, 4, 32, 32)
    assert batch['image'].dtype == torch.uint8  # raw until it is on the device
    assert batch['sensor'] == 'naip'
    assert {batch[k].dtype for k in ('lat', 'lon', 'time')} == {torch.float64}
    assert ('mask' in batch) == (task != 'classification')
    assert ('label' in batch) == (task != 'segmentation')
    done = datamodule.on_after_batch_transfer(batch, 0)
    sensor = get_sensor('naip')
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (sensor.mean, sensor.std))
    torch.testing.assert_close(done['image'] * std + mean, batch['image'].float(), atol=1e-3, rtol=0)
    assert done.pop('selection') == sensor
    assert {k: v for k, v in done.items() if k != 'image'} == {k: v for k, v in batch.items() if k != 'image'}


def test_an_epoch_shows_every_chip_once_and_another_flips_otherwise(root: Path) -> None:
    datamodule = module(root)

    def rows(batches: list[dict[str, Any]]) -> torch.Tensor:
        return torch.cat([b['image'] for b in batches]).flatten(1)

    first, again, second = (rows(epoch(datamodule, n)) for n in (0, 0, 1))
    assert torch.equal(first, again)
    assert len(first.unique(dim=0)) == 16
    whole = torch.stack([datamodule.train_dataset[i]['image'] for i in range(16)]).flatten(1)
    # flipping moves pixels and changes none, so that sorted pixels tell the chip
    for seen in (first, second):
        torch.testing.assert_close(seen.sort(dim=1).values.unique(dim=0), whole.sort(dim=1).values.unique(dim=0))
    assert not torch.equal(first.unique(dim=0), second.unique(dim=0))


def test_image_and_mask_are_flipped_alike(root: Path) -> None:
    datamodule = module(root, batch_size=16)
    (batch,) = epoch(datamodule, 3)
    originals = {}
    for i in range(16):
        sample = datamodule.train_dataset[i]
        for dims in ((), (-2,), (-1,), (-2, -1)):
            originals[sample['image'].flip(dims).numpy().tobytes()] = sample['mask'].flip(dims), dims
    flips = set()
    for image, mask in zip(batch['image'], batch['mask'], strict=True):
        expected, dims = originals[image.numpy().tobytes()]
        assert torch.equal(mask, expected)
        flips.add(dims)
    assert len(flips) == 4


def test_evaluation_shows_every_chip_once_as_it_is(root: Path) -> None:
    datamodule = module(root, 'test', batch_size=3)
    images = torch.cat([batch['image'] for batch in datamodule.test_dataloader()])
    assert torch.equal(images, torch.stack([datamodule.test_dataset[i]['image'] for i in range(4)]))


def test_scenes_of_pretraining_are_used(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*.tif')}
    module(root, 'predict', sensor='landsat-c2l2-sr', task='regression')
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*.tif')} == before
    with pytest.raises(ValueError, match='synthetic scenes made with other seed'):
        module(root, synthetic={**SCENES, 'seed': 7})


def test_scenes_are_written_where_there_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level('INFO')
    few = {'sensors': ['naip'], 'scenes_per_sensor': 3, 'size': 32}
    datamodule = module(tmp_path / 'new', synthetic=few, batch_size=1)
    assert len(list((tmp_path / 'new/images').rglob('*.tif'))) == 3
    assert len(datamodule.train_dataset) == 1
    assert 'val: 1 chip of 1 scene of naip' in caplog.text


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'patch_size': 20}, 'patch_size: expected a multiple of 8'),
        ({'batch_size': 0}, 'batch_size: expected 1 or more'),
        ({'hide_metadata': 2.0}, 'hide_metadata: expected a share from 0 to 1'),
        ({'batch_size': 17}, 'expected at least one batch of 17 samples'),
        ({'sensor': 'modis'}, "got 'modis'"),
        ({'task': 'change'}, "task: expected one of .*, got 'change'"),
    ],
)
def test_mistakes_are_named(root: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(root, **wrong).train_dataloader()


def test_half_precision_is_refused(root: Path) -> None:
    datamodule = SyntheticDataModule(root, 'naip', synthetic=SCENES, patch_size=32)
    trainer = pl.Trainer(accelerator='cpu', precision='bf16-true', logger=False)
    datamodule.trainer = trainer
    with pytest.raises(ValueError, match='bf16-mixed'):
        datamodule.setup('fit')


def test_place_and_time_are_hidden_as_often_as_asked(root: Path) -> None:
    def hidden(share: float) -> tuple[float, float]:
        datamodule = module(root, batch_size=4, hide_metadata=share)
        train = torch.cat([b['lat'].isnan() for n in range(8) for b in epoch(datamodule, n)])
        val = torch.cat([b['lat'].isnan() for b in datamodule.val_dataloader()])
        return train.double().mean().item(), val.double().mean().item()

    assert hidden(0.0) == (0, 0)
    assert hidden(1.0) == (1, 1)
    train, val = hidden(0.5)
    assert 0.3 < train < 0.7
    assert val == 0


def test_place_and_time_are_hidden_together(root: Path) -> None:
    for batch in epoch(module(root, hide_metadata=0.5), 0):
        known = [batch[name].isnan() for name in ('lat', 'lon', 'time')]
        assert torch.equal(known[0], known[1])
        assert torch.equal(known[0], known[2])


@pytest.mark.parametrize(
    ('task', 'make'),
    [
        ('classification', lambda: Classification('clay_tiny_patch8', in_channels=4, num_classes=8)),
        (
            'regression',
            lambda: PixelwiseRegression('unet', 'tu-clay_tiny_patch8', in_channels=4, num_outputs=1),
        ),
    ],
)
def test_stock_tasks_fit_plot_and_predict(root: Path, tmp_path: Path, task: str, make: Any) -> None:
    datamodule = SyntheticDataModule(root, 'naip', task, batch_size=4, patch_size=32, synthetic=SCENES)
    trainer = pl.Trainer(
        accelerator='cpu',
        max_epochs=1,
        limit_train_batches=1,
        num_sanity_val_steps=0,
        logger=TensorBoardLogger(tmp_path),
        callbacks=[SensorMetadata()],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    model = make()
    trainer.fit(model, datamodule=datamodule)
    assert 'val_loss' in trainer.callback_metrics
    (predicted,) = trainer.predict(model, datamodule=datamodule)
    assert predicted.shape[0] == len(datamodule.predict_dataset)
