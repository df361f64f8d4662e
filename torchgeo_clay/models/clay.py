# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay's encoder: a vision transformer that embeds patches by wavelength and codes GSD, place and time.

B samples · C bands · H × W pixels · p × p pixels a patch · h × w patches, row-major (L = h·w) · D width of a token ·
V width of a wave token.
Sources: https://github.com/Clay-foundation/model, release v1.5, and DOFA, https://arxiv.org/abs/2403.15356.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from types import TracebackType
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from timm.layers import Attention, LayerNorm, PatchEmbed
from timm.models import VisionTransformer
from timm.models.vision_transformer import checkpoint_seq
from torch import Tensor, nn

from torchgeo_clay.conditioning import Conditioning, match_images
from torchgeo_clay.sensors import Sensor, get_sensor

__all__ = ('PATCH_SIZE', 'Clay', 'FoldedClay', 'find_clay', 'pad_image')

#: Pixels per side of a patch of the released model and of every builder.
PATCH_SIZE = 8

#: Of all sine-cosine codes.
TEMPERATURE = 10000

#: Channels at the end of a position code that hold time (4) and place (4), the same for every patch of a sample.
METADATA_DIM = 8

#: Channels of a graded position code that hold the GSD, the same for every patch of a sample.
GSD_DIM = 16

#: Kind of position code: ``release``, the one that the released weights were trained with, or ``graded``, which a model
#: that is trained from scratch learns from sooner. Weights fit one of them only.
Position = Literal['release', 'graded']

#: Name of the buffer that marks weights trained with the graded code.
GRADED = 'graded_position'

#: The release scales every generated kernel (not the bias) by this; the origin is DOFA's code.
KERNEL_SCALE = 0.02


# codes ----------------------------------------------------------------------------------------------------------------


def wavelength_code(wavelengths: Tensor, dim: int = 128) -> Tensor:
    """Sine-cosine code of wavelengths: (C,) µm → (C, dim) float32 [sin λω | cos λω], ω_i = 10000^(-i/(dim/2-1))."""
    omega = torch.arange(dim // 2, device=wavelengths.device) / (dim // 2 - 1)
    omega = 1.0 / (TEMPERATURE**omega)
    angles = wavelengths.float()[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def axes_code(height: int, width: int, omega: Tensor) -> Tensor:
    """Sines and cosines of column x and row y of each patch, for frequencies (G, n) in radians per patch.

    Returns:
        (G, height·width, 4n) float32 [sin xω | cos xω | sin yω | cos yω].
    """

    def axis(length: int) -> Tensor:
        angles = torch.arange(length, device=omega.device)[:, None] * omega[:, None, :]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)  # (G, length, 2n)

    # sines are taken per row and per column, not per patch: the same numbers, h + w of them instead of h·w
    x = repeat(axis(width), 'g w d -> g h w d', h=height)
    y = repeat(axis(height), 'g h d -> g h w d', w=width)
    return rearrange(torch.cat([x, y], dim=-1), 'g h w d -> g (h w) d')


def grid_code(height: int, width: int, gsd: Tensor, dim: int) -> Tensor:
    """Two-dimensional sine-cosine code of a patch grid, scaled by the ground sampling distance.

    ω_i = gsd / 10000^(2·u_i/dim), u_i = i/(dim/4-1). The exponent divides by ``dim`` where ``u`` already runs from 0
    to 1, so all frequencies lie close under ``gsd``: the released weights were trained with it, so it is kept.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        gsd: (G,) meters per pixel; G is 1 for all samples alike, else B.
        dim: width of the code, a multiple of 4.

    Returns:
        (G, height·width, dim) float32, see :func:`axes_code`.
    """
    assert dim % 4 == 0, dim
    u = torch.arange(dim // 4, device=gsd.device) / (dim // 4 - 1)
    omega = 1.0 / (TEMPERATURE ** (2 * u / dim)) * gsd.float()[:, None]
    return axes_code(height, width, omega)


def graded_code(height: int, width: int, gsd: Tensor, dim: int) -> Tensor:
    """Sine-cosine code of a patch grid with frequencies from 1 to 1/100 per patch, and of the GSD.

    The codes of neighboring patches are similar, and no two of 300 patches a side are equal. In :func:`grid_code`, at
    10 m, neighbors are as unlike as any two patches, and a small model learns their arrangement late or never
    (docs/position.md).

    Args: as :func:`grid_code`.

    Returns:
        (G, height·width, dim) float32: :func:`axes_code` of ω_i = 100^(-i/(n-1)), n = dim/4 - 4, then [sin gη | cos gη]
        of g = log2(gsd), η_j = 2^(-j/2), j from 0 to 7.
    """
    count = (dim - GSD_DIM) // 4
    omega = 0.01 ** (torch.arange(count, device=gsd.device) / (count - 1))
    grid = axes_code(height, width, omega[None]).expand(len(gsd), -1, -1)
    eta = 0.5 ** (torch.arange(GSD_DIM // 2, device=gsd.device) / 2)
    angles = gsd.float().log2()[:, None] * eta
    ground = repeat(torch.cat([angles.sin(), angles.cos()], dim=-1), 'g d -> g l d', l=height * width)
    return torch.cat([grid, ground], dim=-1)


def position_code(
    height: int,
    width: int,
    gsd: Tensor,
    time: Tensor | None,
    latlon: Tensor | None,
    batch: int,
    dim: int,
    position: Position = 'release',
) -> Tensor:
    """Position, time and place of every patch.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        gsd: (1,) or (B,) meters per pixel.
        time: (B, 4) code of the time; None for unknown (zeros).
        latlon: (B, 4) code of the place; None for unknown (zeros).
        batch: B, the number of samples.
        dim: D, width of the tokens.
        position: ``release`` for :func:`grid_code`, ``graded`` for :func:`graded_code`.

    Returns:
        (B, height·width, D) float32: the grid code of width D-8, then time, then place.
    """
    code = graded_code if position == 'graded' else grid_code
    grid = code(height, width, gsd, dim - METADATA_DIM).expand(batch, -1, -1)
    unknown = gsd.new_zeros((1, METADATA_DIM // 2), dtype=torch.float32)
    metadata = torch.cat([(unknown if m is None else m.float()).expand(batch, -1) for m in (time, latlon)], dim=-1)
    return torch.cat([grid, repeat(metadata, 'b d -> b l d', l=height * width)], dim=-1)


# patches --------------------------------------------------------------------------------------------------------------


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """Cut images into flattened patches: (B, C, h·p, w·p) → (B, h·w, C·p·p)."""
    return rearrange(x, 'b c (h p) (w q) -> b (h w) (c p q)', p=patch_size, q=patch_size)


def unpatchify(patches: Tensor, height: int, width: int, patch_size: int) -> Tensor:
    """Put flattened patches back: (B, h·w, C·p·p) → (B, C, h·p, w·p)."""
    p = patch_size
    return rearrange(patches, 'b (h w) (c p q) -> b c (h p) (w q)', h=height, w=width, p=p, q=p)


def pad_image(x: Tensor, patch_size: int = PATCH_SIZE) -> Tensor:
    """Complete the last patches of an image by reflection, right and below, so that patches keep their positions.

    (B, C, H, W) → (B, C, H', W'), H' and W' the next multiples of the patch size: no patch without pixels of the image
    is added, as the encoder would attend to it.

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


class WaveKernels(nn.Module):
    """The network that makes one kernel per band from the wavelengths of all bands together.

    Wave codes pass a residual block, then one post-norm transformer layer together with learned tokens. The output of
    each band becomes its kernel, that of the bias token the bias. Bands attend to each other, so the kernels of a
    subset are not those of the full set.
    """

    def __init__(self, dim: int, patch_size: int, *, bias: bool, wave_dim: int = 128, num_tokens: int = 128) -> None:
        """Initialize a new WaveKernels instance.

        Args:
            dim: D, width of the tokens the kernels map to or from.
            patch_size: p, pixels a side.
            bias: whether to make a bias of width D too.
            wave_dim: V, width of a wave token.
            num_tokens: number of learned weight tokens.
        """
        super().__init__()
        self.wave_dim = wave_dim
        self.num_tokens = num_tokens
        self.fc1 = nn.Linear(wave_dim, wave_dim)
        self.fc2 = nn.Linear(wave_dim, wave_dim)
        self.weight_tokens = nn.Parameter(torch.empty(num_tokens, wave_dim))
        self.bias_token = nn.Parameter(torch.empty(1, wave_dim))
        self.encoder = nn.TransformerEncoderLayer(
            wave_dim, nhead=4, dim_feedforward=2048, dropout=0.0, activation='gelu', batch_first=True
        )
        self.to_kernel = nn.Linear(wave_dim, patch_size**2 * dim)
        self.to_bias = nn.Linear(wave_dim, dim) if bias else None
        self.init_weights()

    def init_weights(self) -> None:
        """Initialize as the release: Xavier-uniform linears with zero biases, tokens N(0, 0.02²)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.weight_tokens, std=0.02)
        nn.init.normal_(self.bias_token, std=0.02)

    def forward(self, wavelengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """Make kernels (C, p·p·D), scaled, in the layout of the caller, and the bias (D,) or None from (C,) µm."""
        waves = wavelength_code(wavelengths, self.wave_dim).to(self.weight_tokens.dtype)  # (C, V)
        waves = waves + F.gelu(self.fc2(F.gelu(self.fc1(waves))))
        tokens = torch.cat([self.weight_tokens, waves, self.bias_token], dim=0)  # (T + C + 1, V)
        # unbatched on purpose: a batched input would take nn.TransformerEncoderLayer's fast path, 7e-7 off the release
        out = self.encoder(tokens)
        bands = slice(self.num_tokens, -1)
        kernels = self.to_kernel(out[bands] + tokens[bands]) * KERNEL_SCALE
        return kernels, None if self.to_bias is None else self.to_bias(out[-1])


class WavelengthPatchEmbed(nn.Module):
    """Patch embedding for any bands: a convolution whose kernels are made from their wavelengths.

    It has the interface of :class:`timm.layers.PatchEmbed`. ``conditioning`` is the model's one piece of scoped state,
    see :meth:`torchgeo_clay.models.Clay.conditioned_on`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] | None = 256,
        patch_size: int = 8,
        in_chans: int = 0,
        embed_dim: int = 1024,
        bias: bool = True,
        dynamic_img_pad: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Initialize a new WavelengthPatchEmbed instance.

        Args:
            img_size: nominal image size in pixels; any other size is taken too.
            patch_size: p, pixels a side.
            in_chans: timm's argument; any number of bands is taken.
            embed_dim: D, width of the tokens.
            bias: timm's argument; there is always one.
            dynamic_img_pad: pad images with zeros, right and below, to a multiple of the patch size instead of
                refusing them.
            device: where to make the parameters.
            dtype: of the parameters.
        """
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.dynamic_img_pad = dynamic_img_pad
        self.conditioning: Conditioning | None = None
        self.set_input_size(img_size)
        self.kernels = WaveKernels(embed_dim, patch_size, bias=True).to(device=device, dtype=dtype)

    @property
    def proj(self) -> nn.Module:
        """The convolution that other patch embeddings have; there is none here."""
        raise TypeError(
            'Clay makes the convolution of its patches from wavelengths, so that there is no patch_embed.proj, which '
            "lightly's masked autoencoder reads. Instead of TorchGeo's MAE, use torchgeo_clay.tasks.ClayPretraining."
        )

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: tuple[int, int] | None = None
    ) -> None:
        """Set the nominal image size, which fixes ``grid_size`` and ``num_patches`` and restricts nothing.

        Raises:
            ValueError: for another patch size: the kernels are made for 8.
        """
        if patch_size is not None and tuple(patch_size) != self.patch_size:
            raise ValueError(
                f'Expected patch size {self.patch_size}, which the kernels are made for, got {patch_size}.'
            )
        if img_size is not None:
            self.img_size = (img_size, img_size) if isinstance(img_size, int) else img_size
            self.grid_size = self.dynamic_feat_size(self.img_size)
            self.num_patches = self.grid_size[0] * self.grid_size[1]

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per patch and side."""
        return self.patch_size[0] if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Patch grid (h, w) of an image of the given height and width."""
        height, width = img_size
        p = self.patch_size[0]
        return (-(-height // p), -(-width // p)) if self.dynamic_img_pad else (height // p, width // p)

    def pad(self, x: Tensor) -> Tensor:
        """Pad to whole patches if ``dynamic_img_pad``, else refuse other sizes.

        Raises:
            ValueError: for a height or width that is zero or not a multiple of the patch size.
        """
        height, width = x.shape[-2:]
        p = self.patch_size[0]
        if height % p == 0 and width % p == 0 and height and width:
            return x
        if not self.dynamic_img_pad or not height or not width:
            raise ValueError(
                f'Expected height and width in multiples of {p} pixels, got {height} × {width}. Crop or pad the image, '
                'or build the model with dynamic_img_pad=True, which pads with zeros right and below.'
            )
        return F.pad(x, (0, -width % p, 0, -height % p))

    def convolution(self, wavelengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """Kernels (D, C, p, p) and bias (D,) of the convolution for wavelengths (C,) µm."""
        kernels, bias = self.kernels(wavelengths)
        return rearrange(kernels, 'c (d p q) -> d c p q', p=self.patch_size[0], q=self.patch_size[1]), bias

    def forward(self, x: Tensor, wavelengths: Tensor | None = None) -> Tensor:
        """Embed every patch.

        Args:
            x: (B, C, H, W) normalized.
            wavelengths: (C,) µm; None to take those of ``conditioning``.

        Returns:
            (B, h, w, D), so that the grid, square or not, reaches the position code.
        """
        if wavelengths is None and self.conditioning is not None:
            wavelengths = self.conditioning.wavelengths
        assert wavelengths is not None, 'Clay resolves the conditioning before it calls the patch embedding'
        kernels, bias = self.convolution(wavelengths)
        return rearrange(F.conv2d(self.pad(x), kernels, bias, stride=self.patch_size), 'b d h w -> b h w d')

    def embed_patches(self, patches: Tensor, wavelengths: Tensor) -> Tensor:
        """Embed patches of :func:`patchify`, as the autoencoder does the visible ones: (B, N, C·p·p) → (B, N, D)."""
        kernels, bias = self.kernels(wavelengths)
        kernels = rearrange(kernels, 'c (d p q) -> d (c p q)', p=self.patch_size[0], q=self.patch_size[1])
        return F.linear(patches, kernels, bias)


# the encoder ----------------------------------------------------------------------------------------------------------


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


def position_problem(got: Position, expected: Position) -> str:
    """Return the error for weights that were trained with another position code than the model's."""
    return (
        f'The weights were trained with the position code {got!r}, the model has {expected!r}, with which they mean '
        f'nothing. Build it with position={got!r}, or leave position out and give weights= the file, which says it.'
    )


class ClayTrunk(VisionTransformer):
    """A timm vision transformer whose patches get Clay's position code: what Clay and its folded form share."""

    cls_token: nn.Parameter
    position: Position

    def position_code(self, grid: tuple[int, int], batch: int, conditioning: Conditioning) -> Tensor:
        """Position, time and place of each patch of an (h, w) grid: (B, L, D), in the weights' dtype."""
        gsd, time, latlon = conditioning.gsd, conditioning.time, conditioning.latlon
        assert isinstance(gsd, Tensor)
        code = position_code(*grid, gsd, time, latlon, batch, self.embed_dim, self.position)
        return code.to(self.cls_token.dtype)

    def prepend_class_token(self, patches: Tensor) -> Tensor:
        """Put the class token, which has no position code, before the patches: (B, N, D) → (B, 1 + N, D)."""
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)

    def add_position(self, patches: Tensor, conditioning: Conditioning) -> Tensor:
        """Add the position code to a grid of patches, and the class token: (B, h, w, D) → (B, 1 + L, D)."""
        batch, height, width, _ = patches.shape
        code = self.position_code((height, width), batch, conditioning)
        return self.pos_drop(self.prepend_class_token(rearrange(patches, 'b h w d -> b (h w) d') + code))

    def encode(self, tokens: Tensor) -> Tensor:
        """Run the blocks and the final norm: (B, N, D) → (B, N, D)."""
        tokens = self.norm_pre(self.patch_drop(tokens))
        tokens = checkpoint_seq(self.blocks, tokens) if self.grad_checkpointing else self.blocks(tokens)
        return self.norm(tokens)


class _Scope:
    """Set a module's conditioning inside a ``with`` block; a class, as torch.compile traces it."""

    def __init__(self, module: WavelengthPatchEmbed | FoldedClay, conditioning: Conditioning | None) -> None:
        self.module, self.inner = module, conditioning

    def __enter__(self) -> None:
        self.outer, self.module.conditioning = self.module.conditioning, self.inner

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.module.conditioning = self.outer


#: Arguments of timm's vision transformer that Clay cannot honor, and why.
_REFUSED = {
    'in_chans': 'the number of channels is that of the wavelengths of each call. Leave it out',
    'dynamic_img_size': 'images of any size are taken. Leave it out; dynamic_img_pad=True pads to whole patches',
    'pos_embed': 'the position code is made from GSD, place and time. Leave it out',
    'class_token': 'the embedding is the class token. Leave it out; global_pool="avg" pools the patches instead',
    'reg_tokens': 'the released encoder has none. Leave it out',
    'no_embed_class': 'the class token has no position code. Leave it out',
    'weight_init': 'weights are initialized as the release does it. Leave it out',
    'embed_layer': 'the patch embedding is made from wavelengths. Leave it out',
}


class Clay(ClayTrunk):
    """Clay's encoder.

    Everything of a timm vision transformer works: ``forward_intermediates``, ``reset_classifier``, ``group_matcher``,
    ``set_grad_checkpointing``, … The embedding of a chip is the class token after the final norm, which ``forward``
    returns for ``num_classes=0``.
    """

    patch_embed: WavelengthPatchEmbed

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        patch_size: int = PATCH_SIZE,
        img_size: int | tuple[int, int] = 256,
        num_classes: int = 0,
        position: Position = 'release',
        **vit_kwargs: Any,
    ) -> None:
        """Initialize a new Clay instance.

        Args:
            embed_dim: D, width of the tokens.
            depth: number of blocks.
            num_heads: attention heads.
            mlp_ratio: hidden width of the MLPs over D.
            patch_size: pixels a side.
            img_size: nominal image size; any other is taken too.
            num_classes: size of the linear head; 0 for none.
            position: kind of position code, ``release`` or ``graded``; the weights say which they were trained with.
            **vit_kwargs: passed to :class:`timm.models.VisionTransformer`, such as ``dynamic_img_pad``,
                ``drop_path_rate`` or ``global_pool``.

        Raises:
            TypeError: for an argument of timm's that cannot be honored, such as ``in_chans``.
            ValueError: for an unknown position code.
        """
        if position not in get_args(Position):
            raise ValueError(f"position: expected 'release' or 'graded', got {position!r}.")
        for name in _REFUSED.keys() & vit_kwargs:
            raise TypeError(f'Clay does not take {name}={vit_kwargs[name]!r}: {_REFUSED[name]}.')
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
        self.position = position
        if position == 'graded':  # so that its weights, in whatever file, fit no model with the release's code
            self.register_buffer(GRADED, torch.ones((), dtype=torch.uint8))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse weights that were trained with the other position code."""
        got: Position = 'graded' if prefix + GRADED in state_dict else 'release'
        if got != self.position and prefix + 'cls_token' in state_dict:
            raise ValueError(position_problem(got, self.position))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def conditioned_on(self, conditioning: Conditioning | None) -> _Scope:
        """Give stock code's ``model(x)`` the metadata of the batch: the package's one place of scoped state.

        Example::

            with model.conditioned_on(Conditioning.from_batch(batch)):
                logits = model(batch['image'])

        Args:
            conditioning: used inside the block for arguments that a call does not give; None for nothing.

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
            x: (B, C, H, W) normalized, as (pixel - mean) / std of the sensor.
            wavelengths: (C,) µm; None to take the scope's.
            gsd: meters per pixel of these images, a float or (B,); None to take the scope's.
            time: (B, 4) code of :func:`torchgeo_clay.conditioning.encode_time`; None for the scope's, else unknown.
            latlon: (B, 4) code of :func:`torchgeo_clay.conditioning.encode_latlon`; None likewise.

        Returns:
            (B, D) class token after the final norm for ``num_classes=0``, else (B, num_classes) logits.

        Raises:
            ValueError: for what :func:`torchgeo_clay.conditioning.match_images` refuses, and for sizes that are not a
                multiple of the patch size.
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
        """Compute all tokens after the final norm, the class token first: (B, 1 + L, D).

        Arguments as :meth:`forward`.
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
        """Compute features of several blocks, as timm's method of that name.

        Arguments as :meth:`forward`, the others as :meth:`timm.models.VisionTransformer.forward_intermediates`.
        """
        with self.conditioned_on(self.resolve(x, wavelengths, gsd, time, latlon)):
            return super().forward_intermediates(x, *args, **kwargs)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Override of timm's hook: (B, h, w, D) → (B, 1 + L, D)."""
        assert self.patch_embed.conditioning is not None
        return self.add_position(x, self.patch_embed.conditioning)

    def resolve(
        self,
        x: Tensor,
        wavelengths: Tensor | Sequence[float] | None = None,
        gsd: float | Tensor | None = None,
        time: Tensor | None = None,
        latlon: Tensor | None = None,
    ) -> Conditioning:
        """Return the conditioning of a call: its arguments, else the scope's.

        Arguments and errors as :func:`torchgeo_clay.conditioning.match_images`.
        """
        return match_images(x, wavelengths, gsd, time, latlon, self.patch_embed.conditioning)

    def fold(self, sensor: str | os.PathLike[str] | Sensor, bands: Sequence[str] | None = None) -> FoldedClay:
        """Copy the encoder for one sensor, in eval mode, with an ordinary convolution made from its kernels of now.

        Args:
            sensor: the sensor whose images it will take.
            bands: its bands that make the channels, in order; None for all.
        """
        return deepcopy(FoldedClay(self, get_sensor(sensor).select(bands))).eval()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters excluded from weight decay."""
        return {'cls_token', 'patch_embed.kernels.weight_tokens', 'patch_embed.kernels.bias_token'}


class FoldedClay(ClayTrunk):
    """Clay for one sensor, without the network that makes kernels; see :meth:`Clay.fold`.

    GSD, time and place stay inputs. ``torch.export`` takes it, with a batch of any size::

        folded = clay.fold('sentinel-2-l2a')
        batch = torch.export.Dim('batch')
        program = torch.export.export(
            folded, (x, gsd, time, latlon), dynamic_shapes=({0: batch}, {0: batch}, {0: batch}, {0: batch})
        )
    """

    def __init__(self, model: Clay, sensor: Sensor) -> None:
        """Initialize a new FoldedClay instance, which shares the encoder's blocks, norms and head."""
        wavelengths = torch.tensor(sensor.wavelengths, device=model.cls_token.device)
        with torch.no_grad(), torch.autocast(wavelengths.device.type, enabled=False):
            kernels, bias = model.patch_embed.convolution(wavelengths)
        dim, channels, patch_size, _ = kernels.shape
        super().__init__(
            img_size=model.patch_embed.img_size,
            patch_size=patch_size,
            in_chans=channels,
            num_classes=0,
            embed_dim=dim,
            depth=0,  # the blocks are the encoder's, below
            global_pool=model.global_pool,
            pos_embed='none',
            dynamic_img_size=True,
            dynamic_img_pad=model.patch_embed.dynamic_img_pad,
            embed_layer=PatchEmbed,
            weight_init='skip',
            device=kernels.device,
            dtype=kernels.dtype,
        )
        self.patch_embed.proj.weight = nn.Parameter(kernels.detach().clone())
        self.patch_embed.proj.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        for name, part in model.named_children():
            if name != 'patch_embed':
                setattr(self, name, part)
        self.cls_token = model.cls_token
        self.num_classes, self.feature_info = model.num_classes, model.feature_info
        self.pool_include_prefix = model.pool_include_prefix
        self.position = model.position
        self.register_buffer('wavelengths', wavelengths, persistent=False)
        self.wavelengths: Tensor
        self.conditioning: Conditioning | None = None

    # gsd has no default, which timm's signatures would ask for
    def forward(  # type: ignore[override]
        self, x: Tensor, gsd: float | Tensor, time: Tensor | None = None, latlon: Tensor | None = None
    ) -> Tensor:
        """Embed or classify images of the bands it was folded for; otherwise as :meth:`Clay.forward`."""
        return self.forward_head(self.forward_features(x, gsd, time, latlon))

    def forward_features(  # type: ignore[override]
        self, x: Tensor, gsd: float | Tensor, time: Tensor | None = None, latlon: Tensor | None = None
    ) -> Tensor:
        """Compute all tokens after the final norm, the class token first: (B, 1 + L, D).

        Arguments as :meth:`forward`.
        """
        conditioning = self._match(x, gsd, time, latlon)
        return self.encode(self.add_position(self.patch_embed(x), conditioning))

    def forward_intermediates(  # type: ignore[override]
        self,
        x: Tensor,
        *args: Any,
        gsd: float | Tensor,
        time: Tensor | None = None,
        latlon: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compute features of several blocks, as timm's method of that name. Arguments as :meth:`forward`."""
        with _Scope(self, self._match(x, gsd, time, latlon)):
            return super().forward_intermediates(x, *args, **kwargs)

    def _match(self, x: Tensor, gsd: float | Tensor, time: Tensor | None, latlon: Tensor | None) -> Conditioning:
        """Match the metadata with the images, which must be of whole patches unless they are padded."""
        p = self.patch_embed.patch_size[0]
        if not self.patch_embed.dynamic_img_pad and (x.shape[-2] % p or x.shape[-1] % p):
            raise ValueError(f'Expected height and width in multiples of {p} pixels, got {tuple(x.shape[-2:])}.')
        return match_images(x, self.wavelengths, gsd, time, latlon)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Override of timm's hook, which its ``forward_intermediates`` calls: (B, h, w, D) → (B, 1 + L, D)."""
        assert self.conditioning is not None
        return self.add_position(x, self.conditioning)


def find_clay(module: nn.Module) -> list[Clay]:
    """Find every Clay in a module, such as a Lightning task: itself or its parts, each once, as registered."""
    return [m for m in module.modules() if isinstance(m, Clay)]
