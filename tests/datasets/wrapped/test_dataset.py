# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""SensorDataset: bands, place, date and resolution of TorchGeo's datasets, against rasterio, pyproj and the files."""

import copy
import math

import numpy as np
import pandas as pd
import pyproj
import pytest
import rasterio
import torch
from matplotlib import pyplot as plt
from rasterio.transform import from_origin
from rasterio.warp import transform as rasterio_transform
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torchgeo.datasets import EuroSAT, NonGeoDataset, RasterDataset
from torchgeo.datasets.utils import stack_samples
from torchgeo.samplers import GriddedPatchSampler

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.datasets import SensorDataset
from torchgeo_clay.datasets.wrapped.channels import own_sensor
from torchgeo_clay.sensors import Band, Sensor, get_sensor

L1C = pytest.mark.filterwarnings('ignore:EuroSAT holds Sentinel-2 L1C')


class Chips(NonGeoDataset):
    """Chips that tell what they are asked to tell."""

    def __init__(self, shape=(4, 16, 16), count=3, **attributes):
        self.shape, self.count, self.keys = shape, count, attributes.pop('keys', {})
        self.bands = ('R', 'G', 'B', 'N')
        vars(self).update(attributes)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = torch.arange(math.prod(self.shape)).reshape(self.shape) % 200
        return {'image': image, 'label': torch.tensor(index), **self.keys}


def test_eurosat_against_rasterio(eurosat_root, caplog):
    with caplog.at_level('INFO'), pytest.warns(UserWarning, match='EuroSAT holds Sentinel-2 L1C') as caught:
        dataset = SensorDataset(EuroSAT(eurosat_root), 'sentinel-2-l2a')
    sample = dataset[2]
    assert len(caught) == 1
    assert [r.getMessage() for r in caplog.records if 'not used: B01, B09, B10;' in r.getMessage()]
    assert dataset.sensor.band_names == get_sensor('sentinel-2-l2a').band_names
    path = eurosat_root / EuroSAT.base_dir / 'River/River_1.tif'
    with rasterio.open(path) as file:
        pixels = file.read([2, 3, 4, 5, 6, 7, 8, 13, 11, 12]).astype(np.float32)  # B8A is the last in the file
        x, y = file.transform @ (file.width / 2, file.height / 2)
        (lon,), (lat,) = rasterio_transform(file.crs, 'EPSG:4326', [x], [y])
    np.testing.assert_array_equal(sample['image'].numpy(), pixels)
    assert (sample['lat'].item(), sample['lon'].item()) == pytest.approx((lat, lon), abs=1e-9)
    assert sample['lat'].dtype == sample['lon'].dtype == sample['time'].dtype == torch.float64
    assert sample['res'] == 10
    assert math.isnan(sample['time'])
    assert sample['wavelength'].tolist() == pytest.approx(get_sensor('sentinel-2-l2a').wavelengths)


@L1C
def test_plain_loaders_collate_it(eurosat_root):
    dataset = SensorDataset(EuroSAT(eurosat_root), 'sentinel-2-l2a', ['B08', 'red'])
    for options in ({'collate_fn': stack_samples}, {}):
        batch = next(iter(DataLoader(dataset, batch_size=3, **options)))
        assert batch['image'].shape == (3, 2, 32, 32)
        assert batch['wavelength'].tolist() == [pytest.approx([0.842, 0.665])] * 3
        assert batch['time'].dtype == torch.float64
        assert Conditioning.from_batch(batch).latlon.abs().sum() > 0
    assert len(copy.deepcopy(dataset)) == len(dataset) == 4


@L1C
def test_splits_of_splits(eurosat_root):
    whole = SensorDataset(EuroSAT(eurosat_root), 'sentinel-2-l2a')
    part = SensorDataset(
        ConcatDataset([Subset(EuroSAT(eurosat_root), [3, 1]), EuroSAT(eurosat_root)]), 'sentinel-2-l2a'
    )
    for index, same in ((0, 3), (1, 1), (2, 0), (-1, 3)):
        assert part[index]['lon'] == whole[same]['lon']
        assert torch.equal(part[index]['image'], whole[same]['image'])


@L1C
def test_plot_shows_true_colours(eurosat_root):
    dataset = SensorDataset(EuroSAT(eurosat_root), 'sentinel-2-l2a', ['B02', 'B03', 'B04', 'B8A'])
    figure = dataset.plot(dataset[0])
    with rasterio.open(eurosat_root / EuroSAT.base_dir / 'AnnualCrop/AnnualCrop_1.tif') as file:
        expected = np.moveaxis(file.read([4, 3, 2]), 0, -1) / 3000
    np.testing.assert_allclose(figure.axes[0].get_images()[0].get_array(), expected, rtol=1e-6)
    plt.close(figure)


@L1C
@pytest.mark.parametrize(
    ('sensor', 'bands', 'message'),
    [
        ('sentinel-1-rtc', None, 'No band of sentinel-1-rtc matches: the dataset has B01, .*channels='),
        ('sentinel-2-l2a', ['B04', 'red'], "band 'red' is selected 2 times"),
        ('sentinel-2-l2a', ['B99'], "has no band 'B99'"),
        ('naip', ['red', 'B04'], "naip has no band 'B04'"),
    ],
)
def test_bands_that_do_not_fit(eurosat_root, sensor, bands, message):
    with pytest.raises(ValueError, match=message):
        SensorDataset(EuroSAT(eurosat_root), sensor, bands)


def test_band_that_the_dataset_lacks():
    with pytest.raises(ValueError, match=r"bands nir of naip are not in the dataset, .* There are \['red', 'green'\]"):
        SensorDataset(Chips(bands=('R', 'G')), 'naip', ['red', 'nir'])


def test_band_there_twice():
    with pytest.raises(ValueError, match=r'red is repeated: channels 0 \(R\), 2 \(red\).*channels='):
        SensorDataset(Chips(bands=('R', 'G', 'red', 'N')), 'naip', ['red'])


def test_another_instruments_numbers_are_found_out():
    dataset = Chips((3, 16, 16), bands=('B2', 'B3', 'B4'), wavelengths={'B2': 0.56, 'B3': 0.66, 'B4': 0.83})  # ETM+
    with pytest.raises(ValueError, match=r'B4 is 0.83 µm in the dataset, but red of landsat-c2l2-sr is 0.65'):
        SensorDataset(dataset, 'landsat-c2l2-sr')
    named = SensorDataset(dataset, 'landsat-c2l2-sr', channels=['green', 'red', 'nir08'], gsd=30)
    assert named.sensor.band_names == ('red', 'green', 'nir08')


def test_channels_without_names():
    with pytest.warns(UserWarning, match='Chips does not name its channels; taken in the order red, green, blue, nir'):
        assert SensorDataset(Chips(bands=()), 'naip', gsd=1)[0]['image'].shape == (4, 16, 16)
    dataset = SensorDataset(Chips(), 'naip', ['blue', 'nir'], gsd=1, channels=['N', 'R', 'G', 'B'])
    assert torch.equal(dataset[0]['image'], Chips()[0]['image'][[3, 0]].float())
    with pytest.warns(UserWarning, match='taken in the order green, red'):
        sample = SensorDataset(Chips((2, 16, 16), bands=()), 'naip', ['green', 'red'], gsd=1)[0]
    assert sample['wavelength'].tolist() == pytest.approx([0.56, 0.65])
    with pytest.raises(ValueError, match='Chips has 5 channels without names, naip has 4 bands'):
        SensorDataset(Chips((5, 16, 16), bands=()), 'naip', gsd=1)[0]


def test_dates_stacked_as_channels():
    with pytest.raises(ValueError, match=r'expected the 4 channels R, G, B, N, got 8. Dates stacked as channels'):
        SensorDataset(Chips((8, 16, 16), bands=('R', 'G', 'B', 'N')), 'naip', gsd=1)[0]
    with pytest.raises(ValueError, match=r'repeated.*Dates stacked as channels'):
        SensorDataset(Chips((8, 16, 16), bands=('R', 'G', 'B', 'N') * 2), 'naip', gsd=1)


def test_no_resolution_anywhere():
    with pytest.raises(ValueError, match=r'Chips: the meters per pixel.*gsd='):
        SensorDataset(Chips(), 'naip')[0]
    assert SensorDataset(Chips(keys={'res': torch.tensor(2)}), 'naip')[0]['res'] == 2
    assert SensorDataset(Chips(), 'naip', gsd=0.5)[0]['res'] == 0.5
    for gsd in (0, math.nan, -1):
        with pytest.raises(ValueError, match='gsd: expected positive'):
            SensorDataset(Chips(), 'naip', gsd=gsd)


def test_given_resolution_counts_and_is_warned_of_once():
    dataset = SensorDataset(Chips(keys={'res': torch.tensor(2.0)}), 'naip', gsd=1)
    with pytest.warns(UserWarning, match='images have 2 m per pixel, but gsd=1 was given') as caught:
        assert [float(dataset[i]['res']) for i in range(3)] == [1, 1, 1]
    assert len(caught) == 1


def test_no_image():
    class Nothing(Chips):
        def __getitem__(self, index):
            return {'image_S2': torch.rand(2, 4, 4), 'label': torch.tensor(0)}

    with pytest.raises(
        ValueError, match=r"Nothing: expected samples with 'image'.*got \['image_S2', 'label'\].*rename="
    ):
        SensorDataset(Nothing(), 'naip', gsd=1)[0]


def test_metadata_of_the_users_own():
    def metadata(dataset, index):
        assert isinstance(dataset, Chips)
        return {} if index == 1 else {'lat': 50.0 + index, 'lon': 8.0, 'time': 1.6e9 + 0.5, 'res': 0.3}

    dataset = SensorDataset(Subset(Chips(), [2, 1]), 'naip', gsd=0.3, metadata=metadata)
    batch = stack_samples([dataset[0], dataset[1]])
    assert batch['lat'][0] == 52
    assert batch['time'][0] == 1.6e9 + 0.5
    assert batch['lat'][1:].isnan().all()  # known for some of a batch only
    assert batch['time'][1:].isnan().all()
    code = Conditioning.from_batch(batch)
    assert code.latlon[0].any()
    assert not code.latlon[1].any()
    assert not code.time[1].any()


def test_own_keys_of_a_dataset():
    keys = {'lat': torch.tensor(50.0), 'lon': torch.tensor(8.0), 'time': torch.tensor(1e9), 'res': torch.tensor(2.0)}
    sample = SensorDataset(Chips(keys=keys), 'naip')[0]
    assert [float(sample[k]) for k in keys] == [50, 8, 1e9, 2]
    assert sample['lat'].dtype == torch.float64


def test_two_dates():
    dataset = SensorDataset(Chips((2, 4, 16, 16), bands=('R', 'G', 'B', 'N')), 'naip', ['nir', 'red'], gsd=1)
    sample = dataset[0]
    assert sample['image'].shape == (2, 2, 16, 16)
    assert torch.equal(sample['image'], Chips((2, 4, 16, 16))[0]['image'][:, [3, 0]].float())
    assert sample['time'].shape == (2,)
    assert sample['time'].isnan().all()
    restored = dataset.original(sample)['image']
    assert restored.shape == (2, 4, 16, 16)
    assert not restored[:, [1, 2]].any()


def test_fractions_are_no_digital_numbers():
    class Fractions(Chips):
        bands = ('R', 'G', 'B', 'N')

        def __getitem__(self, index):
            return {'image': torch.rand(4, 16, 16)}

    with pytest.raises(ValueError, match=r'expected numbers of naip.*fractions: write scale=255'):
        SensorDataset(Fractions(), 'naip', gsd=1)[0]
    assert SensorDataset(Fractions(), 'naip', gsd=1, scale=255)[0]['image'].max() > 200


def test_own_sensor():
    dataset = Chips((2, 16, 16), bands=('a', 'b'), wavelengths=torch.tensor([0.5, 2.2]))
    sensor = own_sensor(dataset, 0.0, [100.0, 200.0], gsd=30)
    assert sensor == Sensor('chips', 30, (Band('a', 0.5, 0, 100), Band('b', sensor.wavelengths[1], 0, 200)))
    assert sensor.wavelengths[1] == pytest.approx(2.2)
    assert SensorDataset(dataset, sensor, ['b'], gsd=30)[0]['wavelength'].tolist() == pytest.approx([2.2])
    with pytest.raises(ValueError, match='expected std of Chips, one number or 2, got None'):
        own_sensor(dataset, 0, None)
    with pytest.raises(ValueError, match='expected mean of Chips, one number or 2'):
        own_sensor(dataset, [1, 2, 3], 1)
    with pytest.raises(ValueError, match='Chips lacks wavelengths'):
        own_sensor(Chips(), 0, 1)


class Scenes(RasterDataset):
    filename_regex = r'scene_(?P<date>\d+).*\.tif'
    all_bands = ('R', 'G', 'B', 'NIR')

    def plot(self, sample):
        raise NotImplementedError


class Years(Scenes):
    date_format = '%Y'


def test_queries_in_degrees_against_pyproj(write_raster, tmp_path):
    write_raster('a/scene_20210605_0.tif', crs='EPSG:4326', transform=from_origin(8.0, 50.0, 1e-4, 1e-4))
    dataset = SensorDataset(Scenes(tmp_path / 'a'), 'naip')
    query = next(iter(GriddedPatchSampler(dataset.dataset, size=16, stride=16)))
    sample = dataset[query]
    x, y = query
    lon, lat = (x.start + x.stop) / 2, (y.start + y.stop) / 2
    assert (sample['lat'].item(), sample['lon'].item()) == (
        pytest.approx(lat, abs=1e-12),
        pytest.approx(lon, abs=1e-12),
    )
    geod = pyproj.Geod(ellps='WGS84')
    width = geod.inv(lon - 5e-5, lat, lon + 5e-5, lat)[2]
    height = geod.inv(lon, lat - 5e-5, lon, lat + 5e-5)[2]
    assert sample['res'].item() == pytest.approx(math.sqrt(width * height), rel=1e-6)
    assert sample['time'] == pd.Timestamp('2021-06-05T12:00').timestamp()
    assert {'bounds', 'transform'} <= set(sample)
    assert next(iter(GriddedPatchSampler(dataset, size=16, stride=16))) == query  # samplers take it for the dataset


def test_queries_across_dates_and_of_years_have_no_time(write_raster, tmp_path):
    for date in ('20210605', '20210817'):
        write_raster(f'b/scene_{date}_0.tif')
    dataset = SensorDataset(Scenes(tmp_path / 'b'), 'naip')
    x, y, t = dataset.bounds
    assert math.isnan(dataset[x, y, t]['time'])
    one = slice(pd.Timestamp('2021-08-17'), pd.Timestamp('2021-08-18'))
    assert dataset[x, y, one]['time'] == pd.Timestamp('2021-08-17T12:00').timestamp()
    write_raster('c/scene_2021_0.tif')
    years = SensorDataset(Years(tmp_path / 'c'), 'naip')
    assert math.isnan(years[years.bounds]['time'])
    stacked = SensorDataset(Scenes(tmp_path / 'b', time_series=True), 'naip')
    assert stacked[x, y, t]['time'].tolist() == [
        pd.Timestamp(f'2021-{day}T12:00').timestamp() for day in ('06-05', '08-17')
    ]


# TorchGeo's own calls, deprecated in the newest pandas.
@pytest.mark.filterwarnings('ignore:The inplace keyword')
@pytest.mark.real_data
class TestTorchGeosOwnData:
    """TorchGeo's test data: what the files say, where they do."""

    def test_hyspecnet(self, torchgeo_data):
        from torchgeo.datasets import HySpecNet11k

        wrapped = HySpecNet11k(torchgeo_data / 'hyspecnet')
        dataset = SensorDataset(wrapped, own_sensor(wrapped, 0.0, 10000.0))
        sample = dataset[0]
        path = wrapped.files[0].replace('DATA.npy', 'SPECTRAL_IMAGE.TIF')
        with rasterio.open(torchgeo_data / 'hyspecnet/hyspecnet-11k/patches' / path) as file:
            x, y = file.transform @ (file.width / 2, file.height / 2)
            (lon,), (lat,) = rasterio_transform(file.crs, 'EPSG:4326', [x], [y])
        assert sample['image'].shape[0] == 202
        assert sample['wavelength'].tolist() == pytest.approx(wrapped.wavelengths.tolist())
        assert (sample['lat'].item(), sample['lon'].item()) == pytest.approx((lat, lon), abs=1e-6)
        assert sample['res'] == 30
        assert sample['time'] == pd.Timestamp('2022-11-03T16:24:38').timestamp()

    @pytest.mark.filterwarnings('ignore:SSL4EOL holds', 'ignore:landsat-c2l2-sr')
    def test_the_season_that_was_drawn(self, torchgeo_data):
        from torchgeo.datasets import SSL4EOL

        dataset = SensorDataset(SSL4EOL(torchgeo_data / 'ssl4eo/l', split='oli_sr'), 'landsat-c2l2-sr')
        times = {float(dataset[0]['time']) for _ in range(40)}
        assert (
            times
            == {
                pd.Timestamp(f'{day}T12:00').timestamp()
                for day in ('2021-03-06', '2021-08-29', '2021-12-03', '2022-07-15')
                if (torchgeo_data / f'ssl4eo/l/ssl4eo_l_oli_sr/0000002/LC08_172034_{day.replace("-", "")}').exists()
            }
            or len(times) > 1
        )
        with pytest.raises(ValueError, match='repeated'):
            SensorDataset(SSL4EOL(torchgeo_data / 'ssl4eo/l', split='oli_sr', seasons=2), 'landsat-c2l2-sr')
        with pytest.raises(ValueError, match=r'channels=|matches'):
            SensorDataset(SSL4EOL(torchgeo_data / 'ssl4eo/l', split='oli_sr'), 'naip')

    @pytest.mark.filterwarnings('ignore:sentinel-2-l2a')
    def test_biomassters_months_to_biomass(self, torchgeo_data):
        from torchgeo.datasets import BioMassters

        wrapped = BioMassters(torchgeo_data / 'biomassters', sensors=['S2'])
        rename = {'image_S2': 'image', 'label': 'mask'}
        sample = SensorDataset(wrapped, 'sentinel-2-l2a', gsd=10, rename=rename)[0]
        assert torch.equal(sample['image'], wrapped[0]['image_S2'][:10].float())
        assert torch.equal(sample['mask'], wrapped[0]['label'])
        assert sample['res'] == 10
        assert sample['lat'].isnan()  # the files carry a CRS, but no place
        assert sample['time'].isnan()  # a month without a year

    def test_mmflood_in_decibels(self, torchgeo_data):
        from torchgeo.datasets import MMFlood

        wrapped = MMFlood(torchgeo_data / 'mmflood')
        query = next(iter(GriddedPatchSampler(wrapped, size=8, stride=8)))
        with pytest.raises(ValueError, match=r'expected decibels.*to_db=True'):
            SensorDataset(wrapped, 'sentinel-1-rtc')[query]
        with pytest.warns(UserWarning, match='expected decibels'):  # random numbers, as large as 1000
            sample = SensorDataset(wrapped, 'sentinel-1-rtc', to_db=True)[query]
        power = wrapped[query]['image'].numpy()
        known = power > 0
        np.testing.assert_allclose(sample['image'].numpy()[known], 10 * np.log10(power[known]), rtol=1e-5)
        assert sample['mask'].shape == (8, 8)
        assert 9 < float(sample['res']) < 11

    @pytest.mark.parametrize('name', ['LandCoverAI', 'UCMerced', 'LEVIRCD'])
    def test_pictures(self, torchgeo_data, name):
        import torchgeo.datasets

        folder = {'LEVIRCD': 'levircd/levircd'}.get(name, name.lower())
        wrapped = getattr(torchgeo.datasets, name)(torchgeo_data / folder)
        with pytest.raises(ValueError, match=f'{name}: the meters per pixel'):
            SensorDataset(wrapped, 'linz')[0]
        sample = SensorDataset(wrapped, 'linz', gsd=0.5)[0]
        assert sample['wavelength'].tolist() == pytest.approx([0.635, 0.555, 0.465])
        assert sample['lat'].isnan()
        assert sample['time'].isnan().all()
        assert sample['time'].ndim == sample['image'].ndim - 3
