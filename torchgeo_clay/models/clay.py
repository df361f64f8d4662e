# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay's encoder: a timm vision transformer told wavelengths, ground sampling distance, time and place.

Shapes: B samples, C bands, H × W pixels, h × w patches (L = h·w), D width.
Source: https://github.com/Clay-foundation/model, release v1.5.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from torchgeo_clay.conditioning.contract import Conditioning
from torchgeo_clay.conditioning.matching import match_images
from torchgeo_clay.models.folded import FoldedClay
from torchgeo_clay.models.patch_embed import WavelengthPatchEmbed
from torchgeo_clay.models.trunk import ClayAttention, ClayNorm, ClayTrunk
from torchgeo_clay.sensors import Sensor, get_sensor

__all__ = ('Clay',)


class _Scope:
    """Sets a patch embedding's conditioning for the length of a ``with`` block; a class, as torch.compile takes it."""

    def __init__(self, patch_embed: WavelengthPatchEmbed, conditioning: Conditioning | None) -> None:
        self.patch_embed = patch_embed
        self.inner = conditioning

    def __enter__(self) -> None:
        self.outer = self.patch_embed.conditioning
        self.patch_embed.conditioning = self.inner

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.patch_embed.conditioning = self.outer


class Clay(ClayTrunk):
    """Clay's encoder.

    Everything a timm vision transformer has works here: ``forward_intermediates``, ``reset_classifier``,
    ``group_matcher``, ``set_grad_checkpointing``, ... The class token gets no position code. The embedding of a chip is
    the class token after the final norm, which is what ``forward`` returns for ``num_classes=0``.
    """

    patch_embed: WavelengthPatchEmbed

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        patch_size: int = 8,
        img_size: int | tuple[int, int] = 256,
        num_classes: int = 0,
        sensor: str | os.PathLike[str] | Sensor | None = None,
        bands: Sequence[str] | None = None,
        **vit_kwargs: Any,
    ) -> None:
        """Initialize the encoder.

        Args:
            embed_dim: D, width of the tokens.
            depth: number of blocks.
            num_heads: attention heads.
            mlp_ratio: hidden width of the MLPs over D.
            patch_size: pixels a side.
            img_size: nominal image size; any other is taken too.
            num_classes: size of the linear head; 0 for none.
            sensor: where a call names no wavelengths or no gsd, they are taken from this sensor.
            bands: the sensor's bands that make the channels, in order; None for all.
            **vit_kwargs: passed to :class:`timm.models.VisionTransformer`, such as ``dynamic_img_pad``,
                ``drop_path_rate`` or ``global_pool``.

        Raises:
            ValueError: for an unknown sensor or band, or bands without a sensor.
        """
        if bands is not None and sensor is None:
            raise ValueError(f'bands={list(bands)} need a sensor to look them up in: give sensor= too.')
        # any size is taken anyway, and the number of channels is that of the wavelengths
        for key in ('dynamic_img_size', 'in_chans', 'weight_init'):
            vit_kwargs.pop(key, None)
        released: dict[str, Any] = {
            'qkv_bias': False,
            'pos_embed': 'none',
            'fc_norm': False,
            'embed_layer': WavelengthPatchEmbed,
            'norm_layer': ClayNorm,
            'attn_layer': ClayAttention,
            'weight_init': 'skip',
        }
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            num_classes=num_classes,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            **released | vit_kwargs,
        )
        nn.init.normal_(self.cls_token, std=0.02)
        self.sensor = None if sensor is None else get_sensor(sensor).select(bands)
        fallback = None if self.sensor is None else torch.tensor(self.sensor.wavelengths, device='cpu')
        self.register_buffer('sensor_wavelengths', fallback, persistent=False)
        self.sensor_wavelengths: Tensor | None

    def conditioned_on(self, conditioning: Conditioning | None) -> _Scope:
        """Tell stock code's ``model(x)`` about the batch: the package's one place of scoped state.

        Example::

            with model.conditioned_on(Conditioning.from_batch(batch)):
                logits = model(batch['image'])

        Args:
            conditioning: what a call inside the block takes for arguments it was not given; None for nothing.

        Returns:
            A context manager, which restores the former state also when an exception leaves the block.
        """
        return _Scope(self.patch_embed, conditioning)

    def forward(
        self,
        x: Tensor,
        wavelengths: Tensor | Sequence[float] | None = None,
        gsd: float | Tensor | None = None,
        time: Tensor | None = None,
        latlon: Tensor | None = None,
    ) -> Tensor:
        """Embed or classify images.

        Args:
            x: (B, C, H, W) normalised, as (pixel - mean) / std of the sensor.
            wavelengths: (C,) µm; None to take the scope's, or the sensor's.
            gsd: metres per pixel of these images, a float or (B,); None likewise.
            time: (B, 4) code of :func:`torchgeo_clay.conditioning.encode_time`; None for unknown.
            latlon: (B, 4) code of :func:`torchgeo_clay.conditioning.encode_latlon`; None for unknown.

        Returns:
            (B, D) class token after the final norm for ``num_classes=0``, else (B, num_classes) logits.

        Raises:
            ValueError: see :meth:`resolve`, and for sizes that are not a multiple of the patch size.
        """
        return self.forward_head(self.forward_features(x, wavelengths, gsd, time, latlon))

    def forward_features(
        self,
        x: Tensor,
        wavelengths: Tensor | Sequence[float] | None = None,
        gsd: float | Tensor | None = None,
        time: Tensor | None = None,
        latlon: Tensor | None = None,
    ) -> Tensor:
        """All tokens after the final norm.

        Args:
            x: see :meth:`forward`, as for the other arguments.
            wavelengths: see :meth:`forward`.
            gsd: see :meth:`forward`.
            time: see :meth:`forward`.
            latlon: see :meth:`forward`.

        Returns:
            (B, 1 + L, D), the class token first.
        """
        with self.conditioned_on(self.resolve(x, wavelengths, gsd, time, latlon)):
            return self.encode(self._pos_embed(self.patch_embed(x)))

    def forward_intermediates(
        self,
        x: Tensor,
        *args: Any,
        wavelengths: Tensor | Sequence[float] | None = None,
        gsd: float | Tensor | None = None,
        time: Tensor | None = None,
        latlon: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Features of several blocks, as timm's method of that name gives them.

        Args:
            x: see :meth:`forward`, as for wavelengths, gsd, time and latlon.
            *args: passed to timm's method.
            wavelengths: see :meth:`forward`.
            gsd: see :meth:`forward`.
            time: see :meth:`forward`.
            latlon: see :meth:`forward`.
            **kwargs: passed to timm's method.

        Returns:
            See :meth:`timm.models.VisionTransformer.forward_intermediates`.
        """
        with self.conditioned_on(self.resolve(x, wavelengths, gsd, time, latlon)):
            return super().forward_intermediates(x, *args, **kwargs)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Add the position code to the patches and put the class token first: (B, h, w, D) → (B, 1 + L, D)."""
        conditioning = self.patch_embed.conditioning
        assert conditioning is not None
        code = self.position_code((x.shape[1], x.shape[2]), x.shape[0], conditioning)
        return self.pos_drop(self.prepend_class_token(rearrange(x, 'b h w d -> b (h w) d') + code))

    def resolve(
        self,
        x: Tensor,
        wavelengths: Tensor | Sequence[float] | None,
        gsd: float | Tensor | None,
        time: Tensor | None,
        latlon: Tensor | None,
    ) -> Conditioning:
        """What the images are conditioned on: the arguments, else the scope, else the model's sensor.

        Args:
            x: (B, C, H, W).
            wavelengths: see :meth:`forward`.
            gsd: see :meth:`forward`.
            time: see :meth:`forward`.
            latlon: see :meth:`forward`.

        Returns:
            A conditioning whose wavelengths are (C,) and whose gsd is (1,) or (B,), on the device of the images.

        Raises:
            ValueError: where wavelengths or gsd are known from nowhere, lengths do not fit the images, a tensor lies
                on another device, values are not in µm or not positive, or the image has integer values.
        """
        scope = self.patch_embed.conditioning or Conditioning()
        wavelengths = scope.wavelengths if wavelengths is None else wavelengths
        wavelengths = self.sensor_wavelengths if wavelengths is None else wavelengths
        gsd = scope.gsd if gsd is None else gsd
        gsd = self.sensor.gsd if gsd is None and self.sensor is not None else gsd
        if wavelengths is None or gsd is None:
            missing, example = ('wavelengths', '[0.665, 0.56, 0.493]') if wavelengths is None else ('gsd', '10.0')
            raise ValueError(
                f'{missing} of the images are not known. Give {missing}={example}, run the model inside '
                'conditioned_on(Conditioning.from_batch(batch)), or build it with sensor=. In a stock TorchGeo task, '
                'add torchgeo_clay.callbacks.SensorMetadata to the callbacks.'
            )
        return match_images(
            x,
            wavelengths,
            gsd,
            scope.time if time is None else time,
            scope.latlon if latlon is None else latlon,
        )

    def fold(
        self, sensor: str | os.PathLike[str] | Sensor, bands: Sequence[str] | None = None, *, copy: bool = True
    ) -> FoldedClay:
        """The same encoder for one sensor only: kernels made once, an ordinary convolution in their place.

        Args:
            sensor: the sensor whose images it will take.
            bands: its bands that make the channels, in order; None for all.
            copy: whether the blocks and the head are copied; otherwise they are shared with this model.

        Returns:
            A plain vision transformer with equal outputs, in eval mode, which ``torch.export`` takes.

        Raises:
            ValueError: for an unknown sensor or band.
        """
        wavelengths = torch.tensor(get_sensor(sensor).select(bands).wavelengths, device=self.cls_token.device)
        with torch.no_grad(), torch.autocast(wavelengths.device.type, enabled=False):
            kernels, bias = self.patch_embed.convolution(wavelengths)
        return FoldedClay(self, wavelengths, kernels, bias, copy=copy).eval()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that are tokens."""
        return {'cls_token', 'patch_embed.kernels.weight_tokens', 'patch_embed.kernels.bias_token'}
