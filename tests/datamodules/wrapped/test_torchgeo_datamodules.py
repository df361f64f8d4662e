# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Every datamodule of TorchGeo in SensorDataModule, beside the table of docs/datamodules.md."""

import math
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyproj
import pytest
import rasterio
import torch
import torchgeo.datamodules
from torchgeo.datasets import SSL4EOL, SSL4EOS12, SeasonalContrastS2, TreeSatAI
from torchgeo.datasets.errors import DatasetNotFoundError

from torchgeo_clay.datamodules import SensorDataModule
from torchgeo_clay.datasets import SensorDataset
from torchgeo_clay.sensors import get_sensor

S2, S1, NAIP, RGB, L1, SR = (
    'sentinel-2-l2a', 'sentinel-1-rtc', 'naip', 'linz', 'landsat-c2l1', 'landsat-c2l2-sr',
)  # fmt: skip
TEN = get_sensor(S2).band_names
SIX = get_sensor(L1).band_names
FOUR, THREE = ('red', 'green', 'blue', 'nir'), ('red', 'green', 'blue')

#: Datamodule, its arguments (paths under TorchGeo's test data), those of SensorDataModule, and the bands of a batch.
RIGHT: list[tuple[str, dict[str, Any], dict[str, Any], tuple[str, ...]]] = [
    ('AgriFieldNet', {'paths': 'agrifieldnet', 'patch_size': 16}, {'sensor': S2}, TEN),
    ('BigEarthNet', {'root': 'bigearthnet/v1', 'bands': 's1', 'num_classes': 19}, {'sensor': S1}, ('vv', 'vh')),
    ('BigEarthNet', {'root': 'bigearthnet/v1', 'bands': 's2', 'num_classes': 19}, {'sensor': S2}, TEN),
    ('BigEarthNet', {'root': 'bigearthnet/v1', 'bands': 'all', 'num_classes': 19}, {'sensor': S2}, TEN),
    ('CaBuAr', {'root': 'cabuar'}, {'sensor': S2, 'gsd': 20}, TEN),
    ('ChaBuD', {'root': 'chabud'}, {'sensor': S2, 'gsd': 10}, TEN),
    (
        'CloudCoverDetection',
        {'root': 'ref_cloud_cover_detection_challenge_v1'},
        {'sensor': S2},
        ('blue', 'green', 'red', 'nir'),
    ),
    ('COWCCounting', {'root': 'cowc_counting'}, {'sensor': RGB, 'gsd': 0.15}, THREE),
    ('DeepGlobeLandCover', {'root': 'deepglobelandcover', 'patch_size': 32}, {'sensor': RGB, 'gsd': 0.5}, THREE),
    ('EuroSAT', {'root': 'eurosat'}, {'sensor': S2}, TEN),
    ('EuroSAT100', {'root': 'eurosat'}, {'sensor': S2}, TEN),
    ('EuroSATSpatial', {'root': 'eurosat'}, {'sensor': S2}, TEN),
    ('FAIR1M', {'root': 'fair1m'}, {'sensor': RGB, 'gsd': 0.6}, THREE),
    (
        'FieldsOfTheWorld',
        {'root': 'ftw', 'train_countries': ['austria'], 'val_countries': ['austria'], 'test_countries': ['austria']},
        {'sensor': S2},
        ('blue', 'green', 'red', 'nir'),
    ),
    ('FireRisk', {'root': 'fire_risk'}, {'sensor': RGB, 'gsd': 1}, THREE),
    ('GeoNRW', {'root': 'geonrw'}, {'sensor': RGB, 'gsd': 1, 'scale': 255}, THREE),
    ('GID15', {'root': 'gid15'}, {'sensor': RGB, 'gsd': 3}, THREE),
    ('InriaAerialImageLabeling', {'root': 'inria', 'patch_size': 32}, {'sensor': RGB}, THREE),
    ('IOBench', {'root': 'iobench'}, {'sensor': SR}, SIX),
    ('L7Irish', {'paths': 'l7irish', 'patch_size': 16, 'length': 2}, {'sensor': L1}, SIX),
    ('L8Biome', {'paths': 'l8biome', 'patch_size': 16, 'length': 2}, {'sensor': L1}, SIX),
    ('LandCoverAI', {'root': 'landcoverai'}, {'sensor': RGB, 'gsd': 0.5}, THREE),
    ('LandCoverAI100', {'root': 'landcoverai'}, {'sensor': RGB, 'gsd': 0.5}, THREE),
    ('LEVIRCD', {'root': 'levircd/levircd'}, {'sensor': RGB, 'gsd': 0.5}, THREE),
    ('LEVIRCDPlus', {'root': 'levircd/levircdplus'}, {'sensor': RGB, 'gsd': 0.5}, THREE),
    ('LoveDA', {'root': 'loveda', 'scene': ['urban', 'rural']}, {'sensor': RGB, 'gsd': 0.3}, THREE),
    ('MMFlood', {'root': 'mmflood', 'patch_size': 8}, {'sensor': S1, 'to_db': True}, ('vv', 'vh')),
    (
        'NAIPChesapeake',
        {'naip_paths': 'naip', 'chesapeake_paths': 'chesapeake/lulc', 'patch_size': 32},
        {'sensor': NAIP},
        FOUR,
    ),
    ('NASAMarineDebris', {'root': 'nasa_marine_debris'}, {'sensor': RGB}, THREE),
    ('OSCD', {'root': 'oscd', 'patch_size': 16, 'val_split_pct': 0.5}, {'sensor': S2, 'gsd': 10}, TEN),
    ('PatternNet', {'root': 'patternnet'}, {'sensor': RGB, 'gsd': 1}, THREE),
    ('Potsdam2D', {'root': 'potsdam', 'patch_size': 32}, {'sensor': NAIP, 'gsd': 0.05}, FOUR),
    ('QuakeSet', {'root': 'quakeset'}, {'sensor': S1, 'gsd': 10}, ('vv', 'vh')),
    ('ReforesTree', {'root': 'reforestree'}, {'sensor': RGB, 'gsd': 0.02}, THREE),
    ('RESISC45', {'root': 'resisc45'}, {'sensor': RGB, 'gsd': 1}, THREE),
    ('SEN12MS', {'root': 'sen12ms', 'band_set': 'all'}, {'sensor': S2}, TEN),
    ('SEN12MS', {'root': 'sen12ms', 'band_set': 's1'}, {'sensor': S1}, ('vv', 'vh')),
    ('So2Sat', {'root': 'so2sat', 'band_set': 's2'}, {'sensor': S2, 'gsd': 10, 'scale': 10000}, TEN),
    ('So2Sat', {'root': 'so2sat', 'band_set': 's1'}, {'sensor': S1, 'gsd': 10, 'to_db': True}, ('vv', 'vh')),
    (
        'SolarPlantsBrazil',
        {'root': 'solar_plants_brazil'},
        {'sensor': S2, 'scale': 10000},
        ('blue', 'green', 'red', 'nir'),
    ),
    ('SouthAfricaCropType', {'paths': 'south_africa_crop_type', 'patch_size': 16}, {'sensor': S2}, TEN),
    ('SpaceNet1', {'root': 'spacenet/spacenet1'}, {'sensor': RGB}, THREE),
    ('SpaceNet6', {'root': 'spacenet/spacenet6', 'image': 'PS-RGBNIR'}, {'sensor': NAIP}, FOUR),
    (
        'SpaceNet6',
        {'root': 'spacenet/spacenet6', 'image': 'SAR-Intensity'},
        {'sensor': S1, 'to_db': True},
        ('vv', 'vh'),
    ),
    (
        'SSL4EOLBenchmark',
        {'root': 'ssl4eo_benchmark_landsat', 'sensor': 'tm_toa', 'product': 'cdl'},
        {'sensor': L1},
        SIX,
    ),
    (
        'Substation',
        {'root': 'substation', 'timepoint_aggregation': 'median', 'num_of_timepoints': 4, 'bands': ('B4', 'B3', 'B2')},
        {'sensor': S2, 'gsd': 10, 'scale': 10000},
        ('blue', 'green', 'red'),
    ),
    ('UCMerced', {'root': 'ucmerced'}, {'sensor': RGB, 'gsd': 0.3}, THREE),
    ('USAVars', {'root': 'usavars'}, {'sensor': NAIP}, FOUR),
    ('Vaihingen2D', {'root': 'vaihingen', 'patch_size': 32}, {'sensor': NAIP, 'gsd': 0.09}, ('red', 'green', 'nir')),
    ('VHR10', {'root': 'vhr10', 'patch_size': 64}, {'sensor': RGB, 'gsd': 0.5}, THREE),
    ('xBD', {'root': 'xview2'}, {'sensor': RGB, 'gsd': 0.5}, THREE),
    ('XView2', {'root': 'xview2'}, {'sensor': RGB, 'gsd': 0.5}, THREE),
]

#: Likewise, and what the error says.
REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ('AirQuality', {'root': 'air_quality'}, {'sensor': RGB}, 'expected samples with'),
    ('BRIGHTDFC2025', {'root': 'bright'}, {'sensor': RGB, 'gsd': 0.5}, 'its two dates are of two sensors'),
    ('CaFFe', {'root': 'caffe'}, {'sensor': RGB, 'gsd': 10}, 'the dataset has radar amplitude'),
    (
        'CopernicusBenchBiomassS3',
        {'root': 'copernicus/l3_biomass_s3'},
        {'sensor': 'modis'},
        'the dataset has Oa01_radiance',
    ),
    (
        'DigitalTyphoon',
        {'root': 'digital_typhoon', 'split_by': 'typhoon_id', 'min_feature_value': {'wind': 10}, 'sequence_length': 3},
        {'sensor': RGB, 'gsd': 5000},
        'the dataset has infrared',
    ),
    ('ETCI2021', {'root': 'etci2021'}, {'sensor': S1, 'gsd': 20}, 'pictures of 8 bits'),
    ('SKIPPD', {'root': 'skippd', 'val_split_pct': 0.4}, {'sensor': RGB, 'gsd': 1}, 'look up to the sky'),
    ('SustainBenchCropYield', {'root': 'sustainbench_crop_yield'}, {'sensor': 'modis', 'gsd': 500}, 'histograms'),
    (
        'TreeSatAI',
        {'root': 'treesatai'},
        {'sensor': NAIP, 'rename': {'image_aerial': 'image'}},
        "needs the key 'image_aerial'",
    ),
    ('TropicalCyclone', {'root': 'cyclone'}, {'sensor': RGB, 'gsd': 2000}, 'the dataset has infrared'),
]

#: Held by other tests, or by the test of their dataset below, as TorchGeo's test data lack them or are of another size.
ELSEWHERE = {
    'ChesapeakeCVPR': 'tests/test_configs.py',
    'HySpecNet11k': 'tests/test_configs.py',
    'PASTIS': 'tests/datamodules/wrapped/test_series.py',
    'PASTIS100': 'as PASTIS',
    'SSL4EOL': 'below',
    'SSL4EOS12': 'below',
    'SeasonalContrastS2': 'below',
    'Sentinel2CDL': 'below, its intersection',
    'Sentinel2EuroCrops': 'below, its intersection',
    'Sentinel2NCCM': 'below, its intersection',
    'Sentinel2SouthAmericaSoybean': 'below, its intersection',
}
#: No data in their format: they are built of parts whose tests are named in docs/datamodules.md.
UNSEEN = {
    'DLRSD',
    'DLRSDMultilabel',
    'FLAIRHUB',
    'FLAIRHUBToy',
    'OSCD100',
}
BASES = {'Base', 'Geo', 'NonGeo', 'SpaceNetBase'}


@pytest.fixture
def data(torchgeo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TorchGeo's test data, copied as some datasets unpack beside them, and without checksums of other versions."""
    for name, module in list(sys.modules.items()):
        if name.startswith('torchgeo.datasets') and hasattr(module, 'check_integrity'):
            monkeypatch.setattr(module, 'check_integrity', lambda path, md5=None, **_: os.path.isfile(path))
    monkeypatch.chdir(tmp_path)
    return torchgeo_data


def placed(arguments: dict[str, Any], data: Path) -> dict[str, Any]:
    """Arguments with paths in copies of TorchGeo's test data."""
    made = dict(arguments)
    for key in arguments.keys() & {'root', 'paths', 'naip_paths', 'chesapeake_paths'}:
        top, *rest = Path(arguments[key]).parts
        if not Path(top).exists():
            shutil.copytree(data / top, top)
        made[key] = os.path.join(top, *rest)
    return made


def first_batch(module: SensorDataModule) -> dict[str, Any]:
    """The first batch of the first split that has one."""
    for split, stage, state in (
        ('train', 'fit', 'training'), ('val', 'validate', 'validating'), ('test', 'test', 'testing'),
    ):  # fmt: skip
        flags = {name: name == state for name in ('training', 'validating', 'testing', 'predicting')}
        module.trainer = SimpleNamespace(precision='32-true', sanity_checking=False, **flags)
        module.setup(stage)
        try:
            raw = next(iter(getattr(module, f'{split}_dataloader')()))
        except StopIteration:
            continue
        batch = module.on_before_batch_transfer(raw, 0)
        batch = module.transfer_batch_to_device(batch, torch.device('cpu'), 0)
        return module.on_after_batch_transfer(batch, 0)
    raise AssertionError('no batch')


def build(name: str, arguments: dict[str, Any], options: dict[str, Any], data: Path) -> SensorDataModule:
    datamodule = getattr(torchgeo.datamodules, f'{name}DataModule')
    return SensorDataModule(datamodule(batch_size=1, num_workers=0, **placed(arguments, data)), **options)


@pytest.mark.filterwarnings('ignore')  # random pixels are no sensor's
@pytest.mark.parametrize(
    ('name', 'arguments', 'options', 'bands'), RIGHT, ids=lambda v: v if isinstance(v, str) else ''
)
def test_right(
    name: str, arguments: dict[str, Any], options: dict[str, Any], bands: tuple[str, ...], data: Path
) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        batch = first_batch(build(name, arguments, options, data))
    assert batch['selection'].band_names == bands
    assert batch['image'].shape[-3] == len(bands)
    assert batch['image'].isfinite().all()
    assert (batch['res'] > 0).all()
    assert not [str(w.message) for w in caught if 'does not name its channels' in str(w.message)]


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    ('name', 'arguments', 'options', 'reason'), REFUSED, ids=lambda v: v if isinstance(v, str) else ''
)
def test_refused(name: str, arguments: dict[str, Any], options: dict[str, Any], reason: str, data: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        first_batch(build(name, arguments, options, data))


def test_the_page_lists_every_datamodule(repo_root: Path) -> None:
    """Each of TorchGeo's datamodules is in one list here, and in the page with the verdict of that list."""
    right, refused = ({case[0] for case in cases} for cases in (RIGHT, REFUSED))
    every = {name.removesuffix('DataModule') for name in torchgeo.datamodules.__all__ if name.endswith('DataModule')}
    lists = (right, refused, set(ELSEWHERE), UNSEEN, BASES)
    assert sorted(name for names in lists for name in names) == sorted(every)
    page = (repo_root / 'docs/datamodules.md').read_text()
    rows = dict(re.findall(r'^\| `(\w+)DataModule`[^|]*\| (right|refused|not seen)', page, re.MULTILINE))
    assert rows.keys() == every - BASES
    for name in right | set(ELSEWHERE):
        assert rows[name] == 'right', name
    for name in refused:
        assert rows[name] == 'refused', name


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    ('make', 'sensor', 'bands', 'product'),
    [
        (lambda: SSL4EOS12('ssl4eo/s12', 's2a', 1), S2, TEN, False),
        (lambda: SSL4EOS12('ssl4eo/s12', 's2c', 1), S2, TEN, True),
        (lambda: SSL4EOS12('ssl4eo/s12', 's1', 1), S1, ('vv', 'vh'), False),
        (lambda: SSL4EOL('ssl4eo/l', 'oli_sr', 1), SR, SIX, True),
        (lambda: SeasonalContrastS2('seco', seasons=1, bands=('B4', 'B3', 'B2')), S2, ('blue', 'green', 'red'), True),
        (lambda: TreeSatAI('treesatai'), S2, TEN, False),
    ],
    ids=['s2a', 's2c', 's1', 'oli_sr', 'seco', 'treesatai'],
)
def test_datasets_alone(
    make: Callable[[], Any], sensor: str, bands: tuple[str, ...], product: bool, data: Path, tmp_path: Path
) -> None:
    for folder in ('ssl4eo', 'seco', 'treesatai'):
        shutil.copytree(data / folder, tmp_path / folder)
    dataset = make()
    rename = {'image_s2': 'image'} if isinstance(dataset, TreeSatAI) else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        sample = SensorDataset(dataset, sensor, rename=rename)[0]
    assert sample['wavelength'].tolist() == pytest.approx(get_sensor(sensor).select(bands).wavelengths)
    assert any(f'{type(dataset).__name__} holds' in str(w.message) for w in caught) == product
    if isinstance(dataset, SSL4EOS12):  # its own x, y (of its coarsest band) and t, in float32
        assert sample['lon'] == pytest.approx(float(sample['x'][0]), abs=1e-3)
        assert sample['lat'] == pytest.approx(float(sample['y'][0]), abs=1e-3)
        assert sample['time'] == pytest.approx(float(sample['t'][0]), abs=43200 + 128)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    ('name', 'arguments', 'options', 'pattern'),
    [
        ('BigEarthNet', {'root': 'bigearthnet/v1', 'bands': 's2', 'num_classes': 19}, {'sensor': S2}, '**/*_B02.tif'),
        ('CloudCoverDetection', {'root': 'ref_cloud_cover_detection_challenge_v1'}, {'sensor': S2}, '**/B02.tif'),
        ('SEN12MS', {'root': 'sen12ms', 'band_set': 'all'}, {'sensor': S2}, '**/*_s2_*.tif'),
        ('SolarPlantsBrazil', {'root': 'solar_plants_brazil'}, {'sensor': S2, 'scale': 10000}, '**/input/*.tif'),
        ('USAVars', {'root': 'usavars'}, {'sensor': NAIP}, '**/*.tif'),
    ],
    ids=lambda v: v if isinstance(v, str) and '*' not in v else '',
)
def test_places_are_those_of_the_files(
    name: str, arguments: dict[str, Any], options: dict[str, Any], pattern: str, data: Path
) -> None:
    """Each chip lies where rasterio and pyproj have the center of one of the dataset's files."""
    module = build(name, arguments, options, data)
    module.trainer = SimpleNamespace(
        precision='32-true', sanity_checking=False, training=True, validating=False, testing=False, predicting=False
    )
    module.setup('fit')
    dataset = module.train_dataset or module.dataset
    centers = []
    for path in Path(Path(arguments['root']).parts[0]).glob(pattern):
        with rasterio.open(path) as file:
            x, y = file.transform * (file.width / 2, file.height / 2)
            centers.append(pyproj.Transformer.from_crs(file.crs, 'EPSG:4326', always_xy=True).transform(x, y))
    sample = dataset[0]
    distances = [math.hypot(float(sample['lon']) - lon, float(sample['lat']) - lat) for lon, lat in centers]
    assert min(distances) < 1e-9


@pytest.mark.usefixtures('data')
def test_no_data_no_words() -> None:
    """What TorchGeo says of missing data is not hidden."""
    wrapped = torchgeo.datamodules.DLRSDDataModule(root='nowhere')
    with pytest.raises(DatasetNotFoundError):
        first_batch(SensorDataModule(wrapped, RGB, gsd=0.3))
