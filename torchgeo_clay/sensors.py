# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Sensors: wavelengths in µm, statistics in the sensor's own units, ground sampling distance in metres.

The nine sensors of :data:`SENSORS` carry the numbers that Clay v1.5 was trained with
(``configs/metadata.yaml`` of https://github.com/Clay-foundation/model, named in the release document).
A user's own sensor is a :class:`Sensor` made in Python or read by :meth:`Sensor.from_yaml`.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, cast

import yaml

__all__ = ('SENSORS', 'Band', 'Sensor', 'check_wavelengths', 'get_sensor', 'sensor_table')

Scale = Literal['linear', 'db']

#: Longest wavelength that is taken at its word, in µm. Thermal infrared ends near 15 µm; what lies above is in
#: nanometres (Clay's own docs make that mistake) or a radar wavelength, for which Clay uses the tokens 3.5 and 4.0.
MAX_WAVELENGTH = 100.0


def check_wavelengths(wavelengths: Iterable[float], where: str = 'wavelengths') -> None:
    """Raise unless all wavelengths can be micrometres.

    Args:
        wavelengths: central wavelengths, µm.
        where: what the values belong to, for the message.

    Raises:
        ValueError: if a value is not finite, not positive, or above 100.
    """
    for value in wavelengths:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f'{where}: expected positive, finite wavelengths in µm, got {value}.')
        if value > MAX_WAVELENGTH:
            raise ValueError(
                f'{where}: expected micrometres, got {value:g}. Is it in nanometres? Then divide by 1000 '
                '(665 nm is 0.665 µm). Radar bands have no optical wavelength: Clay knows VV as 3.5 and VH as 4.0.'
            )


def _fold(name: str) -> str:
    """Fold a band name for comparison: case and separators carry no meaning."""
    return name.strip().casefold().replace('-', '_').replace(' ', '_')


def _suggest(name: str, names: Sequence[str]) -> str:
    """Name the nearest known name, if one is near."""
    near = difflib.get_close_matches(_fold(name), [_fold(n) for n in names], n=1, cutoff=0.5)
    match = [n for n in names if near and _fold(n) == near[0]]
    return f' Did you mean {match[0]!r}?' if match else ''


@dataclass(frozen=True)
class Band:
    """One spectral band.

    Attributes:
        name: the band's name in Clay's training data, such as ``red``.
        wavelength: central wavelength, µm (for radar: the token of the polarisation).
        mean: mean of the training data, in the sensor's units.
        std: standard deviation of the training data, in the sensor's units.
        aliases: other names of the band (TorchGeo's, the agency's), compared without regard to case.
    """

    name: str
    wavelength: float
    mean: float
    std: float
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate the band.

        Raises:
            ValueError: if the wavelength can't be in µm, or the statistics are not finite with a positive std.
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


@dataclass(frozen=True)
class Sensor:
    """A sensor, or a selection of its bands.

    Attributes:
        name: the sensor's name; also the name of its folder of training data.
        gsd: nominal ground sampling distance, metres per pixel.
        bands: the bands, in the order of the training data.
        rgb: names of the bands shown as red, green and blue (empty if there are none).
        loss_scale: factor on the sensor's reconstruction loss (0.1 for MODIS, as the release trained it).
        scale: ``linear``, or ``db`` where the statistics are of 10·log10(power).
    """

    name: str
    gsd: float
    bands: tuple[Band, ...]
    rgb: tuple[str, ...] = ()
    loss_scale: float = 1.0
    scale: Scale = 'linear'

    def __post_init__(self) -> None:
        """Validate the sensor.

        Raises:
            ValueError: for a GSD that is not positive, no bands, names or aliases used twice, or an unknown rgb band.
        """
        if not (math.isfinite(self.gsd) and self.gsd > 0):
            raise ValueError(f'sensor {self.name!r}: expected a positive gsd in metres per pixel, got {self.gsd}.')
        if not (math.isfinite(self.loss_scale) and self.loss_scale > 0):
            raise ValueError(f'sensor {self.name!r}: expected a positive loss_scale, got {self.loss_scale}.')
        if self.scale not in ('linear', 'db'):
            raise ValueError(f"sensor {self.name!r}: expected scale 'linear' or 'db', got {self.scale!r}.")
        if not self.bands:
            raise ValueError(f'sensor {self.name!r}: expected at least one band, got none.')
        owners: dict[str, str] = {}
        for band in self.bands:
            for folded in {_fold(n) for n in band.names}:
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
        folded = _fold(name)
        for i, band in enumerate(self.bands):
            if any(folded == _fold(n) for n in band.names):
                return i
        return None

    def index(self, name: str) -> int:
        """Position of a band by name or alias.

        Raises:
            ValueError: if the sensor has no such band.
        """
        position = self.find(name)
        if position is None:
            every = [n for b in self.bands for n in b.names]
            raise ValueError(
                f'{self.name} has no band {name!r}.{_suggest(name, every)} '
                f'Known bands: {", ".join("/".join(b.names) for b in self.bands)}.'
            )
        return position

    def select(self, bands: Sequence[str] | None) -> Sensor:
        """The same sensor with the given bands, in the given order.

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
            if names.count(name) > 1:
                asked = [b for b in bands if self.bands[self.index(b)].name == name]
                raise ValueError(
                    f'{self.name}: band {name!r} is asked for {len(asked)} times, as {asked}; once is right.'
                )
        rgb = tuple(self.bands[i].name for i in self.rgb_indices)
        return replace(self, bands=chosen, rgb=rgb if set(rgb) <= set(names) else ())

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Sensor:
        """A sensor from nested dictionaries, as read from YAML.

        Args:
            description: ``name``, ``gsd`` and ``bands`` (name → ``wavelength``, ``mean``, ``std`` and, if wanted,
                ``aliases``); if wanted ``rgb``, ``loss_scale``, ``scale``.

        Raises:
            ValueError: for a missing or unknown key, or values :class:`Sensor` refuses.
        """
        known = {'name', 'gsd', 'bands', 'rgb', 'loss_scale', 'scale'}
        _check_keys('sensor', description, required={'name', 'gsd', 'bands'}, known=known)
        if not isinstance(description['bands'], Mapping):
            raise ValueError('sensor: expected bands as a mapping of name → {wavelength, mean, std}.')
        bands = []
        for name, values in description['bands'].items():
            where = f'band {name!r}'
            required = {'wavelength', 'mean', 'std'}
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
        """A sensor from a YAML file of a few lines.

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
            ValueError: if the file is not such a description; the message names the file and the mistake.
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


def _check_keys(where: str, mapping: Mapping[str, Any], *, required: set[str], known: set[str]) -> None:
    """Raise for keys that are missing or unknown."""
    if missing := required - set(mapping):
        raise ValueError(f'{where}: expected {sorted(required)}, missing {sorted(missing)}.')
    for key in mapping:
        if key not in known:
            raise ValueError(
                f'{where}: unknown key {key!r}.{_suggest(str(key), sorted(known))} Known: {sorted(known)}.'
            )


def _names(where: str, value: Any) -> tuple[str, ...]:
    """Convert to a tuple of names; nothing is no names, and a bare string would be taken for its letters."""
    if value is not None and (isinstance(value, str) or not isinstance(value, Sequence)):
        raise ValueError(f'{where}: expected a list of names, got {value!r}.')
    return tuple(map(str, value or ()))


def _number(where: str, value: Any) -> float:
    """Convert to float, naming the place where that fails."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f'{where}: expected a number, got {value!r}.')
    return float(value)


def _bands(*rows: tuple[Any, ...]) -> tuple[Band, ...]:
    """Make bands from rows of name, wavelength µm, mean, std, aliases."""
    return tuple(Band(name, wavelength, mean, std, tuple(aliases)) for name, wavelength, mean, std, *aliases in rows)


_RGB = ('red', 'green', 'blue')

# Numbers: configs/metadata.yaml of the Clay repository, in the order of the training data. Aliases: the agencies' band
# names as TorchGeo's datasets, STAC's common names and the products' own files write them. Landsat's are those of OLI
# (Landsat 8 and 9), on which Clay was trained: TM and ETM+ number other bands alike, so give their bands by name.
_SENTINEL_2_L2A = Sensor(
    'sentinel-2-l2a', 10, rgb=_RGB, bands=_bands(
        ('blue', 0.493, 1105, 1809, 'B02', 'B2'),
        ('green', 0.56, 1355, 1757, 'B03', 'B3'),
        ('red', 0.665, 1552, 1888, 'B04', 'B4'),
        ('rededge1', 0.704, 1887, 1870, 'B05', 'B5', 'red edge 1'),
        ('rededge2', 0.74, 2422, 1732, 'B06', 'B6', 'red edge 2'),
        ('rededge3', 0.783, 2630, 1697, 'B07', 'B7', 'red edge 3'),
        ('nir', 0.842, 2743, 1742, 'B08', 'B8'),
        ('nir08', 0.865, 2785, 1648, 'B8A', 'B08A', 'narrow nir'),
        ('swir16', 1.61, 2388, 1470, 'B11', 'swir1'),
        ('swir22', 2.19, 1835, 1379, 'B12', 'swir2'),
    ),
)  # fmt: skip
_PLANETSCOPE_SR = Sensor(
    'planetscope-sr', 5, rgb=_RGB, bands=_bands(
        ('coastal_blue', 0.443, 1720, 747, 'coastal'),
        ('blue', 0.49, 1715, 698, 'B'),
        ('green_i', 0.531, 1913, 739, 'green i', 'greeni'),
        ('green', 0.565, 2088, 768, 'G'),
        ('yellow', 0.61, 2274, 849, 'Y'),
        ('red', 0.665, 2290, 868, 'R'),
        ('rededge', 0.705, 2613, 849, 'red edge', 'RE'),
        ('nir', 0.865, 3970, 914, 'N'),
    ),
)  # fmt: skip
_LANDSAT_C2L1 = Sensor(
    'landsat-c2l1', 30, rgb=_RGB, bands=_bands(
        ('red', 0.65, 10678, 6025, 'B4', 'B04'),
        ('green', 0.56, 10563, 5411, 'B3', 'B03'),
        ('blue', 0.48, 11083, 5468, 'B2', 'B02'),
        ('nir08', 0.86, 14792, 6746, 'B5', 'B05', 'nir'),
        ('swir16', 1.6, 12276, 5897, 'B6', 'B06', 'swir1'),
        ('swir22', 2.2, 10114, 4850, 'B7', 'B07', 'swir2'),
    ),
)  # fmt: skip
_LANDSAT_C2L2_SR = Sensor(
    'landsat-c2l2-sr', 30, rgb=_RGB, bands=_bands(
        ('red', 0.65, 13705, 9578, 'SR_B4', 'B4', 'B04'),
        ('green', 0.56, 13310, 9408, 'SR_B3', 'B3', 'B03'),
        ('blue', 0.48, 12474, 10144, 'SR_B2', 'B2', 'B02'),
        ('nir08', 0.86, 17801, 8277, 'SR_B5', 'B5', 'B05', 'nir'),
        ('swir16', 1.6, 14615, 5300, 'SR_B6', 'B6', 'B06', 'swir1'),
        ('swir22', 2.2, 12701, 4522, 'SR_B7', 'B7', 'B07', 'swir2'),
    ),
)  # fmt: skip
_NAIP = Sensor(
    'naip', 1.0, rgb=_RGB, bands=_bands(
        ('red', 0.65, 110.16, 47.23, 'R'),
        ('green', 0.56, 115.41, 39.82, 'G'),
        ('blue', 0.48, 98.15, 35.43, 'B'),
        ('nir', 0.842, 139.04, 49.86, 'N'),
    ),
)  # fmt: skip
_LINZ = Sensor(
    'linz', 0.5, rgb=_RGB, bands=_bands(
        ('red', 0.635, 89.96, 41.83, 'R'),
        ('green', 0.555, 99.46, 36.96, 'G'),
        ('blue', 0.465, 89.51, 31.45, 'B'),
    ),
)  # fmt: skip
_SENTINEL_1_RTC = Sensor(
    'sentinel-1-rtc', 10, scale='db', bands=_bands(
        ('vv', 3.5, -12.113, 8.314, 'gamma0_vv'),
        ('vh', 4.0, -18.673, 8.017, 'gamma0_vh'),
    ),
)  # fmt: skip
_MODIS = Sensor(
    'modis', 500, loss_scale=0.1, rgb=('sur_refl_b01', 'sur_refl_b04', 'sur_refl_b03'), bands=_bands(
        ('sur_refl_b01', 0.645, 1072, 1643, 'b01', 'b1', 'red', 'b01_620_670'),
        ('sur_refl_b02', 0.858, 1624, 1878, 'b02', 'b2', 'nir', 'b02_841_876'),
        ('sur_refl_b03', 0.469, 931, 1449, 'b03', 'b3', 'blue', 'b03_459_479'),
        ('sur_refl_b04', 0.555, 1023, 1538, 'b04', 'b4', 'green', 'b04_545_565'),
        ('sur_refl_b05', 1.24, 1599, 1763, 'b05', 'b5', 'b05_1230_1250'),
        ('sur_refl_b06', 1.64, 1404, 1618, 'b06', 'b6', 'b06_1628_1652'),
        ('sur_refl_b07', 2.13, 1051, 1396, 'b07', 'b7', 'b07_2105_2155'),
    ),
)  # fmt: skip
_SATELLOGIC = Sensor(
    'satellogic-MSI-L1D', 1.0, rgb=_RGB, bands=_bands(
        ('red', 0.64, 1451.54, 995.48, 'R'),
        ('green', 0.545, 1456.54, 771.29, 'G'),
        ('blue', 0.48, 1543.22, 708.86, 'B'),
        ('nir', 0.825, 2132.68, 1236.71, 'N'),
    ),
)  # fmt: skip

#: The sensors of Clay v1.5's training metadata, by name. Read-only; pass a :class:`Sensor` wherever a name is taken.
SENSORS: Mapping[str, Sensor] = MappingProxyType(
    {
        s.name: s
        for s in (
            _SENTINEL_2_L2A,
            _PLANETSCOPE_SR,
            _LANDSAT_C2L1,
            _LANDSAT_C2L2_SR,
            _NAIP,
            _LINZ,
            _SENTINEL_1_RTC,
            _MODIS,
            _SATELLOGIC,
        )
    }
)


def get_sensor(sensor: str | os.PathLike[str] | Sensor) -> Sensor:
    """A sensor by name, from a YAML file, or as it is.

    Args:
        sensor: a name of :data:`SENSORS`, a path to a ``.yaml`` (see :meth:`Sensor.from_yaml`), or a sensor.

    Raises:
        ValueError: for an unknown name; the message suggests the nearest.
    """
    if isinstance(sensor, Sensor):
        return sensor
    name = os.fspath(sensor)
    if name in SENSORS:
        return SENSORS[name]
    if name.endswith(('.yaml', '.yml')):
        return Sensor.from_yaml(name)
    raise ValueError(
        f'Unknown sensor {name!r}.{_suggest(name, list(SENSORS))} Known: {", ".join(SENSORS)}; '
        'or describe your own in a .yaml and give its path.'
    )


def sensor_table(sensors: Iterable[Sensor] | None = None) -> str:
    """The sensors as a Markdown table, a row per band.

    Args:
        sensors: the sensors to show; None for :data:`SENSORS`.
    """

    def rows() -> Iterator[str]:
        yield '| sensor | gsd [m] | band | wavelength [µm] | mean | std | also known as |'
        yield '|---|---|---|---|---|---|---|'
        for s in SENSORS.values() if sensors is None else sensors:
            for i, b in enumerate(s.bands):
                head = f'{s.name} | {s.gsd:g}' if i == 0 else ' | '
                yield f'| {head} | {b.name} | {b.wavelength:g} | {b.mean:g} | {b.std:g} | {", ".join(b.aliases)} |'

    return '\n'.join(rows())
