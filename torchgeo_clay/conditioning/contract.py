# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The batch contract: wavelength (µm), res (metres per pixel), lat, lon (degrees), time (seconds UTC).

Shapes: B samples, C bands. Unknown place and time are NaN. GSD has no code for unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchgeo_clay.conditioning.codes import LatLonOrder, check_range, encode_latlon, encode_time, on_host
from torchgeo_clay.sensors import check_wavelengths

__all__ = ('CheckedConditioning', 'Conditioning', 'check_batch', 'check_gsd')


def check_gsd(gsd: float | Tensor) -> None:
    """Raise unless the ground sampling distance is positive; values on a device are not read.

    Args:
        gsd: metres per pixel, a float or (B,).

    Raises:
        ValueError: for NaN, infinite, zero or negative values.
    """
    if isinstance(gsd, Tensor) and not on_host(gsd):
        return
    values = torch.atleast_1d(gsd).tolist() if isinstance(gsd, Tensor) else [float(gsd)]
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(
                f'gsd: expected positive metres per pixel, got {value}. GSD has no code for unknown: read it from the '
                "raster, or give it with gsd= (the sensor's nominal one only if the pixels were not resampled)."
            )


@dataclass(frozen=True)
class Conditioning:
    """What the model is given about a batch besides its pixels.

    Attributes:
        wavelengths: (C,) central wavelengths, µm.
        gsd: metres per pixel, a float or (B,).
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
            batch: ``wavelength`` (B, C) or (C,) µm and ``res`` (B,) metres per pixel; if known ``lat`` and ``lon`` (B,)
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
            f"The batch has no 'res' in metres per pixel (keys: {sorted(batch)}). Give it with gsd=; there is no code "
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
