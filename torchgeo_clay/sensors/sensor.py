# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Sensors and their bands: wavelengths in µm, GSD in meters, statistics in the sensor's units."""

from __future__ import annotations

import difflib
import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import yaml
from torch import Tensor

__all__ = ('Band', 'Sensor', 'check_wavelengths', 'fold', 'suggest')

#: Longest wavelength accepted, µm. Thermal infrared ends near 15 µm; values above are in nanometers (an error also of
#: Clay's own docs) or radar wavelengths, for which Clay uses the tokens 3.5 and 4.0.
MAX_WAVELENGTH = 100.0


def check_wavelengths(wavelengths: Iterable[float], where: str = 'wavelengths') -> None:
    """Raise ValueError unless all wavelengths can be micrometers; ``where`` names them in the message."""
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
        """Raise ValueError if the wavelength cannot be in µm, or the statistics are not finite with a positive std."""
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


Scale = Literal['linear', 'db']


@dataclass(frozen=True)
class Sensor:
    """A sensor, or a selection of its bands.

    Attributes:
        name: the sensor's name; also the name of its folder of training data.
        gsd: nominal ground sampling distance, meters per pixel.
        bands: the bands, in the order of the training data.
        rgb: names of the bands shown as red, green and blue (empty if there are none).
        loss_scale: factor on the sensor's reconstruction loss (0.1 for MODIS in the release).
        scale: ``linear``, or ``db`` where the statistics are of 10·log10(power).
    """

    name: str
    gsd: float
    bands: tuple[Band, ...]
    rgb: tuple[str, ...] = ()
    loss_scale: float = 1.0
    scale: Scale = 'linear'

    def __post_init__(self) -> None:
        """Raise ValueError for a GSD that is not positive, no bands, names used twice, or an unknown rgb band."""
        if not (math.isfinite(self.gsd) and self.gsd > 0):
            raise ValueError(f'sensor {self.name!r}: expected a positive gsd in meters per pixel, got {self.gsd}.')
        if not (math.isfinite(self.loss_scale) and self.loss_scale > 0):
            raise ValueError(f'sensor {self.name!r}: expected a positive loss_scale, got {self.loss_scale}.')
        if self.scale not in ('linear', 'db'):
            raise ValueError(f"sensor {self.name!r}: expected scale 'linear' or 'db', got {self.scale!r}.")
        if not self.bands:
            raise ValueError(f'sensor {self.name!r}: expected at least one band, got none.')
        owners: dict[str, str] = {}
        for band in self.bands:
            for folded in {fold(n) for n in band.names}:
                if folded in owners:
                    raise ValueError(
                        f'sensor {self.name!r}: the name {folded!r} stands for both {owners[folded]!r} and '
                        f'{band.name!r}; band names and aliases must be unique.'
                    )
                owners[folded] = band.name
        if self.rgb and len(self.rgb) != 3:
            raise ValueError(f'sensor {self.name!r}: expected three rgb bands or none, got {self.rgb}.')
        for name in self.rgb:
            self.index(name)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Return the sensor itself from ``torch.unbind``, which TorchGeo applies to every value of a batch."""
        return (args[0],) if func.__name__ == 'unbind' else NotImplemented

    def __len__(self) -> int:
        """Number of bands."""
        return len(self.bands)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands, in order."""
        return tuple(b.name for b in self.bands)

    @property
    def wavelengths(self) -> tuple[float, ...]:
        """Central wavelengths, µm, in order."""
        return tuple(b.wavelength for b in self.bands)

    @property
    def mean(self) -> tuple[float, ...]:
        """Means in the sensor's units, in order."""
        return tuple(b.mean for b in self.bands)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviations in the sensor's units, in order."""
        return tuple(b.std for b in self.bands)

    @property
    def rgb_indices(self) -> tuple[int, ...]:
        """Positions of the rgb bands, empty if there are none."""
        return tuple(self.index(name) for name in self.rgb)

    def find(self, name: str) -> int | None:
        """Position of a band by name or alias, None if the sensor has no such band."""
        folded = fold(name)
        return next((i for i, band in enumerate(self.bands) if folded in map(fold, band.names)), None)

    def index(self, name: str) -> int:
        """Position of a band by name or alias.

        Raises:
            ValueError: if the sensor has no such band.
        """
        position = self.find(name)
        if position is None:
            every = [n for b in self.bands for n in b.names]
            raise ValueError(
                f'{self.name} has no band {name!r}.{suggest(name, every)} '
                f'Known bands: {", ".join("/".join(b.names) for b in self.bands)}.'
            )
        return position

    def select(self, bands: Sequence[str] | None) -> Sensor:
        """Select bands, in the given order.

        Args:
            bands: names or aliases; None for all bands.

        Returns:
            A sensor with these bands. ``rgb`` is kept where all three bands are.

        Raises:
            ValueError: for an unknown band, a band named twice, a bare string or an empty list.
        """
        if bands is None:
            return self
        if isinstance(bands, str):
            raise ValueError(f'Expected a list of band names, got the string {bands!r}; write [{bands!r}].')
        chosen = tuple(self.bands[self.index(b)] for b in bands)
        names = [b.name for b in chosen]
        for name in names:
            asked = [b for b, chosen_name in zip(bands, names, strict=True) if chosen_name == name]
            if len(asked) > 1:
                raise ValueError(
                    f'{self.name}: band {name!r} is selected {len(asked)} times, as {asked}; name it once.'
                )
        rgb = tuple(self.bands[i].name for i in self.rgb_indices)
        return replace(self, bands=chosen, rgb=rgb if set(rgb) <= set(names) else ())

    def normalize(self, image: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalize an image with the statistics of the training data: (pixel - mean) / std per band.

        Args:
            image: (…, C, H, W) in the sensor's units, any real dtype, with the sensor's bands as channels, in order.
            valid: (…, 1 or C, H, W) bool, False where there is no data; None if every pixel is data.

        Returns:
            float32, of the image's shape and on its device; zero, the mean of the training data, where not valid.

        Raises:
            ValueError: for another number of channels.
        """
        if image.ndim < 3 or image.shape[-3] != len(self):
            raise ValueError(
                f'{self.name}: expected an image (…, {len(self)}, H, W) of the bands {", ".join(self.band_names)}, got '
                f'{tuple(image.shape)}. Select the bands of the image with Sensor.select.'
            )
        # torch.compile traces no cache
        statistics = _statistics if torch.compiler.is_compiling() else _cached_statistics
        mean, std = statistics(self, image.device)
        normalized = (image.to(torch.float32) - mean) / std
        return normalized if valid is None else torch.where(valid, normalized, 0.0)

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Sensor:
        """Make a sensor from nested dictionaries, as read from YAML.

        Args:
            description: ``name``, ``gsd`` and ``bands`` (name → ``wavelength``, ``mean``, ``std`` and optionally
                ``aliases``); optionally ``rgb``, ``loss_scale``, ``scale``.

        Raises:
            ValueError: for a missing or unknown key, or a value that :class:`Sensor` refuses.
        """
        known = {'name', 'gsd', 'bands', 'rgb', 'loss_scale', 'scale'}
        _check_keys('sensor', description, required={'name', 'gsd', 'bands'}, known=known)
        if not isinstance(description['bands'], Mapping):
            raise ValueError('sensor: expected bands as a mapping of name → {wavelength, mean, std}.')
        bands, required = [], {'wavelength', 'mean', 'std'}
        for name, values in description['bands'].items():
            where = f'band {name!r}'
            if not isinstance(values, Mapping):
                raise ValueError(f'{where}: expected {{wavelength: …, mean: …, std: …}}, got {values!r}.')
            _check_keys(where, values, required=required, known=required | {'aliases'})
            numbers = {k: _number(f'{where}: {k}', values[k]) for k in sorted(required)}
            bands.append(Band(name=str(name), aliases=_names(f'{where}: aliases', values.get('aliases')), **numbers))
        return cls(
            name=str(description['name']),
            gsd=_number('gsd', description['gsd']),
            bands=tuple(bands),
            rgb=_names('rgb', description.get('rgb')),
            loss_scale=_number('loss_scale', description.get('loss_scale', 1.0)),
            scale=cast(Scale, description.get('scale', 'linear')),
        )

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Sensor:
        """Read a sensor from a YAML file of a few lines.

        Example::

            name: viirs
            gsd: 375
            rgb: [I1, I1, I1]   # or leave out
            bands:
              I1: {wavelength: 0.64, mean: 2100, std: 1900, aliases: [red]}
              I2: {wavelength: 0.865, mean: 2900, std: 1800, aliases: [nir]}

        Args:
            path: the file.

        Raises:
            ValueError: if the file is not such a description; the message names the file and the error.
        """
        with open(path, encoding='utf-8') as file:
            try:
                description = yaml.safe_load(file)
            except yaml.YAMLError as error:
                raise ValueError(f'{os.fspath(path)}: not readable as YAML: {error}') from error
        if not isinstance(description, Mapping):
            raise ValueError(f'{os.fspath(path)}: expected name:, gsd: and bands:, got {type(description).__name__}.')
        try:
            return cls.from_dict(description)
        except ValueError as error:
            raise ValueError(f'{os.fspath(path)}: {error}') from error


def _statistics(sensor: Sensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std of a sensor, each (C, 1, 1) float32."""
    with torch.inference_mode(False):  # or training would get the inference tensors of a prediction before it
        mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (sensor.mean, sensor.std))
        return mean.to(device), std.to(device)


_cached_statistics = functools.lru_cache(maxsize=128)(_statistics)


def _check_keys(where: str, mapping: Mapping[str, Any], *, required: set[str], known: set[str]) -> None:
    """Raise for keys that are missing or unknown."""
    if missing := required - set(mapping):
        raise ValueError(f'{where}: expected {sorted(required)}, missing {sorted(missing)}.')
    for key in mapping:
        if key not in known:
            raise ValueError(f'{where}: unknown key {key!r}.{suggest(str(key), sorted(known))} Known: {sorted(known)}.')


def _names(where: str, value: Any) -> tuple[str, ...]:
    """Convert to a tuple of names; refuse a bare string, which would be split into its letters."""
    if value is not None and (isinstance(value, str) or not isinstance(value, Sequence)):
        raise ValueError(f'{where}: expected a list of names, got {value!r}.')
    return tuple(map(str, value or ()))


def _number(where: str, value: Any) -> float:
    """Convert to float; the error names the place."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f'{where}: expected a number, got {value!r}.')
    return float(value)
