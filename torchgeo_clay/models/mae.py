# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay's masked autoencoder: masking, decoder, losses.

B samples · C bands · H × W pixels · p × p pixels a patch · h × w patches (L = h·w), M of them masked · D width of the
encoder · E width of the decoder · T width of the teacher.
Sources: https://arxiv.org/abs/2111.06377 (MAE) and https://github.com/Clay-foundation/model, release v1.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.models.clay import (
    PATCH_SIZE,
    Clay,
    ClayAttention,
    ClayNorm,
    Position,
    WaveKernels,
    patchify,
    position_code,
    unpatchify,
)
from torchgeo_clay.models.teacher import resize_for_teacher

__all__ = ('ClayDecoder', 'ClayMAE', 'MAEOutput')


# masking --------------------------------------------------------------------------------------------------------------


class Masking(NamedTuple):
    """Masked and visible patches.

    Attributes:
        masked: (B, M) indices of the masked patches, in the order of their noise.
        visible: (B, L - M) indices of the visible ones, likewise: attention does not depend on the order.
        restore: (B, L) index of each patch in [masked | visible].
    """

    masked: Tensor
    visible: Tensor
    restore: Tensor

    @classmethod
    def from_noise(cls, noise: Tensor, ratio: float) -> Masking:
        """Mask the patches of the int(ratio·L) smallest of the noises (B, L).

        Raises:
            ValueError: if no patch or every patch would be masked.
        """
        count = int(ratio * noise.shape[1])
        if not 0 < count < noise.shape[1]:
            raise ValueError(
                f'Expected some patches masked and some visible, got {count} of {noise.shape[1]} masked at '
                f'mask_ratio={ratio}. Use larger images.'
            )
        order = noise.argsort(dim=1)
        return cls(order[:, :count], order[:, count:], order.argsort(dim=1))

    @property
    def mask(self) -> Tensor:
        """(B, L) float, 1 where a patch is masked."""
        return (self.restore < self.masked.shape[1]).float()


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Take tokens by index: (B, L, D) and (B, N) → (B, N, D)."""
    return tokens.gather(1, repeat(indices, 'b n -> b n d', d=tokens.shape[-1]))


# decoder --------------------------------------------------------------------------------------------------------------


class PixelHead(nn.Module):
    """Pixels of any bands from tokens: the decoder's counterpart of the patch embedding, without bias."""

    def __init__(self, dim: int, patch_size: int = PATCH_SIZE) -> None:
        """Initialize a new PixelHead instance for tokens of width E and patches of p pixels a side."""
        super().__init__()
        self.patch_size = patch_size
        self.kernels = WaveKernels(dim, patch_size, bias=False)

    def forward(self, tokens: Tensor, wavelengths: Tensor) -> Tensor:
        """Predict pixels: (B, N, E) and (C,) µm → (B, N, C·p·p), ordered as :func:`patchify` does."""
        kernels, _ = self.kernels(wavelengths)
        kernels = rearrange(kernels, 'c (p q d) -> (c p q) d', p=self.patch_size, q=self.patch_size)
        return F.linear(tokens, kernels)


class ClayDecoder(nn.Module):
    """The small transformer that predicts pixels of masked patches from the encoder's visible tokens."""

    def __init__(self, *, encoder_dim: int, dim: int, depth: int, heads: int, dim_head: int, mlp_ratio: float) -> None:
        """Initialize a new ClayDecoder instance.

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
        for block in self.blocks:  # timm's block has no argument for the width of a head
            block.attn = ClayAttention(dim, heads, attn_head_dim=dim_head)
        self.norm = ClayNorm(dim)
        self.head = PixelHead(dim)

    def forward(
        self,
        tokens: Tensor,
        masking: Masking,
        grid: tuple[int, int],
        conditioning: Conditioning,
        position: Position,
        every: bool = False,
    ) -> Tensor:
        """Predict pixels.

        Args:
            tokens: (B, 1 + L - M, D) encoder output: class token, then visible patches in ``masking.visible``'s order.
            masking: masked and visible patches.
            grid: (h, w) patch grid.
            conditioning: as resolved by the encoder.
            position: kind of position code, the encoder's.
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
        code = position_code(*grid, gsd, conditioning.time, conditioning.latlon, len(tokens), self.dim, position)
        patches = patches + code.to(self.mask_token.dtype)
        decoded = self.norm(self.blocks(torch.cat([class_token.to(patches.dtype), patches], dim=1)))[:, 1:]
        return self.head(decoded if every else take(decoded, masking.masked), waves)


# losses ---------------------------------------------------------------------------------------------------------------


def masked_l1(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    normalize: bool = False,
    global_count: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Mean absolute error: mean per patch, then mean over patches, in float32.

    Args:
        prediction: (B, M, K) pixels of the masked patches.
        target: (B, M, K) what they should be.
        valid: (B, M, K) bool, False where the target is nodata; a patch without any valid pixel does not count.
        normalize: normalize each target patch to zero mean and unit variance (``norm_pix_loss``).
        global_count: from the number of patches that count here, (), to the number to divide by. On several ranks it
            is the mean over ranks, so that the mean of their losses is the loss of all samples; a mean of means would
            give more weight to the patches of a rank with more nodata. None for the number here.

    Returns:
        () loss; zero if nothing is valid.
    """
    prediction, target = prediction.float(), target.float()
    if valid is None:
        if normalize:
            mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6) ** 0.5
        return (prediction - target).abs().mean(-1).mean()
    weight = valid.float()
    count = weight.sum(-1, keepdim=True)
    target = torch.where(valid, target, 0)  # nodata may be NaN, which a weight of zero would not silence
    if normalize:
        mean = target.sum(-1, keepdim=True) / count.clamp(min=1)
        variance = (weight * (target - mean) ** 2).sum(-1, keepdim=True) / (count - 1).clamp(min=1)
        target = (target - mean) / (variance + 1e-6) ** 0.5
    per_patch = (weight * (prediction - target).abs()).sum(-1) / count.squeeze(-1).clamp(min=1)
    seen = (count.squeeze(-1) > 0).float()
    divisor = seen.sum() if global_count is None else global_count(seen.sum())
    return (per_patch * seen).sum() / torch.where(divisor > 0, divisor, 1)


def representation_loss(projection: Tensor, target: Tensor) -> Tensor:
    """1 - cosine similarity, averaged over samples, in float32: (B, T) and (B, T) → ()."""
    return 1.0 - F.cosine_similarity(projection.float(), target.float()).mean()


# the autoencoder ------------------------------------------------------------------------------------------------------


class MAEOutput(NamedTuple):
    """Output of a masked autoencoder.

    Attributes:
        loss: () the weighted sum of the two losses; the reconstruction loss without a teacher.
        reconstruction_loss: () scaled by ``loss_scale``.
        representation_loss: () 1 - cosine to the teacher; zero without one.
        prediction: (B, M, C·p·p) pixels of the masked patches, in the order of their noise.
        mask: (B, L), 1 where a patch is masked.
    """

    loss: Tensor
    reconstruction_loss: Tensor
    representation_loss: Tensor
    prediction: Tensor
    mask: Tensor


class ClayMAE(nn.Module):
    """Clay's masked autoencoder: encoder, decoder, and, where a teacher is given, a projection to its space."""

    def __init__(
        self,
        encoder: Clay,
        decoder: ClayDecoder,
        teacher: nn.Module | None = None,
        *,
        teacher_dim: int | None = None,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
        representation_weight: float = 0.05,
    ) -> None:
        """Initialize a new ClayMAE instance.

        Args:
            encoder: sees the visible patches.
            decoder: predicts the masked ones.
            teacher: a frozen model from RGB (B, 3, 518, 518) to (B, T), which has ``num_features`` = T; None for none.
            teacher_dim: T, for cached embeddings of the teacher, which need no teacher.
            mask_ratio: share of patches that are masked, between 0 and 1.
            norm_pix_loss: predict patches of zero mean and unit variance.
            representation_weight: weight of the representation loss; the reconstruction loss has the rest. The
                release document says 0.05, the released code 0.1.

        Raises:
            ValueError: for a ratio or weight out of range.
        """
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise ValueError(f'mask_ratio: expected a share between 0 and 1, both excluded, got {mask_ratio}.')
        if not 0 <= representation_weight <= 1:
            raise ValueError(f'representation_weight: expected a share from 0 to 1, got {representation_weight}.')
        self.encoder = encoder
        self.decoder = decoder
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self.representation_weight = representation_weight
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        width = teacher_dim if teacher is None else cast(int, teacher.num_features)
        self.proj = None if width is None else nn.Linear(encoder.embed_dim, width)

    def train(self, mode: bool = True) -> ClayMAE:
        """Set the training mode; the teacher stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(
        self,
        x: Tensor,
        wavelengths: Tensor | Sequence[float] | None = None,
        gsd: float | Tensor | None = None,
        time: Tensor | None = None,
        latlon: Tensor | None = None,
        noise: Tensor | None = None,
        target: Tensor | None = None,
        valid: Tensor | None = None,
        rgb: Tensor | None = None,
        teacher_target: Tensor | None = None,
        loss_scale: float = 1.0,
        global_count: Callable[[Tensor], Tensor] | None = None,
    ) -> MAEOutput:
        """Mask, encode, decode and compare.

        Wavelengths, gsd, time and latlon as :meth:`Clay.forward`.

        Args:
            x: (B, C, H, W) normalized; bands may have been dropped (zeroed).
            noise: (B, L); the patches of the int(mask_ratio·L) smallest are masked. None to draw it.
            target: (B, C, H, W) to be reconstructed, with all bands; None for ``x``.
            valid: (B, 1 or C, H, W) bool, False where the target is nodata and is left out of the loss.
            rgb: (B, 3, H, W) normalized, the teacher's input.
            teacher_target: (B, T) the teacher's cached embedding, instead of ``rgb``.
            loss_scale: factor on the reconstruction loss, 0.1 for MODIS: the sensor's ``loss_scale``.
            global_count: on several ranks, the divisor of the sum over patches; see :func:`masked_l1`.

        Returns:
            Losses (float32), the prediction for the masked patches, and the mask.

        Raises:
            ValueError: see :meth:`Clay.resolve`; for sizes that are not whole patches; with a teacher but
                neither ``rgb`` nor ``teacher_target``.
        """
        conditioning = self.encoder.resolve(x, wavelengths, gsd, time, latlon)
        padded, grid, valid = self._whole_patches(x, valid)
        masking = self._masking(padded, noise)
        tokens = self._encode_visible(padded, masking, grid, conditioning)
        prediction = self.decoder(tokens, masking, grid, conditioning, self.encoder.position)

        reconstruction = loss_scale * masked_l1(
            prediction,
            self._masked_patches(padded if target is None else self.encoder.patch_embed.pad(target), masking),
            None if valid is None else self._masked_patches(valid, masking),
            self.norm_pix_loss,
            global_count,
        )
        if self.proj is None:
            return MAEOutput(reconstruction, reconstruction, torch.zeros_like(reconstruction), prediction, masking.mask)
        teacher = self._teacher_embedding(rgb) if teacher_target is None else teacher_target
        representation = representation_loss(self.proj(tokens[:, 0]), teacher)
        weight = self.representation_weight
        loss = (1 - weight) * reconstruction + weight * representation
        return MAEOutput(loss, reconstruction, representation, prediction, masking.mask)

    def reconstruct(
        self,
        x: Tensor,
        wavelengths: Tensor | Sequence[float] | None = None,
        gsd: float | Tensor | None = None,
        time: Tensor | None = None,
        latlon: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Predict every patch, the visible ones too, as an image.

        Arguments as :meth:`forward`.

        Returns:
            (B, C, H, W) in the normalized units of ``x`` (for ``norm_pix_loss`` each patch in its own).
        """
        conditioning = self.encoder.resolve(x, wavelengths, gsd, time, latlon)
        padded, grid, _ = self._whole_patches(x, None)
        masking = self._masking(padded, noise)
        tokens = self._encode_visible(padded, masking, grid, conditioning)
        pixels = self.decoder(tokens, masking, grid, conditioning, self.encoder.position, every=True)
        return unpatchify(pixels, *grid, self._patch)[..., : x.shape[-2], : x.shape[-1]]

    @property
    def _patch(self) -> int:
        """Pixels a side of a patch."""
        return self.encoder.patch_embed.patch_size[0]

    def _whole_patches(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, tuple[int, int], Tensor | None]:
        """Pad where the encoder does, without padding in the loss; return image, patch grid and valid pixels."""
        pad = self.encoder.patch_embed.pad
        padded = pad(x)
        if valid is not None or padded.shape != x.shape:
            valid = x.new_ones((x.shape[0], 1, *x.shape[2:]), dtype=torch.bool) if valid is None else valid.bool()
            valid = pad(valid).expand(-1, x.shape[1], -1, -1)
        return padded, (padded.shape[-2] // self._patch, padded.shape[-1] // self._patch), valid

    def _masking(self, x: Tensor, noise: Tensor | None) -> Masking:
        """Make the masking from noise, drawn here if None."""
        shape = (x.shape[0], x.shape[-2] * x.shape[-1] // self._patch**2)
        if noise is None:
            noise = torch.rand(shape, device=x.device)
        if tuple(noise.shape) != shape:
            raise ValueError(f'noise: expected one number per patch, {shape}, got {tuple(noise.shape)}.')
        return Masking.from_noise(noise, self.mask_ratio)

    def _masked_patches(self, x: Tensor, masking: Masking) -> Tensor:
        """Cut an image into patches and take the masked ones: (B, C, H, W) → (B, M, C·p·p)."""
        return take(patchify(x, self._patch), masking.masked)

    def _encode_visible(self, x: Tensor, masking: Masking, grid: tuple[int, int], conditioning: Conditioning) -> Tensor:
        """Embed and encode the visible patches alone: → (B, 1 + L - M, D)."""
        assert conditioning.wavelengths is not None
        visible = take(patchify(x, self._patch), masking.visible)
        tokens = self.encoder.patch_embed.embed_patches(visible, conditioning.wavelengths)
        code = self.encoder.position_code(grid, x.shape[0], conditioning)
        return self.encoder.encode(self.encoder.prepend_class_token(tokens + take(code, masking.visible)))

    def _teacher_embedding(self, rgb: Tensor | None) -> Tensor:
        """Embed an RGB image with the teacher: (B, 3, H, W) → (B, T)."""
        if self.teacher is None or rgb is None:
            raise ValueError(
                "The representation loss needs the teacher's input, rgb (B, 3, H, W), or its cached embedding, "
                f'teacher_target (B, T); got {"no rgb" if rgb is None else "no teacher"} and no teacher_target.'
            )
        with torch.no_grad():  # not inference mode: torch.compile fails to trace that inside a step with gradients
            embedding: Tensor = self.teacher(resize_for_teacher(rgb))
        return embedding
