# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The conditioning of a batch: its own metadata, else what is fixed for a run.

Shapes: B samples, T dates, C bands, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange, repeat
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from torchgeo_clay.conditioning.contract import Conditioning
from torchgeo_clay.sensors import Sensor, get_sensor

__all__ = ('batch_conditioning', 'batch_sensor', 'fold_dates', 'task_conditioning')

_EXAMPLE = "SensorMetadata(sensor='sentinel-2-l2a', bands=['B04', 'B03', 'B02'], gsd=10)"


def batch_conditioning(
    batch: Mapping[str, Any], sensor: Sensor | None = None, gsd: float | None = None
) -> Conditioning:
    """Return the conditioning of a batch: its own metadata, else what is fixed.

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


def batch_sensor(batch: Mapping[str, Any]) -> Sensor:
    """Return the sensor of a batch, with the bands that its channels are.

    Args:
        batch: ``image`` (B, C, H, W), and ``selection``, the sensor with these bands, or ``sensor``, the name of a
            sensor whose bands are all there.

    Raises:
        ValueError: for a name that is unknown, or a number of channels that is not that of the bands.
    """
    channels = batch['image'].shape[-3]
    sensor: Sensor = batch['selection'] if 'selection' in batch else get_sensor(batch['sensor'])
    if len(sensor) != channels:
        raise ValueError(
            f'Expected the {len(sensor)} bands of {sensor.name} ({", ".join(sensor.band_names)}), got {channels} '
            "channels. Put batch['selection'] = sensor.select(bands) into the batch, as the datamodules of "
            'torchgeo_clay do.'
        )
    return sensor


def task_conditioning(batch: Mapping[str, Any], scope: Conditioning | None, sees_dates: bool) -> Conditioning:
    """Return the conditioning of a batch in one of Clay's tasks: the batch's own metadata, else the scope's.

    Args:
        batch: see :func:`batch_conditioning`.
        scope: the conditioning that a callback has set on the model, or None.
        sees_dates: whether images are (B, T, C, H, W), each date with its own metadata.

    Returns:
        The conditioning of the B images, or of the B·T images of the dates, a sample's dates side by side.

    Raises:
        ValueError: see :func:`batch_conditioning`; for images of several dates where
            one is expected, and the other way round.
    """
    image = batch.get('image') if isinstance(batch, Mapping) else None
    if isinstance(image, Tensor) and image.ndim == (4 if sees_dates else 5):
        expected = '(B, 2, C, H, W), two dates' if sees_dates else '(B, C, H, W), one date'
        remedy = (
            'Stack the dates along an axis of their own: dates stacked as channels cannot be distinguished.'
            if sees_dates
            else 'Pick a date, make a composite of them, or compare two with ClayChangeDetection.'
        )
        raise ValueError(f'Expected images {expected}, got {tuple(image.shape)}. {remedy}')
    if not isinstance(image, Tensor) or image.ndim not in (4, 5):
        return batch_conditioning(batch)  # which says what is wrong
    known = dict(batch)
    if scope is not None:
        if known.get('wavelength') is None:
            known['wavelength'] = scope.wavelengths
        if known.get('res') is None and isinstance(scope.gsd, Tensor):
            known['res'] = scope.gsd.expand(image.shape[0])
    return batch_conditioning(fold_dates(known, image) if sees_dates else known)


def fold_dates(batch: Mapping[str, Any], image: Tensor) -> dict[str, Any]:
    """Make the dates of a batch samples of their own.

    Args:
        batch: ``res``, ``lat`` and ``lon`` (B,), of all dates, or (B, T); ``time`` (B, T). A time that is (B,) does not
            say which date's it is, and is left out.
        image: (B, T, C, H, W).

    Returns:
        The metadata and the images with B·T rows, a sample's dates side by side.

    Raises:
        ValueError: for other than two dates, or values of another shape.
    """
    samples, dates = image.shape[:2]
    if dates != 2:
        raise ValueError(f'Expected images (B, 2, C, H, W) of two dates, got {tuple(image.shape)}: {dates} dates.')
    folded: dict[str, Any] = {'image': rearrange(image, 'b t c h w -> (b t) c h w')}
    for key in ('wavelength', 'res', 'lat', 'lon', 'time'):
        value = batch.get(key)
        if not isinstance(value, Tensor):
            continue
        if key == 'wavelength':  # one list makes a batch, whatever the date
            folded[key] = value if value.ndim == 1 else repeat(value, 'b c -> (b t) c', t=dates)
        elif value.shape == (samples, dates):
            folded[key] = value.flatten()
        elif value.shape == (samples,) and key == 'time':
            rank_zero_info('A time per sample is left out: two dates take two, (B, 2).')
        elif value.shape == (samples,):
            folded[key] = value.repeat_interleave(dates)
        else:
            raise ValueError(
                f'{key}: expected {(samples,)} or one per date {(samples, dates)}, got {tuple(value.shape)}.'
            )
    return folded
