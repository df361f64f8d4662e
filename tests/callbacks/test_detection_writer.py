# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""DetectionWriter: objects of whole scenes by a planted detector, each once and in its place, against geopandas."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
import torch
from lightning.pytorch import Trainer
from rasterio.transform import from_origin
from torch import Tensor, nn

from torchgeo_clay.callbacks import DetectionWriter
from torchgeo_clay.datamodules import SceneDataModule
from torchgeo_clay.inference.predictions import merge_objects
from torchgeo_clay.tasks import ClayClassification, ClayInstanceSegmentation, ClayObjectDetection

TINY = 'clay_tiny_patch8'
CHIP, STRIDE, HEIGHT, WIDTH = 64, 40, 150, 170
#: Left, top, right, bottom in pixels of the scene; the label is the position modulo 2. The last crosses its edge.
OBJECTS = ((3.25, 4.5, 15, 20), (58, 60, 78.5, 77.75), (100.125, 30, 118, 52), (35, 100, 50, 118), (160, 140, 178, 158))
TRANSFORM, CRS = from_origin(500_000, 5_600_000, 0.5, 0.5), 'EPSG:32633'


class Planted(nn.Module):
    """Finds the objects in the values: pixels hold their position in the scene, so that a chip knows where it lies."""

    def __init__(self, inner: nn.Module, masks: bool) -> None:
        super().__init__()
        self.inner, self.masks = inner, masks

    def forward(self, images: Any, targets: Any = None) -> list[dict[str, Tensor]]:
        return [self.find(image) for image in images]

    def find(self, image: Tensor) -> dict[str, Tensor]:
        red, green = (image[i] * std + mean for i, (mean, std) in enumerate(self.scale[:2]))
        corner = torch.tensor([float(red[0, 0].round()) - 1, float(green[0, 0].round()) - 1])
        boxes, labels = [], []
        for i, known in enumerate(OBJECTS):
            box = torch.tensor(known) - corner.repeat(2)
            box = box.clamp(0, CHIP)
            if (box[2:] - box[:2] > 1).all():
                boxes.append(box)
                labels.append(i % 2)
        found = {
            'boxes': torch.stack(boxes) if boxes else torch.zeros(0, 4),
            'labels': torch.tensor(labels, dtype=torch.int64),
            'scores': torch.linspace(0.9, 0.6, len(boxes)) if boxes else torch.zeros(0),
        }
        if self.masks:
            cells = torch.arange(CHIP) + 0.5
            x = (cells > found['boxes'][:, :1]) & (cells < found['boxes'][:, 2:3])
            y = (cells > found['boxes'][:, 1:2]) & (cells < found['boxes'][:, 3:])
            found['masks'] = (x[:, None, None, :] & y[:, None, :, None]).float()
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Callable[[str], Path]:
    """Write a scene of LINZ' three bands: its red is a pixel's column, its green the row, both plus one."""

    def write(name: str = 'scene') -> Path:
        pixels = np.full((3, HEIGHT, WIDTH), 100, np.uint8)
        pixels[0], pixels[1] = np.arange(1, WIDTH + 1), np.arange(1, HEIGHT + 1)[:, None]
        path = tmp_path / 'linz' / f'{name}.tif'
        path.parent.mkdir(exist_ok=True)
        profile = {'driver': 'GTiff', 'height': HEIGHT, 'width': WIDTH, 'count': 3, 'dtype': 'uint8', 'crs': CRS}
        with rasterio.open(path, 'w', transform=TRANSFORM, **profile) as file:
            file.write(pixels)
            file.descriptions = ('red', 'green', 'blue')
            file.update_tags(DATETIME='2021-03-04T05:06:07')
        return path

    return write


def planted(kind: Any = ClayObjectDetection) -> Any:
    masks = kind is ClayInstanceSegmentation
    task = kind('mask-rcnn' if masks else 'fcos', TINY, weights=False, num_classes=2)
    task.model = Planted(task.model, masks)
    sensor = SceneDataModule('x', 'linz').sensor
    task.model.scale = [*zip(sensor.mean, sensor.std, strict=True)]
    task.hparams['model'] = 'fcos'  # whose labels begin at 0
    return task


def run(task: Any, folder: Path, out: Path, stride: int = STRIDE, **options: Any) -> gpd.GeoDataFrame:
    data = SceneDataModule(str(folder), 'linz', chip=CHIP, stride=stride, batch_size=3, unit_size=None)
    writer = DetectionWriter(str(out), classes=['ship', 'house'], **options)
    trainer = Trainer(
        accelerator='cpu', logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[writer]
    )
    trainer.predict(task, data, return_predictions=False)
    return gpd.read_parquet(out)


def test_each_object_once_and_in_its_place(scene: Callable[[str], Path], tmp_path: Path) -> None:
    path = scene('scene')
    table = run(planted(), path.parent, tmp_path / 'objects.parquet')
    assert table.crs == 'EPSG:4326'
    table = table.sort_values('col', ignore_index=True)
    order = np.argsort([box[0] for box in OBJECTS])
    expected = np.minimum(np.array(OBJECTS)[order], [WIDTH, HEIGHT, WIDTH, HEIGHT])
    assert len(table) == len(OBJECTS)
    found = table[['col', 'row', 'width', 'height']].to_numpy()
    np.testing.assert_allclose(found[:, :2], expected[:, :2], atol=1e-6)
    np.testing.assert_allclose(found[:, 2:], expected[:, 2:] - expected[:, :2], atol=1e-6)
    # the geometry, brought back to pixels by pyproj
    back = pyproj.Transformer.from_crs('EPSG:4326', CRS, always_xy=True)
    for polygon, box in zip(table.geometry, expected, strict=True):
        x, y = back.transform(*polygon.exterior.xy)
        columns, rows = (np.array(x) - TRANSFORM.c) / 0.5, (TRANSFORM.f - np.array(y)) / 0.5
        bounds = columns.min(), rows.min(), columns.max(), rows.max()
        np.testing.assert_allclose(bounds, box, atol=1e-6)
    assert table['label'].tolist() == [int(i) % 2 for i in order]
    assert table['class'].tolist() == [('ship', 'house')[i % 2] for i in order]
    assert set(table['source']) == {str(path)}
    assert set(table['datetime'].astype(str)) == {'2021-03-04 05:06:07+00:00'}
    assert table['score'].between(0.6, 0.9).all()


def test_masks_are_outlines(scene: Callable[[str], Path], tmp_path: Path) -> None:
    path = scene('scene')
    table = run(planted(ClayInstanceSegmentation), path.parent, tmp_path / 'objects.parquet')
    assert len(table) == len(OBJECTS)
    for _, row in table.to_crs(CRS).iterrows():
        x, y = row.geometry.exterior.xy
        columns, rows = (np.array(x) - TRANSFORM.c) / 0.5, (TRANSFORM.f - np.array(y)) / 0.5
        # whole pixels, those whose centers the box covers
        np.testing.assert_allclose(columns, columns.round(), atol=1e-6)
        assert columns.min() == pytest.approx(row['col'], abs=0.5 + 1e-6)
        assert rows.max() == pytest.approx(row['row'] + row['height'], abs=0.5 + 1e-6)


def test_objects_larger_than_the_overlap_are_not_lost(scene: Callable[[str], Path], tmp_path: Path) -> None:
    """Without overlap an object at an edge is in parts, of which none is dropped."""
    path = scene('scene')
    table = run(planted(), path.parent, tmp_path / 'objects.parquet', stride=CHIP)
    covered = shapely.union_all(
        [shapely.box(r.col, r.row, r.col + r.width, r.row + r.height) for r in table.itertuples()]
    )
    for box in OBJECTS:
        whole = shapely.box(*box).intersection(shapely.box(0, 0, WIDTH, HEIGHT))
        assert covered.intersection(whole).area > 0.85 * whole.area


def test_runs_continue_and_scenes_without_objects_have_no_row(scene: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / 'objects.parquet'
    folder = scene('a').parent
    scene('b')
    task = planted()
    first = run(task, folder, out)
    assert first.groupby('source').size().tolist() == [len(OBJECTS)] * 2
    stamp = out.stat().st_mtime_ns
    assert len(run(task, folder, out)) == len(first)
    assert out.stat().st_mtime_ns == stamp  # of the same run: there already
    none = run(task, folder, out, score=0.95, overwrite=True)
    assert len(none) == 0
    assert none.crs == 'EPSG:4326'
    assert list(none.columns) == list(first.columns)


def test_refused(scene: Callable[[str], Path], tmp_path: Path) -> None:
    folder, out = scene('scene').parent, tmp_path / 'objects.parquet'
    with pytest.raises(ValueError, match='score: expected a share'):
        DetectionWriter(str(out), score=2)
    with pytest.raises(ValueError, match='Use RasterWriter'):
        run(ClayClassification(TINY, weights=False, num_classes=2), folder, out)
    task = planted()
    task.hparams['num_classes'] = 3
    with pytest.raises(ValueError, match='classes: expected 3 names, got 2'):
        run(task, folder, out)
    data = SceneDataModule(str(folder), 'linz', chip=CHIP)
    with pytest.raises(ValueError, match='unit_size: null'):
        Trainer(accelerator='cpu', logger=False, callbacks=[DetectionWriter(str(out))]).predict(planted(), data)


def test_whole_boxes_win_over_cut_ones() -> None:
    boxes = torch.tensor(
        [[0, 0, 10, 10], [0, 0, 6, 10], [0, 0, 6, 10], [40, 0, 50, 10], [41, 0, 51, 10], [80, 0, 90, 10]]
    ).double()
    labels = torch.tensor([0, 0, 1, 0, 0, 0])
    scores = torch.tensor([0.5, 0.9, 0.8, 0.6, 0.7, 0.4]).double()
    cut = torch.tensor([False, True, True, False, False, True])
    assert merge_objects(boxes, labels, scores, cut, 0.5).tolist() == [2, 4, 0, 5]
    empty = torch.zeros(0)
    assert merge_objects(empty.reshape(0, 4).double(), empty.long(), empty.double(), empty > 0, 0.5).tolist() == []
