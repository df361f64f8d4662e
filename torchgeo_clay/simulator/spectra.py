# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What the materials of the simulated ground reflect: reflectance over 0.4-2.5 µm and C-band backscatter in dB.

The numbers are typed approximations of the textbook shapes (chlorophyll absorption and red edge, leaf water at 1.4-2.5
µm, rising soil line, water's near-infrared absorption, snow's drop beyond 1 µm), not measurements: they make classes
separable as in real imagery, and are no reference for anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = ('CLOUD_REFLECTANCE', 'Material', 'backscatter', 'cloud_reflectance', 'reflectance')


class Material(IntEnum):
    """Pure materials; a pixel is a mixture of them."""

    CLEAR_WATER = 0
    TURBID_WATER = 1
    LEAF = 2
    CANOPY = 3
    STRAW = 4
    DARK_SOIL = 5
    SAND = 6
    CONCRETE = 7
    ASPHALT = 8
    TILE = 9
    SNOW = 10


_WAVELENGTHS = (0.40, 0.45, 0.49, 0.55, 0.60, 0.67, 0.70, 0.74, 0.78, 0.86, 1.00, 1.24, 1.65, 2.20, 2.50)

_REFLECTANCE = {
    Material.CLEAR_WATER: (
        0.045, 0.045, 0.042, 0.035, 0.018, 0.010, 0.008, 0.006,
        0.005, 0.004, 0.002, 0.001, 0.001, 0.001, 0.0,
    ),
    Material.TURBID_WATER: (
        0.05, 0.065, 0.08, 0.12, 0.11, 0.08, 0.07, 0.04,
        0.035, 0.025, 0.012, 0.004, 0.002, 0.002, 0.0,
    ),
    Material.LEAF: (
        0.03, 0.035, 0.04, 0.095, 0.06, 0.04, 0.12, 0.36,
        0.45, 0.48, 0.49, 0.44, 0.27, 0.12, 0.06,
    ),
    Material.CANOPY: (
        0.015, 0.02, 0.022, 0.05, 0.032, 0.025, 0.07, 0.25,
        0.32, 0.34, 0.34, 0.29, 0.15, 0.065, 0.03,
    ),
    Material.STRAW: (
        0.07, 0.09, 0.11, 0.16, 0.20, 0.24, 0.26, 0.28,
        0.30, 0.34, 0.38, 0.43, 0.42, 0.30, 0.22,
    ),
    Material.DARK_SOIL: (
        0.04, 0.05, 0.06, 0.08, 0.10, 0.13, 0.14, 0.16,
        0.17, 0.20, 0.23, 0.28, 0.31, 0.27, 0.22,
    ),
    Material.SAND: (
        0.12, 0.16, 0.20, 0.27, 0.33, 0.38, 0.40, 0.42,
        0.43, 0.45, 0.48, 0.52, 0.55, 0.50, 0.44,
    ),
    Material.CONCRETE: (
        0.16, 0.20, 0.22, 0.25, 0.27, 0.29, 0.29, 0.30,
        0.30, 0.31, 0.32, 0.33, 0.34, 0.32, 0.29,
    ),
    Material.ASPHALT: (
        0.06, 0.07, 0.075, 0.085, 0.09, 0.10, 0.10, 0.105,
        0.11, 0.115, 0.12, 0.135, 0.15, 0.15, 0.14,
    ),
    Material.TILE: (
        0.06, 0.07, 0.08, 0.11, 0.21, 0.29, 0.30, 0.31,
        0.32, 0.34, 0.36, 0.38, 0.40, 0.38, 0.34,
    ),
    Material.SNOW: (
        0.93, 0.94, 0.94, 0.93, 0.92, 0.90, 0.89, 0.87,
        0.86, 0.80, 0.66, 0.35, 0.08, 0.05, 0.03,
    ),
}  # fmt: skip

#: Reflectance of a thick water cloud at the wavelengths of the table.
CLOUD_REFLECTANCE = (0.68, 0.68, 0.68, 0.68, 0.68, 0.68, 0.68, 0.68, 0.68, 0.67, 0.66, 0.62, 0.50, 0.40, 0.32)

# Co-polarized and cross-polarized gamma0, dB. Walls and pavement make corners, hence the bright town.
_BACKSCATTER = {
    Material.CLEAR_WATER: (-23.0, -30.0),
    Material.TURBID_WATER: (-19.0, -27.0),
    Material.LEAF: (-10.5, -17.0),
    Material.CANOPY: (-8.0, -13.5),
    Material.STRAW: (-12.0, -19.5),
    Material.DARK_SOIL: (-11.5, -21.0),
    Material.SAND: (-17.0, -27.0),
    Material.CONCRETE: (-2.0, -11.0),
    Material.ASPHALT: (-15.0, -23.0),
    Material.TILE: (0.0, -9.0),
    Material.SNOW: (-14.0, -21.5),
}

# Clay's tokens are 3.5 for VV and 4.0 for VH; values nearer to the second are cross-polarized.
_CROSS_POLARIZED = 3.75


def reflectance(wavelengths: Sequence[float]) -> NDArray[np.float32]:
    """Reflectance of the materials at some wavelengths, interpolated linearly; beyond 0.4-2.5 µm the ends are repeated.

    Args:
        wavelengths: (C,) µm.

    Returns:
        (C, materials), 0 to 1.
    """
    rows = [np.interp(wavelengths, _WAVELENGTHS, _REFLECTANCE[material]) for material in Material]
    return np.stack(rows, axis=1).astype(np.float32)


def cloud_reflectance(wavelengths: Sequence[float]) -> NDArray[np.float32]:
    """Reflectance of a thick cloud, (C,), at wavelengths in µm."""
    return np.interp(wavelengths, _WAVELENGTHS, CLOUD_REFLECTANCE).astype(np.float32)


def backscatter(wavelengths: Sequence[float]) -> NDArray[np.float32]:
    """Radar backscatter of the materials as linear power.

    Args:
        wavelengths: (C,) Clay's tokens of the polarizations: 3.5 for VV, 4.0 for VH.

    Returns:
        (C, materials), linear gamma0.
    """
    table = np.array([_BACKSCATTER[material] for material in Material], dtype=np.float32)
    columns = [int(wavelength > _CROSS_POLARIZED) for wavelength in wavelengths]
    return (10 ** (table[:, columns].T / 10)).astype(np.float32)
