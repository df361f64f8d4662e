# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What a batch says of its images, and what is fixed where it says nothing. Shapes: B samples, T dates, C bands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchgeo_clay.conditioning.contract import Conditioning
from torchgeo_clay.sensors import Sensor

__all__ = ('batch_conditioning',)

_EXAMPLE = "SensorMetadata(sensor='sentinel-2-l2a', bands=['B04', 'B03', 'B02'], gsd=10)"


def batch_conditioning(
    batch: Mapping[str, Any], sensor: Sensor | None = None, gsd: float | None = None
) -> Conditioning:
    """What the images of a batch are conditioned on: the batch's own metadata, else what is fixed.

    Args:
        batch: ``image`` (B, C, H, W) or (B, T, C, H, W); if known ``wavelength`` (B, C) or (C,) µm, ``res`` (B,) metres
            per pixel, ``lat`` and ``lon`` (B,) degrees, ``time`` (B,) seconds UTC. A time per date, (B, T), is left
            out where T > 1, as a stock task does not tell which date it shows the model.
        sensor: bands of a batch without ``wavelength``, in the channels' order.
        gsd: metres per pixel of a batch without ``res``.

    Returns:
        The conditioning, on the device of the images.

    Raises:
        ValueError: where wavelengths or GSD are known from nowhere, their number does not fit the channels, or
            :func:`torchgeo_clay.conditioning.check_batch` refuses a value.
    """
    image = batch.get('image') if isinstance(batch, Mapping) else None
    if not isinstance(image, Tensor) or image.ndim not in (4, 5):
        found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(
            f"Expected a batch with 'image' of shape (B, C, H, W), or (B, T, C, H, W) for T dates, got {found}"
            f'{"" if image is None else f" with image {tuple(getattr(image, 'shape', ()))}"}.'
        )
    known = dict(batch)
    if known.get('wavelength') is None:
        known['wavelength'] = _fixed_wavelengths(image, sensor)
    if known.get('res') is None:
        known['res'] = _fixed_gsd(image, gsd)
    time = known.get('time')
    if isinstance(time, Tensor) and time.ndim == 2:
        known['time'] = time[:, 0] if time.shape[1] == 1 else None
    return Conditioning.from_batch(known)


def _fixed_wavelengths(image: Tensor, sensor: Sensor | None) -> Tensor:
    """Wavelengths of the fixed sensor: (C,) µm, on the device of the images."""
    channels = image.shape[-3]
    if sensor is None:
        raise ValueError(
            f"The batch has no 'wavelength', and no sensor is fixed for its {channels} channels. Write the sensor and "
            f"the bands that the channels are, in order, into the trainer's callbacks, such as {_EXAMPLE}, or wrap the "
            'datamodule in SensorDataModule.'
        )
    if len(sensor) != channels:
        raise ValueError(
            f'Expected one band per channel, got {len(sensor)} bands of {sensor.name} ({", ".join(sensor.band_names)}) '
            f'for {channels} channels. Name the bands that the channels are, in order: SensorMetadata(sensor='
            f'{sensor.name!r}, bands=[…]). Dates stacked as channels? The model sees one date at a time.'
        )
    # made on the host and sent: made on the device, the host would wait for it in every step
    return torch.tensor(sensor.wavelengths, dtype=torch.float32).to(image.device, non_blocking=True)


def _fixed_gsd(image: Tensor, gsd: float | None) -> Tensor:
    """The fixed GSD for every image: (B,) metres per pixel, on the device of the images."""
    if gsd is None:  # the sensor's nominal one would be a guess: the images may have been resampled
        raise ValueError(
            "The batch has no 'res', and no gsd is fixed. Write the metres per pixel of the images into the trainer's "
            'callbacks: SensorMetadata(gsd=10). There is no code for an unknown ground sampling distance.'
        )
    return torch.full(image.shape[:1], gsd, dtype=torch.float32, device=image.device)
