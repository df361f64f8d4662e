# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What images are conditioned on, held against the images. Shapes: B samples, C bands, H × W pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchgeo_clay.conditioning.contract import Conditioning, check_gsd, on_host
from torchgeo_clay.sensors import check_wavelengths

__all__ = ('match_images',)


def match_images(
    x: Tensor,
    wavelengths: Tensor | Sequence[float],
    gsd: float | Tensor,
    time: Tensor | None,
    latlon: Tensor | None,
) -> Conditioning:
    """Check what images are conditioned on against them, and make tensors of its numbers on their device.

    Values are looked at only where they lie on the host, and not in a trace.

    Args:
        x: (B, C, H, W) normalised.
        wavelengths: (C,) µm.
        gsd: metres per pixel, a float, (1,) or (B,).
        time: (B, 4) or None.
        latlon: (B, 4) or None.

    Returns:
        The same with wavelengths (C,) and gsd (1,) or (B,) as tensors.

    Raises:
        ValueError: for images of integers, lengths that do not fit, values that are not in µm or not positive, or a
            tensor on another device.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(
            f'Expected normalised images (B, C, H, W) of a float dtype, got {tuple(x.shape)} {x.dtype}. '
            'Normalise with (x - mean) / std of the sensor.'
        )
    if not isinstance(wavelengths, Tensor):
        check_wavelengths(wavelengths)
        wavelengths = torch.tensor(wavelengths, dtype=torch.float32, device=x.device)
    elif on_host(wavelengths):
        check_wavelengths(wavelengths.flatten().tolist())
    check_gsd(gsd)
    if not isinstance(gsd, Tensor):
        gsd = torch.full((1,), gsd, dtype=torch.float32, device=x.device)
    conditioning = Conditioning(wavelengths, torch.atleast_1d(gsd), time, latlon)
    _check_shapes(x, conditioning)
    for name, tensor in vars(conditioning).items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f'{name}: expected a tensor on {x.device}, where the images are, got {tensor.device}.')
    return conditioning


def _check_shapes(x: Tensor, conditioning: Conditioning) -> None:
    """Raise where lengths do not fit the images."""
    wavelengths, gsd = conditioning.wavelengths, conditioning.gsd
    assert isinstance(wavelengths, Tensor)
    assert isinstance(gsd, Tensor)
    if wavelengths.shape != x.shape[1:2]:
        raise ValueError(
            f'Expected one wavelength per channel, got wavelengths {tuple(wavelengths.shape)} for {x.shape[1]} '
            'channels. Dates stacked as channels? The model sees one date at a time. Bands missing? Name them with '
            'bands=.'
        )
    if tuple(gsd.shape) not in ((1,), (x.shape[0],)):
        raise ValueError(f'gsd: expected a number, or one per image ({x.shape[0]},), got {tuple(gsd.shape)}.')
    for name, code in (('time', conditioning.time), ('latlon', conditioning.latlon)):
        if code is not None and tuple(code.shape) != (x.shape[0], 4):
            raise ValueError(
                f'{name}: expected a code of shape ({x.shape[0]}, 4), got {tuple(code.shape)}. Make it with '
                f'torchgeo_clay.conditioning.contract.encode_{name}.'
            )
