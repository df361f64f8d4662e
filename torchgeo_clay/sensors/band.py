# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""One band of a sensor, and comparison of band names. Wavelengths are in µm."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ('Band', 'check_wavelengths', 'fold', 'suggest')

#: Longest wavelength accepted, µm. Thermal infrared ends near 15 µm; values above are in nanometers (an error also of
#: Clay's own docs) or radar wavelengths, for which Clay uses the tokens 3.5 and 4.0.
MAX_WAVELENGTH = 100.0


def check_wavelengths(wavelengths: Iterable[float], where: str = 'wavelengths') -> None:
    """Raise unless all wavelengths can be micrometers.

    Args:
        wavelengths: central wavelengths, µm.
        where: name of the values in the message.

    Raises:
        ValueError: if a value is not finite, not positive, or above 100.
    """
    for value in wavelengths:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f'{where}: expected positive, finite wavelengths in µm, got {value}.')
        if value > MAX_WAVELENGTH:
            raise ValueError(
                f'{where}: expected micrometers, got {value:g}. Is it in nanometers? Then divide by 1000 '
                '(665 nm is 0.665 µm). Radar bands have no optical wavelength: Clay knows VV as 3.5 and VH as 4.0.'
            )


def fold(name: str) -> str:
    """Fold a band name for comparison: case and separators carry no meaning."""
    return name.strip().casefold().replace('-', '_').replace(' ', '_')


def suggest(name: str, names: Sequence[str]) -> str:
    """Suggest the nearest known name, if one is near."""
    near = difflib.get_close_matches(fold(name), [fold(n) for n in names], n=1, cutoff=0.5)
    match = [n for n in names if near and fold(n) == near[0]]
    return f' Did you mean {match[0]!r}?' if match else ''


@dataclass(frozen=True)
class Band:
    """One spectral band.

    Attributes:
        name: the band's name in Clay's training data, such as ``red``.
        wavelength: central wavelength, µm (for radar: the token of the polarization).
        mean: mean of the training data, in the sensor's units.
        std: standard deviation of the training data, in the sensor's units.
        aliases: other names of the band (TorchGeo's, the agency's), compared case-insensitively.
    """

    name: str
    wavelength: float
    mean: float
    std: float
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate the band.

        Raises:
            ValueError: if the wavelength cannot be in µm, or the statistics are not finite with a positive std.
        """
        if not self.name:
            raise ValueError('Expected a band name, got an empty string.')
        check_wavelengths([self.wavelength], f'band {self.name!r}')
        if not math.isfinite(self.mean):
            raise ValueError(f'band {self.name!r}: expected a finite mean, got {self.mean}.')
        if not (math.isfinite(self.std) and self.std > 0):
            raise ValueError(f'band {self.name!r}: expected a positive, finite std, got {self.std}.')

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its aliases."""
        return (self.name, *self.aliases)
