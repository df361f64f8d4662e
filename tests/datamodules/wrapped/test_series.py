# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""TorchGeo's datamodules of series, wrapped: dates, padding, times, place, one normalization, plots, tasks."""

import math
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from config_data import PASTIS_DATES, write_pastis
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from pyproj import Transformer
from rasterio.transform import from_origin
from torchgeo.datamodules import (
    AgriFieldNetDataModule,
    CopernicusBenchBiomassS3DataModule,
    FieldsOfTheWorldDataModule,
    GeoDataModule,
    NonGeoDataModule,
    PASTISDataModule,
)
from torchgeo.datasets import PASTIS, RasterDataset
from torchgeo.samplers import GriddedPatchSampler
from torchgeo.tasks import SpatioTemporalPixelwiseRegression, SpatioTemporalSegmentation

from torchgeo_clay.datamodules import BioMasstersDataModule, SensorDataModule
from torchgeo_clay.datasets import SensorDataset
from torchgeo_clay.sensors import Sensor, get_sensor
from torchgeo_clay.tasks import ClayClassification, ClayPixelwiseRegression, ClaySemanticSegmentation

TINY = 'clay_tiny_patch8'
RNG = np.random.default_rng(0)


def trainer(**options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        'accelerator': 'cpu', 'max_epochs': 1, 'limit_train_batches': 1, 'limit_val_batches': 1, 'logger': False,
        'enable_checkpointing': False, 'enable_progress_bar': False, 'enable_model_summary': False,
        'num_sanity_val_steps': 0, 'log_every_n_steps': 1,
    }  # fmt: skip
    return Trainer(**defaults | options)


def batch_of(data: SensorDataModule, split: str = 'val') -> dict[str, Any]:
    """A batch as a step gets it."""
    data.setup('fit')
    run = trainer()
    data.trainer = data.datamodule.trainer = run
    setattr(run, {'train': 'training', 'val': 'validating'}[split], True)
    batch = next(iter(getattr(data, f'{split}_dataloader')()))
    batch = data.on_before_batch_transfer(batch, 0)
    return data.on_after_batch_transfer(data.transfer_batch_to_device(batch, torch.device('cpu'), 0), 0)


def write_tif(path: Path, pixels: np.ndarray, crs: str = 'EPSG:32633', step: float = 10.0, **tags: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    where = from_origin(15.0, 48.0, step, step) if crs == 'EPSG:4326' else from_origin(5e5, 5.3e6, step, step)
    profile = {'count': count, 'height': height, 'width': width, 'dtype': pixels.dtype.name}
    with rasterio.open(path, 'w', driver='GTiff', crs=crs, transform=where, **profile) as file:
        file.write(pixels)
        file.update_tags(**tags)


def noon(date: str) -> float:
    return pd.Timestamp(date, tz='UTC').timestamp() + 43200


# PASTIS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pastis(tmp_path: Path) -> tuple[Path, SensorDataModule]:
    options, dataset = write_pastis(tmp_path)
    return tmp_path, SensorDataModule(PASTISDataModule(**options, **dataset), 'sentinel-2-l2a')


def test_pastis_against_its_files(pastis: tuple[Path, SensorDataModule]) -> None:
    root, data = pastis
    batch = batch_of(data)
    assert batch['image'].shape == (2, 5, 10, 32, 32)
    assert batch['mask'].shape == (2, 32, 32)
    subset = data.datamodule.val_dataset
    sensor = get_sensor('sentinel-2-l2a').select(PASTIS.s2_bands)
    assert data.selected['sentinel-2-l2a'].wavelengths == sensor.wavelengths
    to_degrees = Transformer.from_crs('EPSG:2154', 'EPSG:4326', always_xy=True)
    for i in range(2):
        patch = subset.indices[i]
        raw = torch.from_numpy(np.load(root / f'PASTIS-R/DATA_S2/S2_{patch}.npy')).float()
        length = len(raw)
        assert batch['length'][i] == length
        mean, std = (torch.tensor(v)[:, None, None] for v in (sensor.mean, sensor.std))
        torch.testing.assert_close(batch['image'][i, :length], (raw - mean) / std, rtol=1e-5, atol=2e-6)
        assert batch['time'][i, :length].tolist() == [noon(str(d)) for d in PASTIS_DATES[:length]]
        assert batch['time'][i, length:].isnan().all()
        lon, lat = to_degrees.transform(800_160 + 1280 * patch, 6_500_160)
        assert (batch['lat'][i].item(), batch['lon'][i].item()) == pytest.approx((lat, lon), abs=1e-5)
        assert batch['res'][i] == 10
        assert torch.equal(
            batch['mask'][i], torch.from_numpy(np.load(root / f'PASTIS-R/ANNOTATIONS/TARGET_{patch}.npy')[0]).long()
        )


def test_pastis_of_sentinel_1(tmp_path: Path) -> None:
    options, dataset = write_pastis(tmp_path)
    data = SensorDataModule(PASTISDataModule(**options, **dataset, bands=PASTIS.s1a_bands), 'sentinel-1-rtc')
    batch = batch_of(data)
    assert batch['image'].shape == (2, 5, 2, 32, 32)
    patch = data.datamodule.val_dataset.indices[0]
    raw = torch.from_numpy(np.load(tmp_path / f'PASTIS-R/DATA_S1A/S1A_{patch}.npy'))[0, :2]
    sensor = data.selected['sentinel-1-rtc']
    assert sensor.band_names == ('vv', 'vh')
    torch.testing.assert_close(batch['image'][0, 0], sensor.normalize(raw))
    assert batch['time'][0, 0] == noon('20180917')


@pytest.mark.filterwarnings('ignore:sentinel-2-l2a. expected values')  # they are random bytes
def test_pastis_of_torchgeos_own_tests_has_no_dates(torchgeo_data: Path) -> None:
    dataset = SensorDataset(PASTIS(torchgeo_data / 'pastis', checksum=False), 'sentinel-2-l2a')
    assert dataset[0]['time'].isnan().all()


@pytest.mark.parametrize('temporal', ['mean', 'ltae'])
def test_pastis_is_trained_plotted_and_predicted(
    pastis: tuple[Path, SensorDataModule], temporal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, data = pastis
    torch.manual_seed(0)
    task = ClaySemanticSegmentation(backbone=TINY, num_classes=20, ignore_index=19, temporal=temporal)
    figures: list[str] = []
    logger = TensorBoardLogger(tmp_path)
    monkeypatch.setattr(logger.experiment, 'add_figure', lambda name, *args, **kwargs: figures.append(name))
    run = trainer(logger=logger)
    run.fit(task, data)
    assert torch.isfinite(run.callback_metrics['val_loss'])
    assert figures == ['image/0']
    data.setup('test')
    data.predict_dataloader = data.test_dataloader  # TorchGeo's datamodule predicts nothing
    (first, *_) = run.predict(task, data)
    assert first['probabilities'].shape == (2, 20, 32, 32)
    stock = SpatioTemporalSegmentation(in_channels=10, num_classes=20, hidden_dim=4)
    run = trainer()
    run.fit(stock, data)
    assert torch.isfinite(run.callback_metrics['val_loss'])


# the others -----------------------------------------------------------------------------------------------------------


def olci() -> Sensor:
    names = CopernicusBenchBiomassS3DataModule().kwargs.get('bands') or [f'Oa{i:02d}_radiance' for i in range(1, 22)]
    waves = np.linspace(0.4, 1.02, 21)
    bands = {n: {'wavelength': float(w), 'mean': 80.0, 'std': 40.0} for n, w in zip(names, waves, strict=True)}
    return Sensor.from_dict({'name': 'olci', 'gsd': 300, 'bands': bands})


def test_copernicus_bench_has_the_time_of_each_date(tmp_path: Path) -> None:
    root = tmp_path / 'biomass_s3'
    dates = {'a': ['20200514T234457', '20200319T233546'], 'b': ['20190101T120000']}
    for place, times in dates.items():
        for time in times:
            pixels = RNG.uniform(20, 200, (21, 10, 10)).astype(np.float32)
            write_tif(root / 's3_olci' / place / f'S3A_{time}_{time}.tif', pixels, 'EPSG:4326', 0.0027)
        write_tif(root / 'biomass' / f'{place}.tif', RNG.uniform(0, 300, (1, 20, 20)).astype(np.float32))
    for split in ('train', 'val', 'test'):
        (root / f'static_fnames-{split}.csv').write_text(
            ''.join(f'{p},S3A_{t[0]}_{t[0]}.tif\n' for p, t in dates.items())
        )
    inner = CopernicusBenchBiomassS3DataModule(batch_size=2, root=tmp_path, mode='time-series')
    data = SensorDataModule(inner, olci())
    batch = batch_of(data)
    assert batch['image'].shape == (2, 4, 21, 282, 282)
    assert batch['length'].tolist() == [2, 1]
    expected = [
        pd.Timestamp(t, tz='UTC').timestamp() for t in ('20200319T233546', '20200514T234457', '20190101T120000')
    ]
    known = [*batch['time'][0, :2].tolist(), batch['time'][1, 0].item()]
    assert known == pytest.approx(expected, abs=128)  # TorchGeo's are float32
    assert batch['time'].isnan().tolist() == [[False, False, True, True], [False, True, True, True]]
    assert batch['lat'][0].item() == pytest.approx(48.0 - 5 * 0.0027, abs=1e-4)
    assert batch['res'].tolist() == pytest.approx(
        [10 / 282 * 0.0027 * 111195 * math.cos(math.radians(48)) ** 0.5] * 2, rel=0.01
    )
    small = {**batch, 'image': batch['image'][..., :16, :16], 'mask': batch['mask'][..., :16, :16]}
    task = ClayPixelwiseRegression(backbone=TINY, temporal='mean')
    assert task.eval().predict_step(small, 0).shape == (2, 1, 16, 16)
    stock = SpatioTemporalPixelwiseRegression(in_channels=21, hidden_dim=2)
    run = trainer(limit_train_batches=0)
    run.validate(stock, data, verbose=False)
    assert math.isfinite(run.callback_metrics['val_loss'])


def write_ftw(root: Path) -> dict[str, np.ndarray]:
    windows = {}
    for aoi in ('g_0', 'g_1', 'g_2', 'g_3'):
        for window in ('a', 'b'):
            pixels = RNG.integers(200, 3000, (4, 32, 32)).astype(np.uint16)
            write_tif(root / f'austria/s2_images/window_{window}/{aoi}.tif', pixels, 'EPSG:4326', 9e-5)
            windows[f'{aoi}{window}'] = pixels
        write_tif(
            root / f'austria/label_masks/semantic_3class/{aoi}.tif', RNG.integers(0, 3, (1, 32, 32)).astype(np.uint8)
        )
    table = pd.DataFrame({'aoi_id': ['g_0', 'g_1', 'g_2', 'g_3'], 'split': ['train', 'train', 'val', 'val']})
    table.to_parquet(root / 'austria/chips_austria.parquet')
    return windows


@pytest.mark.filterwarnings('ignore:__array__ implementation')  # of the tensors in TorchGeo's plot
def test_the_windows_of_fields_of_the_world(tmp_path: Path) -> None:
    windows = write_ftw(tmp_path)
    inner = FieldsOfTheWorldDataModule(batch_size=2, root=tmp_path, target='3-class', checksum=False)
    data = SensorDataModule(inner, 'sentinel-2-l2a')
    batch = batch_of(data)
    assert batch['image'].shape == (2, 2, 4, 32, 32)
    assert 'length' not in batch
    sensor = data.selected['sentinel-2-l2a']
    assert set(sensor.band_names) == {'blue', 'green', 'red', 'nir'}
    order = [('red', 'green', 'blue', 'nir').index(band) for band in sensor.band_names]
    for date, window in enumerate('ba'):
        raw = torch.from_numpy(windows[f'g_2{window}'].astype(np.float32))[order]
        torch.testing.assert_close(batch['image'][0, date], sensor.normalize(raw), rtol=1e-5, atol=2e-6)
    assert batch['lat'][0].item() == pytest.approx(48 - 16 * 9e-5, abs=1e-6)
    task = ClaySemanticSegmentation(backbone=TINY, num_classes=3, temporal='max')
    run = trainer(logger=TensorBoardLogger(tmp_path))
    run.fit(task, data)  # with rotations, flips and a plot
    assert torch.isfinite(run.callback_metrics['val_loss'])


@pytest.mark.filterwarnings('ignore:The inplace keyword', 'ignore:__array__ implementation')  # TorchGeo's
def test_biomassters_of_all_months(tmp_path: Path) -> None:
    rows = []
    for chip, months in {'a': (0, 2, 3), 'b': (1, 2), 'c': (0,), 'd': (5, 7)}.items():
        for month in months:
            name = f'{chip}_S2_{month:02d}.tif'
            write_tif(tmp_path / 'train_features' / name, RNG.integers(100, 3000, (11, 32, 32)).astype(np.uint16))
            rows.append((name, chip, 'S2', 'train', f'M{month}', f'{chip}_agbm.tif'))
        write_tif(tmp_path / f'train_agbm/{chip}_agbm.tif', RNG.uniform(0, 300, (1, 32, 32)).astype(np.float32))
    columns = ['filename', 'chip_id', 'satellite', 'split', 'month', 'corresponding_agbm']
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / 'biomassters_features_metadata.csv')
    options = {'batch_size': 2, 'val_split': 0.5, 'test_split': 0.0, 'root': tmp_path, 'as_time_series': True}
    rename = {'image_S2': 'image', 'label': 'mask'}
    data = SensorDataModule(BioMasstersDataModule(**options), 'sentinel-2-l2a', gsd=10, rename=rename)
    batch = batch_of(data)
    dataset = data.datamodule.val_dataset
    lengths = [len(dataset.dataset[i]['image_S2']) for i in dataset.indices]
    assert batch['image'].shape == (2, max(lengths), 10, 32, 32)
    assert batch.get('length', torch.tensor([max(lengths)] * 2)).tolist() == lengths
    assert batch['time'].isnan().all()
    task = ClayPixelwiseRegression(backbone=TINY, temporal='ltae')
    run = trainer(logger=TensorBoardLogger(tmp_path))
    run.fit(task, data)
    assert torch.isfinite(run.callback_metrics['val_loss'])


class Monthly(RasterDataset):
    """A geospatial dataset whose queries are series, as AgriFieldNet's and South Africa Crop Type's can be."""

    filename_glob = 'scene_*.tif'
    filename_regex = r'scene_(?P<date>\d{8})'
    date_format = '%Y%m%d'
    all_bands = ('B02', 'B03', 'B04')


class MonthlyDataModule(GeoDataModule):
    def setup(self, stage: str) -> None:
        self.train_dataset = self.val_dataset = Monthly(time_series=True, **self.kwargs)
        self.train_sampler = self.val_sampler = GriddedPatchSampler(
            self.val_dataset, size=self.patch_size, stride=self.patch_size
        )
        self.train_aug = K.AugmentationSequential(
            K.Normalize(self.mean, self.std), K.RandomResizedCrop((16, 16), scale=(0.5, 0.5)),
            data_keys=None, keepdim=True,
        )  # fmt: skip


def test_queries_of_geospatial_series(tmp_path: Path) -> None:
    pixels = RNG.integers(200, 3000, (3, 32, 32)).astype(np.uint16)
    for date in ('20190115', '20190415', '20190715'):
        write_tif(tmp_path / f'scene_{date}.tif', pixels)
    data = SensorDataModule(MonthlyDataModule(Monthly, 2, 16, paths=tmp_path), 'sentinel-2-l2a')
    batch = batch_of(data)
    assert batch['image'].shape == (2, 3, 3, 16, 16)
    assert batch['time'].tolist() == [[noon(d) for d in ('20190115', '20190415', '20190715')]] * 2
    crops = batch_of(data, 'train')
    assert torch.equal(crops['image'][:, 0], crops['image'][:, 1])  # the same crop of every date
    assert crops['res'].tolist() == pytest.approx([10 * 0.5**0.5] * 2, rel=0.15)
    assert not torch.equal(crops['image'], batch['image'])


@pytest.mark.filterwarnings('ignore:__array__ implementation', 'ignore:.*inplace keyword')  # of TorchGeo
def test_agrifieldnet_as_a_series(torchgeo_data: Path) -> None:
    """Every file of a query is a date, of which the files do not say when it was; the plot says which it shows."""
    options: dict[str, Any] = {'patch_size': 16, 'paths': torchgeo_data / 'agrifieldnet', 'time_series': True}
    data = SensorDataModule(AgriFieldNetDataModule(2, **options), 'sentinel-2-l2a')
    with pytest.warns(UserWarning, match='Is it a picture of 8 bits'):
        batch = batch_of(data)
    dates = len(list((torchgeo_data / 'agrifieldnet/source').iterdir()))
    assert batch['image'].shape == (2, dates, 10, 16, 16)
    assert batch['time'].isnan().all()
    sensor, dataset = get_sensor('sentinel-2-l2a'), data.datamodule.val_dataset
    query = next(iter(data.datamodule.val_sampler))
    used = [i for i, band in enumerate(dataset.image.all_bands) if band not in ('B01', 'B09')]
    inner = dataset[query]['image'][:, used]
    torch.testing.assert_close(batch['image'][0], sensor.normalize(inner.float()), atol=1e-4, rtol=0)
    sample = {key: value[0] for key, value in batch.items() if key in ('image', 'mask')}
    figure = data.plot(sample)
    assert figure is not None
    assert [text.get_text() for text in figure.texts] == [f'date 1 of {dates}']


class Chips(torch.utils.data.Dataset):
    """Series of these lengths, as default collation refuses them."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {'image': torch.full((self.lengths[index], 1, 8, 8), 900.0), 'label': torch.tensor(index % 2)}


class ChipsDataModule(NonGeoDataModule):
    def setup(self, stage: str) -> None:
        self.train_dataset = self.val_dataset = Chips(**self.kwargs)


@pytest.mark.parametrize(('lengths', 'expected'), [([3, 1, 2], [3, 1, 2]), ([2, 2], None), ([1, 1], None)])
def test_series_of_several_lengths_are_padded(lengths: list[int], expected: list[int] | None) -> None:
    inner = ChipsDataModule(Chips, batch_size=3, lengths=lengths)
    data = SensorDataModule(inner, 'sentinel-2-l2a', channels=['B02'], gsd=10)
    batch = batch_of(data)
    assert batch['image'].shape == (len(lengths), max(lengths), 1, 8, 8)
    assert batch['time'].shape == (len(lengths), max(lengths))
    assert (batch['length'].tolist() if expected else batch.get('length')) == expected
    assert ClayClassification(TINY, num_classes=2, temporal='max').eval().predict_step(batch, 0).shape == (
        len(lengths),
        2,
    )


def test_a_time_given_for_a_series_is_that_of_all_dates() -> None:
    options: dict[str, Any] = {'channels': ['B02'], 'gsd': 10, 'metadata': lambda dataset, index: {'time': 1.6e9}}
    assert SensorDataset(Chips([3]), 'sentinel-2-l2a', **options)[0]['time'].tolist() == [1.6e9] * 3
