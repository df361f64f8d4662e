# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Which data, and how little of it, each configuration is tried on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import yaml
from object_data import write_vhr10
from rasterio.transform import from_origin
from shapely import box

REPO = Path(__file__).resolve().parents[1]
CONFIGS = sorted((REPO / 'configs').glob('*.yaml'))
PRETRAINING = [path for path in CONFIGS if path.stem.startswith('clay_pretrain')]
# for `torchgeo predict`
PREDICTION = [path for path in CONFIGS if path.stem in ('clay_detect', 'clay_embed', 'clay_map')]
DOWNSTREAM = [path for path in CONFIGS if path not in [*PRETRAINING, *PREDICTION]]
TORCHGEO_DATA = REPO / '../shared/data/torchgeo'

#: (folder to write to) → options of the wrapped datamodule and of the dataset.
Options = Callable[[Path], tuple[Mapping[str, Any], Mapping[str, Any]]]


def shared(folder: str, init: Mapping[str, Any] | None = None, **dataset: Any) -> Options:
    """Options for TorchGeo's own test data in ../shared."""

    def shared_options(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        root = str((TORCHGEO_DATA / folder).resolve())
        return {'batch_size': 2, **(init or {})}, {'root': root, **dataset}

    return shared_options


def write_l8biome(root: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Write five scenes as L8 Biome has them: eleven bands and a mask, side by side."""
    rng = np.random.default_rng(0)
    for day in range(5):
        name = f'LC8001001201408{day}LGN00'
        where = {'crs': 'EPSG:32633', 'transform': from_origin(500_000 + 3000 * day, 5_600_000, 30, 30)}
        size = {'driver': 'GTiff', 'height': 40, 'width': 40}
        image = rng.integers(7000, 20000, (11, 40, 40)).astype(np.uint16)
        mask = rng.choice(np.array([0, 64, 128, 192, 255], dtype=np.uint8), (1, 40, 40))
        (root / name).mkdir(parents=True)
        for file, pixels in ((f'{name}.TIF', image), (f'{name}_fixedmask.TIF', mask)):
            profile = {**size, **where, 'count': len(pixels), 'dtype': pixels.dtype.name}
            with rasterio.open(root / name / file, 'w', **profile) as target:
                target.write(pixels)
    return {'batch_size': 2, 'patch_size': 16, 'length': 4}, {'paths': str(root)}


#: Dates of the patches that :func:`write_pastis` writes, as PASTIS' table has them; their number varies.
PASTIS_DATES = (20180917, 20181216, 20190424, 20190721)


def write_pastis(root: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Write ten patches as PASTIS-R has them: of Sentinel-2 and Sentinel-1, two to four dates each."""
    rng = np.random.default_rng(0)
    folder = root / 'PASTIS-R'
    for name in ('DATA_S2', 'DATA_S1A', 'ANNOTATIONS'):
        (folder / name).mkdir(parents=True)
    rows, corners = [], []
    for patch in range(10):
        dates = PASTIS_DATES[: 2 + patch % 3]
        s2 = rng.integers(200, 4000, (len(dates), 10, 32, 32)).astype(np.int16)
        s1 = rng.normal(-12, 4, (len(dates), 3, 32, 32)).astype(np.float32)
        np.save(folder / f'DATA_S2/S2_{patch}.npy', s2)
        np.save(folder / f'DATA_S1A/S1A_{patch}.npy', s1)
        np.save(folder / f'ANNOTATIONS/TARGET_{patch}.npy', rng.integers(0, 20, (3, 32, 32)).astype(np.uint8))
        numbered = json.dumps({str(i): date for i, date in enumerate(dates)})
        rows.append({'ID_PATCH': patch, 'Fold': 1 + patch % 5, 'dates-S2': numbered, 'dates-S1A': numbered})
        corners.append((800_000 + 1280 * patch, 6_500_000))
    geometry = [box(x, y, x + 320, y + 320) for x, y in corners]
    geopandas.GeoDataFrame(rows, geometry=geometry, crs='EPSG:2154').to_file(folder / 'metadata.geojson')
    return {'batch_size': 2, 'padding_length': 5}, {'root': str(root)}


SCENES = {'scenes_per_sensor': 5, 'size': 32, 'sensors': ['sentinel-2-l2a', 'naip']}


def synthetic(root: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Options of `SyntheticDataModule`, which wraps nothing and writes its own scenes."""
    return {'root': str(root / 'scenes'), 'synthetic': SCENES, 'batch_size': 2, 'patch_size': 16}, {}


def houses(root: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Options of `SyntheticDataModule` for scenes that have houses."""
    scenes = {'scenes_per_sensor': 5, 'size': 192, 'sensors': ['linz']}
    return {'root': str(root / 'scenes'), 'synthetic': scenes, 'batch_size': 1, 'patch_size': 96}, {}


def vhr10(root: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Write images of VHR-10."""
    return {'batch_size': 2, 'patch_size': 64}, write_vhr10(root)


EUROSAT = shared('eurosat')
CHESAPEAKE = {f'{split}_splits': ['de-test'] for split in ('train', 'val', 'test')}

#: Name of the configuration → its data. A configuration that is missing here fails a test.
DATA: Mapping[str, Options] = {
    'clay_biomassters': shared(
        'biomassters', {'val_split': 0.5, 'test_split': 0.0, 'batch_size': 1}, months=['September']
    ),
    'clay_chesapeake': shared('chesapeake/cvpr', {**CHESAPEAKE, 'patch_size': 32, 'length': 2}),
    'clay_eurosat_full': EUROSAT,
    'clay_eurosat_lora': EUROSAT,
    'clay_eurosat_probe': EUROSAT,
    'clay_hyspecnet': shared('hyspecnet', strategy='easy'),
    'clay_l8biome': write_l8biome,
    'clay_landcoverai': shared('landcoverai'),
    'clay_levircd': shared('levircd/levircd', {'patch_size': 32}),
    'clay_mmflood': shared('mmflood', {'patch_size': 8, 'length': 4}),
    'clay_pastis': write_pastis,
    'clay_synthetic_crops': lambda root: ({'batch_size': 2}, {'dates': ['05-05', '07-25'], 'patch_size': 32}),
    'clay_synthetic_classification': synthetic,
    'clay_synthetic_detection': houses,
    'clay_synthetic_instances': houses,
    'clay_synthetic_regression': synthetic,
    'clay_synthetic_segmentation': synthetic,
    'clay_vhr10_detection': vhr10,
    'clay_vhr10_instances': vhr10,
}


def options_of(name: str, root: Path) -> list[str]:
    """Options of the command line that give a configuration its data, at a size that tests can afford."""

    def written(prefix: str, options: Mapping[str, Any]) -> list[str]:
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in options.items()}
        return [f'--data.{prefix}{key}={text}' for key, text in texts.items()]

    init, dataset = DATA[name](root)
    if not dataset:
        return written('', init)
    return written('datamodule.', {'num_workers': 0, **init}) + written('datamodule.dict_kwargs.', dataset)


def smaller(config: Path, scenes: dict[str, Any], output: Path) -> list[str]:
    """Options that make a run of a configuration tiny, and let it run on a CPU and offline."""
    return [
        f'--config={config}',
        '--model.model=clay_mae_tiny_patch8',
        '--model.teacher=null',
        *(f'--data.{name}={json.dumps(value)}' for name, value in scenes.items() if name != 'root'),
        f'--data.root={scenes["root"]}',
        '--data.num_workers=0',
        '--trainer.accelerator=cpu',
        '--trainer.devices=1',
        '--trainer.strategy=auto',
        '--trainer.max_epochs=1',
        '--trainer.limit_train_batches=3',
        '--trainer.limit_val_batches=3',
        '--trainer.log_every_n_steps=1',
        '--trainer.enable_progress_bar=false',
        f'--trainer.default_root_dir={output}',
        f'--trainer.logger.save_dir={output}',
    ]


def one_step(config: Path, folder: Path) -> list[str]:
    """Options that leave of a downstream configuration one step of a tiny model, on a CPU and offline."""
    written = yaml.safe_load(config.read_text())
    kwargs = written['data']['init_args'].get('datamodule', {}).get('dict_kwargs', {})
    options = written['model']['init_args']
    key = 'backbone' if 'backbone' in options else 'model'
    return [
        f'--config={config}',
        f'--model.{key}={options[key].rsplit("_", 2)[0]}_tiny_patch8',
        '--model.weights=null',
        *options_of(config.stem, folder / 'data'),
        *(['--data.datamodule.dict_kwargs.download=false'] if 'download' in kwargs else []),
        '--trainer.accelerator=cpu',
        '--trainer.precision=32-true',
        '--trainer.max_epochs=1',
        '--trainer.check_val_every_n_epoch=1',
        '--trainer.limit_train_batches=1',
        '--trainer.limit_val_batches=2',
        '--trainer.num_sanity_val_steps=0',
        '--trainer.enable_progress_bar=false',
        '--trainer.enable_model_summary=false',
        '--trainer.logger=false',  # which would have TorchGeo plot, and some of its test data has fewer classes
        f'--trainer.default_root_dir={folder}',
    ]
