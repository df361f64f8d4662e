# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Sine-cosine codes: of wavelengths, and of the patch grid scaled by the ground sampling distance.

Shapes: B samples, C bands, h × w patches (L = h·w, row-major), D width of the code.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor

__all__ = ('grid_code', 'position_code', 'wavelength_code')

TEMPERATURE = 10000

#: Channels at the end of a position code that hold time (4) and place (4), the same for every patch of a sample.
METADATA_DIM = 8


def wavelength_code(wavelengths: Tensor, dim: int = 128) -> Tensor:
    """One-dimensional sine-cosine code of wavelengths.

    Args:
        wavelengths: (C,) µm.
        dim: width of the code, even.

    Returns:
        (C, dim) float32 [sin λω | cos λω], ω_i = 10000^(-i/(dim/2-1)).
    """
    omega = torch.arange(dim // 2, device=wavelengths.device) / (dim // 2 - 1)
    omega = 1.0 / (TEMPERATURE**omega)
    angles = wavelengths.float()[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def grid_code(height: int, width: int, gsd: Tensor, dim: int) -> Tensor:
    """Two-dimensional sine-cosine code of a patch grid, scaled by the ground sampling distance.

    ω_i = gsd / 10000^(2·u_i/dim), u_i = i/(dim/4-1). The exponent divides by ``dim`` where ``u`` already runs from 0
    to 1, so all frequencies lie close under ``gsd``: the released weights were trained with it, so it is kept.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        gsd: (G,) metres per pixel; G is 1 for all samples alike, else B.
        dim: width of the code, a multiple of 4.

    Returns:
        (G, height·width, dim) float32 [sin xω | cos xω | sin yω | cos yω], x the column, y the row.
    """
    assert dim % 4 == 0, dim
    u = torch.arange(dim // 4, device=gsd.device) / (dim // 4 - 1)
    omega = 1.0 / (TEMPERATURE ** (2 * u / dim)) * gsd.float()[:, None]

    def axis(n: int) -> Tensor:
        angles = torch.arange(n, device=gsd.device)[:, None] * omega[:, None, :]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)  # (G, n, dim/2)

    # sines are taken per row and per column, not per patch: the same numbers, h + w of them instead of h·w
    x = repeat(axis(width), 'g w d -> g h w d', h=height)
    y = repeat(axis(height), 'g h d -> g h w d', w=width)
    return rearrange(torch.cat([x, y], dim=-1), 'g h w d -> g (h w) d')


def position_code(
    height: int, width: int, gsd: Tensor, time: Tensor | None, latlon: Tensor | None, batch: int, dim: int
) -> Tensor:
    """Position, time and place of every patch.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        gsd: (1,) or (B,) metres per pixel.
        time: (B, 4) code of the time; None for unknown (zeros).
        latlon: (B, 4) code of the place; None for unknown (zeros).
        batch: B, the number of samples.
        dim: D, width of the tokens.

    Returns:
        (B, height·width, D) float32: the grid code of width D-8, then time, then place.
    """
    grid = grid_code(height, width, gsd, dim - METADATA_DIM).expand(batch, -1, -1)
    unknown = gsd.new_zeros((1, METADATA_DIM // 2), dtype=torch.float32)
    metadata = torch.cat([(unknown if m is None else m.float()).expand(batch, -1) for m in (time, latlon)], dim=-1)
    return torch.cat([grid, repeat(metadata, 'b d -> b l d', l=height * width)], dim=-1)
