# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Feature maps of strides 4, 8, 16 and 32 from Clay's single scale, as convolutional decoders expect.

Shapes: B samples, C bands, H × W pixels, D width of the tokens, F channels of every map.
Source: the simple feature pyramid of ViTDet, https://arxiv.org/abs/2203.16527, with two changes. Each stride takes a
block of its own, shallow ones for the fine strides, which improves dense prediction. And maps are enlarged by
interpolation and a convolution, as transposed convolutions leave checkerboards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models import FeatureInfo
from torch import Tensor, nn

from torchgeo_clay.models.clay import Clay

__all__ = ('Pyramid', 'PyramidLevel')

REDUCTIONS = (4, 8, 16, 32)


def _levels(out_indices: int | Sequence[int]) -> tuple[int, ...]:
    """Indices of the maps that timm's ``out_indices`` means, finest first."""
    n = len(REDUCTIONS)
    asked = range(-out_indices, 0) if isinstance(out_indices, int) else out_indices
    if not asked or any(not -n <= i < n for i in asked):
        raise ValueError(
            f'out_indices: expected some of 0, 1, 2, 3, for the strides 4, 8, 16, 32, got {out_indices}. For the '
            "blocks' own output at stride 8 give feature_cls='getter' too."
        )
    return tuple(sorted({i % n for i in asked}))


class PyramidLevel(nn.Module):
    """One map of the pyramid: the tokens of a block, projected and brought to another stride."""

    def __init__(self, embed_dim: int, channels: int, patch_size: int, reduction: int) -> None:
        """Initialize a new PyramidLevel instance.

        Args:
            embed_dim: D, width of the tokens.
            channels: F, channels of the map.
            patch_size: stride of the tokens, pixels.
            reduction: stride of the map, pixels.
        """
        super().__init__()
        self.enter = LayerNorm2d(embed_dim)  # the residual stream grows from block to block
        self.project = nn.Conv2d(embed_dim, channels, 1, bias=False)
        self.resample: nn.Module = nn.Identity()
        if reduction < patch_size:
            self.resample = nn.Upsample(scale_factor=patch_size // reduction, mode='bilinear')
        elif reduction > patch_size:
            # ceil, so that a grid of odd size loses nothing of its border
            self.resample = nn.MaxPool2d(reduction // patch_size, ceil_mode=True)
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = LayerNorm2d(channels)
        # Initially a level only rotates its tokens: TorchGeo's freeze_backbone freezes these layers too, and frozen
        # noise would separate the tokens from the decoder.
        nn.init.orthogonal_(self.project.weight)
        nn.init.dirac_(self.smooth.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Make the map: (B, D, h, w) → (B, F, h', w')."""
        return self.norm(self.smooth(self.resample(self.project(self.enter(tokens)))))


class Pyramid(nn.Module):
    """Clay as ``timm.create_model(..., features_only=True)`` gives it, with strides 4, 8, 16 and 32.

    An image of any size is taken: it is padded with zeros, the mean of normalized pixels, right and below to whole
    patches, and a map of stride s has ceil(H / s) × ceil(W / s) cells. (Decoders may still ask for multiples of 32, as
    those of segmentation_models_pytorch do.) The metadata come from ``conditioned_on`` of the encoder, which
    :func:`torchgeo_clay.models.clay.find_clay` finds.
    """

    def __init__(
        self,
        model: Clay,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        output_stride: int = 32,
        channels: int = 256,
    ) -> None:
        """Initialize a new Pyramid instance.

        Args:
            model: the encoder. Blocks and head that no map needs are removed, and the final norm is frozen: no map uses
                it, but without it the encoder could not be exported.
            out_indices: which of the four maps, 0 for the finest; an int n for the last n.
            output_stride: the coarsest stride: 8, 16 or 32. Maps that would be coarser have this one.
            channels: F, channels of every map; 256 as in ViTDet.

        Raises:
            ValueError: for indices or a stride that do not exist.
        """
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f'output_stride: expected 8, 16 or 32, got {output_stride}.')
        self.out_indices = _levels(out_indices)
        reductions = [min(r, output_stride) for r in REDUCTIONS]
        # blocks at equal distances, the last among them
        blocks = {i: max(len(model.blocks) * (i + 1) // len(REDUCTIONS) - 1, 0) for i in self.out_indices}
        model.prune_intermediate_layers(sorted(blocks.values()))
        model.norm.requires_grad_(False)
        self.blocks, self.model = blocks, model
        patch_size = model.patch_embed.patch_size[0]
        self.levels = nn.ModuleDict(
            {str(i): PyramidLevel(model.embed_dim, channels, patch_size, reductions[i]) for i in self.out_indices}
        )
        self.feature_info = FeatureInfo(
            [{'num_chs': channels, 'reduction': r, 'module': f'levels.{i}'} for i, r in enumerate(reductions)],
            self.out_indices,
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations of the encoder's blocks in the backward pass instead of keeping them."""
        self.model.set_grad_checkpointing(enable)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Make a map per ``out_indices``, of stride s: (B, C, H, W) normalized → (B, F, ceil(H / s), ceil(W / s))."""
        height, width = x.shape[-2:]
        p = self.model.patch_embed.patch_size[0]
        indices = sorted(set(self.blocks.values()))
        grids = self.model.forward_intermediates(
            F.pad(x, (0, -width % p, 0, -height % p)), indices=indices, intermediates_only=True
        )
        maps = []
        for i in self.out_indices:
            stride = self.feature_info.reduction(i)
            level = self.levels[str(i)](grids[indices.index(self.blocks[i])])
            maps.append(level[..., : -(-height // stride), : -(-width // stride)])
        return maps
