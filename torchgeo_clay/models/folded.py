# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay for one sensor: a plain vision transformer, whose patch embedding is an ordinary convolution.

Shapes: B samples, C bands, H × W pixels, h × w patches (L = h·w), D width.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from einops import rearrange
from timm.layers import PatchEmbed
from torch import Tensor, nn

from torchgeo_clay.conditioning.contract import Conditioning
from torchgeo_clay.conditioning.matching import match_images
from torchgeo_clay.models.trunk import ClayTrunk

__all__ = ('FoldedClay',)


class FoldedClay(ClayTrunk):
    """What :meth:`torchgeo_clay.models.Clay.fold` makes: Clay without the network that makes kernels.

    GSD, time and place stay inputs. ``torch.export`` takes it, with a batch of any size::

        folded = clay.fold('sentinel-2-l2a')
        batch = torch.export.Dim('batch')
        program = torch.export.export(
            folded, (x, gsd, time, latlon), dynamic_shapes=({0: batch}, {0: batch}, {0: batch}, {0: batch})
        )
    """

    def __init__(
        self, model: ClayTrunk, wavelengths: Tensor, kernels: Tensor, bias: Tensor | None, *, copy: bool = True
    ) -> None:
        """Initialize from an encoder.

        Args:
            model: the encoder, whose blocks, norms and head are taken.
            wavelengths: (C,) µm, of the channels.
            kernels: (D, C, p, p) of the convolution.
            bias: (D,).
            copy: whether parts of the encoder are copied, or shared with it.
        """
        dim, channels, patch_size, _ = kernels.shape
        embed = model.patch_embed
        super().__init__(
            img_size=embed.img_size,
            patch_size=patch_size,
            in_chans=channels,
            num_classes=0,
            embed_dim=dim,
            depth=0,  # the blocks are the encoder's, below
            global_pool=model.global_pool,
            class_token=True,
            pos_embed='none',
            dynamic_img_size=True,
            dynamic_img_pad=embed.dynamic_img_pad,
            embed_layer=PatchEmbed,
            weight_init='skip',
            device=kernels.device,
            dtype=kernels.dtype,
        )
        self.patch_embed.proj.weight = nn.Parameter(kernels.detach().clone())
        self.patch_embed.proj.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        for name, part in model.named_children():
            if name != 'patch_embed':
                setattr(self, name, deepcopy(part) if copy else part)
        self.cls_token = deepcopy(model.cls_token) if copy else model.cls_token
        self.num_classes, self.feature_info = model.num_classes, model.feature_info
        self.pool_include_prefix = model.pool_include_prefix
        self.register_buffer('wavelengths', wavelengths, persistent=False)
        self.wavelengths: Tensor
        self.conditioning: Conditioning | None = None

    # gsd is no default's business, which timm's signatures would ask for
    def forward(  # type: ignore[override]
        self, x: Tensor, gsd: float | Tensor, time: Tensor | None = None, latlon: Tensor | None = None
    ) -> Tensor:
        """Embed or classify images of the sensor.

        Args:
            x: (B, C, H, W) normalised, with the bands it was folded for.
            gsd: metres per pixel of these images, a float or (B,).
            time: (B, 4) code of :func:`torchgeo_clay.conditioning.encode_time`; None for unknown.
            latlon: (B, 4) code of :func:`torchgeo_clay.conditioning.encode_latlon`; None for unknown.

        Returns:
            (B, D) class token after the final norm for ``num_classes=0``, else (B, num_classes) logits.

        Raises:
            ValueError: for another number of channels, sizes that are not a multiple of the patch size, and what
                :func:`torchgeo_clay.conditioning.matching.match_images` refuses.
        """
        return self.forward_head(self.forward_features(x, gsd, time, latlon))

    def forward_features(  # type: ignore[override]
        self, x: Tensor, gsd: float | Tensor, time: Tensor | None = None, latlon: Tensor | None = None
    ) -> Tensor:
        """All tokens after the final norm: (B, 1 + L, D), the class token first.

        Args:
            x: see :meth:`forward`, as for the other arguments.
            gsd: see :meth:`forward`.
            time: see :meth:`forward`.
            latlon: see :meth:`forward`.
        """
        conditioning = self._match(x, gsd, time, latlon)
        return self.encode(self._embed(self.patch_embed(x), conditioning))

    def forward_intermediates(  # type: ignore[override]
        self,
        x: Tensor,
        *args: Any,
        gsd: float | Tensor,
        time: Tensor | None = None,
        latlon: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Features of several blocks, as timm's method of that name gives them.

        Args:
            x: see :meth:`forward`, as for gsd, time and latlon.
            *args: passed to timm's method.
            gsd: see :meth:`forward`.
            time: see :meth:`forward`.
            latlon: see :meth:`forward`.
            **kwargs: passed to timm's method.

        Returns:
            See :meth:`timm.models.VisionTransformer.forward_intermediates`.
        """
        self.conditioning = self._match(x, gsd, time, latlon)
        try:
            return super().forward_intermediates(x, *args, **kwargs)
        finally:
            self.conditioning = None

    def _match(self, x: Tensor, gsd: float | Tensor, time: Tensor | None, latlon: Tensor | None) -> Conditioning:
        """What the images are conditioned on, held against them; whole patches, where none are padded."""
        p = self.patch_embed.patch_size[0]
        if not self.patch_embed.dynamic_img_pad and (x.shape[-2] % p or x.shape[-1] % p):
            raise ValueError(f'Expected height and width in multiples of {p} pixels, got {tuple(x.shape[-2:])}.')
        return match_images(x, self.wavelengths, gsd, time, latlon)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """What timm's ``forward_intermediates`` calls: (B, h, w, D) → (B, 1 + L, D)."""
        assert self.conditioning is not None
        return self._embed(x, self.conditioning)

    def _embed(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        """Add the position code to the patches and put the class token first: (B, h, w, D) → (B, 1 + L, D)."""
        code = self.position_code((x.shape[1], x.shape[2]), x.shape[0], conditioning)
        return self.pos_drop(self.prepend_class_token(rearrange(x, 'b h w d -> b (h w) d') + code))
