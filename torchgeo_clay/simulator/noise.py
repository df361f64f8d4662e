# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Random patterns on a square of H = W = size pixels: fractal fields, parcels, winding lines. Lengths are in pixels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ('average', 'borders', 'coordinates', 'fractal', 'parcels', 'soften', 'winding')

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]
Cells = NDArray[np.intp]


def fractal(rng: np.random.Generator, size: int, slope: float, shortest: float = 0, longest: float = 0) -> Field:
    """A Gaussian random field of zero mean and unit variance.

    Args:
        rng: source of randomness.
        size: height and width, pixels.
        slope: the power falls as frequency to the -slope; 0 is white, 2 rough, 4 smooth.
        shortest, longest: shorter and longer waves are damped, pixels; 0 for none.
    """
    side = size + size // 8  # the transform makes the field periodic; cropping removes the seam
    white = np.fft.rfft2(rng.standard_normal((side, side), dtype=np.float32))
    field = np.fft.irfft2(white * _amplitude(side, slope, shortest, longest), s=(side, side))[:size, :size]
    return ((field - field.mean()) / field.std()).astype(np.float32)


@lru_cache(maxsize=32)
def _amplitude(side: int, slope: float, shortest: float, longest: float) -> Field:
    """Amplitude by which :func:`fractal` filters white noise: (side, side // 2 + 1), in the order of rfft2."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    amplitude = frequency ** (-slope / 2)
    amplitude[0, 0] = 0
    if shortest:
        amplitude *= np.exp(-((frequency * shortest) ** 2))
    if longest:
        amplitude *= 1 - np.exp(-((frequency * longest) ** 2))
    return amplitude.astype(np.float32)


def coordinates(size: int, angle: float | Field) -> tuple[Field, Field]:
    """Coordinates along and across a direction in radians, or one per pixel; pixels from the center."""
    y, x = np.mgrid[:size, :size].astype(np.float32) - np.float32(size / 2)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def parcels(rng: np.random.Generator, size: int, length: float, aspect: float = 2.0) -> tuple[Cells, Field]:
    """Divide the square into four-sided parcels, in two districts of different orientation.

    Args:
        rng: source of randomness.
        size: height and width, pixels.
        length: mean length of a parcel, pixels.
        aspect: mean length by mean width.

    Returns:
        Number of each pixel's parcel, from 0 without gaps; and the coordinate across the parcels, pixels.
    """
    district = fractal(rng, size, 4, shortest=length) > 0.2
    angle = rng.uniform(0, np.pi)
    along, across = coordinates(size, np.where(district, angle, angle + rng.uniform(0.3, 1.2)).astype(np.float32))
    edges = np.cumsum(rng.uniform(0.5, 1.5, 2 + int(3 * size * aspect / length))) * length / aspect
    row = np.searchsorted(edges - edges[-1] / 2, across)
    stretch, shift = rng.uniform(0.6, 1.6, len(edges) + 1), rng.uniform(0, 1, len(edges) + 1)
    column = np.floor(along / length * stretch[row] + shift[row]).astype(np.intp)
    key = (row * 4096 + column) * 2 + district
    _, cell = np.unique(key, return_inverse=True)
    return cell.reshape(size, size), across


def average(field: Field, cell: Cells) -> Field:
    """Mean of a field over each pixel's parcel, so that selections follow parcel borders."""
    total = np.bincount(cell.ravel(), weights=field.ravel())
    count = np.bincount(cell.ravel())
    return (total / count)[cell].astype(np.float32)


def borders(cell: Cells) -> Mask:
    """The pixels whose right or lower neighbour lies in another parcel."""
    edge = np.zeros(cell.shape, dtype=bool)
    edge[:, :-1] |= cell[:, :-1] != cell[:, 1:]
    edge[:-1] |= cell[:-1] != cell[1:]
    return edge


def winding(rng: np.random.Generator, size: int, bend: float) -> Field:
    """Distance from a winding line, pixels; ``bend``, its excursions by size, is near 0 for a road, 0.1 for a river."""
    along, across = coordinates(size, rng.uniform(0, np.pi))
    turns = np.array([0.8, 1.7, 3.1, 6.3])
    reach = rng.uniform(0.5, 1, 4) / turns * bend * size
    at = np.linspace(-size, size, 4 * size + 1)  # the diagonal is shorter than that
    line = reach @ np.sin(2 * np.pi * turns[:, None] * at / size + rng.uniform(0, 2 * np.pi, (4, 1)))
    line += rng.uniform(-0.3, 0.3) * size
    stretch = np.hypot(1, np.gradient(line, at))
    return (np.abs(across - np.interp(along, at, line)) / np.interp(along, at, stretch)).astype(np.float32)


def soften(image: Field) -> Field:
    """Blur the last two axes by a 3 × 3 binomial kernel, as optics do; edges are replicated."""
    for axis in (-2, -1):
        pad = [(0, 0)] * image.ndim
        pad[axis] = (1, 1)
        padded = np.moveaxis(np.pad(image, pad, mode='edge'), axis, 0)
        image = np.moveaxis(0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:], 0, axis)
    return image.astype(np.float32, copy=False)
