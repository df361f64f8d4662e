# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The offline twin of detection, as docs/detection.md states it, and whole scenes from its checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import pytest
import rasterio
import shapely
import torch
from torchmetrics.detection import MeanAveragePrecision

from torchgeo_clay.datasets import SyntheticChips, SyntheticScenes

Command = Callable[..., None]
# the callback that saves in training is not one of prediction
pytestmark = pytest.mark.filterwarnings('ignore')
COMMON = ('--trainer.accelerator=cpu', '--trainer.enable_progress_bar=false')


def test_objects_of_scenes_from_the_command_line(tmp_path: Path, torchgeo_command: Command, repo_root: Path) -> None:
    """A step of the training that the configuration names, then the objects from its checkpoint."""
    torchgeo_command(
        'fit', f'--config={repo_root}/configs/clay_synthetic_detection.yaml', *COMMON,
        f'--data.root={tmp_path}/houses', '--trainer.max_epochs=1', '--data.batch_size=1', '--model.model=faster-rcnn',
        '--data.synthetic={"scenes_per_sensor": 5, "size": 192, "sensors": ["linz"]}',
        '--trainer.limit_train_batches=1', '--trainer.limit_val_batches=1', '--trainer.num_sanity_val_steps=0',
        f'--trainer.default_root_dir={tmp_path}/run', f'--trainer.logger.save_dir={tmp_path}/run',
    )  # fmt: skip
    (scene, *_) = sorted((tmp_path / 'houses/images/linz').glob('*.tif'))
    out = tmp_path / 'objects.parquet'
    torchgeo_command(
        'predict', f'--config={repo_root}/configs/clay_detect.yaml', *COMMON,
        f'--ckpt_path={tmp_path}/run/version_0/checkpoints/last.ckpt', f'--data.paths={scene}',
        f'--trainer.default_root_dir={tmp_path}/run', f'--trainer.callbacks.out={out}', '--trainer.callbacks.score=0.0',
    )  # fmt: skip
    table = gpd.read_parquet(out)
    assert len(table) > 0
    assert set(table['class']) <= {'background', 'house'}
    with rasterio.open(scene) as file:
        bounds = shapely.box(*file.bounds).buffer(0.5)
        assert table.to_crs(file.crs).within(bounds).all()


def side_by_side(boxes: torch.Tensor, masks: bool) -> dict[str, torch.Tensor]:
    """What needs no model: boxes of the mean size, which cover the chip."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).mean(0).tolist()
    grid = [[x * width, y * height] for y in range(int(96 // height)) for x in range(int(96 // width))]
    corners = torch.tensor(grid)
    found = {
        'boxes': torch.cat([corners, corners + torch.tensor([width, height])], 1),
        'labels': torch.ones(len(corners), dtype=torch.int64),
        'scores': torch.full((len(corners),), 0.5),
    }
    if masks:
        found['masks'] = torch.zeros(len(corners), 96, 96, dtype=torch.bool)
        for mask, box in zip(found['masks'], found['boxes'].round().int().tolist(), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = True
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ('config', 'name', 'least'),
    [('detection', 'test_map_50', 0.2), ('instances', 'test_segm_map_50', 0.1)],
)
def test_the_twin_beats_boxes_side_by_side(
    config: str, name: str, least: float, tmp_path: Path, torchgeo_command: Command, repo_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Minutes on two cores, from scratch: scenes that were never seen."""
    monkeypatch.chdir(tmp_path)
    arguments = (f'--config={repo_root}/configs/clay_synthetic_{config}.yaml', *COMMON)
    torchgeo_command('fit', *arguments)
    (last,) = tmp_path.rglob('last.ckpt')
    metrics = tmp_path / 'metrics'
    torchgeo_command('test', *arguments, f'--ckpt_path={last}', '--trainer.logger=CSVLogger',
                     f'--trainer.logger.save_dir={metrics}')  # fmt: skip
    (path,) = metrics.rglob('metrics.csv')
    names, values = (line.split(',') for line in path.read_text().splitlines()[:2])
    found = dict(zip(names, values, strict=True))
    assert float(found[name]) > least, json.dumps(found)
    scenes = SyntheticScenes('data/houses', sensors=['linz'], scenes_per_sensor=24, size=384)
    train, test = (SyntheticChips(scenes, 'linz', split, 'detection', 96) for split in ('train', 'test'))
    masks = config == 'instances'
    trivial = side_by_side(torch.cat([train[i]['bbox_xyxy'] for i in range(len(train))]), masks)
    baseline = MeanAveragePrecision(iou_type='segm' if masks else 'bbox', backend='faster_coco_eval')
    for i in range(len(test)):
        truth = {'boxes': test[i]['bbox_xyxy'], 'labels': test[i]['label']}
        baseline.update([trivial], [truth | ({'masks': test[i]['mask'].bool()} if masks else {})])
    assert baseline.compute()['map_50'] < 0.05
