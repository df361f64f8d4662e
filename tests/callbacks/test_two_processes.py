# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Tables of predictions and of objects, and chips of a table, on two processes of `ddp` as on one; a killed run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.transform import from_origin

pytestmark = pytest.mark.slow

_SCRIPT = """
import json, os, sys
import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback
from test_detection_writer import CHIP, STRIDE, planted
from torchgeo_clay.callbacks import DetectionWriter, PredictionWriter
from torchgeo_clay.datamodules import ChipTableDataModule, SceneDataModule
from torchgeo_clay.tasks import ClayClassification

inputs, out, devices, kill = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
os.makedirs(out, exist_ok=True)


class Batches(Callback):
    'Counts batches, and ends the process after some.'

    def on_predict_batch_end(self, trainer, *args):
        self.count = getattr(self, 'count', 0) + 1
        if self.count == kill:
            os._exit(9)


def run(*callbacks):
    return pl.Trainer(
        accelerator='cpu', devices=devices, strategy='ddp' if devices > 1 else 'auto', logger=False, max_epochs=1,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, callbacks=[*callbacks],
    )


batches = Batches()
torch.manual_seed(0)
writer = DetectionWriter(f'{out}/objects.parquet', classes=['ship', 'house'])
data = SceneDataModule(f'{inputs}/scenes', 'linz', chip=CHIP, stride=STRIDE, batch_size=3, unit_size=None)
run(writer, batches).predict(planted(), data, return_predictions=False)
torch.manual_seed(0)
task = ClayClassification('clay_tiny_patch8', weights=False, num_classes=2)
data = SceneDataModule(f'{inputs}/scenes', 'linz', chip=CHIP, batch_size=3)
run(PredictionWriter(f'{out}/classes.parquet')).predict(task, datamodule=data, return_predictions=False)
chips = ChipTableDataModule(f'{inputs}/chips.csv', f'{inputs}/scenes', 'linz', batch_size=2)
trainer = run()
trainer.fit(task, chips)
torch.manual_seed(0)
fresh = ClayClassification('clay_tiny_patch8', weights=False, num_classes=2)
trainer = run()
(metrics,) = trainer.test(fresh, chips, verbose=False)
if trainer.is_global_zero:
    with open(f'{out}/metrics.json', 'w') as file:
        json.dump({**metrics, 'batches': batches.count}, file)
"""


def write_scenes(folder: Path) -> None:
    """Scenes whose red is a pixel's column and whose green is its row, as the planted detector wants them."""
    folder.mkdir()
    for i, name in enumerate('abcd'):
        pixels = np.full((3, 150, 170), 100 + i, np.uint8)
        pixels[0], pixels[1] = np.arange(1, 171), np.arange(1, 151)[:, None]
        profile: dict[str, Any] = {'height': 150, 'width': 170, 'count': 3, 'dtype': 'uint8', 'crs': 'EPSG:32633'}
        where = from_origin(500_000 + 500 * i, 5_600_000, 0.5, 0.5)
        with rasterio.open(folder / f'{name}.tif', 'w', driver='GTiff', transform=where, **profile) as file:
            file.write(pixels)
            file.descriptions = ('red', 'green', 'blue')
            file.update_tags(DATETIME='2021-03-04T05:06:07')


def run(inputs: Path, out: Path, devices: int = 1, kill: int = 0) -> dict[str, float]:
    (out.parent / 'script.py').write_text(_SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])
    command = [sys.executable, '-W', 'ignore', out.parent / 'script.py', inputs, out, str(devices), str(kill)]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, 'PYTHONPATH': path}
    )
    assert ended.returncode == (9 if kill else 0), ended.stderr
    return json.loads((out / 'metrics.json').read_text()) if not kill else {}


def table(path: Path) -> gpd.GeoDataFrame:
    found = gpd.read_parquet(path)
    return found.sort_values(['source', 'row', 'col'], ignore_index=True)


def same(first: Path, second: Path) -> None:
    """The rows of two tables are equal, numbers to rounding."""
    one, two = table(first), table(second)
    assert len(one) > 10
    pd.testing.assert_frame_equal(
        pd.DataFrame(one.drop(columns='geometry')), pd.DataFrame(two.drop(columns='geometry'))
    )
    assert one.geometry.geom_equals_exact(two.geometry, 1e-9).all()


def test_two_processes_and_a_killed_run_write_what_one_does(tmp_path: Path) -> None:
    inputs = tmp_path / 'in'
    inputs.mkdir()
    write_scenes(inputs / 'scenes')
    rows = [{'path': f'{name}.tif', 'label': f'class {i % 2}'} for i, name in enumerate('abcd')]
    pd.DataFrame([{**row, 'split': split} for split in ('train', 'val', 'test') for row in rows]).to_csv(
        inputs / 'chips.csv', index=False
    )
    one = run(inputs, tmp_path / 'one')
    two = run(inputs, tmp_path / 'two', devices=2)
    for name in ('objects', 'classes'):
        same(tmp_path / f'one/{name}.parquet', tmp_path / f'two/{name}.parquet')
    assert two.pop('batches') < one['batches']
    assert two == pytest.approx({key: value for key, value in one.items() if key != 'batches'}, abs=1e-5)
    run(inputs, tmp_path / 'killed', kill=one['batches'] - 1)
    assert not (tmp_path / 'killed/objects.parquet').exists()
    again = run(inputs, tmp_path / 'killed')
    same(tmp_path / 'one/objects.parquet', tmp_path / 'killed/objects.parquet')
    assert again['batches'] < one['batches']  # scenes that were complete are not computed again
