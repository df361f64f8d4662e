# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""SensorDataModule: batches of TorchGeo's datamodules, against numpy, rasterio and pyproj; and the command line."""

from datetime import UTC, datetime
from itertools import islice
from types import SimpleNamespace
from unittest import mock

import kornia.augmentation as K
import numpy as np
import pyproj
import pytest
import rasterio
import torch
from matplotlib import pyplot as plt
from PIL import Image
from rasterio.transform import from_origin
from torch.utils.data import DataLoader
from torchgeo.datamodules import EuroSATDataModule, NonGeoDataModule, OSCDDataModule
from torchgeo.datamodules.utils import collate_fn_detection
from torchgeo.datasets import OSCD, EuroSAT, NonGeoDataset
from torchgeo.datasets.utils import unbind_samples

from torchgeo_clay.datamodules import SensorDataModule
from torchgeo_clay.datamodules.wrapped.datamodule import SensorName, with_dataset
from torchgeo_clay.sensors import get_sensor

L1C = pytest.mark.filterwarnings('ignore:EuroSAT holds Sentinel-2 L1C')
STAGES = {'train': 'fit', 'val': 'validate', 'test': 'test', 'predict': 'predict'}
S2, NAIP = get_sensor('sentinel-2-l2a'), get_sensor('naip')


def setup(datamodule, split):
    """Set a datamodule up as a trainer would."""
    states = {'training': 'train', 'validating': 'val', 'testing': 'test', 'predicting': 'predict'}
    flags = {name: state == split for name, state in states.items()}
    datamodule.trainer = SimpleNamespace(precision='32-true', sanity_checking=False, **flags)
    datamodule.prepare_data()
    datamodule.setup(STAGES[split])
    return datamodule


def batches(datamodule, split='val'):
    """The first batch as collated, and as the model gets it."""
    raw = next(iter(getattr(setup(datamodule, split), f'{split}_dataloader')()))
    ready = datamodule.on_before_batch_transfer(raw, 0)
    ready = datamodule.transfer_batch_to_device(ready, torch.device('cpu'), 0)
    return raw, datamodule.on_after_batch_transfer(ready, 0)


def normalized(pixels, sensor):
    """(x - mean) / std by numpy, in float64."""
    mean, std = (np.array(values)[:, None, None] for values in (sensor.mean, sensor.std))
    return (np.asarray(pixels, dtype=np.float64) - mean) / std


class Chips(NonGeoDataset):
    """RGBN chips of random 8-bit numbers."""

    all_bands = bands = ('R', 'G', 'B', 'NIR')
    keys = ('image', 'label')

    def __init__(self, split='train', size=32, keys=('image', 'label'), **_):
        self.size, self.keys = size, keys

    def __len__(self):
        return 4

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (4, self.size, self.size), generator=generator).float()
        return {key: image if key.startswith('image') else torch.tensor(index % 2) for key in self.keys}


def chips(aug=None, batch_size=4, **kwargs):
    """A datamodule of them, with an augmentation."""
    datamodule = NonGeoDataModule(Chips, batch_size, **kwargs)
    if aug is not None:
        datamodule.aug = aug
    return datamodule


@L1C
def test_eurosat_is_normalized_once_by_the_sensor(eurosat_root):
    datamodule = SensorDataModule(EuroSATDataModule(root=eurosat_root, batch_size=2), 'sentinel-2-l2a')
    raw, batch = batches(datamodule, 'val')
    folder = eurosat_root / EuroSAT.base_dir
    for i, kind in enumerate(('AnnualCrop', 'Forest')):
        with rasterio.open(folder / f'{kind}/{kind}_1.tif') as file:
            pixels = file.read([2, 3, 4, 5, 6, 7, 8, 13, 11, 12])
            x, y = file.transform @ (16, 16)
            lon, lat = pyproj.Transformer.from_crs(file.crs.to_wkt(), 'EPSG:4326', always_xy=True).transform(x, y)
        np.testing.assert_array_equal(raw['image'][i].numpy(), pixels)
        np.testing.assert_allclose(batch['image'][i].numpy(), normalized(pixels, S2), atol=1e-6)
        assert (batch['lat'][i].item(), batch['lon'][i].item()) == pytest.approx((lat, lon), abs=1e-9)
    assert batch['image'].dtype == torch.float32
    assert batch['label'].tolist() == [0, 1]
    assert batch['res'].tolist() == [10, 10]
    assert batch['sensor'] == 'sentinel-2-l2a'
    assert batch['wavelength'].tolist() == [pytest.approx(S2.wavelengths)] * 2
    assert batch['time'].isnan().all()


def test_said_once_for_all_splits(eurosat_root, caplog):
    datamodule = SensorDataModule(EuroSATDataModule(root=eurosat_root, batch_size=2), 'sentinel-2-l2a')
    with caplog.at_level('INFO'), pytest.warns(UserWarning, match='L1C'):
        batches(datamodule, 'train')
    with caplog.at_level('INFO'):  # where a second warning would be an error
        batches(datamodule, 'val')
        batches(datamodule, 'test')
    assert len([r for r in caplog.records if 'not used: B01, B09, B10' in r.getMessage()]) == 1


@L1C
def test_plot_as_torchgeos_tasks_do_it(eurosat_root):
    datamodule = SensorDataModule(EuroSATDataModule(root=eurosat_root, batch_size=2), 'sentinel-2-l2a')
    _, batch = batches(datamodule)
    undo = K.AugmentationSequential(K.Denormalize(datamodule.mean, datamodule.std), data_keys=None, keepdim=True)
    figure = datamodule.plot(unbind_samples(undo(batch))[0])
    with rasterio.open(eurosat_root / EuroSAT.base_dir / 'AnnualCrop/AnnualCrop_1.tif') as file:
        expected = np.moveaxis(file.read([4, 3, 2]), 0, -1) / 3000
    np.testing.assert_allclose(figure.axes[0].get_images()[0].get_array(), expected, atol=1e-6)
    plt.close(figure)


def sequence(*transforms, **kwargs):
    return K.AugmentationSequential(*transforms, data_keys=None, keepdim=True, **kwargs)


@pytest.mark.parametrize(
    'aug',
    [
        sequence(K.Normalize(torch.tensor([1.0, 2, 3, 4]), torch.tensor([2.0, 2, 2, 3]))),
        sequence(K.ImageSequential(K.Normalize(0.0, 255.0), K.RandomHorizontalFlip(p=0.0))),
        sequence(sequence(K.Normalize(torch.tensor(0), torch.tensor(255)))),
        sequence(K.RandomHorizontalFlip(p=0.0)),
        torch.nn.Identity(),
    ],
    ids=['plain', 'images', 'nested', 'none', 'no kornia'],
)
def test_wherever_the_normalization_hides(aug):
    raw, batch = batches(SensorDataModule(chips(aug), 'naip', gsd=1))
    np.testing.assert_allclose(batch['image'].numpy(), normalized(raw['image'], NAIP), atol=1e-6)


class Identity(K.RandomBrightness):
    """A change of colour that changes nothing but cuts off what is not from 0 to 1, as kornia's do."""

    def apply_transform(self, input, params, flags, transform=None):
        return input.clamp(0, 1)


def test_changes_of_colour_see_fractions():
    aug = sequence(K.Normalize(torch.tensor([110.0, 115, 98, 139]), torch.tensor([47.0, 39, 35, 49])), Identity(p=1.0))
    raw, batch = batches(SensorDataModule(chips(aug), 'naip', gsd=1))
    np.testing.assert_allclose(batch['image'].numpy(), normalized(raw['image'], NAIP), atol=1e-5)


def test_flips_and_masks_stay_together():
    aug = sequence(K.Normalize(0.0, 255.0), K.RandomHorizontalFlip(p=1.0))
    raw, batch = batches(SensorDataModule(chips(aug), 'naip', gsd=1))
    np.testing.assert_allclose(batch['image'].numpy(), normalized(raw['image'].flip(-1), NAIP), atol=1e-6)
    assert batch['res'].tolist() == [1] * 4


def test_resolution_follows_the_augmentation():
    _, batch = batches(SensorDataModule(chips(sequence(K.Normalize(0.0, 255.0), K.Resize((64, 64)))), 'naip', gsd=1))
    assert batch['res'].tolist() == [0.5] * 4
    aug = sequence(K.Normalize(0.0, 255.0), K.RandomResizedCrop((16, 16), scale=(0.1, 1.0)))
    _, batch = batches(SensorDataModule(chips(aug), 'naip', gsd=1))
    boxes = aug._params[1].data['src']
    sides = boxes[:, 2] - boxes[:, 0] + 1
    assert batch['res'].tolist() == pytest.approx((sides.prod(1).sqrt() / 16).tolist())
    assert len(set(batch['res'].tolist())) == 4


def test_what_an_augmentation_fills_is_the_mean():
    """Not raw 0, which is black, and loud in decibels."""
    aug = sequence(K.Normalize(0.0, 255.0), K.PadTo((64, 64)))
    raw, batch = batches(SensorDataModule(chips(aug), 'naip', gsd=1))
    assert not batch['image'][..., 32:, :].any()
    assert not batch['image'][..., 32:].any()
    np.testing.assert_allclose(batch['image'][..., :32, :32].numpy(), normalized(raw['image'], NAIP), atol=1e-6)
    assert 'mask_filled' not in batch


def test_places_follow_crops():
    """The center of a crop against pyproj's geodesic, of images whose first row is the northernmost."""
    aug = sequence(K.Normalize(0.0, 255.0), K.RandomCrop((16, 16)))
    wrapped = SensorDataModule(chips(aug), 'naip', gsd=10, metadata=lambda dataset, index: {'lat': 50.0, 'lon': 8.0})
    _, batch = batches(wrapped)
    boxes = aug._params[1].data['src']
    right, down = (boxes.mean(1) - 15.5).double().T * 10
    geodesic = pyproj.Geod(ellps='WGS84')
    for i in range(4):
        azimuth, _, distance = geodesic.inv(8.0, 50.0, float(batch['lon'][i]), float(batch['lat'][i]))
        angle = np.radians(azimuth)
        assert distance * np.sin(angle) == pytest.approx(float(right[i]), abs=1)
        assert distance * np.cos(angle) == pytest.approx(float(-down[i]), abs=1)


def test_an_image_written_after_the_transfer_is_refused():
    class Own(type(chips())):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            batch['image'] = (batch['image'] - 100) / 50
            return batch

    wrapped = chips()
    wrapped.__class__ = Own
    with pytest.raises(ValueError, match='writes an image of its own after the transfer'):
        batches(SensorDataModule(wrapped, 'naip', gsd=1))


def test_a_plot_that_fails_ends_no_training():
    class Broken(type(chips())):
        def plot(self, sample, *args, **kwargs):
            return ['a', 'b'][sample['prediction']]

    wrapped = chips()
    wrapped.__class__ = Broken
    datamodule = SensorDataModule(wrapped, 'naip', gsd=1)
    _, batch = batches(datamodule)
    sample = {'image': batch['image'][0] * 50, 'prediction': 7}
    with pytest.warns(UserWarning, match=r'cannot plot its sample \(IndexError.*more classes than the dataset'):
        assert datamodule.plot(sample) is None


def test_only_the_augmentation_of_the_split_counts():
    wrapped = chips(sequence(K.Normalize(0.0, 255.0)))
    wrapped.train_aug = sequence(K.Normalize(0.0, 255.0), K.Resize(64))
    datamodule = SensorDataModule(wrapped, 'naip', gsd=1)
    assert batches(datamodule, 'train')[1]['res'].tolist() == [0.5] * 4
    assert batches(datamodule, 'val')[1]['res'].tolist() == [1] * 4


def test_collation_that_drops_what_it_does_not_know():
    wrapped = chips()
    wrapped.collate_fn = collate_fn_detection
    _, batch = batches(SensorDataModule(wrapped, 'naip', ['nir', 'red'], gsd=0.5))
    assert {'wavelength', 'res', 'lat', 'lon', 'time', 'selection', 'sensor', 'image', 'label'} == set(batch)
    assert isinstance(batch['label'], list)


def test_samplers_and_batches_stay():
    wrapped = chips(batch_size=3)
    datamodule = setup(SensorDataModule(wrapped, 'naip', gsd=1), 'train')
    for split, stage in (('train', 'fit'), ('val', 'validate')):
        datamodule.setup(stage)
        own, ours = getattr(wrapped, f'{split}_dataloader')(), getattr(datamodule, f'{split}_dataloader')()
        assert type(own.sampler) is type(ours.sampler)
        assert (own.batch_size, own.drop_last, len(own)) == (ours.batch_size, ours.drop_last, len(ours))


def test_loaders_in_lists_and_of_batch_samplers():
    def replace(dataset):
        dataset.sensor = NAIP
        return dataset

    loader = DataLoader(Chips(), batch_sampler=[[0, 1], [2]])
    (again,) = with_dataset([loader], replace)
    assert again.batch_sampler == [[0, 1], [2]]
    assert with_dataset({'a': DataLoader(Chips(), batch_size=None)}, replace)['a'].batch_size is None
    with pytest.raises(ValueError, match=r'Expected torch DataLoaders .*, got range'):
        with_dataset(range(3), replace)


def test_names_can_be_taken_apart():
    name = SensorName('naip')
    assert (name, torch.unbind(name)) == ('naip', ('naip',))
    with pytest.raises(TypeError):
        torch.stack([name])


def test_no_image_key():
    with pytest.raises(ValueError, match=r"expected samples with 'image'.*got \['image_S2', 'label'\].*rename="):
        batches(SensorDataModule(chips(keys=('image_S2', 'label')), 'naip', gsd=1))
    renamed = SensorDataModule(
        chips(keys=('image_S2', 'label')), 'naip', gsd=1, rename={'image_S2': 'image', 'label': 'target'}
    )
    assert {'image', 'target'} <= set(batches(renamed)[1])
    with pytest.raises(ValueError, match=r"NonGeoDataModule: expected batches with 'image'.*got \['picture'\]"):
        renamed.on_before_batch_transfer({'picture': torch.rand(2, 4, 8, 8)}, 0)


def test_image_smaller_than_a_patch():
    with pytest.raises(ValueError, match=r'image: expected 8 pixels or more per side, .* got 4 x 4'):
        batches(SensorDataModule(chips(size=4), 'naip', gsd=1))
    enlarged = SensorDataModule(chips(sequence(K.Normalize(0.0, 255.0), K.Resize(8)), size=4), 'naip', gsd=1)
    assert batches(enlarged)[1]['res'].tolist() == [0.5] * 4


def test_no_resolution_anywhere():
    with pytest.raises(ValueError, match=r'Chips: the meters per pixel.*gsd='):
        batches(SensorDataModule(chips(), 'naip'))


def test_bands_that_do_not_fit_are_refused_when_set_up():
    for sensor, bands, message in (
        ('modis', ['b05'], 'bands sur_refl_b05 of modis are not in the dataset'),
        ('sentinel-1-rtc', None, 'No band of sentinel-1-rtc matches'),
        ('naip', ['red', 'R'], "band 'red' is selected 2 times"),
    ):
        with pytest.raises(ValueError, match=message):
            setup(SensorDataModule(chips(), sensor, bands, gsd=1), 'train')


def test_place_known_for_some():
    def metadata(dataset, index):
        return {'lat': 10.0, 'lon': 20.0} if index % 2 else {}

    _, batch = batches(SensorDataModule(chips(), 'naip', gsd=1, metadata=metadata))
    assert batch['lat'].isnan().tolist() == [True, False, True, False]


def test_arguments_without_use():
    with pytest.raises(ValueError, match="mean, std: expected with sensor='dataset' only"):
        SensorDataModule(chips(), 'naip', mean=[1.0])
    with pytest.raises(ValueError, match='Unknown sensor'):
        SensorDataModule(chips(), 'nape')
    datamodule = SensorDataModule(chips(), 'naip', gsd=1)
    datamodule.trainer = SimpleNamespace(precision='bf16-true')
    with pytest.raises(ValueError, match='bf16-true'):
        datamodule.setup('fit')
    with pytest.raises(ValueError, match='call setup before plot'):
        datamodule.plot({})


def write_oscd(root):
    """OSCD as it lies on disk: one city, two dates, 13 files of one band each."""
    name = 'Onera Satellite Change Detection dataset - '
    rng = np.random.default_rng(0)
    for date in (1, 2):
        folder = root / f'{name}Images/abudhabi/imgs_{date}_rect'
        folder.mkdir(parents=True)
        for band in OSCD.all_bands:
            profile = {'count': 1, 'height': 40, 'width': 48, 'dtype': 'uint16', 'crs': 'EPSG:32640'}
            profile['transform'] = from_origin(230_000, 2_700_000, 10, 10)
            with rasterio.open(folder / f'{band}.tif', 'w', driver='GTiff', **profile) as file:
                file.write(rng.integers(100, 3000, (1, 40, 48)).astype(np.uint16))
    (root / f'{name}Images/abudhabi/dates.txt').write_text('date_1: 20160120\ndate_2: 20180328\n')
    mask = root / f'{name}Test Labels/abudhabi/cm'
    mask.mkdir(parents=True)
    Image.fromarray(rng.integers(0, 2, (40, 48)).astype(np.uint8) * 255).save(mask / 'cm.png')


@pytest.mark.filterwarnings('ignore:OSCD holds Sentinel-2 L1C')
def test_change_detection_has_the_time_of_each_date(tmp_path):
    write_oscd(tmp_path)
    wrapped = OSCDDataModule(root=tmp_path, batch_size=1, patch_size=32)
    raw, batch = batches(SensorDataModule(wrapped, 'sentinel-2-l2a', ['B12', 'B8A']), 'test')
    assert batch['image'].shape == (1, 2, 2, 32, 32)
    assert batch['mask'].shape == (1, 1, 32, 32)
    np.testing.assert_allclose(batch['image'].numpy(), normalized(raw['image'], S2.select(['B12', 'B8A'])), atol=1e-6)
    noon = [datetime(2016, 1, 20, 12, tzinfo=UTC).timestamp(), datetime(2018, 3, 28, 12, tzinfo=UTC).timestamp()]
    assert batch['time'].tolist() == [noon]
    to_degrees = pyproj.Transformer.from_crs('EPSG:32640', 'EPSG:4326', always_xy=True)
    lon, lat = to_degrees.transform(230_000 + 240, 2_700_000 - 200)
    assert (batch['lat'].item(), batch['lon'].item()) == pytest.approx((lat, lon), abs=1e-9)
    assert batch['res'].tolist() == [10]


CONFIG = """
model:
  class_path: torchgeo.tasks.Classification
  init_args: {model: clay_tiny_patch8, in_channels: 3, task: multiclass, num_classes: 4}
data:
  class_path: torchgeo_clay.datamodules.SensorDataModule
  init_args:
    sensor: sentinel-2-l2a
    bands: [B04, B03, B02]
    datamodule:
      class_path: torchgeo.datamodules.EuroSATDataModule
      init_args: {batch_size: 2}
      dict_kwargs: {root: ROOT}
trainer:
  accelerator: cpu
  max_epochs: 1
  limit_val_batches: 2
  limit_test_batches: 2
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: OUT
  logger:
    class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args: {save_dir: OUT}
  callbacks:
    - class_path: torchgeo_clay.callbacks.SensorMetadata
"""


@L1C
@pytest.mark.filterwarnings('ignore:.*num_workers', 'ignore:.*does not have many workers', 'ignore:.*default_root_dir')
@pytest.mark.parametrize('command', ['fit', 'validate', 'test'])
def test_from_yaml(command, eurosat_root, tmp_path, torchgeo_command):
    text = CONFIG.replace('ROOT', str(eurosat_root)).replace('OUT', str(tmp_path))
    (tmp_path / 'config.yaml').write_text(text)
    with mock.patch.object(EuroSAT, 'plot', autospec=True, side_effect=EuroSAT.plot) as plot:
        torchgeo_command(command, '--config', tmp_path / 'config.yaml')
    assert bool(plot.called) == (command != 'test')  # TorchGeo's steps plot where there is a logger for it
    plt.close('all')


# TorchGeo's own calls, deprecated in the newest pandas and shapely.
@pytest.mark.real_data
@pytest.mark.filterwarnings('ignore:The inplace keyword', 'ignore:The .shapely.ops.transform')
class TestTorchGeosOwnData:
    """TorchGeo's own datamodules on its test data."""

    def test_chesapeake(self, torchgeo_data):
        from torchgeo.datamodules import ChesapeakeCVPRDataModule

        root = torchgeo_data / 'chesapeake/cvpr'
        splits = {f'{split}_splits': ['de-test'] for split in ('train', 'val', 'test')}
        wrapped = ChesapeakeCVPRDataModule(**splits, batch_size=2, patch_size=32, length=4, root=root)
        raw, batch = batches(SensorDataModule(wrapped, 'naip'), 'test')
        np.testing.assert_allclose(batch['image'].numpy(), normalized(raw['image'], NAIP), atol=1e-6)
        assert batch['mask'].shape == (2, 32, 32)
        assert batch['res'].tolist() == [1, 1]  # of the tile in UTM, not of the query in Web Mercator
        to_degrees = pyproj.Transformer.from_crs('EPSG:3857', 'EPSG:4326', always_xy=True)
        for i, (x, y) in enumerate(islice(wrapped.test_sampler, 2)):
            lon, lat = to_degrees.transform((x.start + x.stop) / 2, (y.start + y.stop) / 2)
            assert (batch['lat'][i].item(), batch['lon'][i].item()) == pytest.approx((lat, lon), abs=1e-9)
        # The pixels are those of the tile around that place.
        tile = next(root.glob('*/*naip-new.tif'))
        with rasterio.open(tile) as file:
            to_tile = pyproj.Transformer.from_crs('EPSG:4326', file.crs.to_wkt(), always_xy=True)
            row, col = file.index(*to_tile.transform(batch['lon'][0].item(), batch['lat'][0].item()))
            around = file.read(window=((row - 24, row + 24), (col - 24, col + 24)))
        patches = np.lib.stride_tricks.sliding_window_view(around, (32, 32), axis=(1, 2))
        same = (patches == raw['image'][0].numpy()[:, None, None]).all(axis=(0, 3, 4))
        assert same.mean() < 0.2  # the data repeat themselves, but not everywhere
        assert np.abs(np.argwhere(same) - 8).max(axis=1).min() <= 2

    def test_enmap_by_its_own_wavelengths(self, torchgeo_data):
        from torchgeo.datamodules import HySpecNet11kDataModule

        wrapped = HySpecNet11kDataModule(root=torchgeo_data / 'hyspecnet', batch_size=1)
        raw, batch = batches(SensorDataModule(wrapped, 'dataset'))
        torch.testing.assert_close(batch['image'], raw['image'] / 10000)  # the datamodule's own mean 0, std 10000
        assert batch['wavelength'].shape == (1, 202)
        assert batch['sensor'] == 'hyspecnet11k'
        chosen = SensorDataModule(wrapped, 'dataset', ['B50', 'B14'], mean=[100.0], std=[200.0])
        assert batches(chosen)[1]['image'].shape[1] == 2

    @pytest.mark.parametrize('split', ['train', 'val'])
    def test_levircd(self, torchgeo_data, split):
        from torchgeo.datamodules import LEVIRCDDataModule

        wrapped = LEVIRCDDataModule(root=torchgeo_data / 'levircd/levircd', batch_size=2, patch_size=16)
        raw, batch = batches(SensorDataModule(wrapped, 'linz', gsd=0.5), split)
        assert raw['image'].shape == (2, 2, 3, 32, 32)
        assert batch['image'].shape == (2, 2, 3, 16, 16)
        assert batch['mask'].shape == (2, 1, 16, 16)
        assert batch['time'].shape == (2, 2)
        assert batch['res'].tolist() == [0.5, 0.5]
        if split == 'val':
            centre = raw['image'][..., 8:24, 8:24]
            np.testing.assert_allclose(batch['image'].numpy(), normalized(centre, get_sensor('linz')), atol=1e-5)

    @pytest.mark.filterwarnings('ignore:sentinel-1-rtc', 'ignore:Default grid_sample')
    def test_mmflood(self, torchgeo_data):
        from torchgeo.datamodules import MMFloodDataModule

        wrapped = MMFloodDataModule(root=torchgeo_data / 'mmflood', batch_size=2, patch_size=8, length=4)
        datamodule = SensorDataModule(wrapped, 'sentinel-1-rtc', to_db=True)
        raw, batch = batches(datamodule, 'val')
        expected = normalized(raw['image'], get_sensor('sentinel-1-rtc'))
        np.testing.assert_allclose(batch['image'].numpy(), expected, atol=1e-5)
        assert batch['mask'].shape == (2, 8, 8)
        assert batches(datamodule, 'train')[1]['res'].max() < 10.02


def test_nodata_is_the_mean_and_the_bands_are_told():
    datamodule = SensorDataModule(chips(), 'naip', bands=['nir', 'red'], gsd=0.6)
    raw = next(iter(setup(datamodule, 'val').val_dataloader()))
    raw['image'][0, 1, 3, 5] = torch.nan
    image = datamodule.on_after_batch_transfer(raw, 0)['image']
    assert image[0, 1, 3, 5] == 0
    assert torch.isfinite(image).all()
    assert datamodule.selected['naip'].band_names == ('nir', 'red')
