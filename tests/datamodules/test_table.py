# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Chips of a folder with a CSV of labels, against rasterio and numpy; and a training of them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin

from torchgeo_clay.datamodules import ChipTableDataModule
from torchgeo_clay.sensors import get_sensor
from torchgeo_clay.tasks import ClayClassification, ClayPixelwiseRegression, ClayRegression, ClaySemanticSegmentation

NAIP = get_sensor('naip')
TINY = 'clay_tiny_patch8'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve chips of 32 pixels and masks of two classes."""
    generator = np.random.default_rng(0)
    for i in range(12):
        transform = from_origin(500_000 + 100 * i, 3_600_000, 1, 1)
        profile = {'height': 32, 'width': 32, 'dtype': 'uint8', 'crs': 'EPSG:32611', 'transform': transform}
        with rasterio.open(tmp_path / f'{i}_20200415T170000.tif', 'w', driver='GTiff', count=4, **profile) as file:
            file.write(generator.integers(1, 255, (4, 32, 32), dtype=np.uint8))
            file.descriptions = ('red', 'green', 'blue', 'nir')
        Image.fromarray(generator.integers(0, 2, (32, 32), dtype=np.uint8)).save(tmp_path / f'mask_{i}.png')
    return tmp_path


def write(folder: Path, **columns: Any) -> str:
    rows = pd.DataFrame({'path': [f'{i}_20200415T170000.tif' for i in range(12)], **columns})
    rows.to_csv(folder / 'labels.csv', index=False)
    return str(folder / 'labels.csv')


def module(csv: str, **options: Any) -> ChipTableDataModule:
    made = ChipTableDataModule(csv, str(Path(csv).parent), 'naip', batch_size=2, **options)
    made.setup('fit')
    return made


def splits(data: ChipTableDataModule) -> dict[str, str]:
    """The split of each path."""
    assert data.table is not None
    found = {split: getattr(data, f'{split}_dataset').indices for split in ('train', 'val', 'test')}
    return {data.table.rows['path'][i]: split for split, indices in found.items() for i in indices}


SPLITS = ['train'] * 6 + ['val'] * 3 + ['test'] * 3


@pytest.mark.parametrize(
    ('columns', 'task'),
    [
        ({'label': ['forest', 'town', 'field'] * 4}, lambda: ClayClassification(TINY, num_classes=3)),
        ({'value': np.arange(12) / 12}, lambda: ClayRegression(TINY)),
        ({'value_a': np.arange(12.0), 'value_b': [None, *range(11)]}, lambda: ClayRegression(TINY, num_outputs=2)),
        ({'mask': [f'mask_{i}.png' for i in range(12)]}, lambda: ClaySemanticSegmentation('unet', TINY, num_classes=2)),
        ({'mask': [f'mask_{i}.png' for i in range(12)]}, lambda: ClayPixelwiseRegression('unet', TINY)),
    ],
    ids=['label', 'value', 'values', 'mask', 'heights'],
)
def test_each_kind_of_label_trains(folder: Path, columns: dict[str, Any], task: Callable[[], Any]) -> None:
    data = module(write(folder, split=SPLITS, **columns))
    trainer = pl.Trainer(
        accelerator='cpu', max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trained = task()
    trainer.fit(trained, datamodule=data)
    (results,) = trainer.test(trained, datamodule=data, verbose=False)
    assert np.isfinite(results['test_loss'])
    assert trained.trained_on == {'naip': ['red', 'green', 'blue', 'nir']}


def test_samples_are_those_of_the_files(folder: Path) -> None:
    data = module(write(folder, mask=[f'mask_{i}.png' for i in range(12)], split=SPLITS))
    raw = next(iter(data.val_dataloader()))
    batch = data.on_after_batch_transfer(data.on_before_batch_transfer(raw, 0), 0)
    mean, std = (np.array(v)[:, None, None] for v in (NAIP.mean, NAIP.std))
    for i in range(2):
        with rasterio.open(folder / f'{6 + i}_20200415T170000.tif') as file:
            np.testing.assert_allclose(batch['image'][i].numpy(), (file.read() - mean) / std, atol=1e-5)
        np.testing.assert_array_equal(batch['mask'][i].numpy(), np.asarray(Image.open(folder / f'mask_{6 + i}.png')))
    assert batch['res'].tolist() == pytest.approx([1, 1], rel=1e-3)
    assert batch['time'].tolist() == [1586970000, 1586970000]
    assert batch['selection'] == NAIP


def test_flips_move_the_mask_along(folder: Path) -> None:
    data = module(write(folder, label=['0', '02'] * 6, split=SPLITS))
    assert data.table is not None
    assert data.table.classes == ('0', '1', '2')  # numbers stay what they are
    data.trainer = SimpleNamespace(training=True, precision='32-true')
    sample = data.table[0]
    batch = {
        **{k: v[None] for k, v in sample.items()},
        'mask': (sample['image'][0] > 100).long()[None],
        'sensor': 'naip',
    }
    torch.manual_seed(1)
    flipped = data.on_after_batch_transfer(batch, 0)
    red = flipped['image'][0, 0] * NAIP.std[0] + NAIP.mean[0]
    torch.testing.assert_close((red > 100.5).long(), flipped['mask'][0])


def test_splits_without_a_column_stay_when_rows_are_added(folder: Path) -> None:
    data = module(write(folder, label=['a', 'b'] * 6))
    before = splits(data)
    rows = pd.read_csv(folder / 'labels.csv')
    pd.concat([rows.iloc[6:], rows.iloc[:6]]).to_csv(folder / 'labels.csv', index=False)
    data = module(str(folder / 'labels.csv'))
    after = splits(data)
    assert before == after
    assert len(before) == 12


def test_mistakes(folder: Path) -> None:
    for columns, message in (
        ({'label': ['a'] * 12, 'value': [1.0] * 12}, r'expected the columns path and one of label, value'),
        ({'label': ['a'] * 11 + [None]}, 'expected a label in each row, got none for'),
        ({'label': ['a'] * 12, 'split': ['train'] * 11 + ['dev']}, 'expected split train, val or test, got dev'),
        ({'mask': ['nowhere.png'] * 12}, r'12 of 12 files are missing, first .*nowhere.png. Give root='),
    ):
        with pytest.raises(ValueError, match=message):
            module(write(folder, **columns))
    with pytest.raises(ValueError, match='train_share: expected a share'):
        ChipTableDataModule('a.csv', '.', 'naip', val_share=0.6, test_share=0.6)
    with rasterio.open(folder / '3_20200415T170000.tif') as file:
        pixels, profile = file.read()[:, :16], file.profile
    with rasterio.open(folder / '3_20200415T170000.tif', 'w', **{**profile, 'height': 16}) as file:
        file.write(pixels)
        file.descriptions = ('red', 'green', 'blue', 'nir')
    with pytest.raises(ValueError, match=r'expected chips of one size, got 32 x 32 \(11\), 16 x 32 \(1\)'):
        module(write(folder, label=['a', 'b'] * 6))


def test_an_unreadable_chip_is_left_out_alone(folder: Path) -> None:
    (folder / '5_20200415T170000.tif').write_bytes(b'II*\0 nothing')
    with pytest.warns(UserWarning, match=r'5_20200415T170000'):
        data = module(write(folder, label=['a', 'b'] * 6, split=SPLITS))
    assert len(data.table) == 11
    assert len(data.train_dataset) == 5


def test_plot(folder: Path) -> None:
    data = module(write(folder, label=['a', 'b'] * 6, split=SPLITS))
    figure = data.plot({**data.table[0], 'prediction': torch.tensor(1)})
    assert figure.axes[0].get_title() == 'label: a\nprediction: b'
