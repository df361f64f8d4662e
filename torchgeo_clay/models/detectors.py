# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""torchvision's detectors on Clay's feature maps. Shapes: B images, C bands, H × W pixels, F channels of a map.

Sources: Faster R-CNN, https://arxiv.org/abs/1506.01497; FCOS, https://arxiv.org/abs/1904.01355; RetinaNet,
https://arxiv.org/abs/1708.02002; Mask R-CNN, https://arxiv.org/abs/1703.06870, each with the feature pyramid network of
https://arxiv.org/abs/1612.03144. Anchors and heads are those of ``torchgeo/tasks/detection.py`` and
``torchgeo/tasks/instance_segmentation.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torchgeo.tasks.utils import GeneralizedRCNNTransformNoOp
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from torchgeo_clay.models.clay import Clay
from torchgeo_clay.models.pyramid import Pyramid

__all__ = ('DETECTORS', 'DetectionBackbone', 'build_detector')


class DetectionBackbone(nn.Module):
    """Maps of strides 4 to 32, fused from coarse to fine, and coarser ones.

    Attributes:
        out_channels: F, channels of every map.
    """

    out_channels = 256

    def __init__(self, encoder: Clay, extra: ExtraFPNBlock) -> None:
        """Initialize a new DetectionBackbone instance; ``extra`` makes the maps coarser than stride 32."""
        super().__init__()
        self.body = Pyramid(encoder)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), self.out_channels, extra)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Make the maps of (B, C, H, W): name → (B, F, ceil(H / s), ceil(W / s)), finest first."""
        maps: dict[str, Tensor] = self.fpn({str(i): level for i, level in enumerate(self.body(x))})
        return maps


def _rcnn(kind: type[FasterRCNN], encoder: Clay, classes: int, smallest: int = 32, **options: Any) -> FasterRCNN:
    """Return a detector of two stages, of one size and three shapes of anchors per cell."""
    anchors = AnchorGenerator(tuple((smallest << i,) for i in range(5)), ((0.5, 1.0, 2.0),) * 5)
    return kind(DetectionBackbone(encoder, LastLevelMaxPool()), classes + 1, rpn_anchor_generator=anchors, **options)


def _fcos(encoder: Clay, classes: int, smallest: int = 8, **options: Any) -> FCOS:
    """Return an FCOS, of one anchor point per cell."""
    anchors = AnchorGenerator(tuple((smallest << i,) for i in range(6)), ((1.0,),) * 6)
    backbone = DetectionBackbone(encoder, LastLevelP6P7(256, 256))
    model = FCOS(backbone, classes, anchor_generator=anchors, **options)
    # distances to the four sides come from a ReLU: those that begin below zero would have no gradient and stay there
    nn.init.ones_(model.head.regression_head.bbox_reg.bias)
    return model


def _retinanet(encoder: Clay, classes: int, smallest: int = 16, **options: Any) -> RetinaNet:
    """Return a RetinaNet, of three sizes, a third of an octave apart, and three shapes of anchors per cell."""
    sizes = tuple(tuple(int((smallest << i) * 2 ** (j / 3)) for j in range(3)) for i in range(6))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 6)
    head = RetinaNetHead(256, anchors.num_anchors_per_location()[0], classes, partial(nn.GroupNorm, 32))
    backbone = DetectionBackbone(encoder, LastLevelP6P7(256, 256))
    return RetinaNet(backbone, classes, anchor_generator=anchors, head=head, **options)


#: TorchGeo's name of a detector → from encoder, number of classes and size of the smallest anchor to the detector.
#: Labels start at 0, or with two stages at 1.
DETECTORS: dict[str, Callable[..., nn.Module]] = {
    'faster-rcnn': partial(_rcnn, FasterRCNN),
    'fcos': _fcos,
    'retinanet': _retinanet,
    'mask-rcnn': partial(_rcnn, MaskRCNN),
}


#: What of torchvision's arguments is decided here, or does nothing as images are taken as they are.
_OWN = re.compile(
    'backbone|num_classes|head|.*anchor_generator|image_.*|min_size|max_size|(box|rpn|mask)_(head|predictor)'
)


def build_detector(
    name: str,
    encoder: Clay,
    classes: int,
    smallest_anchor: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a detector that takes images as they are: any number of bands, neither normalized nor resized.

    Names are those of :data:`DETECTORS`. Images are padded with zeros, the mean, right and below to multiples of 32,
    which moves no box. The anchors of the finest map are ``smallest_anchor`` pixels wide, or as TorchGeo's; each
    coarser map's are twice as wide. ``options`` are further arguments of torchvision's class.

    Raises:
        ValueError: for options that torchvision's class does not have.
    """
    kinds = {'faster-rcnn': [FasterRCNN], 'mask-rcnn': [FasterRCNN, MaskRCNN], 'fcos': [FCOS], 'retinanet': [RetinaNet]}
    known = [
        key
        for kind in kinds[name]
        for key, value in signature(kind).parameters.items()
        if value.kind is value.POSITIONAL_OR_KEYWORD
    ]
    known = [key for key in dict.fromkeys(known) if not _OWN.fullmatch(key)]
    if unknown := set(options or {}) - {*known}:
        raise ValueError(f'{name}: expected options among {", ".join(known)}, got {", ".join(sorted(unknown))}.')
    sizes = () if smallest_anchor is None else (smallest_anchor,)
    detector = DETECTORS[name](encoder, classes, *sizes, **(options or {}))
    detector.transform = GeneralizedRCNNTransformNoOp()
    return detector
