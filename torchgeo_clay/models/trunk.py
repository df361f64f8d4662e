# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What Clay's encoder is but for its patch embedding: timm's blocks with the release's choices, and the position code.

Shapes: B samples, h × w patches (L = h·w), D width.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, LayerNorm
from timm.models import VisionTransformer
from timm.models.vision_transformer import checkpoint_seq
from torch import Tensor, nn

from torchgeo_clay.conditioning.contract import Conditioning
from torchgeo_clay.models.position import position_code

__all__ = ('ClayAttention', 'ClayNorm', 'ClayTrunk')


class ClayAttention(Attention):
    """timm's attention without bias in the output projection (timm's blocks tie that bias to the MLP's)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Initialize as timm's attention, whatever ``proj_bias`` says."""
        super().__init__(*args, **kwargs | {'proj_bias': False})


class ClayNorm(LayerNorm):
    """Layer norm with the release's epsilon of 1e-5 (timm's own default is 1e-6)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Initialize as timm's layer norm."""
        super().__init__(*args, **{'eps': 1e-5} | kwargs)


class ClayTrunk(VisionTransformer):
    """A timm vision transformer whose tokens get Clay's position code."""

    cls_token: nn.Parameter

    def encode(self, tokens: Tensor) -> Tensor:
        """Run the blocks and the final norm over tokens that are embedded already: (B, N, D) → (B, N, D)."""
        tokens = self.norm_pre(self.patch_drop(tokens))
        tokens = checkpoint_seq(self.blocks, tokens) if self.grad_checkpointing else self.blocks(tokens)
        return self.norm(tokens)

    def position_code(self, grid: tuple[int, int], batch: int, conditioning: Conditioning) -> Tensor:
        """Position, time and place of each patch of an (h, w) grid: (B, L, D), in the weights' dtype."""
        gsd, time, latlon = conditioning.gsd, conditioning.time, conditioning.latlon
        assert isinstance(gsd, Tensor)
        return position_code(*grid, gsd, time, latlon, batch, self.embed_dim).to(self.cls_token.dtype)

    def prepend_class_token(self, patches: Tensor) -> Tensor:
        """Put the class token before the patches: (B, N, D) → (B, 1 + N, D)."""
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
