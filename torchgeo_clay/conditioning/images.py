# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Match of metadata with images. Shapes: B samples, C bands, H × W pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchgeo_clay.conditioning.codes import on_host
from torchgeo_clay.conditioning.contract import CheckedConditioning, Conditioning, check_gsd
from torchgeo_clay.sensors import check_wavelengths

__all__ = ('match_images',)


def match_images(
    x: Tensor,
    wavelengths: Tensor | Sequence[float] | None = None,
    gsd: float | Tensor | None = None,
    time: Tensor | None = None,
    latlon: Tensor | None = None,
    scope: Conditioning | None = None,
) -> Conditioning:
    """Check metadata against images and make tensors of it on their device: the arguments, else the scope's.

    Values are read only if they were not checked before, lie on the host, and nothing is traced.

    Args:
        x: (B, C, H, W) normalized.
        wavelengths: (C,) µm.
        gsd: metres per pixel, a float, (1,) or (B,).
        time: (B, 4) code; None for unknown.
        latlon: (B, 4) code; None for unknown.
        scope: used for each of these that is None.

    Returns:
        The conditioning, with wavelengths (C,) and gsd (1,) or (B,) as tensors.

    Raises:
        ValueError: if wavelengths or gsd are known from nowhere, for images of integers, lengths that do not match,
            values that are not in µm or not positive, or a tensor on another device.
    """
    scope = scope or Conditioning()
    checked = scope.checked and wavelengths is None and gsd is None
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(
            f'Expected normalized images (B, C, H, W) of a float dtype, got {tuple(x.shape)} {x.dtype}. '
            'Normalize with Sensor.normalize: (x - mean) / std of the sensor.'
        )
    wavelengths = scope.wavelengths if wavelengths is None else wavelengths
    gsd = scope.gsd if gsd is None else gsd
    if wavelengths is None or gsd is None:
        missing, example = ('wavelengths', '[0.665, 0.56, 0.493]') if wavelengths is None else ('gsd', '10.0')
        raise ValueError(
            f'The {missing} of the images are unknown. Give {missing}={example}, or run the model inside '
            'conditioned_on(Conditioning.from_batch(batch)). In a stock TorchGeo task, add '
            'torchgeo_clay.callbacks.SensorMetadata to the callbacks.'
        )
    if not checked:
        if not isinstance(wavelengths, Tensor):
            check_wavelengths(wavelengths)
        elif on_host(wavelengths):
            check_wavelengths(wavelengths.flatten().tolist())
        check_gsd(gsd)
    if not isinstance(wavelengths, Tensor):
        wavelengths = torch.tensor(wavelengths, dtype=torch.float32, device=x.device)
    if not isinstance(gsd, Tensor):
        gsd = torch.full((1,), gsd, dtype=torch.float32, device=x.device)
    time, latlon = scope.time if time is None else time, scope.latlon if latlon is None else latlon
    _check_shapes(x, wavelengths, gsd := torch.atleast_1d(gsd), time, latlon)
    return CheckedConditioning(wavelengths, gsd, time, latlon)


def _check_shapes(x: Tensor, wavelengths: Tensor, gsd: Tensor, time: Tensor | None, latlon: Tensor | None) -> None:
    """Raise if lengths or devices do not match the images."""
    if wavelengths.shape != x.shape[1:2]:
        raise ValueError(
            f'Expected one wavelength per channel, got wavelengths {tuple(wavelengths.shape)} for {x.shape[1]} '
            'channels. Dates stacked as channels? The model sees one date at a time. Bands missing? Name them with '
            'bands=.'
        )
    if tuple(gsd.shape) not in ((1,), (x.shape[0],)):
        raise ValueError(f'gsd: expected a number, or one per image ({x.shape[0]},), got {tuple(gsd.shape)}.')
    for name, code in (('time', time), ('latlon', latlon)):
        if code is not None and tuple(code.shape) != (x.shape[0], 4):
            raise ValueError(
                f'{name}: expected a code of shape ({x.shape[0]}, 4), got {tuple(code.shape)}. Make it with '
                f'torchgeo_clay.conditioning.encode_{name}.'
            )
    for name, tensor in (('wavelengths', wavelengths), ('gsd', gsd), ('time', time), ('latlon', latlon)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f'{name}: expected a tensor on {x.device}, where the images are, got {tensor.device}.')
