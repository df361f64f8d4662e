# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""kornia's video sequences with a mask shared by all dates. Shapes: B samples, T dates, H × W pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kornia.augmentation as K
from einops import repeat
from torch import Tensor, nn

__all__ = ('SharedMask', 'share_masks')


class SharedMask(nn.Module):
    """Call a transform with a mask per date, where TorchGeo has one for all dates.

    TorchGeo's change detection has images (B, T, C, H, W) and masks (B, 1, H, W); from version 0.9 on kornia refuses
    the two together. The dates share the drawn parameters, so the masks of all dates are equal.

    Args:
        inner: the transform.
    """

    def __init__(self, inner: nn.Module) -> None:
        """Initialize a new SharedMask instance; see the class."""
        super().__init__()
        self.inner = inner

    def forward(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Transform a dictionary with ``image`` and optionally ``mask``."""
        image, mask = sample.get('image'), sample.get('mask')
        if not (isinstance(image, Tensor) and isinstance(mask, Tensor)) or image.ndim != 5:
            return dict(self.inner(dict(sample)))
        if mask.ndim != 4 or mask.shape[1] != 1:
            return dict(self.inner(dict(sample)))
        frames = repeat(mask, 'b 1 h w -> b t 1 h w', t=image.shape[1])
        result = dict(self.inner({**sample, 'mask': frames}))
        return {**result, 'mask': result['mask'][:, 0]}


def share_masks(owner: Any, *names: str) -> None:
    """Wrap an object's video transforms, if any.

    Args:
        owner: a dataset or a datamodule, which is changed.
        *names: attributes to look in.
    """
    for name in names:
        module = getattr(owner, name, None)
        if isinstance(module, K.AugmentationSequential) and module.contains_video_sequential:
            setattr(owner, name, SharedMask(module))
