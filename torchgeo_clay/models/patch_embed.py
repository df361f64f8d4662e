# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Patch embedding and pixel head whose kernels are made from wavelengths (after DOFA, https://arxiv.org/abs/2403.15356).

Shapes: B samples, C bands, H × W pixels, p × p pixels a patch, h × w patches, D width, V width of a wave token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from torchgeo_clay.conditioning.contract import Conditioning
from torchgeo_clay.models.position import wavelength_code

__all__ = ('PixelHead', 'WaveKernels', 'WavelengthPatchEmbed', 'patchify', 'unpatchify')

#: The release scales every generated kernel (not the bias) by this; the origin is DOFA's code.
KERNEL_SCALE = 0.02


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """Cut images into flattened patches: (B, C, h·p, w·p) → (B, h·w, C·p·p)."""
    return rearrange(x, 'b c (h p) (w q) -> b (h w) (c p q)', p=patch_size, q=patch_size)


def unpatchify(patches: Tensor, height: int, width: int, patch_size: int) -> Tensor:
    """Put flattened patches back: (B, h·w, C·p·p) → (B, C, h·p, w·p)."""
    p = patch_size
    return rearrange(patches, 'b (h w) (c p q) -> b c (h p) (w q)', h=height, w=width, p=p, q=p)


class WaveKernels(nn.Module):
    """The network that makes one kernel per band from the wavelengths of all bands together.

    Wave codes pass a residual block, then one post-norm transformer layer beside learnt tokens; each band's output
    becomes its kernel, the bias token's the bias. Bands see each other: a subset's kernels are its own.
    """

    def __init__(self, dim: int, patch_size: int, *, bias: bool, wave_dim: int = 128, num_tokens: int = 128) -> None:
        """Initialize the network.

        Args:
            dim: D, width of the tokens the kernels map to or from.
            patch_size: p, pixels a side.
            bias: whether to make a bias of width D too.
            wave_dim: V, width of a wave token.
            num_tokens: number of learnt weight tokens.
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
        """Make the kernels.

        Args:
            wavelengths: (C,) µm.

        Returns:
            Kernels (C, p·p·D), scaled, in the layout of whoever uses them, and the bias (D,) or None.
        """
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

    Takes the place of :class:`timm.layers.PatchEmbed`, whose interface it keeps. ``conditioning`` is the model's one
    piece of scoped state (see :meth:`torchgeo_clay.models.Clay.conditioned_on`): what stock code that calls the
    model with the image alone means by it.
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
        """Initialize the patch embedding.

        Args:
            img_size: nominal image size in pixels; any other size is taken too.
            patch_size: p, pixels a side.
            in_chans: ignored, as any number of bands is taken.
            embed_dim: D, width of the tokens.
            bias: ignored, as the release always has one.
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
        """Pad to whole patches where asked, else refuse what is not a multiple.

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
            x: (B, C, H, W) normalised.
            wavelengths: (C,) µm; None to take those of ``conditioning``.

        Returns:
            (B, h, w, D), so that the grid, square or not, reaches the position code.
        """
        if wavelengths is None:
            assert self.conditioning is not None, 'Clay resolves the conditioning before it calls the patch embedding'
            wavelengths = self.conditioning.wavelengths
        assert wavelengths is not None
        kernels, bias = self.convolution(wavelengths)
        return rearrange(F.conv2d(self.pad(x), kernels, bias, stride=self.patch_size), 'b d h w -> b h w d')

    def embed_patches(self, patches: Tensor, wavelengths: Tensor) -> Tensor:
        """Embed some patches only, as the masked autoencoder does with the visible ones.

        Args:
            patches: (B, N, C·p·p) of :func:`patchify`, normalised.
            wavelengths: (C,) µm.

        Returns:
            (B, N, D).
        """
        kernels, bias = self.kernels(wavelengths)
        kernels = rearrange(kernels, 'c (d p q) -> d (c p q)', p=self.patch_size[0], q=self.patch_size[1])
        return F.linear(patches, kernels, bias)


class PixelHead(nn.Module):
    """From tokens to pixels of any bands: the decoder's counterpart of the patch embedding, without bias."""

    def __init__(self, dim: int, patch_size: int = 8) -> None:
        """Initialize the head.

        Args:
            dim: D, width of the decoder's tokens.
            patch_size: p, pixels a side.
        """
        super().__init__()
        self.patch_size = patch_size
        self.kernels = WaveKernels(dim, patch_size, bias=False)

    def forward(self, tokens: Tensor, wavelengths: Tensor) -> Tensor:
        """Predict pixels.

        Args:
            tokens: (B, N, D).
            wavelengths: (C,) µm.

        Returns:
            (B, N, C·p·p), ordered as :func:`patchify` does.
        """
        kernels, _ = self.kernels(wavelengths)
        kernels = rearrange(kernels, 'c (p q d) -> (c p q) d', p=self.patch_size, q=self.patch_size)
        return F.linear(tokens, kernels)
