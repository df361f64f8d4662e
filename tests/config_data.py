# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Which data, and how little of it, each downstream configuration is tried on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

REPO = Path(__file__).resolve().parents[1]
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
    return {'batch_size': 2, 'patch_size': 16, 'length': 2}, {'paths': str(root)}


SCENES = {'scenes_per_sensor': 5, 'size': 32, 'sensors': ['sentinel-2-l2a', 'naip']}


def synthetic(root: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Options of `SyntheticDataModule`, which wraps nothing and writes its own scenes."""
    return {'root': str(root / 'scenes'), 'synthetic': SCENES, 'batch_size': 2, 'patch_size': 16}, {}


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
    'clay_synthetic_classification': synthetic,
    'clay_synthetic_regression': synthetic,
    'clay_synthetic_segmentation': synthetic,
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
