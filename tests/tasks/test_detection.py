# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Detection and instance segmentation on data in TorchGeo's formats; labels, boxes, metrics against torchmetrics."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from object_data import BOXES, SIZE, write_fair1m, write_nasa_marine_debris, write_reforestree, write_vhr10
from tiny_batches import KNOWN, TINY, TinyDataModule, image, masked, trainer
from torch.utils.data import default_collate
from torchgeo.datamodules import (
    FAIR1MDataModule,
    NASAMarineDebrisDataModule,
    ReforesTreeDataModule,
    VHR10DataModule,
)
from torchgeo.tasks import InstanceSegmentation, ObjectDetection
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_iou

from torchgeo_clay.datamodules import SensorDataModule
from torchgeo_clay.models.clay import find_clay
from torchgeo_clay.tasks import ClayInstanceSegmentation, ClayObjectDetection, ClaySemanticSegmentation

CASES: dict[str, tuple[Any, Any, dict[str, Any], int]] = {
    'vhr10': (VHR10DataModule, write_vhr10, {'patch_size': 40}, 11),
    'nasa': (NASAMarineDebrisDataModule, write_nasa_marine_debris, {}, 2),
    'fair1m': (FAIR1MDataModule, write_fair1m, {}, 37),
    'reforestree': (ReforesTreeDataModule, write_reforestree, {'patch_size': 32}, 6),
}
# what torch, matplotlib and Lightning say of tiny runs of TorchGeo's plots and datamodules
pytestmark = pytest.mark.filterwarnings('ignore')


def wrapped(name: str, root: Path) -> SensorDataModule:
    datamodule, write, options, _ = CASES[name]
    inner = datamodule(batch_size=2, **options, **write(root))
    return SensorDataModule(inner, sensor='naip', bands=['red', 'green', 'blue'], gsd=0.5)


@pytest.mark.parametrize(
    ('name', 'model'),
    [
        ('vhr10', 'faster-rcnn'),
        ('vhr10', 'mask-rcnn'),
        ('nasa', 'retinanet'),
        ('nasa', 'faster-rcnn'),
        ('fair1m', 'fcos'),
        ('reforestree', 'faster-rcnn'),
    ],
)
def test_every_step(name: str, model: str, tmp_path: Path) -> None:
    """Fit, plots included, validate, test and predict; images without objects and crops, too."""
    torch.manual_seed(0)
    kind = ClayInstanceSegmentation if model == 'mask-rcnn' else ClayObjectDetection
    task = kind(model, TINY, num_classes=CASES[name][3])
    datamodule = wrapped(name, tmp_path / 'data')
    logger = TensorBoardLogger(tmp_path / 'logs')
    run = trainer(logger=logger, max_epochs=1)
    run.fit(task, datamodule)
    assert torch.isfinite(torch.stack([*run.callback_metrics.values()])).all()
    key = 'val_segm_map' if model == 'mask-rcnn' else 'val_map'
    assert run.callback_metrics[key] <= 1
    (validated,) = run.validate(task, datamodule, verbose=False)
    assert validated[key] == pytest.approx(float(run.callback_metrics[key]))
    if name != 'fair1m':  # whose test split has no labels
        run.test(task, datamodule, verbose=False)
        datamodule.datamodule.predict_dataset = datamodule.datamodule.test_dataset
    answers = [found for batch in run.predict(task, datamodule) for found in batch]
    assert all(found['boxes'].shape == (len(found['labels']), 4) for found in answers)
    assert all((found['labels'] >= 0).all() for found in answers)


@pytest.mark.parametrize('name', ['faster-rcnn', 'mask-rcnn', 'fcos', 'retinanet'])
def test_anchors(name: str) -> None:
    """By default those of TorchGeo's own task; smaller ones for smaller objects, back from a checkpoint."""
    kind, stock = (
        (ClayInstanceSegmentation, InstanceSegmentation)
        if name == 'mask-rcnn'
        else (ClayObjectDetection, ObjectDetection)
    )

    def sizes(task: Any) -> Any:
        model = task.model
        generator = model.rpn.anchor_generator if name.endswith('rcnn') else model.anchor_generator
        return generator.sizes, generator.aspect_ratios

    assert sizes(kind(name, TINY, num_classes=2)) == sizes(stock(name, 'resnet50', None, num_classes=2))
    small = kind(name, TINY, num_classes=2, smallest_anchor=4)
    assert sizes(small)[0][0][0] == 4
    assert sizes(small)[0][1][0] == 8
    assert small.hparams['smallest_anchor'] == 4
    with pytest.raises(ValueError, match='smallest_anchor'):
        kind(name, TINY, num_classes=2, smallest_anchor=0)


@pytest.mark.parametrize(
    ('name', 'option'),
    [('faster-rcnn', 'box_detections_per_img'), ('mask-rcnn', 'box_detections_per_img'), ('fcos', 'detections_per_img'),
     ('retinanet', 'detections_per_img')],
)  # fmt: skip
def test_options_of_the_detector(name: str, option: str) -> None:
    kind = ClayInstanceSegmentation if name == 'mask-rcnn' else ClayObjectDetection
    model = kind(name, TINY, num_classes=2, detector={option: 7}).model
    assert (model.roi_heads if name.endswith('rcnn') else model).detections_per_img == 7
    for unknown in (
        'box_detections',
        'min_size',
        'backbone',
        'image_mean',
    ):  # torchvision ignores what it does not know
        with pytest.raises(ValueError, match=f'{name}: expected options among .*{option}.*, got {unknown}'):
            kind(name, TINY, num_classes=2, detector={unknown: 7})


def batch(*labels: int, count: int = 2, **more: Any) -> dict[str, Any]:
    known = default_collate([KNOWN] * count)
    boxes = [torch.tensor(BOXES, dtype=torch.float32)] * count
    return {'image': image(count, 3, SIZE, SIZE), 'bbox_xyxy': boxes, 'label': [torch.tensor(labels)] * count} | {
        **known,
        **more,
    }


def test_boxes_reach_the_detector_inside_the_image() -> None:
    task = ClayInstanceSegmentation(backbone=TINY, num_classes=3)
    boxes = torch.tensor([[-5.0, 2, 10, 90], [47.5, 0, 60, 20], [60, 60, 70, 70], [3, 3, 3, 9], [8, 8, 16, 24]])
    raw = batch(count=1) | {'bbox_xyxy': [boxes], 'label': [torch.arange(5).to(torch.int16)]}
    raw['mask'] = [torch.arange(5.0)[:, None, None].expand(5, SIZE, SIZE) / 4]
    ready = task.integer_labels(raw)
    assert ready['bbox_xyxy'][0].tolist() == [[0, 2, 10, 48], [8, 8, 16, 24]]
    assert ready['label'][0].tolist() == [0, 4]
    assert ready['label'][0].dtype == torch.int64
    assert ready['mask'][0].dtype == torch.uint8
    assert ready['mask'][0].amax((1, 2)).tolist() == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize('model', ['faster-rcnn', 'fcos', 'retinanet'])
def test_one_image_is_learned(model: str) -> None:
    """From 0 to the largest label, label 0 being a class as any other; 12 bands; a size that is no multiple of 32."""
    torch.manual_seed(0)
    task = ClayObjectDetection(model, TINY, num_classes=3, lr=1e-3)
    bands = torch.linspace(0.45, 2.2, 12)
    pixels = torch.zeros(1, 12, 52, SIZE)
    for i, (x1, y1, x2, y2) in enumerate(BOXES):
        pixels[:, 6 * i : 6 * i + 6, y1:y2, x1:x2] = 2
    one = batch(0, 2, count=1, image=pixels, wavelength=bands[None])
    task.log_dict = lambda *args, **kwargs: None
    task.log = lambda *args, **kwargs: None
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    for _ in range(120):
        loss = task.training_step(one, 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    task.eval()
    with torch.no_grad():
        (found,) = task.predict_step({k: v for k, v in one.items() if k not in ('bbox_xyxy', 'label')}, 0)
    best = {int(label): box for label, box in reversed([*zip(found['labels'], found['boxes'], strict=True)])}
    assert set(best) == {0, 2}
    assert box_iou(torch.stack([best[0], best[2]]), torch.tensor(BOXES).float()).diagonal().min() > 0.6


def test_the_precision_is_that_of_the_epoch() -> None:
    """Two batches of unlike size against one call of torchmetrics."""
    task = ClayObjectDetection('fcos', TINY, num_classes=3)
    boxes = torch.tensor(BOXES, dtype=torch.float32)
    truth = [{'boxes': boxes, 'labels': torch.tensor([0, 1])} for _ in range(3)]
    shifts = (0, 3, 30)
    found = [{'boxes': boxes + d, 'labels': torch.tensor([0, 1]), 'scores': torch.tensor([0.9, 0.4])} for d in shifts]
    logged: dict[str, Any] = {}
    task.log_dict = lambda values, **kwargs: logged.update(values)
    assert task.val_metrics(found[:1], truth[:1]) == {}
    task.val_metrics(found[1:], truth[1:])
    task.on_validation_epoch_end()
    expected = MeanAveragePrecision(backend='faster_coco_eval')
    expected.update(found, truth)
    values = expected.compute()
    assert logged['val_map'] == values['map']
    assert 0 < logged['val_map'] < 1
    assert 'val_classes' not in logged
    assert all(value.ndim == 0 for value in logged.values())


def test_a_batch_of_another_task_says_so() -> None:
    detection = ClayObjectDetection('fcos', TINY, num_classes=3)
    instances = ClayInstanceSegmentation(backbone=TINY, num_classes=3)
    segmentation = ClaySemanticSegmentation(backbone=TINY, num_classes=3)
    with pytest.raises(ValueError, match='ClayObjectDetection'):
        segmentation.training_step(batch(0, 1), 0)
    with pytest.raises(ValueError, match='ClaySemanticSegmentation or ClayClassification'):
        detection.training_step(TinyDataModule(masked()).batch(), 0)
    with pytest.raises(ValueError, match='ClayObjectDetection, or a datamodule with mask'):
        instances.training_step(batch(0, 1), 0)
    with pytest.raises(ValueError, match='found the label 3'):
        detection.training_step(batch(0, 3), 0)
    with pytest.raises(ValueError, match='label: expected one per box, 2, got 1'):
        detection.training_step(batch(0), 0)


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        ({'model': 'yolo'}, 'model: expected one of faster-rcnn, fcos, retinanet'),
        ({'backbone': 'resnet50'}, 'backbone: expected one of clay_'),
        ({'trainable_layers': 2}, 'trainable_blocks'),
        ({'in_channels': 4}, 'in_channels: expected none'),
    ],
)
def test_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ClayObjectDetection(**{'backbone': TINY, **options})


def test_what_is_frozen_and_saved(tmp_path: Path) -> None:
    task = ClayObjectDetection('retinanet', TINY, num_classes=3, freeze_backbone=True)
    (clay,) = find_clay(task)
    assert not any(p.requires_grad for p in clay.parameters())
    assert all(p.requires_grad for p in task.model.backbone.fpn.parameters())
    assert not task.train().model.backbone.body.model.blocks.training
    task.export(tmp_path / 'encoder.safetensors')
    again = ClayObjectDetection('fcos', TINY, weights=str(tmp_path / 'encoder.safetensors'), num_classes=3)
    for name, value in find_clay(again)[0].state_dict().items():
        torch.testing.assert_close(value, clay.state_dict()[name])
