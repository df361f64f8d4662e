# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The teacher of the representation loss (DINOv2) and its input. Shapes: B samples, C bands, H × W pixels."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchgeo_clay.sensors import Sensor

__all__ = ('make_teacher', 'resize_for_teacher', 'teacher_rgb')

#: Side, in pixels, of DINOv2's training images, which the release uses.
TEACHER_SIZE = 518


def teacher_rgb(image: Tensor, sensor: Sensor) -> Tensor:
    """Return three channels for a teacher or a plot: (B, C, H, W) of the sensor's bands → (B, 3, H, W).

    They are the sensor's rgb bands, and for a radar of two polarizations, as the release has it, VV, VH and their mean.

    Raises:
        ValueError: for a sensor without rgb bands.
    """
    if sensor.rgb:
        # channel by channel, as a list of indices would be copied to the device, which waits for it
        return torch.stack([image[:, i] for i in sensor.rgb_indices], dim=1)
    if sensor.scale == 'db' and len(sensor) == 2:
        first, second = image[:, 0], image[:, 1]
        return torch.stack([first, second, (first + second) / 2], dim=1)
    raise ValueError(
        f'{sensor.name} with bands {sensor.band_names} has no rgb bands for a teacher. Name them with rgb= in the '
        'sensor, keep them in bands=, or train without a teacher.'
    )


def resize_for_teacher(rgb: Tensor) -> Tensor:
    """Resize to the teacher's training size, bilinear with antialias: (B, 3, H, W) → (B, 3, 518, 518)."""
    return F.interpolate(rgb, (TEACHER_SIZE, TEACHER_SIZE), mode='bilinear', antialias=True)


def make_teacher(teacher: str | nn.Module | None, pretrained: bool = True, **kwargs: Any) -> nn.Module | None:
    """Build a teacher from a timm name; a module is returned as given.

    Args:
        teacher: a module, a timm name such as ``vit_large_patch14_reg4_dinov2.lvd142m``, or None.
        pretrained: whether to fetch the weights timm knows for the name (from its Hub).
        **kwargs: passed to :func:`timm.create_model`.

    Raises:
        ValueError: where the weights cannot be fetched; the message says what to do offline.
    """
    if teacher is None or isinstance(teacher, nn.Module):
        return teacher
    try:
        return timm.create_model(teacher, pretrained=pretrained, num_classes=0, **kwargs)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f'The teacher {teacher!r} could not be built: {error}. Is its name in timm.list_models(), and the Hub '
            'reachable? Offline, put its weights into the Hub cache on a machine that is online, or train with '
            'teacher=None.'
        ) from error
