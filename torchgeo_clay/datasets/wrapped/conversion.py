# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Convert the units and boxes of a dataset's samples, and back. Shapes: (…, C, H, W), N objects, P points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchgeo.datasets import FAIR1M

from torchgeo_clay.sensors import Sensor
from torchgeo_clay.sensors.plausibility import check_numbers, check_to_db, to_decibels

__all__ = ('Conversion', 'check_range', 'with_boxes', 'with_outlines')


@dataclass(frozen=True)
class Conversion:
    """Conversion of a dataset's numbers to a sensor's: x · scale + offset, then 10·log10 if ``to_db``.

    Attributes:
        scale: factor, such as 10000 for reflectance from 0 to 1.
        offset: summand, such as -1000 for Sentinel-2 since processing baseline 04.00.
        to_db: whether the result is linear power, to be converted into decibels.
    """

    scale: float = 1.0
    offset: float = 0.0
    to_db: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for a scale of zero, or numbers that are not finite."""
        check_numbers(scale=self.scale, offset=self.offset)

    def __call__(self, image: Tensor, sensor: Sensor) -> Tensor:
        """Convert to the sensor's units.

        Args:
            image: (…, C, H, W) float, in the dataset's units.
            sensor: with the image's bands.

        Returns:
            (…, C, H, W); pixels that are NaN where ``to_db`` hold the band's mean, which is 0 after normalization.

        Raises:
            ValueError: for decibels of an optical sensor.
        """
        check_to_db(sensor, self.to_db)
        if (self.scale, self.offset) != (1.0, 0.0):
            image = image * self.scale + self.offset
        if not self.to_db:
            return image
        mean = torch.tensor(sensor.mean, dtype=image.dtype, device=image.device)[:, None, None]
        return torch.where(image.isnan(), mean, to_decibels(image))

    def inverse(self, image: Tensor) -> Tensor:
        """Convert back to the dataset's units: (…, C, H, W)."""
        if self.to_db:
            image = torch.pow(10.0, image / 10)
        return (image - self.offset) / self.scale if (self.scale, self.offset) != (1.0, 0.0) else image


def check_range(image: Tensor, sensor: Sensor) -> None:
    """Raise for an image whose range cannot be the sensor's.

    Args:
        image: (…, C, H, W), in the sensor's units, on the host.
        sensor: with the image's bands.

    Raises:
        ValueError: for fractions from 0 to 1 where the sensor has larger numbers, or linear power where it has
            decibels.
    """
    usable = image[torch.isfinite(image)]
    if not usable.numel():
        return
    low, high = (float(v) for v in usable.aminmax())
    if sensor.scale == 'db' and low >= 0 and high > 0:
        raise ValueError(
            f'image: expected decibels of {sensor.name}, which are mostly negative, got values from {low:g} to '
            f'{high:g}. Is it linear power? Then write to_db=True.'
        )
    if sensor.scale == 'db' or min(sensor.mean) < 20 or low < -0.2 or high > 1.6:  # before every pixel is read
        return
    if not bool((usable == usable.round()).all()):
        unit = 255 if max(sensor.mean) < 256 else 10000
        raise ValueError(
            f'image: expected numbers of {sensor.name}, around {min(sensor.mean):g} to {max(sensor.mean):g}, got '
            f'values from {low:g} to {high:g}. The dataset delivers fractions: write scale={unit}, or the factor that '
            "gives the product's own numbers, and leave normalization to the sensor."
        )


def with_boxes(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Replace outlines ``bbox_xyxy`` (N, P, 2), as of FAIR1M, by the boxes around them, (N, 4); no boxes are (0, 4)."""
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
