# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay with a decoder of segmentation_models_pytorch: an output per pixel, for images of any size.

Shapes: B samples, T = 2 dates, C bands, H × W pixels, F channels of a feature map of stride s, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import segmentation_models_pytorch as smp
import torch
from einops import rearrange
from torch import Tensor, nn

from torchgeo_clay.models.clay import Clay
from torchgeo_clay.models.padding import pad_image, pad_map, round_up
from torchgeo_clay.models.pyramid import Pyramid
from torchgeo_clay.models.scope import find_clay
from torchgeo_clay.models.weights.released import WeightsLike, fetch

__all__ = ('DECODERS', 'ChangeClay', 'DenseClay')

#: Our (TorchGeo's) name of a decoder → that of segmentation_models_pytorch.
DECODERS = {
    'unet': 'unet',
    'deeplabv3+': 'deeplabv3plus',
    'upernet': 'upernet',
    'segformer': 'segformer',
    'dpt': 'dpt',
}

#: The grid that every decoder can halve and double without a remainder, pixels.
GRID = 32

_CLAY = r'^encoder\.(?:model\.)+'  # in a pyramid, or alone with dpt


class _WholePyramid(Pyramid):
    """A pyramid that keeps the encoder's final norm, frozen as no map needs it, so that the encoder can be exported."""

    def __init__(self, model: Clay, out_indices: int | Sequence[int] = (0, 1, 2, 3), output_stride: int = 32) -> None:
        norm = model.norm
        super().__init__(model, out_indices, output_stride)
        model.norm = norm


def _smp_model(model: str, decoder: str, outputs: int, weights: WeightsLike, **kwargs: Any) -> nn.Module:
    """The decoder's model of segmentation_models_pytorch with Clay inside."""
    if decoder not in DECODERS:
        raise ValueError(f'decoder: expected one of {", ".join(DECODERS)}, got {decoder!r}.')
    if decoder == 'unet':
        kwargs['decoder_interpolation'] = 'bilinear'  # the default, nearest, leaves blocks
    if decoder != 'dpt':
        kwargs['feature_cls'] = _WholePyramid
    if weights is not None:
        kwargs['pretrained_cfg_overlay'] = {'file': str(fetch(weights, model))}
    return smp.create_model(
        DECODERS[decoder],
        f'tu-{model}',
        encoder_weights=None if weights is None else True,
        in_channels=3,  # of no effect: Clay takes any number
        classes=outputs,
        **kwargs,
    )


class DenseClay(nn.Module):
    """Clay, feature maps, a decoder and a head.

    The encoder sees the image, its last patches completed (:func:`~torchgeo_clay.models.padding.pad_image`). What
    decoders need beyond, sizes in multiples of 32 pixels, is added to the feature maps, where no attention sees it, and
    cut off the output.
    """

    # of types that segmentation_models_pytorch leaves open
    encoder: Any
    decoder: Any
    segmentation_head: Any

    def __init__(
        self, model: str, decoder: str = 'unet', outputs: int = 1, weights: WeightsLike = None, **vit_kwargs: Any
    ) -> None:
        """Initialize the model.

        Args:
            model: name of the encoder's builder, such as ``clay_base_patch8``.
            decoder: one of ``DECODERS``.
            outputs: K, channels of the output.
            weights: of the encoder; see the builder.
            **vit_kwargs: see :class:`Clay`.

        Raises:
            ValueError: for an unknown decoder.
            CheckpointError: for weights that can't be fetched, read, or do not fit.
        """
        super().__init__()
        parts: Any = _smp_model(model, decoder, outputs, weights, **vit_kwargs)
        self.encoder, self.decoder, self.segmentation_head = parts.encoder, parts.decoder, parts.segmentation_head
        if isinstance(pyramid := self.encoder.model, Pyramid):
            self.strides = tuple(pyramid.feature_info.reduction())
            unused = ('1', '2') if decoder == 'deeplabv3+' else ()
            for level in unused:
                pyramid.levels[level].requires_grad_(False)
        else:
            self.strides = tuple(self.encoder.output_strides)
            for block in self.decoder.reassemble_blocks:
                if isinstance(block.upsample, nn.ConvTranspose2d):  # which would leave a checkerboard
                    block.upsample = nn.Upsample(scale_factor=block.upsample.stride, mode='bilinear')
        self.clay.norm.requires_grad_(False)  # after the last block, whose own output the maps are made of

    @property
    def clay(self) -> Clay:
        """The encoder."""
        (clay,) = find_clay(self.encoder)
        return clay

    def neck(self) -> list[nn.Module]:
        """The new layers between the encoder and the decoder."""
        return [self.encoder.model.levels] if isinstance(self.encoder.model, Pyramid) else []

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers of the encoder, as timm's method of that name has them; what comes after is the last."""
        return {
            'stem': _CLAY + r'(?:cls_token|patch_embed)',
            'blocks': [(_CLAY + r'blocks\.(\d+)', None), (_CLAY + 'norm', (99999,))],
        }

    def maps(self, x: Tensor) -> tuple[list[Tensor], list[Tensor] | None]:
        """Feature maps of an image, on the decoder's grid.

        Args:
            x: (B, C, H, W) normalised.

        Returns:
            For each stride s (B, F, H'/s, W'/s), H' and W' being H and W rounded up to 32, and, for dpt, each map's
            class token (B, 1, D).

        Raises:
            ValueError: for an image smaller than a patch, and see :meth:`Clay.resolve`.
        """
        found = self.encoder(pad_image(x))
        # smp's pyramids begin with the image and an empty map of stride 2
        maps, tokens = found if isinstance(found, tuple) else (found[2:], None)
        height, width = (round_up(n, GRID) for n in x.shape[-2:])
        grids = ((height // s, width // s) for s in self.strides)
        return [pad_map(m, *grid) for m, grid in zip(maps, grids, strict=True)], tokens

    def decode(self, maps: list[Tensor], tokens: list[Tensor] | None, size: tuple[int, int]) -> Tensor:
        """From feature maps to (B, K, H, W), (H, W) being the size."""
        if tokens is not None:
            decoded = self.decoder(maps, tokens)
        else:
            height, width = (round_up(n, GRID) for n in size)
            batch = maps[0].shape[0]
            empty = [maps[0].new_empty(batch, 0, height // s, width // s) for s in (1, 2)]
            decoded = self.decoder([*empty, *maps])
        # contiguous, as torchmetrics' regression flattens by view
        return self.segmentation_head(decoded)[..., : size[0], : size[1]].contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Predict every pixel.

        Args:
            x: (B, C, H, W) normalised, of any size from one patch on.

        Returns:
            (B, K, H, W).

        Raises:
            ValueError: see :meth:`maps`.
        """
        maps, tokens = self.maps(x)
        return self.decode(maps, tokens, (x.shape[-2], x.shape[-1]))


class ChangeClay(DenseClay):
    """Both dates through one encoder; a decoder sees how their feature maps differ (after FC-Siam, TorchGeo's)."""

    def __init__(
        self,
        model: str,
        decoder: str = 'unet',
        outputs: int = 1,
        weights: WeightsLike = None,
        fusion: Literal['diff', 'concat'] = 'diff',
        **vit_kwargs: Any,
    ) -> None:
        """Initialize the model.

        Args:
            model: see :class:`DenseClay`, as for decoder (except dpt), outputs, weights and vit_kwargs.
            decoder: see :class:`DenseClay`.
            outputs: see :class:`DenseClay`.
            weights: see :class:`DenseClay`.
            fusion: ``diff`` for the later map minus the earlier; ``concat`` for a convolution of both.
            **vit_kwargs: see :class:`DenseClay`.

        Raises:
            ValueError: for an unknown decoder or fusion.
        """
        if decoder == 'dpt' or fusion not in ('diff', 'concat'):
            names = ', '.join(name for name in DECODERS if name != 'dpt')
            raise ValueError(
                f"Change detection: expected a decoder of {names}, and fusion='diff' or 'concat', got {decoder!r} and "
                f'{fusion!r}. (dpt reads a class token per image, and a difference of images has none.)'
            )
        super().__init__(model, decoder, outputs, weights, **vit_kwargs)
        self.fuse: nn.ModuleList | None = None
        if fusion == 'concat':
            channels = self.encoder.model.feature_info.channels()
            self.fuse = nn.ModuleList(nn.Conv2d(2 * c, c, 1) for c in channels)
            if decoder == 'deeplabv3+':
                self.fuse[1:3].requires_grad_(False)  # maps that it does not use

    def neck(self) -> list[nn.Module]:
        """The new layers between the encoder and the decoder."""
        return super().neck() + ([] if self.fuse is None else [self.fuse])

    def forward(self, x: Tensor) -> Tensor:
        """Predict every pixel from two dates.

        Args:
            x: (B, T, C, H, W) normalised, the earlier date first.

        Returns:
            (B, K, H, W).

        Raises:
            ValueError: see :meth:`maps`.
        """
        maps, _ = self.maps(rearrange(x, 'b t c h w -> (b t) c h w'))
        pairs = [rearrange(m, '(b t) f h w -> t b f h w', t=2) for m in maps]
        if self.fuse is None:
            fused = [after - before for before, after in pairs]
        else:
            fused = [conv(torch.cat([*pair], dim=1)) for conv, pair in zip(self.fuse, pairs, strict=True)]
        return self.decode(fused, None, (x.shape[-2], x.shape[-1]))
