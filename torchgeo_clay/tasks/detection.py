# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Object detection and instance segmentation. Shapes: B images, C bands, H × W pixels, N objects of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchgeo.tasks import InstanceSegmentation, ObjectDetection
from torchmetrics import MetricCollection
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from torchgeo_clay.models import builders
from torchgeo_clay.models.detectors import build_detector
from torchgeo_clay.models.weights import WeightsLike
from torchgeo_clay.tasks.base import ClayTask, check_labels

__all__ = ('ClayInstanceSegmentation', 'ClayObjectDetection', 'ObjectTask')


class EpochMetrics(MetricCollection):
    """Metrics of an epoch. TorchGeo logs the mean of the batches' average precisions, which is another number."""

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Add a batch; arguments as those of ``update``."""
        self.update(*args, **kwargs)
        return {}


class ObjectTask(ClayTask):
    """A task whose batches have TorchGeo's lists of B tensors: ``bbox_xyxy`` (N, 4) pixels and ``label`` (N,).

    ``mask`` (N, H, W), too, for instances. Boxes are clipped to the image; what a crop leaves less than a pixel wide or
    high is dropped. Images without objects are background.
    """

    takes_boxes = True
    encoder_key = 'backbone'
    val_metrics: MetricCollection
    test_metrics: MetricCollection
    models: tuple[str, ...] = ()
    masks = False

    def __init__(
        self, *, smallest_anchor: int | None = None, detector: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Initialize a new ObjectTask instance.

        Args:
            smallest_anchor: width of the smallest anchors, pixels, about that of the smallest objects; each coarser map
                doubles it. None for TorchGeo's: 8 for ``fcos``, 16 for ``retinanet``, else 32.
            detector: further arguments of torchvision's class, such as ``box_detections_per_img``.
            **kwargs: of the bases.

        Raises:
            ValueError: for an anchor that is no positive number of pixels, or unknown arguments of the detector.
        """
        if smallest_anchor is not None and smallest_anchor < 1:
            raise ValueError(
                f'smallest_anchor: expected the width of the smallest objects, pixels, got {smallest_anchor}.'
            )
        super().__init__(**kwargs)

    def build(self) -> nn.Module:
        """Build a detector."""
        hparams = self.hparams
        if hparams['model'] not in self.models:
            raise ValueError(f'model: expected one of {", ".join(self.models)}, got {hparams["model"]!r}.')
        encoder = getattr(builders, hparams['backbone'])(
            self.weights, drop_path_rate=hparams['drop_path_rate'], position=hparams['position']
        )
        options = hparams['smallest_anchor'], hparams['detector']
        return build_detector(hparams['model'], encoder, hparams['num_classes'], *options)

    def configure_metrics(self) -> None:
        """Make the mean average precision of COCO, whose best 100 objects per image count."""
        kinds: Any = ('bbox', 'segm') if self.masks else 'bbox'
        precision = MeanAveragePrecision(iou_type=kinds, backend='faster_coco_eval')
        precision.warn_on_many_detections = False
        self.val_metrics: MetricCollection = EpochMetrics([precision], prefix='val_')
        self.test_metrics = self.val_metrics.clone(prefix='test_')

    def forward(self, x: Tensor | Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None) -> Any:
        """Detect objects.

        Args:
            x: B images (C, H, W), normalized.
            targets: of each image ``boxes`` (N, 4), ``labels`` (N,) from 0, and for instances ``masks`` (N, H, W).

        Returns:
            In training the losses by name; else a dictionary per image of ``boxes``, ``labels``, ``scores`` (N,), the
            highest first, and for instances ``masks`` (N, 1, H, W).
        """
        # torchvision's detectors of two stages keep label 0 for the background; here it is a class as any other
        first = 1 if self.hparams['model'].endswith('rcnn') else 0
        if targets is not None:
            targets = [{**target, 'labels': target['labels'] + first} for target in targets]
        found = self.model(x, targets)
        return found if self.training else [{**one, 'labels': one['labels'] - first} for one in found]

    def check_labels(self, batch: Mapping[str, Any]) -> None:
        """Raise for labels that are no class."""
        if 'label' in batch and 'bbox_xyxy' in batch:
            check_labels(torch.cat(list(batch['label'])), 'label', self.hparams['num_classes'], None)

    def integer_labels(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what TorchGeo's steps read of a batch, with objects inside the images.

        Args:
            batch: in prediction without objects, and then returned as it is.

        Raises:
            ValueError: for labels or masks that are not one per box.
        """
        if 'bbox_xyxy' not in batch:
            return batch
        image, size = batch['image'], tuple(batch['image'].shape[-2:])
        keys = [key for key in ('bbox_xyxy', 'label', 'mask') if key in batch]  # plots show masks, whatever the task
        targets: dict[str, list[Tensor]] = {key: [] for key in keys}
        for i, raw in enumerate(batch['bbox_xyxy']):
            boxes = clip_boxes_to_image(raw.reshape(-1, 4).float(), size)
            found = {'bbox_xyxy': boxes, 'label': batch['label'][i].long()}
            if 'mask' in keys:
                found['mask'] = (batch['mask'][i].reshape(-1, *size) > 0.5).to(torch.uint8)
            for key, value in found.items():
                if len(value) != len(boxes):
                    raise ValueError(f'{key}: expected one per box, {len(boxes)}, got {len(value)} in image {i}.')
                targets[key].append(value[remove_small_boxes(boxes, 1.0)])
        return {'image': image, **targets}

    def _step(self, name: str, batch: Any, batch_idx: int, *args: Any) -> Any:
        """Run one of TorchGeo's steps with Clay conditioned on the batch, which has to have objects."""
        needed = ('bbox_xyxy', 'label', *(('mask',) if self.masks else ()))
        if name != 'predict_step' and (missing := [key for key in needed if key not in batch]):
            other = 'ClayObjectDetection' if missing == ['mask'] else 'ClaySemanticSegmentation or ClayClassification'
            raise ValueError(
                f'{type(self).__name__}: expected batches with {", ".join(needed)}, lists of a tensor per image, got '
                f'{", ".join(map(str, batch))}. For these use {other}, or a datamodule with {", ".join(missing)}.'
            )
        return super()._step(name, batch, batch_idx, *args)

    def _log_epoch(self, metrics: MetricCollection) -> None:
        """Log the metrics of all batches and processes, and start over."""
        values = {name: value for name, value in metrics.compute().items() if not name.endswith('classes')}
        self.log_dict({name: value.to(self.device) for name, value in values.items()}, sync_dist=True)
        metrics.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of validation."""
        self._log_epoch(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test."""
        self._log_epoch(self.test_metrics)


class ClayObjectDetection(ObjectTask, ObjectDetection):
    """TorchGeo's object detection with Clay, conditioned on each batch's metadata."""

    models = ('faster-rcnn', 'fcos', 'retinanet')

    def __init__(
        self,
        model: Literal['faster-rcnn', 'fcos', 'retinanet'] = 'faster-rcnn',
        backbone: str = 'clay_large_patch8',
        weights: WeightsLike = None,
        **kwargs: Any,
    ) -> None:
        """Initialize a new ClayObjectDetection instance.

        Args:
            model: torchvision's detector.
            backbone: see :class:`~torchgeo_clay.tasks.ClaySemanticSegmentation`.
            weights: see there.
            **kwargs: see :class:`~torchgeo_clay.tasks.base.ClayTask`, and :class:`torchgeo.tasks.ObjectDetection` for
                ``num_classes``: labels are from 0 to one less, 0 often being left to the background.
        """
        super().__init__(model=model, backbone=backbone, weights=weights, **kwargs)


class ClayInstanceSegmentation(ObjectTask, InstanceSegmentation):
    """TorchGeo's instance segmentation with Clay, conditioned on each batch's metadata."""

    models = ('mask-rcnn',)
    masks = True

    def __init__(
        self,
        model: Literal['mask-rcnn'] = 'mask-rcnn',
        backbone: str = 'clay_large_patch8',
        weights: WeightsLike = None,
        **kwargs: Any,
    ) -> None:
        """Initialize a new ClayInstanceSegmentation instance.

        Args:
            model: torchvision's detector.
            backbone: see :class:`~torchgeo_clay.tasks.ClayObjectDetection`.
            weights: see there.
            **kwargs: see there.
        """
        super().__init__(model=model, backbone=backbone, weights=weights, **kwargs)
