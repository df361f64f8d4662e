# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The simulated landscape of crops: what a date shows, what is missing, and that several dates beat one."""

import datetime as dt
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from matplotlib import pyplot as plt

from torchgeo_clay.datamodules import SensorDataModule, SyntheticCropsDataModule
from torchgeo_clay.datasets import SyntheticCrops
from torchgeo_clay.tasks import ClaySemanticSegmentation


def spectra(date: str) -> dict[str, torch.Tensor]:
    """Mean of every band over the pixels of each crop on one date."""
    data = SyntheticCrops(dates=[date])
    image, label = torch.from_numpy(data.images[0]), torch.from_numpy(data.label)
    return {name: image[:, label == i].mean(1) for i, name in enumerate(data.classes)}


@pytest.mark.parametrize(
    ('date', 'green', 'bare'),
    [
        ('05-05', ['winter cereal', 'two crops', 'meadow'], ['maize', 'fallow']),
        ('07-25', ['maize', 'meadow'], ['winter cereal', 'two crops', 'fallow']),
        ('10-15', ['two crops', 'meadow'], ['winter cereal', 'maize', 'fallow']),
    ],
)
def test_on_one_date_crops_look_alike(date: str, green: list[str], bare: list[str]) -> None:
    means = spectra(date)
    for group in (green, bare):
        for name in group[1:]:  # fields differ in vigor and soil, crops do not
            assert (means[name] / means[group[0]]).log().abs().max() < 0.25
    nir = SyntheticCrops.bands.index('nir')
    assert min(means[name][nir] for name in green) > 1.4 * max(means[name][nir] for name in bare)


def test_chips_of_several_lengths_that_no_split_shares() -> None:
    splits = {split: SyntheticCrops(split) for split in ('train', 'val', 'test')}
    corners = [corner for data in splits.values() for corner in data.corners]
    assert len(set(corners)) == len(corners)
    data = splits['test']
    samples = [data[i] for i in range(len(data))]
    assert {len(s['image']) for s in samples} >= {4, 5, 6}
    assert all(s['image'].shape[0] == s['time'].shape[0] >= 1 for s in samples)
    assert all((s['time'].diff() > 0).all() for s in samples)
    assert torch.equal(samples[3]['image'], SyntheticCrops('test')[3]['image'])
    figure = data.plot(samples[0] | {'prediction': samples[0]['mask']})
    titles = [axes.get_title() for axes in figure.axes]
    dates = [f'{dt.datetime.fromtimestamp(time, dt.UTC):%m-%d}' for time in samples[0]['time'].tolist()]
    assert titles == [*dates, 'mask', 'prediction']
    plt.close(figure)


def accuracy(temporal: Any, **options: Any) -> float:
    """Overall accuracy of the test part after the training of ``configs/clay_synthetic_crops.yaml``."""
    seed_everything(0, verbose=False)
    data = SensorDataModule(SyntheticCropsDataModule(batch_size=8, **options), 'sentinel-2-l2a')
    task = ClaySemanticSegmentation('segformer', 'clay_tiny_patch8', num_classes=6, temporal=temporal, lr=1e-3)
    trainer = Trainer(
        accelerator='cpu', max_epochs=15, gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(task, data)
    (result,) = trainer.test(task, data, verbose=False)
    return result['test_OverallAccuracy']


@pytest.mark.slow
def test_several_dates_beat_one() -> None:
    """As docs/time-series.md says."""
    data = SyntheticCrops('test')
    label = torch.stack([data[i]['mask'] for i in range(len(data))])
    majority = float(label.flatten().bincount().max() / label.numel())
    six, one = accuracy('ltae'), accuracy('mean', dates=['05-05'])
    assert one > majority
    assert six > one + 0.3
