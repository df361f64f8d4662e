# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""kornia's sequences for videos beside a mask that all dates share. Shapes: B samples, T dates, H rows, W columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kornia.augmentation as K
from einops import repeat
from torch import Tensor, nn

__all__ = ('SharedMask', 'share_masks')


class SharedMask(nn.Module):
    """Calls a transform with a mask for every date, where TorchGeo has one for all.

    TorchGeo's change detection has images (B, T, C, H, W) and masks (B, 1, H, W); from version 0.9 on kornia refuses
    the two together. The dates share what is drawn, so one date's mask is as good as another's.

    Args:
        inner: the transform.
    """

    def __init__(self, inner: nn.Module) -> None:
        """Initialise; see the class."""
        super().__init__()
        self.inner = inner

    def forward(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Transform a dictionary with ``image`` and, if it has one, ``mask``."""
        image, mask = sample.get('image'), sample.get('mask')
        if not (isinstance(image, Tensor) and isinstance(mask, Tensor)) or image.ndim != 5:
            return dict(self.inner(dict(sample)))
        if mask.ndim != 4 or mask.shape[1] != 1:
            return dict(self.inner(dict(sample)))
        frames = repeat(mask, 'b 1 h w -> b t 1 h w', t=image.shape[1])
        result = dict(self.inner({**sample, 'mask': frames}))
        return {**result, 'mask': result['mask'][:, 0]}


def share_masks(owner: Any, *names: str) -> None:
    """Wrap an object's transforms for videos, where it has any.

    Args:
        owner: a dataset or a datamodule, which is changed.
        *names: attributes that may hold them.
    """
    for name in names:
        module = getattr(owner, name, None)
        if isinstance(module, K.AugmentationSequential) and module.contains_video_sequential:
            setattr(owner, name, SharedMask(module))
