# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Codes of time and place. Shapes: B samples.

NaN means unknown and becomes zeros for that sample: the release trained with place and time zeroed in 20 % of its
chips, so zeros are in-domain.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ('LatLonOrder', 'check_range', 'encode_latlon', 'encode_time', 'on_host')

LatLonOrder = Literal['latlon', 'lonlat']

_DAY = 86400
_WEEKS = 52  # the release divides the ISO week by 52, so week 53 lies a little past a full turn


def on_host(tensor: Tensor) -> bool:
    """Return True if values can be read without a copy from a device and without breaking a trace."""
    return not torch.compiler.is_compiling() and type(tensor) in (Tensor, torch.nn.Parameter) and tensor.is_cpu


def _precise(name: str, value: Tensor | Sequence[float] | float) -> Tensor:
    """Return a tensor of one dimension or more, float64 on the host and on a device as it is, which may lack float64.

    Half precision, which cannot hold a place or a time, is refused.
    """
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    if tensor.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"{name}: expected float64, got {tensor.dtype}, which is off by days. With Lightning's precision "
            "'bf16-true' batches are cast before any hook sees them: use 'bf16-mixed'."
        )
    tensor = torch.atleast_1d(tensor)
    return tensor.to(torch.float64) if tensor.is_cpu else tensor


def _iso_week(days: Tensor) -> Tensor:
    """ISO 8601 week (1 to 53) of whole days since 1970-01-01, by the calendar arithmetic of H. Hinnant.

    A week belongs to the year of its Thursday; the day of the year of that Thursday gives the week.
    Source: https://howardhinnant.github.io/date_algorithms.html (civil_from_days).
    """
    weekday = torch.remainder(days + 3, 7)  # Monday = 0; 1970-01-01 was a Thursday
    thursday = days - weekday + 3
    shifted = thursday + 719468  # days since 0000-03-01, so that a leap day ends its year
    era_day = torch.remainder(shifted, 146097)
    era_year = torch.div(era_day - era_day // 1460 + era_day // 36524 - era_day // 146096, 365, rounding_mode='floor')
    march_day = era_day - (365 * era_year + era_year // 4 - era_year // 100)  # 0 = 1 March
    year = era_year + torch.div(shifted, 146097, rounding_mode='floor') * 400
    january = march_day >= 306  # January and February belong to the next civil year
    leap = ((year % 4 == 0) & (year % 100 != 0)) | (year % 400 == 0)
    year_day = torch.where(january, march_day - 306, march_day + 59 + leap.long())
    return torch.div(year_day, 7, rounding_mode='floor') + 1


def encode_time(seconds: Tensor | Sequence[float] | float) -> Tensor:
    """Encode the acquisition time as sine and cosine of the ISO week and of the hour.

    Args:
        seconds: (B,) or (B, T) seconds since 1970-01-01 UTC, float64; NaN for unknown.

    Returns:
        (B, 4) or (B, T, 4) float32 [sin w, cos w, sin h, cos h], w = week·2π/52, h = hour·2π/24, of whole weeks and
        whole hours, on the device of ``seconds``; zeros where unknown.

    Raises:
        ValueError: for a half-precision tensor.
    """
    if isinstance(seconds, Tensor) and seconds.dtype == torch.float32 and on_host(seconds):
        warnings.warn('time: float32 holds today only in steps of 128 s; keep timestamps in float64.', stacklevel=2)
    seconds = _precise('time', seconds)
    known, dtype = torch.isfinite(seconds), seconds.dtype
    seconds = torch.where(known, seconds, 0).floor().long()
    days = torch.div(seconds, _DAY, rounding_mode='floor')
    hours = torch.div(seconds - days * _DAY, 3600, rounding_mode='floor')
    week = _iso_week(days).to(dtype) * (2 * math.pi / _WEEKS)
    hour = hours.to(dtype) * (2 * math.pi / 24)
    code = torch.stack([week.sin(), week.cos(), hour.sin(), hour.cos()], dim=-1)
    return torch.where(known[..., None], code, 0).float()


def encode_latlon(
    lat: Tensor | Sequence[float] | float, lon: Tensor | Sequence[float] | float, order: LatLonOrder = 'latlon'
) -> Tensor:
    """Encode the place as sine and cosine of latitude and longitude.

    The release's own chips were stored with the two under swapped names, so the model may have seen the other order;
    its inference documents use this order. ``order='lonlat'`` gives the other.

    Args:
        lat: (B,) degrees north, WGS84; NaN for unknown.
        lon: (B,) degrees east, WGS84; NaN for unknown.
        order: ``latlon`` for [sin φ, cos φ, sin λ, cos λ], ``lonlat`` for [sin λ, cos λ, sin φ, cos φ].

    Returns:
        (B, 4) float32, zeros where either is unknown.

    Raises:
        ValueError: for unequal lengths, an unknown order, or (on the host) a latitude beyond ±90 or a longitude
            beyond -180 to 360.
    """
    if order not in ('latlon', 'lonlat'):
        raise ValueError(f"order: expected 'latlon' or 'lonlat', got {order!r}.")
    lat, lon = _precise('lat', lat), _precise('lon', lon)
    if lat.shape != lon.shape:
        raise ValueError(f'Expected as many latitudes as longitudes, got {lat.shape[0]} and {lon.shape[0]}.')
    check_range('lat', lat, -90, 90)
    check_range('lon', lon, -180, 360)
    known = torch.isfinite(lat) & torch.isfinite(lon)
    phi, lam = torch.deg2rad(lat), torch.deg2rad(lon)
    place = [phi.sin(), phi.cos(), lam.sin(), lam.cos()]
    code = torch.stack(place if order == 'latlon' else place[2:] + place[:2], dim=-1)
    return torch.where(known[:, None], code, 0).float()


def check_range(name: str, values: Tensor, low: float, high: float) -> None:
    """Raise for values on the host that lie outside the range; NaN passes."""
    if not on_host(values):
        return
    outside = [v for v in values.tolist() if not (math.isnan(v) or low <= v <= high)]
    if outside:
        hint = ' Are latitude and longitude swapped, or is it a projected coordinate?' if name == 'lat' else ''
        raise ValueError(f'{name}: expected degrees from {low} to {high}, got {outside[0]:g}.{hint}')
