# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay with a decoder of segmentation_models_pytorch: an output per pixel, for images of any size.

Shapes: B samples, T = 2 dates, C bands, H × W pixels, F channels of a feature map of stride s, K outputs.
"""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from torchgeo_clay.models.clay import Clay, find_clay, pad_image
from torchgeo_clay.models.pyramid import Pyramid
from torchgeo_clay.models.weights import WeightsLike, resolve_weights

__all__ = ('DECODERS', 'ChangeClay', 'DenseClay')

#: Our (TorchGeo's) name of a decoder → that of segmentation_models_pytorch.
DECODERS = {'unet': 'unet', 'deeplabv3+': 'deeplabv3plus', 'upernet': 'upernet', 'segformer': 'segformer', 'dpt': 'dpt'}

#: Every decoder takes sizes in multiples of this, pixels.
GRID = 32


def round_up(size: int, multiple: int) -> int:
    """Return the smallest multiple that is not less than a size."""
    return -(-size // multiple) * multiple


def pad_map(x: Tensor, height: int, width: int) -> Tensor:
    """Repeat the last row and column of a feature map: (B, F, h, w) → (B, F, height, width)."""
    return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]), mode='replicate')


def _smp_model(model: str, decoder: str, outputs: int, weights: WeightsLike, **kwargs: Any) -> nn.Module:
    """Build the decoder's model of segmentation_models_pytorch with Clay as its encoder."""
    if decoder not in DECODERS:
        raise ValueError(f'decoder: expected one of {", ".join(DECODERS)}, got {decoder!r}.')
    if decoder == 'unet':
        kwargs['decoder_interpolation'] = 'bilinear'  # the default, nearest, leaves blocks
    if (path := resolve_weights(weights, model)) is not None:
        kwargs['pretrained_cfg_overlay'] = {'file': str(path)}
    return smp.create_model(
        DECODERS[decoder],
        f'tu-{model}',
        encoder_weights=None if path is None else True,
        in_channels=3,  # of no effect: Clay takes any number
        classes=outputs,
        **kwargs,
    )


class DenseClay(nn.Module):
    """Clay, feature maps, a decoder and a head.

    The image is padded to whole patches (:func:`~torchgeo_clay.models.clay.pad_image`). The multiples of 32 pixels that
    decoders need are padded in the feature maps, after the encoder's attention, and cropped from the output.
    """

    # of types that segmentation_models_pytorch leaves open
    encoder: Any
    decoder: Any
    segmentation_head: Any

    def __init__(
        self, model: str, decoder: str = 'unet', outputs: int = 1, weights: WeightsLike = None, **vit_kwargs: Any
    ) -> None:
        """Initialize a new DenseClay instance.

        Args:
            model: name of the encoder's builder, such as ``clay_base_patch8``.
            decoder: one of ``DECODERS``.
            outputs: K, channels of the output.
            weights: of the encoder; see the builder.
            **vit_kwargs: see :class:`Clay`.

        Raises:
            ValueError: for an unknown decoder.
            CheckpointError: for weights that cannot be fetched or read, or do not fit.
        """
        super().__init__()
        parts: Any = _smp_model(model, decoder, outputs, weights, **vit_kwargs)
        self.encoder, self.decoder, self.segmentation_head = parts.encoder, parts.decoder, parts.segmentation_head
        if isinstance(pyramid := self.encoder.model, Pyramid):
            self.strides = tuple(pyramid.feature_info.reduction())
            if decoder == 'deeplabv3+':  # which reads the first and the last map
                pyramid.levels['1'].requires_grad_(False)
                pyramid.levels['2'].requires_grad_(False)
        else:
            self.strides = tuple(self.encoder.output_strides)
            for block in self.decoder.reassemble_blocks:
                if isinstance(block.upsample, nn.ConvTranspose2d):  # which would leave a checkerboard
                    block.upsample = nn.Upsample(scale_factor=block.upsample.stride, mode='bilinear')
            self.clay.norm.requires_grad_(False)  # no map uses it

    @property
    def clay(self) -> Clay:
        """The encoder."""
        (clay,) = find_clay(self.encoder)
        return clay

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers of the encoder, as timm's method of that name; the rest is the last layer."""
        clay = r'^encoder\.(?:model\.)+'  # in a pyramid, or alone with dpt
        return {
            'stem': clay + r'(?:cls_token|patch_embed)',
            'blocks': [(clay + r'blocks\.(\d+)', None), (clay + 'norm', (99999,))],
        }

    def maps(self, x: Tensor) -> tuple[list[Tensor], list[Tensor] | None]:
        """Feature maps of an image (B, C, H, W) on the decoder's grid.

        Returns:
            For each stride s (B, F, H'/s, W'/s), H' and W' being H and W rounded up to 32, and, for dpt, each map's
            class token (B, 1, D).
        """
        found = self.encoder(pad_image(x))
        # smp's pyramids begin with the image and an empty map of stride 2
        maps, tokens = found if isinstance(found, tuple) else (found[2:], None)
        height, width = (round_up(n, GRID) for n in x.shape[-2:])
        grids = ((height // s, width // s) for s in self.strides)
        return [pad_map(m, *grid) for m, grid in zip(maps, grids, strict=True)], tokens

    def decode(self, maps: list[Tensor], tokens: list[Tensor] | None, size: tuple[int, int]) -> Tensor:
        """Decode feature maps of an image of that size: (B, K, H, W)."""
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
        """Predict every pixel: (B, C, H, W) normalized, of any size from one patch on → (B, K, H, W)."""
        maps, tokens = self.maps(x)
        return self.decode(maps, tokens, (x.shape[-2], x.shape[-1]))


class ChangeClay(DenseClay):
    """One encoder for both dates, and a decoder of the difference of their feature maps (FC-Siam-diff of TorchGeo)."""

    def __init__(
        self, model: str, decoder: str = 'unet', outputs: int = 1, weights: WeightsLike = None, **vit_kwargs: Any
    ) -> None:
        """Initialize a new ChangeClay instance. Arguments and errors as :class:`DenseClay`; dpt is refused."""
        if decoder == 'dpt':
            names = ', '.join(name for name in DECODERS if name != 'dpt')
            raise ValueError(
                f"Change detection: expected a decoder of {names}, got 'dpt', which reads a class token per image; a "
                'difference of images has none.'
            )
        super().__init__(model, decoder, outputs, weights, **vit_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Predict every pixel from two dates, the earlier first: (B, T, C, H, W) normalized → (B, K, H, W)."""
        maps, _ = self.maps(rearrange(x, 'b t c h w -> (b t) c h w'))
        pairs = [rearrange(m, '(b t) f h w -> t b f h w', t=2) for m in maps]
        return self.decode([after - before for before, after in pairs], None, (x.shape[-2], x.shape[-1]))
