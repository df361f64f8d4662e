# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""From scenes to a table of classes or values, beside the task's own answers for each chip."""

from pathlib import Path
from typing import Any

import geopandas as gpd
import lightning.pytorch as pl
import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from torchgeo_clay.callbacks import PredictionWriter
from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.datamodules import SceneDataModule
from torchgeo_clay.sensors import get_sensor
from torchgeo_clay.tasks import ClayClassification, ClayRegression, ClaySemanticSegmentation

TINY = {'model': 'clay_tiny_patch8', 'weights': False}
NAIP = get_sensor('naip')


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two NAIP scenes of two chips each, one chip without data."""
    folder = tmp_path / 'scenes'
    folder.mkdir()
    for i, name in enumerate('ab'):
        pixels = np.random.default_rng(i).integers(1, 255, (4, 32, 64)).astype(np.uint8)
        pixels[:, :, 32:] *= i
        profile = {'count': 4, 'height': 32, 'width': 64, 'dtype': 'uint8', 'crs': 'EPSG:32611', 'nodata': 0}
        transform = from_origin(500_000 + 64 * i, 3_600_000, 1, 1)
        with rasterio.open(folder / f'{name}.tif', 'w', driver='GTiff', transform=transform, **profile) as file:
            file.write(pixels)
            file.descriptions = ('red', 'green', 'blue', 'nir')
            file.update_tags(DATETIME='2020-04-15T17:00:00')
    return folder


def predict(task: Any, scenes: Path, out: Path, **options: Any) -> gpd.GeoDataFrame:
    trainer = pl.Trainer(
        accelerator='cpu', logger=False, enable_progress_bar=False, callbacks=PredictionWriter(str(out), **options)
    )
    data = SceneDataModule(str(scenes), 'naip', chip=32, batch_size=2)
    trainer.predict(task, datamodule=data, return_predictions=False)
    return gpd.read_parquet(out)


def answers(task: Any, scenes: Path, table: gpd.GeoDataFrame) -> torch.Tensor:
    """The task's answer for each row, of pixels read by rasterio."""
    data = SceneDataModule(str(scenes), 'naip', chip=32)
    data.setup('predict')
    found = []
    for _, row in table.iterrows():
        with rasterio.open(row['source']) as file:
            pixels = file.read(window=rasterio.windows.Window(row['col'], row['row'], 32, 32))
        (raster,) = data.rasters.values()
        scene = [s.path for s in raster.scenes].index(row['source'])
        sample = raster.patch(scene, row['row'], row['col'], (32, 32))
        batch = {key: value[None] for key, value in sample.items()}
        image = NAIP.normalize(torch.from_numpy(pixels)[None])
        with task.clay.conditioned_on(Conditioning.from_batch({**batch, 'image': image})), torch.no_grad():
            found.append(task(image)[0])
    return torch.stack(found)


def test_classes_and_probabilities(scenes: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = ClayClassification(**TINY, num_classes=3, labels=['field', 'forest', 'town']).eval()
    table = predict(task, scenes, tmp_path / 'out.parquet')
    assert [*table.columns[:4]] == ['class', 'probability_field', 'probability_forest', 'probability_town']
    assert len(table) == 3  # the chip without data has no row
    expected = answers(task, scenes, table).softmax(1).numpy()
    np.testing.assert_allclose(table.iloc[:, 1:4].to_numpy(), expected, atol=1e-6)
    assert table['class'].tolist() == [['field', 'forest', 'town'][i] for i in expected.argmax(1)]
    corners = table.to_crs('EPSG:32611').geometry.bounds
    np.testing.assert_allclose(corners['minx'], 500_000 + np.array([0, 64, 96]), atol=1e-3)
    assert table['datetime'].dt.strftime('%Y-%m-%d %H').unique().tolist() == ['2020-04-15 17']


def test_a_scene_without_data_has_no_row(scenes: Path, tmp_path: Path) -> None:
    with rasterio.open(scenes / 'a.tif', 'r+') as file:
        file.write(np.zeros((4, 32, 64), np.uint8))
    for task in (ClayClassification(**TINY, num_classes=3), ClayClassification(**TINY, task='binary', loss='bce')):
        table = predict(task.eval(), scenes, tmp_path / f'{task.hparams["task"]}.parquet')
        assert {Path(source).name for source in table['source']} == {'b.tif'}


def test_two_classes_in_one_output(scenes: Path, tmp_path: Path) -> None:
    task = ClayClassification(**TINY, task='binary', loss='bce').eval()
    table = predict(task, scenes, tmp_path / 'out.parquet', classes=['dry', 'flooded'])
    wet = answers(task, scenes, table).sigmoid().numpy()[:, 0]
    np.testing.assert_allclose(table['probability_flooded'], wet, atol=1e-6)
    np.testing.assert_allclose(table['probability_dry'], 1 - wet, atol=1e-6)
    assert table['class'].tolist() == np.where(wet > 0.5, 'flooded', 'dry').tolist()


def test_values_of_a_regression(scenes: Path, tmp_path: Path) -> None:
    task = ClayRegression(**TINY, num_outputs=2, labels=['height', 'mass']).eval()
    table = predict(task, scenes, tmp_path / 'out.parquet')
    np.testing.assert_allclose(table[['height', 'mass']].to_numpy(), answers(task, scenes, table).numpy(), atol=1e-6)
    assert 'class' not in table


def test_what_does_not_fit(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'out: expected.*\.parquet'):
        PredictionWriter('table.csv')
    out = tmp_path / 'out.parquet'
    with pytest.raises(ValueError, match='expected a trained model'):
        predict(ClayClassification('clay_tiny_patch8', num_classes=3), scenes, out)
    with pytest.raises(ValueError, match='expected 3 names, got 1: a'):
        predict(ClayClassification(**TINY, num_classes=3), scenes, out, classes=['a'])
    with pytest.raises(ValueError, match='Use RasterWriter for tasks of pixels'):
        predict(ClaySemanticSegmentation('unet', 'clay_tiny_patch8', False, num_classes=3), scenes, out)
    task = ClayClassification(**TINY, num_classes=3)
    task.trained_on = {'sentinel-2-l2a': ['red', 'green', 'blue']}
    with pytest.raises(
        ValueError, match=r'No scene to predict: expected a sensor and bands that the model was trained on'
    ):
        predict(task, scenes, out)
    assert len(predict(task, scenes, out, any_sensor=True)) == 3
