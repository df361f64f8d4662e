# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Random masking of patches (https://arxiv.org/abs/2111.06377). Shapes: B samples, L patches, M masked, D width."""

from __future__ import annotations

from typing import NamedTuple

from einops import repeat
from torch import Tensor

__all__ = ('Masking', 'take')


class Masking(NamedTuple):
    """Which patches are masked.

    Attributes:
        masked: (B, M) indices of the masked patches, in the order of their noise.
        visible: (B, L - M) indices of the visible ones, likewise: a transformer does not mind the order.
        restore: (B, L) for each patch its place in [masked | visible].
    """

    masked: Tensor
    visible: Tensor
    restore: Tensor

    @classmethod
    def from_noise(cls, noise: Tensor, ratio: float) -> Masking:
        """Mask the patches of the int(ratio·L) smallest noises.

        Args:
            noise: (B, L).
            ratio: share of patches to mask.

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
