# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay's decoder. Shapes: B samples, L patches of which M are masked, D encoder width, E decoder width, p·p pixels."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.models.masking import Masking, take
from torchgeo_clay.models.patch_embed import PixelHead
from torchgeo_clay.models.position import position_code
from torchgeo_clay.models.trunk import ClayAttention, ClayNorm

__all__ = ('ClayDecoder',)


class ClayDecoder(nn.Module):
    """The small transformer that predicts pixels of masked patches from the encoder's visible tokens."""

    def __init__(self, *, encoder_dim: int, dim: int, depth: int, heads: int, dim_head: int, mlp_ratio: float) -> None:
        """Initialize the decoder.

        Args:
            encoder_dim: D, width of the encoder's tokens.
            dim: E, width of the decoder's tokens.
            depth: number of blocks.
            heads: attention heads.
            dim_head: width of a head; heads × dim_head need not be ``dim``.
            mlp_ratio: hidden width of the MLPs over E.
        """
        super().__init__()
        self.dim = dim
        self.embed = nn.Linear(encoder_dim, dim) if encoder_dim != dim else nn.Identity()
        self.mask_token = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.mask_token)
        self.blocks = nn.Sequential(*[Block(dim, heads, mlp_ratio, norm_layer=ClayNorm) for _ in range(depth)])
        for block in self.blocks:  # timm's block can't be told the width of a head
            block.attn = ClayAttention(dim, heads, attn_head_dim=dim_head)
        self.norm = ClayNorm(dim)
        self.head = PixelHead(dim)

    def forward(
        self, tokens: Tensor, masking: Masking, grid: tuple[int, int], conditioning: Conditioning, every: bool = False
    ) -> Tensor:
        """Predict pixels.

        Args:
            tokens: (B, 1 + L - M, D) encoder output: class token, then visible patches in ``masking.visible``'s order.
            masking: which patches they are.
            grid: (h, w) patch grid.
            conditioning: as resolved by the encoder.
            every: predict all L patches in their order, not only the masked ones.

        Returns:
            (B, M, C·p·p), or (B, L, C·p·p).
        """
        tokens = self.embed(tokens)
        class_token, visible = tokens[:, :1], tokens[:, 1:]
        masked = self.mask_token.to(tokens.dtype).expand(*masking.masked.shape, -1)
        patches = take(torch.cat([masked, visible], dim=1), masking.restore)
        gsd, waves = conditioning.gsd, conditioning.wavelengths
        assert isinstance(gsd, Tensor)
        assert waves is not None
        code = position_code(*grid, gsd, conditioning.time, conditioning.latlon, tokens.shape[0], self.dim)
        patches = patches + code.to(self.mask_token.dtype)
        decoded = self.norm(self.blocks(torch.cat([class_token.to(patches.dtype), patches], dim=1)))[:, 1:]
        return self.head(decoded if every else take(decoded, masking.masked), waves)
