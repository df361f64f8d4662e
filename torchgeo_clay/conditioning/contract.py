# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The batch contract and the conditioning of the model.

A batch has wavelength (µm), res (meters per pixel), lat, lon (degrees) and time (seconds UTC). Unknown place and time
are NaN. GSD has no code for unknown.

Shapes: B samples, T dates, C bands, H × W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange, repeat
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from torchgeo_clay.conditioning.codes import LatLonOrder, check_range, encode_latlon, encode_time, on_host
from torchgeo_clay.sensors import Sensor, check_wavelengths, get_sensor

__all__ = (
    'CheckedConditioning',
    'Conditioning',
    'batch_conditioning',
    'batch_sensor',
    'check_batch',
    'check_gsd',
    'fold_dates',
    'match_images',
    'task_conditioning',
)


def check_gsd(gsd: float | Tensor) -> None:
    """Raise unless the ground sampling distance is positive; values on a device are not read.

    Args:
        gsd: meters per pixel, a float or (B,).

    Raises:
        ValueError: for NaN, infinite, zero or negative values.
    """
    if isinstance(gsd, Tensor) and not on_host(gsd):
        return
    values = torch.atleast_1d(gsd).tolist() if isinstance(gsd, Tensor) else [float(gsd)]
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(
                f'gsd: expected positive meters per pixel, got {value}. GSD has no code for unknown: read it from the '
                "raster, or give it with gsd= (the sensor's nominal one only if the pixels were not resampled)."
            )


@dataclass(frozen=True)
class Conditioning:
    """Metadata of a batch for the model.

    Attributes:
        wavelengths: (C,) central wavelengths, µm.
        gsd: meters per pixel, a float or (B,).
        time: (B, 4) code of :func:`encode_time`; None for unknown.
        latlon: (B, 4) code of :func:`encode_latlon`; None for unknown.
    """

    wavelengths: Tensor | None = None
    gsd: float | Tensor | None = None
    time: Tensor | None = None
    latlon: Tensor | None = None

    #: Whether wavelengths and gsd were checked already, so that no forward looks at them again.
    checked: ClassVar[bool] = False

    @staticmethod
    def from_batch(batch: Mapping[str, Any], order: LatLonOrder = 'latlon') -> CheckedConditioning:
        """Encode the metadata of a batch that follows the contract.

        Args:
            batch: ``wavelength`` (B, C) or (C,) µm and ``res`` (B,) meters per pixel; if known ``lat`` and ``lon`` (B,)
                degrees and ``time`` (B,) seconds UTC. The datamodules of this package check a batch before its
                transfer and then add ``selection``; a batch without that key is checked here, where it is on the host.
            order: of the place code, as in :func:`encode_latlon`.

        Raises:
            ValueError: for whatever :func:`check_batch` refuses.
        """
        if 'selection' not in batch:
            check_batch(batch)
        wavelengths = batch['wavelength']
        time, lat, lon = batch.get('time'), batch.get('lat'), batch.get('lon')
        return CheckedConditioning(
            wavelengths=(wavelengths[0] if wavelengths.ndim == 2 else wavelengths).float(),
            gsd=batch['res'].float(),
            time=None if time is None else encode_time(time),
            latlon=None if lat is None or lon is None else encode_latlon(lat, lon, order),
        )


class CheckedConditioning(Conditioning):
    """A conditioning whose values were checked."""

    checked = True


def check_batch(batch: Mapping[str, Any]) -> None:
    """Check a batch against the contract; values are read only where they lie on the host.

    Args:
        batch: see :meth:`Conditioning.from_batch`.

    Raises:
        ValueError: for a missing ``wavelength`` or ``res``, lengths that do not fit the image, rows of wavelengths
            that differ, values that are not in µm, a GSD that is not positive, or a place outside the globe.
    """
    wavelengths, res, image = batch.get('wavelength'), batch.get('res'), batch.get('image')
    if wavelengths is None:
        raise ValueError(
            f"The batch has no 'wavelength' (keys: {sorted(batch)}). Wrap the datamodule in SensorDataModule, or "
            'fix the sensor with SensorMetadata(sensor=…).'
        )
    if res is None:
        raise ValueError(
            f"The batch has no 'res' in meters per pixel (keys: {sorted(batch)}). Give it with gsd=; there is no code "
            'for an unknown ground sampling distance.'
        )
    if image is not None and wavelengths.shape[-1] != image.shape[-3]:
        raise ValueError(
            f'Expected one wavelength per channel, got {wavelengths.shape[-1]} wavelengths for {image.shape[-3]} '
            'channels. Dates stacked as channels? The model sees one date at a time.'
        )
    for key in ('wavelength', 'res', 'lat', 'lon', 'time'):
        value = batch.get(key)
        if image is None or value is None or (key == 'wavelength' and value.ndim == 1):
            continue
        if value.ndim == 0 or value.shape[0] != image.shape[0]:
            raise ValueError(f'{key}: expected {image.shape[0]} rows, one per image, got {tuple(value.shape)}.')
    if on_host(wavelengths):
        rows = wavelengths.reshape(-1, wavelengths.shape[-1])
        if not torch.equal(rows, rows[:1].expand_as(rows)):
            raise ValueError(
                'wavelength: expected equal rows, as one sensor and one band list make a batch; they differ.'
            )
        check_wavelengths(rows[0].tolist(), 'wavelength')
    check_gsd(res)
    for key, low, high in (('lat', -90, 90), ('lon', -180, 360)):
        if (value := batch.get(key)) is not None:
            check_range(key, value, low, high)


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
        gsd: meters per pixel, a float, (1,) or (B,).
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


_EXAMPLE = "SensorMetadata(sensor='sentinel-2-l2a', bands=['B04', 'B03', 'B02'], gsd=10)"


def batch_conditioning(
    batch: Mapping[str, Any], sensor: Sensor | None = None, gsd: float | None = None
) -> Conditioning:
    """Return the conditioning of a batch: its own metadata, else the given ones.

    Args:
        batch: ``image`` (B, C, H, W) or (B, T, C, H, W); if known ``wavelength`` (B, C) or (C,) µm, ``res`` (B,) meters
            per pixel, ``lat`` and ``lon`` (B,) degrees, ``time`` (B,) seconds UTC. A time per date, (B, T), is left
            out where T > 1, as a stock task does not tell which date it shows the model.
        sensor: bands of a batch without ``wavelength``, in the channels' order.
        gsd: meters per pixel of a batch without ``res``.

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
    """The fixed GSD for every image: (B,) meters per pixel, on the device of the images."""
    if gsd is None:  # the sensor's nominal one would be a guess: the images may have been resampled
        raise ValueError(
            "The batch has no 'res', and no gsd is fixed. Write the meters per pixel of the images into the trainer's "
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
        return batch_conditioning(batch)  # which raises
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
