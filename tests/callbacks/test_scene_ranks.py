# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Prediction on four processes, one of which finds nothing to do and one a broken scene."""

import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

import torchgeo_clay
from torchgeo_clay.tasks import ClaySemanticSegmentation

_SCRIPT = """
import sys, torch
import lightning.pytorch as pl
from torchgeo_clay.callbacks import EmbeddingWriter, RasterWriter
from torchgeo_clay.datamodules import SceneDataModule
from torchgeo_clay.tasks import ClayEmbedding, ClaySemanticSegmentation

folder = sys.argv[1]
options = {'accelerator': 'cpu', 'devices': 4, 'strategy': 'ddp_fork', 'logger': False, 'enable_progress_bar': False}
embedding = ClayEmbedding('clay_tiny_patch8', f'{folder}/w.safetensors')
torch.manual_seed(0)
segmentation = ClaySemanticSegmentation(backbone='clay_tiny_patch8', weights=False, num_classes=3)
for task, writer in (
    (embedding, EmbeddingWriter(f'{folder}/e.parquet', on_skipped='warn')),
    (segmentation, RasterWriter(f'{folder}/maps', on_skipped='warn')),
):
    data = SceneDataModule(f'{folder}/in', chip=32, stride=24, unit_size=None)
    pl.Trainer(callbacks=[writer], **options).predict(task, datamodule=data, return_predictions=False)
"""


def write_scene(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    profile = {'driver': 'GTiff', 'count': 4, 'height': 50, 'width': 70, 'dtype': 'uint8', 'compress': 'deflate'}
    where = {'crs': 'EPSG:32611', 'transform': from_origin(500_000, 3_600_000, 1, 1)}
    with rasterio.open(path, 'w', **profile, **where) as file:
        file.write(np.random.default_rng(seed).integers(1, 255, (4, 50, 70)).astype(np.uint8))
        file.descriptions = ('red', 'green', 'blue', 'nir')
        file.update_tags(SENSOR='NAIP')


@pytest.mark.slow
def test_four_processes_write_what_one_does(tmp_path: Path) -> None:
    for seed, name in enumerate('abc'):
        write_scene(tmp_path / f'in/{name}.tif', seed)
    torch.manual_seed(0)
    torchgeo_clay.models.save_encoder(torchgeo_clay.clay_tiny_patch8(), tmp_path / 'w.safetensors')
    expected = torchgeo_clay.embed(
        tmp_path / 'in', tmp_path / 'w.safetensors', model='clay_tiny_patch8', chip=32, stride=24
    )
    torch.manual_seed(0)
    task = ClaySemanticSegmentation(backbone='clay_tiny_patch8', weights=False, num_classes=3)
    maps = torchgeo_clay.map_scenes(task, tmp_path / 'in', tmp_path / 'expected', chip=32, stride=24)
    with open(tmp_path / 'in/c.tif', 'rb+') as file:  # pixels, not the header
        file.seek((tmp_path / 'in/c.tif').stat().st_size // 2)
        file.write(bytes(2000))
    command = [sys.executable, '-W', 'ignore', '-c', _SCRIPT, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert ended.returncode == 0, ended.stderr
    expected = expected[~expected['source'].str.endswith('c.tif')]
    found = gpd.read_parquet(tmp_path / 'e.parquet')
    assert found.drop(columns='embedding').equals(expected.drop(columns='embedding'))
    np.testing.assert_allclose(np.stack(found['embedding']), np.stack(expected['embedding']), rtol=0, atol=1e-5)
    assert sorted(path.name for path in (tmp_path / 'maps').iterdir()) == ['a.tif', 'b.tif']
    for path in maps[:2]:
        with rasterio.open(path) as one, rasterio.open(tmp_path / 'maps' / path.name) as four:
            assert (one.read() == four.read()).mean() > 0.99  # sums are rounded differently
