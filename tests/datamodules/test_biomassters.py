# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""BioMassters by month, in TorchGeo's format."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.transform import from_origin
from torchgeo.datasets import DatasetNotFoundError

from torchgeo_clay.datamodules import BioMasstersDataModule
from torchgeo_clay.datasets import BioMasstersMonths

# TorchGeo 0.10's dataset uses what pandas 3 is about to remove
pytestmark = pytest.mark.filterwarnings('ignore:The inplace keyword')

MONTHS = ('September', 'October', 'June')
CHIPS = tuple(f'chip{i:04d}' for i in range(10))


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten chips of three months, whose pixels tell chip and month; chip 3 has no image of June."""
    folder = tmp_path_factory.mktemp('biomassters')
    rows = []
    for split in ('train', 'test'):
        (folder / f'{split}_features').mkdir()
        for i, chip in enumerate(CHIPS):
            for m, month in enumerate(MONTHS):
                if (i, month) == (3, 'June'):
                    continue
                name = f'{chip}_S2_{m:02d}.tif'
                _write(folder / f'{split}_features' / name, np.full((11, 8, 8), 10 * i + m, np.uint16))
                row = {'filename': name, 'chip_id': chip, 'satellite': 'S2', 'split': split, 'month': month}
                rows.append({**row, 'corresponding_agbm': f'{chip}_agbm.tif'})
    (folder / 'train_agbm').mkdir()
    for i, chip in enumerate(CHIPS):
        _write(folder / 'train_agbm' / f'{chip}_agbm.tif', np.full((1, 8, 8), 50.0 + i, np.float32))
    pd.DataFrame(rows).to_csv(folder / BioMasstersMonths.metadata_filename, index=False)
    return folder


def _write(path: Path, pixels: np.ndarray) -> None:
    profile = {'driver': 'GTiff', 'count': len(pixels), 'height': 8, 'width': 8, 'dtype': pixels.dtype.name}
    with rasterio.open(path, 'w', crs='EPSG:4326', transform=from_origin(0, 1, 1, 1), **profile) as file:
        file.write(pixels)


def test_a_month_has_one_image_of_each_chip(root: Path) -> None:
    dataset = BioMasstersMonths(root, months=['June'], target_scale=0.01)
    assert dataset.chips == [chip for i, chip in enumerate(CHIPS) if i != 3]
    for index, chip in enumerate(dataset.chips):
        number, sample = CHIPS.index(chip), dataset[index]
        assert sample['image_S2'].shape == (11, 8, 8)
        assert sample['image_S2'].unique().tolist() == [10 * number + MONTHS.index('June')]
        assert sample['label'].unique().tolist() == pytest.approx([0.01 * (50 + number)])


def test_all_months(root: Path) -> None:
    dataset = BioMasstersMonths(root)
    assert len(dataset) == len(dataset.chips) == 29
    seen = {int(dataset[i]['image_S2'][0, 0, 0]) for i in range(29)}
    assert seen == {10 * i + m for i in range(10) for m in range(3)} - {32}
    assert all(
        10 * CHIPS.index(c) // 10 == int(dataset[i]['image_S2'][0, 0, 0]) // 10 for i, c in enumerate(dataset.chips)
    )


def test_splits_share_no_chip(root: Path) -> None:
    datamodule = BioMasstersDataModule(val_split=0.2, test_split=0.3, root=root)
    datamodule.setup('fit')
    parts = [datamodule.train_dataset, datamodule.val_dataset, datamodule.test_dataset]
    chips = [{part.dataset.chips[i] for i in part.indices} for part in parts]
    assert [len(part) for part in chips] == [5, 2, 3]
    assert set.union(*chips) == set(CHIPS)
    assert sum(map(len, parts)) == 29
    datamodule.setup('predict')
    assert 'label' not in datamodule.predict_dataset[0]


def test_mistakes_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='out of September, October, June, got August'):
        BioMasstersMonths(root, months=['June', 'August'])
    with pytest.raises(ValueError, match=r"months: expected a list of months .* got 'June'"):
        BioMasstersMonths(root, months='June')
    with pytest.raises(ValueError, match='target_scale: expected a positive number, got 0'):
        BioMasstersMonths(root, target_scale=0)
    with pytest.raises(DatasetNotFoundError):
        BioMasstersMonths(tmp_path)
    with pytest.raises(ValueError, match='Expected chips to train on, got 10 in all'):
        BioMasstersDataModule(val_split=0.5, test_split=0.5, root=root).setup('fit')
    with pytest.raises(ValueError, match='val_split: expected a share'):
        BioMasstersDataModule(val_split=1.5, root=root)


# matplotlib asks TorchGeo's tensors for an array in the way of NumPy 2
@pytest.mark.filterwarnings('ignore:__array__ implementation')
def test_plot_takes_a_prediction_without_a_channel(root: Path) -> None:
    dataset = BioMasstersMonths(root, months=['June'])
    sample = dataset[0]
    figure = dataset.plot({**sample, 'prediction': sample['label'][0]}, suptitle='chip')
    np.testing.assert_allclose(np.asarray(figure.axes[1].images[0].get_array()), sample['label'][0].numpy())
