# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

import math
import warnings
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from pyproj import CRS
from rasterio.transform import from_origin
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import GriddedPatchSampler, RandomPatchSampler

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.datasets import SceneError, SensorRaster
from torchgeo_clay.sensors import SENSORS, get_sensor

NAIP = get_sensor('naip')
# TorchGeo 0.10's intersection drops columns in place, which pandas 3.1 deprecates.
torchgeo_on_pandas_3 = pytest.mark.filterwarnings('ignore:The inplace keyword in GeoDataFrame')
KEYS = {'image', 'valid', 'wavelength', 'res', 'lat', 'lon', 'time'}


@pytest.fixture
def folder(write_raster):
    """Two scenes side by side in one zone, one further on in another, all of other dates."""
    rng = np.random.default_rng(3)
    for i, (name, grid) in enumerate(
        {
            'a_20200101': {'transform': from_origin(500_000, 4_600_000, 10, 10)},
            'b_20200201': {'transform': from_origin(500_500, 4_600_000, 10, 10)},
            'c_20200301': {'transform': from_origin(500_000, 4_600_000, 10, 10), 'crs': 'EPSG:32631'},
        }.items()
    ):
        pixels = rng.integers(80 * i + 1, 80 * i + 80, (4, 40, 50)).astype(np.uint16)
        path = write_raster(f'naip/{name}.tif', pixels, nodata=0, tiled=True, blockxsize=16, blockysize=16, **grid)
    return path.parent


def test_patches_keep_the_contract(folder):
    dataset = SensorRaster(folder, 'naip', ['nir', 'red'])
    assert [s.path.rsplit('/', 1)[1][0] for s in dataset.scenes] == ['a', 'b', 'c']
    sample = dataset.patch(1, 5, 7, (16, 24))
    assert set(sample) == KEYS
    assert sample['image'].dtype == torch.uint16
    with rasterio.open(dataset.scenes[1].path) as file:
        np.testing.assert_array_equal(sample['image'].numpy(), file.read([4, 1])[:, 5:21, 7:31])
    assert sample['valid'].shape == (1, 16, 24)
    assert sample['valid'].all()
    torch.testing.assert_close(sample['wavelength'], torch.tensor([0.842, 0.65]))
    for key, dtype in {'res': torch.float32, 'lat': torch.float64, 'lon': torch.float64, 'time': torch.float64}.items():
        assert (sample[key].dtype, sample[key].shape) == (dtype, ())
    assert sample['res'] == 10
    assert sample['time'] == datetime(2020, 2, 1, 12, tzinfo=UTC).timestamp()
    assert (dataset.bands, dataset.sensor.band_names) == (('nir', 'red'), ('nir', 'red'))


def test_patches_of_a_batch_condition_a_model(folder):
    dataset = SensorRaster(folder, 'naip')
    batch = stack_samples(dataset.patch(i, 0, 0, (16, 16)) for i in range(3))
    conditioning = Conditioning.from_batch(batch)
    assert conditioning.time.shape == conditioning.latlon.shape == (3, 4)


def test_index_is_torchgeos(folder):
    dataset = SensorRaster(folder, 'naip')
    index = dataset.index
    assert index.crs == dataset.crs == 'EPSG:32630'
    assert dataset.res == (10, 10)
    assert isinstance(index.index, pd.IntervalIndex)
    assert index.index.name == 'datetime'
    assert list(index.columns) == ['filepath', 'geometry']
    assert index.geometry.iloc[1].bounds == (500_500, 4_599_600, 501_000, 4_600_000)
    assert index.index[0].left == pd.Timestamp('2020-01-01')
    assert index.index[0].right == pd.Timestamp('2020-01-01 23:59:59.999999')
    # the third scene lies in the next zone: its outline is reprojected, its patches are not
    with rasterio.open(dataset.scenes[2].path) as file:
        expected = rasterio.warp.transform_bounds(file.crs, 'EPSG:32630', *file.bounds)
    assert index.geometry.iloc[2].bounds == pytest.approx(expected, abs=1)
    with rasterio.open(dataset.scenes[2].path) as file:
        np.testing.assert_array_equal(dataset.patch(2, 0, 0, (40, 50))['image'].numpy(), file.read())


def test_crs_and_res_can_be_given(folder):
    dataset = SensorRaster(folder, 'naip', crs=CRS(4326), res=1e-4)
    assert (dataset.crs, dataset.res) == (CRS(4326), (1e-4, 1e-4))
    assert -90 < dataset.index.total_bounds[1] < 90


def test_queries_on_a_scenes_grid_are_read_as_they_are(folder):
    dataset = SensorRaster(folder, 'naip')
    sample = dataset[500_100:500_300, 4_599_700:4_599_900]
    assert set(sample) == KEYS | {'bounds', 'transform'}
    with rasterio.open(dataset.scenes[0].path) as file:
        np.testing.assert_array_equal(sample['image'].numpy(), file.read()[:, 10:30, 10:30].astype(np.float32))
    assert sample['valid'].all()
    patch = dataset.patch(0, 10, 10, (20, 20))
    for key in ('res', 'lat', 'lon', 'time', 'wavelength'):
        torch.testing.assert_close(sample[key], patch[key], rtol=0, atol=0)


def test_queries_are_those_of_torchgeo(folder):
    ours = SensorRaster(folder, 'naip')

    class Stock(RasterDataset):
        filename_glob = '*.tif'
        filename_regex = r'.*_(?P<date>\d{8})'
        all_bands = NAIP.band_names

    stock = Stock(folder, crs=CRS(32630), res=10)
    for query in (np.s_[500_300:500_700, 4_599_700:4_599_900], np.s_[500_203:500_403, 4_599_700:4_599_900]):
        mine, theirs = ours[query], stock[query]
        torch.testing.assert_close(mine['bounds'], theirs['bounds'])
        torch.testing.assert_close(mine['transform'], theirs['transform'])
        assert mine['image'].shape == theirs['image'].shape
        assert mine['image'].dtype == theirs['image'].dtype
    across = ours[500_300:500_700, 4_599_700:4_599_900]['image']
    torch.testing.assert_close(across, stock[500_300:500_700, 4_599_700:4_599_900]['image'])


def test_mosaics_say_what_they_know(folder):
    dataset = SensorRaster(folder, 'naip')
    across = dataset[500_400:500_600, 4_599_700:4_599_900]
    assert math.isnan(across['time'])  # of two dates
    assert across['valid'].all()
    january = dataset[500_400:500_600, 4_599_700:4_599_900, pd.Timestamp(2020, 1, 1) : pd.Timestamp(2020, 1, 31)]
    assert january['time'] == dataset.scenes[0].time
    assert january['valid'][..., :10].all()
    assert not january['valid'][..., 10:].any()
    with pytest.raises(IndexError, match='not found'):
        dataset[0:100, 0:100]
    with pytest.raises(IndexError, match='not found'):
        dataset[500_400:500_600, 4_599_700:4_599_900, pd.Timestamp(2021, 1, 1) : pd.Timestamp(2021, 1, 31)]


def test_resampled_queries_change_their_gsd(folder):
    dataset = SensorRaster(folder, 'naip')
    sample = dataset[500_100:500_300:5, 4_599_700:4_599_900:5]
    assert sample['image'].shape == (4, 40, 40)
    assert sample['res'] == 5
    dataset.crs = CRS(4326)
    dataset.res = 1e-4
    x, y = (slice(c - 1e-3, c + 1e-3) for c in (float(sample['lon']), float(sample['lat'])))
    degrees = dataset[x, y]
    assert degrees['image'].shape == (4, 20, 20)
    assert degrees['valid'].all()
    assert float(degrees['res']) == pytest.approx(math.sqrt(11.11 * 8.31), rel=0.01)
    assert float(degrees['lat']) == pytest.approx(float(sample['lat']))
    assert degrees['image'].mean() == pytest.approx(float(sample['image'].mean()), rel=0.1)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('sampler', [RandomPatchSampler, GriddedPatchSampler])
@pytest.mark.filterwarnings('ignore:.*multi-threaded, use of fork:DeprecationWarning')
def test_torchgeos_samplers_and_workers(folder, sampler, workers):
    dataset = SensorRaster([folder / 'a_20200101.tif', folder / 'b_20200201.tif'], 'naip')
    dataset[500_100:500_300, 4_599_700:4_599_900]  # opens files before the fork
    length = {'length': 6, 'generator': 0} if sampler is RandomPatchSampler else {}
    locations = sampler(dataset, size=16, **length)
    loader = DataLoader(dataset, batch_size=3, sampler=locations, num_workers=workers, collate_fn=stack_samples)
    batches = list(loader)
    assert len(batches) >= 2
    assert all(b['image'].shape[1:] == (4, 16, 16) for b in batches)
    assert any(b['valid'].all() for b in batches)


@torchgeo_on_pandas_3
def test_intersection_with_labels(folder, write_raster):
    labels = np.arange(2000, dtype=np.uint8).reshape(1, 40, 50)
    path = write_raster('labels/a_20200101.tif', labels, descriptions=None)

    class Labels(RasterDataset):
        is_image = False

    dataset = SensorRaster(folder / 'a_20200101.tif', 'naip') & Labels(path.parent)
    sample = dataset[500_100:500_300, 4_599_700:4_599_900]
    np.testing.assert_array_equal(sample['mask'], labels[0, 10:30, 10:30])
    assert sample['image'].shape == (4, 20, 20)
    assert sample['res'].shape == ()


@torchgeo_on_pandas_3
@pytest.mark.filterwarnings('ignore:linz. please check')  # 10 m
def test_intersection_of_two_sensors(folder, write_raster):
    first = SensorRaster(folder / 'a_20200101.tif', 'naip')
    path = write_raster('other.tif', np.full((3, 40, 50), 9, np.uint8), NAIP.band_names[:3])
    both = first & SensorRaster(path, 'linz', time='2020-01-01')
    sample = both[500_100:500_300, 4_599_700:4_599_900]
    assert sample['image'].shape == (7, 20, 20)
    assert sample['valid'].shape == (1, 20, 20)
    assert sample['wavelength'].tolist() == pytest.approx([0.65, 0.56, 0.48, 0.842, 0.635, 0.555, 0.465])


def test_union(folder):
    first, second = (SensorRaster(folder / f'{n}.tif', 'naip') for n in ('a_20200101', 'b_20200201'))
    union, folder_at_once = first | second, SensorRaster([folder / 'a_20200101.tif', folder / 'b_20200201.tif'], 'naip')
    query = np.s_[500_400:500_600, 4_599_700:4_599_900]
    torch.testing.assert_close(union[query]['image'], folder_at_once[query]['image'])
    assert union[query]['valid'].all()
    assert math.isnan(union[query]['time'])


def test_files_left_out_are_named_and_counted(folder):
    (folder / 'd.tif').write_bytes(b'')
    (folder / 'e.tif').write_text('hello')
    (folder / 'notes.txt').write_text('hello')
    (folder / '.hidden').write_text('hello')
    (folder / 'a_20200101.tif.aux.xml').write_text('<PAMDataset/>')
    for beside in ('sensor.yaml', 'weights.csv'):  # of a folder of pretraining
        (folder / beside).write_text('hello')
    (folder / 'b_20200201.tif').write_bytes((folder / 'b_20200201.tif').read_bytes()[:9000])
    with pytest.warns(
        UserWarning, match=r'naip: left out 3 of 5 files:\n.*b_20200201\.tif: .*\n.*d\.tif: .*zero bytes'
    ) as said:
        dataset = SensorRaster(folder, 'naip')
    assert len(said) == 1
    assert [p.rsplit('/', 1)[1] for p, _ in dataset.skipped] == ['b_20200201.tif', 'd.tif', 'e.tif']
    assert len(dataset) == len(dataset.scenes) == 2


def test_nothing_left_is_an_error_that_says_why(tmp_path, write_raster):
    with pytest.raises(ValueError, match=r'expected rasters of naip .* found no file'):
        SensorRaster(tmp_path, 'naip')
    with pytest.raises(ValueError, match='no such file or folder'):
        SensorRaster(tmp_path / 'none', 'naip')
    path = write_raster(crs=None, transform=None)
    with pytest.raises(ValueError, match=r'no scene of naip is left; left out 1 of 1 files:\n.*gsd='):
        SensorRaster(path, 'naip')
    with pytest.raises(ValueError, match='Unknown sensor'):
        SensorRaster(path, 'nape')


def test_no_crs_is_a_patch_without_a_place(write_raster, caplog):
    path = write_raster(crs=None, transform=None)
    dataset = SensorRaster(path, 'naip', gsd=0.6)
    assert 'no CRS; their place is unknown (NaN)' in caplog.text
    sample = dataset.patch(0, 0, 0, (8, 8))
    assert float(sample['res']) == pytest.approx(0.6)
    assert math.isnan(sample['lat'])
    assert dataset.crs is None


def test_assumptions_are_said_once(write_raster, caplog):
    for i in range(3):
        write_raster(f'x/{i}_20200415.tif', np.ones((4, 8, 8), np.uint16), descriptions=None)
        write_raster(f'x/{i}.tif', np.ones((5, 8, 8), np.uint8), descriptions=(*NAIP.band_names, 'depth'))
    path = write_raster('x/s.tif', tags={'DATETIME': '2020-04-15T09:00'})
    with pytest.warns(UserWarning, match='please check') as warned:
        SensorRaster(path.parent, 'naip', gsd=5)  # no level is set: what torchgeo fit would not show is not said
    (remark,) = str(warned[0].message).splitlines()[1:]
    assert all(f'/{i}_20200415.tif' in remark for i in range(3))
    assert ': it does not name its bands: taken as 1 red, 2 green, 3 blue, 4 nir' in remark
    assert {record.name.partition('.')[0] for record in caplog.records} == {'lightning'}
    for text in (
        '3 of 7 scenes have a date without an hour; taken at noon UTC',
        '3 of 7 scenes have no date',
        '7 of 7 scenes have pixels of another size than gsd= says',
        'bands of the files left out: depth',
    ):
        assert caplog.text.count(text) == 1, text


def test_scenes_without_nodata_padding_and_offset(folder):
    dataset = SensorRaster(folder, 'naip', offset=-5)
    sample = dataset.patch(0, -8, -8, (64, 64))
    assert sample['image'].dtype == torch.float32
    assert sample['valid'].sum() == 40 * 50
    assert sample['image'].min() < 0
    assert not sample['image'][:, ~sample['valid'][0]].any()


def test_transforms_are_for_queries(folder):
    dataset = SensorRaster(folder, 'naip', transforms=lambda sample: {**sample, 'seen': True})
    assert dataset[500_100:500_300, 4_599_700:4_599_900]['seen']
    assert 'seen' not in dataset.patch(0, 0, 0, (8, 8))


def test_without_cache_no_file_stays_open(folder):
    dataset = SensorRaster(folder, 'naip', cache=False)
    first = dataset.patch(0, 0, 0, (8, 8))
    assert len(dataset._handles) == 0
    cached = SensorRaster(folder, 'naip')
    torch.testing.assert_close(cached.patch(0, 0, 0, (8, 8))['image'].int(), first['image'].int())
    assert len(cached._handles) == 1


def test_a_file_gone_is_named(folder):
    dataset = SensorRaster(folder, 'naip')
    (folder / 'a_20200101.tif').unlink()
    with pytest.raises(SceneError, match=r'a_20200101\.tif: the file has vanished since it was looked at'):
        dataset.patch(0, 0, 0, (8, 8))
    dataset.patch(1, 0, 0, (8, 8))
    with rasterio.open(folder / 'b_20200201.tif', 'r+') as file:
        file.write(file.read()[:, ::-1])
    with pytest.raises(SceneError, match=r'b_20200201\.tif: the file has changed since it was looked at'):
        dataset.patch(1, 0, 0, (8, 8))


def test_rotated_and_south_up_scenes_are_found(write_raster):
    whole = np.random.default_rng(0).integers(1, 200, (4, 40, 50)).astype(np.uint8)
    path = write_raster(pixels=whole, transform=rasterio.Affine(10, 0, 500_000, 0, 10, 4_600_000))
    dataset = SensorRaster(path, 'naip')
    query = dataset[500_100:500_300, 4_600_100:4_600_300]
    np.testing.assert_array_equal(query['image'].numpy(), whole[:, 10:30, 10:30][:, ::-1])
    turned = rasterio.Affine.translation(500_000, 4_600_000) @ rasterio.Affine.rotation(45) @ rasterio.Affine.scale(10)
    dataset = SensorRaster(write_raster('turned.tif', whole, transform=turned), 'naip')
    assert dataset.res == pytest.approx((10, 10))
    assert dataset.index.geometry.iloc[0].area == pytest.approx(500 * 400)
    # at 45° the square around the scene has sides of (500 + 400) / √2
    assert dataset[:]['valid'].float().mean() == pytest.approx(500 * 400 / (900**2 / 2), rel=0.05)


@pytest.mark.parametrize('name', ['naip', 'sentinel-1-rtc', 'modis', 'planetscope-sr'])
def test_plots_every_kind_of_sensor(write_raster, name):
    sensor = SENSORS[name]
    noise = np.random.default_rng(0).normal(size=(len(sensor), 16, 20)).clip(-1)
    whole = np.reshape(sensor.mean, (-1, 1, 1)) + 0.3 * np.reshape(sensor.std, (-1, 1, 1)) * noise
    whole = whole.astype(np.float32)
    whole[0, 3, 3] = np.nan
    grid = from_origin(500_000, 4_600_000, sensor.gsd, sensor.gsd)
    dataset = SensorRaster(write_raster(pixels=whole, descriptions=sensor.band_names, transform=grid), name)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        figure = dataset.plot(dataset.patch(0, -2, 0, (20, 20)), suptitle='above')
        figure.canvas.draw()
    (image,) = figure.axes[0].images
    picture = image.get_array()
    assert picture.shape == (20, 20, 3)
    assert (picture.min(), picture.max()) == (0, 1)
    assert 'date unknown' in figure.axes[0].get_title()
