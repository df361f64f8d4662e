# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The batch contract and the conditioning of the model.

A batch has wavelength (µm), res (meters per pixel), lat, lon (degrees) and time (seconds UTC). Unknown place and time
are NaN. GSD has no code for unknown.

Shapes: B samples, T dates, N real dates of all samples, C bands, H × W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from torchgeo_clay.conditioning.codes import LatLonOrder, check_range, encode_latlon, encode_time, on_host
from torchgeo_clay.sensors import Sensor, check_wavelengths, get_sensor

__all__ = (
    'Conditioning',
    'batch_conditioning',
    'batch_sensor',
    'check_batch',
    'check_gsd',
    'match_images',
    'metadata_tensors',
    'select_dates',
    'task_conditioning',
)


def check_gsd(gsd: float | Tensor) -> None:
    """Raise unless the GSD, in meters per pixel, is positive and finite; values on a device are not read."""
    if isinstance(gsd, Tensor) and not on_host(gsd):
        return
    values = gsd.flatten().tolist() if isinstance(gsd, Tensor) else [float(gsd)]
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(
                f'gsd: expected positive meters per pixel, got {value}. GSD has no code for unknown: read it from the '
                "raster, or give it with gsd= (the sensor's nominal one only if the pixels were not resampled)."
            )


def metadata_tensors(sensor: Sensor, res: float, lat: float, lon: float, time: float | Tensor) -> dict[str, Tensor]:
    """Return the metadata of a sample in the dtypes of the contract.

    Args:
        sensor: with the bands of the image.
        res: meters per pixel.
        lat: degrees north, WGS84, like ``lon`` and ``time`` NaN for unknown.
        lon: degrees east.
        time: seconds UTC, or a tensor of one per date.
    """
    single, double = {'wavelength': sensor.wavelengths, 'res': res}, {'lat': lat, 'lon': lon, 'time': time}
    tensors = {key: torch.tensor(value, dtype=torch.float32) for key, value in single.items()}
    return tensors | {key: torch.as_tensor(value, dtype=torch.float64) for key, value in double.items()}


@dataclass(frozen=True)
class Conditioning:
    """Metadata of a batch for the model.

    Attributes:
        wavelengths: (C,) central wavelengths, µm.
        gsd: meters per pixel, a float or (B,).
        time: (B, 4) code of :func:`encode_time`; None for unknown.
        latlon: (B, 4) code of :func:`encode_latlon`; None for unknown.
        lengths: number of real dates of each series, whose images the B rows are, side by side; None for single images.
        checked: whether wavelengths and gsd were checked, so that no forward looks at their values again.
    """

    wavelengths: Tensor | None = None
    gsd: float | Tensor | None = None
    time: Tensor | None = None
    latlon: Tensor | None = None
    lengths: tuple[int, ...] | None = None
    checked: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by these names of :meth:`torchgeo_clay.models.Clay.forward`."""
        return {key: getattr(self, key) for key in ('wavelengths', 'gsd', 'time', 'latlon')}

    @staticmethod
    def from_batch(batch: Mapping[str, Any], order: LatLonOrder = 'latlon') -> Conditioning:
        """Encode the metadata of a batch that follows the contract.

        Args:
            batch: ``wavelength`` (B, C) or (C,) µm and ``res`` (B,) meters per pixel; if known ``lat`` and ``lon`` (B,)
                degrees and ``time`` (B,) seconds UTC, or its code, ``time_code`` (B, 4). The datamodules of this
                package check a batch before its transfer and then add ``selection``; a batch without that key is
                checked here, where it is on the host.
            order: of the place code, as in :func:`encode_latlon`.

        Raises:
            ValueError: for whatever :func:`check_batch` refuses.
        """
        if 'selection' not in batch:
            check_batch(batch)
        wavelengths = batch['wavelength']
        time, lat, lon = batch.get('time'), batch.get('lat'), batch.get('lon')
        code = batch.get('time_code')  # made on the host, where the datamodules of this package keep the time
        if code is None and time is not None:
            code = encode_time(time)
        return Conditioning(
            wavelengths=(wavelengths[0] if wavelengths.ndim == 2 else wavelengths).float(),
            gsd=batch['res'].float(),
            time=code,
            latlon=None if lat is None or lon is None else encode_latlon(lat, lon, order),
            checked=True,
        )


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
            f"The batch has no 'wavelength' (keys: {sorted(batch)}). Wrap the datamodule in SensorDataModule, or add "
            "to the trainer's callbacks the sensor and the bands that the channels are, in order, such as "
            "SensorMetadata(sensor='sentinel-2-l2a', bands=['B04', 'B03', 'B02'], gsd=10)."
        )
    if res is None:
        raise ValueError(
            f"The batch has no 'res' in meters per pixel (keys: {sorted(batch)}). Give it with gsd= to the datamodule, "
            "or in the trainer's callbacks, SensorMetadata(gsd=10). There is no code for an unknown ground sampling "
            'distance.'
        )
    if image is not None:
        _check_channels(wavelengths[0] if wavelengths.ndim == 2 else wavelengths, image.shape[-3])
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


def _check_channels(wavelengths: Tensor, channels: int) -> None:
    """Raise unless there is one wavelength per channel."""
    if wavelengths.shape != (channels,):
        raise ValueError(
            f'Expected one wavelength per channel, got {tuple(wavelengths.shape)} wavelengths for {channels} channels. '
            'Name the bands that the channels are, in order, with bands=. Dates stacked as channels? The model sees '
            'one date at a time.'
        )


def match_images(
    x: Tensor,
    wavelengths: Tensor | Sequence[float] | None = None,
    gsd: float | Tensor | None = None,
    time: Tensor | None = None,
    latlon: Tensor | None = None,
    scope: Conditioning | None = None,
) -> Conditioning:
    """Check metadata against images and make tensors of it on their device: the arguments, else the scope's.

    Values are read only if they were not checked before, lie on the host, and nothing is traced. Arguments as
    :meth:`torchgeo_clay.models.Clay.forward`.

    Returns:
        The conditioning, with wavelengths (C,) and gsd (1,) or (B,) as tensors.

    Raises:
        ValueError: if wavelengths or gsd are unknown, for images of integers, lengths that do not match,
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
            'torchgeo_clay.callbacks.SensorMetadata to the callbacks; BYOL, which runs its model while it is built, '
            'takes no Clay: use MoCo or SimCLR.'
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
    return Conditioning(wavelengths, gsd, time, latlon, checked=True)


def _check_shapes(x: Tensor, wavelengths: Tensor, gsd: Tensor, time: Tensor | None, latlon: Tensor | None) -> None:
    """Raise if lengths or devices do not match the images."""
    _check_channels(wavelengths, x.shape[1])
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


def _image(batch: Any) -> Tensor:
    """Return the image of a batch, (B, C, H, W) or (B, T, C, H, W)."""
    image = batch.get('image') if isinstance(batch, Mapping) else None
    if not isinstance(image, Tensor) or image.ndim not in (4, 5):
        found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(
            f"Expected a batch with 'image' of shape (B, C, H, W), or (B, T, C, H, W) for T dates, got {found}"
            f'{"" if image is None else f" with image {tuple(getattr(image, 'shape', ()))}"}.'
        )
    return image


def _complete(
    batch: Mapping[str, Any], wavelengths: Tensor | Sequence[float] | None, gsd: float | Tensor | None
) -> dict[str, Any]:
    """Give a batch the wavelengths and the GSD that it does not have, on the device of its image."""
    image, known = _image(batch), dict(batch)
    if known.get('wavelength') is None and wavelengths is not None:
        # made on the host and sent: made on the device, the host would wait for it in every step
        waves = torch.as_tensor(wavelengths, dtype=torch.float32)
        known['wavelength'] = waves.to(image.device, non_blocking=True)
    if known.get('res') is None and gsd is not None:
        one = gsd if isinstance(gsd, Tensor) else torch.full((1,), gsd, device=image.device)
        known['res'] = one.expand(image.shape[0])
    return known


def batch_conditioning(
    batch: Mapping[str, Any], wavelengths: Tensor | Sequence[float] | None = None, gsd: float | Tensor | None = None
) -> Conditioning:
    """Return the conditioning of a batch: its own metadata, else the given ones.

    Args:
        batch: ``image`` (B, C, H, W) or (B, T, C, H, W), and the metadata of :meth:`Conditioning.from_batch`. A time
            per date, (B, T), is left out where T > 1, as a stock task does not tell which date it shows the model.
        wavelengths: (C,) µm, of a batch without ``wavelength``.
        gsd: meters per pixel of a batch without ``res``.

    Raises:
        ValueError: for a batch without such an image, and whatever :func:`check_batch` refuses.
    """
    known = _complete(batch, wavelengths, gsd)
    for key, ndim in (('time', 2), ('time_code', 3)):
        value = known.get(key)
        if isinstance(value, Tensor) and value.ndim == ndim:
            known[key] = value[:, 0] if value.shape[1] == 1 else None
    return Conditioning.from_batch(known)


def batch_sensor(batch: Mapping[str, Any]) -> Sensor:
    """Return the sensor of a batch with the bands of its channels: ``selection``, or all of ``sensor``, by name.

    Raises:
        ValueError: for an unknown name, or another number of channels than of bands.
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
        batch: see :func:`batch_conditioning`. Of series also ``length`` (B,), the number of real dates of each, which
            come first; ``time`` is (B, T), and ``res``, ``lat`` and ``lon`` are (B,), of all dates, or (B, T).
        scope: the conditioning that a callback has set on the model, or None.
        sees_dates: whether images are (B, T, C, H, W), each date with its own metadata.

    Returns:
        The conditioning of the B images, or of all real dates, a sample's dates side by side.

    Raises:
        ValueError: see :func:`batch_conditioning`; for images of several dates where one is expected, and the other way
            round; for lengths or metadata of another shape, or dates in days.
    """
    image = _image(batch)
    if (image.ndim == 5) != sees_dates:
        expected = '(B, T, C, H, W), several dates' if sees_dates else '(B, C, H, W), one date'
        remedy = (
            'Stack the dates along an axis of their own: dates stacked as channels cannot be distinguished.'
            if sees_dates
            else "Aggregate the dates with the task's temporal: mean, max or ltae; pick one; or compare two with "
            'ClayChangeDetection.'
        )
        raise ValueError(f'Expected images {expected}, got {tuple(image.shape)}. {remedy}')
    known = dict(batch) if scope is None else _complete(batch, scope.wavelengths, scope.gsd)
    if not sees_dates:
        return batch_conditioning(known)
    lengths = _lengths(batch, image)
    return replace(Conditioning.from_batch(_fold_dates(known, image, lengths)), lengths=lengths)


def select_dates(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Select the real dates of each sample: (B, T, …) → (N, …), a sample's dates side by side."""
    if all(length == x.shape[1] for length in lengths):
        return x.flatten(0, 1)
    return torch.cat([dates[:length] for dates, length in zip(x, lengths, strict=True)])


def _lengths(batch: Mapping[str, Any], image: Tensor) -> tuple[int, ...]:
    """Number of real dates of each sample; the one look at a device's values that padded batches need."""
    samples, dates = image.shape[:2]
    length = batch.get('length')
    if length is None:
        return (dates,) * samples
    if not isinstance(length, Tensor) or length.shape != (samples,) or length.is_floating_point():
        found = f'{tuple(length.shape)} {length.dtype}' if isinstance(length, Tensor) else type(length).__name__
        raise ValueError(f'length: expected ({samples},) integers, the number of dates of each sample, got {found}.')
    lengths = tuple(length.tolist())
    for sample, real in enumerate(lengths):
        if not 1 <= real <= dates:
            raise ValueError(
                f'length: expected 1 to {dates} dates, those of image {tuple(image.shape)}, got {real} for sample '
                f'{sample}. Leave samples without a date out of the dataset; padding follows the dates.'
            )
    return lengths


def _fold_dates(batch: Mapping[str, Any], image: Tensor, lengths: Sequence[int]) -> dict[str, Any]:
    """Return the metadata of all real dates, N rows, with an image of their shape.

    A time that is (B,) does not say which date's it is, and is left out.
    """
    samples, dates = image.shape[:2]
    folded: dict[str, Any] = {'image': image.flatten(0, 1)[: sum(lengths)]}  # only its shape and device are read
    if isinstance(code := batch.get('time_code'), Tensor) and code.ndim == 3:
        folded['time_code'] = select_dates(code, lengths)
    for key in ('wavelength', 'res', 'lat', 'lon', 'time'):
        value = batch.get(key)
        if not isinstance(value, Tensor) or (key == 'wavelength' and value.ndim == 1):
            folded[key] = value
        elif key == 'time' and value.shape == (samples,):
            rank_zero_info(f'A time per sample is left out: {dates} dates take {dates} times, (B, {dates}).')
        elif key == 'wavelength' or value.shape == (samples,):  # of all dates
            folded[key] = select_dates(value.unsqueeze(1).expand(-1, dates, *value.shape[1:]), lengths)
        elif value.shape == (samples, dates):
            folded[key] = select_dates(value, lengths)
        else:
            raise ValueError(
                f'{key}: expected {(samples,)} or one per date {(samples, dates)}, got {tuple(value.shape)}. Pad or '
                f'cut it as the image is, {tuple(image.shape)}.'
            )
    _check_seconds(batch)
    return folded


def _check_seconds(batch: Mapping[str, Any]) -> None:
    """Raise for dates in days since some date; values are read only where they lie on the host."""
    time = batch.get('time')
    if time is None and 'batch_positions' in batch:
        raise ValueError(
            "The batch has 'batch_positions', days since a date that it does not name, and no 'time', (B, T) seconds "
            'UTC. Give time = seconds of that date + 86400 · batch_positions, or leave batch_positions out if the '
            'dates are unknown.'
        )
    if isinstance(time, Tensor) and time.ndim == 2 and on_host(time):
        known = time[torch.isfinite(time)]
        if known.numel() and float(known.abs().max()) < 1e5:  # the second of January 1970
            raise ValueError(
                f'time: expected seconds UTC since 1970, got {float(known.min()):g} to {float(known.max()):g}, which '
                'look like days. Multiply days by 86400 and add the seconds of the date that they count from.'
            )
