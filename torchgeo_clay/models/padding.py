# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Images and feature maps of any size brought to whole patches. Shapes: B samples, C bands, H × W pixels.

Everything is added right and below, so that the patches of the image keep their places in the position code.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ('pad_image', 'pad_map', 'round_up')


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple that is not less than a size."""
    return -(-size // multiple) * multiple


def pad_image(x: Tensor, patch_size: int = 8) -> Tensor:
    """Complete the last patches of an image by its own reflection, which looks like the image where zeros do not.

    No patch is added that has nothing of the image, as the encoder's attention would look at it.

    Args:
        x: (B, C, H, W).
        patch_size: pixels a side.

    Returns:
        (B, C, H', W'), H' and W' the next multiples of the patch size.

    Raises:
        ValueError: for an image smaller than a patch.
    """
    height, width = x.shape[-2:]
    if height < patch_size or width < patch_size:
        raise ValueError(
            f'Expected images of at least one patch, {patch_size} × {patch_size} pixels, got {height} × {width}. Cut '
            'larger chips, or enlarge the images, with res= divided by the same factor.'
        )
    return F.pad(x, (0, -width % patch_size, 0, -height % patch_size), mode='reflect')


def pad_map(x: Tensor, height: int, width: int) -> Tensor:
    """Repeat the last row and column of a feature map: (B, F, h, w) → (B, F, height, width)."""
    return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]), mode='replicate')
