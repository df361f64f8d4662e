# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay's masked autoencoder.

Shapes: B samples, C bands, H × W pixels, p × p pixels a patch, L = h·w patches of which M are masked, D width, T the
teacher's. Sources: https://arxiv.org/abs/2111.06377 (MAE) and https://github.com/Clay-foundation/model, v1.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.models.clay import Clay
from torchgeo_clay.models.decoder import ClayDecoder
from torchgeo_clay.models.losses import masked_l1, representation_loss
from torchgeo_clay.models.masking import Masking, take
from torchgeo_clay.models.patch_embed import patchify, unpatchify
from torchgeo_clay.models.teacher import resize_for_teacher

__all__ = ('ClayMAE', 'MAEOutput')


class MAEOutput(NamedTuple):
    """What a masked autoencoder returns.

    Attributes:
        loss: () the weighted sum of the two losses; the reconstruction loss alone where there is no teacher.
        reconstruction_loss: () scaled by ``loss_scale``.
        representation_loss: () 1 - cosine to the teacher; zero where there is none.
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
        """Initialize the autoencoder.

        Args:
            encoder: sees the visible patches.
            decoder: predicts the masked ones.
            teacher: a frozen model from RGB (B, 3, 518, 518) to (B, T), which has ``num_features`` = T; None for none.
            teacher_dim: T, where the teacher's answers come cached and no teacher is needed.
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
        share: Callable[[Tensor], Tensor] | None = None,
    ) -> MAEOutput:
        """Mask, encode, decode, compare.

        Args:
            x: (B, C, H, W) normalised; bands may have been dropped (zeroed).
            wavelengths: (C,) µm; None to take the scope's or the sensor's, see :meth:`Clay.forward`.
            gsd: metres per pixel, a float or (B,); None likewise.
            time: (B, 4) code of the time; None for unknown.
            latlon: (B, 4) code of the place; None for unknown.
            noise: (B, L); the patches of the int(mask_ratio·L) smallest are masked. None to draw it.
            target: (B, C, H, W) what to reconstruct, from which no band was dropped; None for ``x``.
            valid: (B, 1 or C, H, W) bool, False where the target is nodata and is left out of the loss.
            rgb: (B, 3, H, W) normalised, what the teacher sees.
            teacher_target: (B, T) the teacher's cached answer, instead of ``rgb``.
            loss_scale: factor on the reconstruction loss, 0.1 for MODIS: the sensor's ``loss_scale``.
            share: on several ranks, what the sum over patches is divided by, see
                :func:`~torchgeo_clay.models.losses.masked_l1`.

        Returns:
            Losses (float32), the prediction for the masked patches, and the mask.

        Raises:
            ValueError: see :meth:`Clay.resolve`; for sizes that are not whole patches; where there is a teacher but
                neither ``rgb`` nor ``teacher_target``.
        """
        conditioning = self.encoder.resolve(x, wavelengths, gsd, time, latlon)
        padded, grid, valid = self._whole_patches(x, valid)
        masking = self._masking(padded, noise)
        tokens = self._encode_visible(padded, masking, grid, conditioning)
        prediction = self.decoder(tokens, masking, grid, conditioning)

        reconstruction = loss_scale * masked_l1(
            prediction,
            self._masked_patches(padded if target is None else self.encoder.patch_embed.pad(target), masking),
            None if valid is None else self._masked_patches(valid, masking),
            self.norm_pix_loss,
            share,
        )
        if self.proj is None:
            return MAEOutput(reconstruction, reconstruction, torch.zeros_like(reconstruction), prediction, masking.mask)
        answer = self._teacher_answer(rgb) if teacher_target is None else teacher_target
        representation = representation_loss(self.proj(tokens[:, 0]), answer)
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

        Args:
            x: see :meth:`forward`, as for the other arguments.
            wavelengths: see :meth:`forward`.
            gsd: see :meth:`forward`.
            time: see :meth:`forward`.
            latlon: see :meth:`forward`.
            noise: see :meth:`forward`.

        Returns:
            (B, C, H, W) in the normalised units of ``x`` (for ``norm_pix_loss`` each patch in its own).
        """
        conditioning = self.encoder.resolve(x, wavelengths, gsd, time, latlon)
        padded, grid, _ = self._whole_patches(x, None)
        masking = self._masking(padded, noise)
        tokens = self._encode_visible(padded, masking, grid, conditioning)
        pixels = self.decoder(tokens, masking, grid, conditioning, every=True)
        return unpatchify(pixels, *grid, self._patch)[..., : x.shape[-2], : x.shape[-1]]

    @property
    def _patch(self) -> int:
        """Pixels a side of a patch."""
        return self.encoder.patch_embed.patch_size[0]

    def _whole_patches(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, tuple[int, int], Tensor | None]:
        """Pad where the encoder may, leaving what was padded out of the loss; the patch grid."""
        pad = self.encoder.patch_embed.pad
        padded = pad(x)
        if valid is not None or padded.shape != x.shape:
            valid = x.new_ones((x.shape[0], 1, *x.shape[2:]), dtype=torch.bool) if valid is None else valid.bool()
            valid = pad(valid).expand(-1, x.shape[1], -1, -1)
        return padded, (padded.shape[-2] // self._patch, padded.shape[-1] // self._patch), valid

    def _masking(self, x: Tensor, noise: Tensor | None) -> Masking:
        """The masking of the noise, which is drawn where none is given."""
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

    def _teacher_answer(self, rgb: Tensor | None) -> Tensor:
        """What the teacher says of an RGB image: (B, 3, H, W) → (B, T)."""
        if self.teacher is None or rgb is None:
            raise ValueError(
                'The representation loss needs what the teacher sees, rgb (B, 3, H, W), or its cached answer, '
                f'teacher_target (B, T); got {"no rgb" if rgb is None else "no teacher"} and no teacher_target.'
            )
        with torch.no_grad():  # not inference mode: torch.compile fails to trace that inside a step with gradients
            answer: Tensor = self.teacher(resize_for_teacher(rgb))
        return answer
