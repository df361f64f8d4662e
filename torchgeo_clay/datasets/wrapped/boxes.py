# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Outlines where boxes are expected: FAIR1M of TorchGeo 0.10 has oriented rectangles. Shapes: N objects, P points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchgeo.datasets import FAIR1M

__all__ = ('with_boxes', 'with_outlines')


def with_boxes(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Replace outlines ``bbox_xyxy`` (N, P, 2) by the boxes around them, (N, 4); no boxes are (0, 4)."""
    boxes = sample.get('bbox_xyxy')
    if not isinstance(boxes, Tensor):
        return dict(sample)
    if boxes.numel() == 0:
        boxes = boxes.reshape(0, 4)
    elif boxes.ndim == 3:
        boxes = torch.cat([boxes.amin(1), boxes.amax(1)], 1)
    return {**sample, 'bbox_xyxy': boxes}


def with_outlines(sample: Mapping[str, Any], leaf: Any) -> dict[str, Any]:
    """Replace boxes (N, 4) by outlines (N, 5, 2) for the plots of a dataset that has outlines."""
    if not isinstance(leaf, FAIR1M):
        return dict(sample)
    keys = [key for key in ('bbox_xyxy', 'prediction_bbox_xyxy') if key in sample]
    return {**sample, **{key: sample[key][:, [0, 1, 0, 3, 2, 3, 2, 1, 0, 1]].reshape(-1, 5, 2) for key in keys}}
