# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Which bands of a file are a sensor's: by names, then wavelengths, then color interpretation, then their order."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rasterio.io import DatasetReader

from torchgeo_clay.datasets.raster.files import SceneError
from torchgeo_clay.datasets.raster.products import tm_band_names
from torchgeo_clay.sensors import Sensor

__all__ = ('BandMatch', 'FileBand', 'file_bands', 'match_bands')

# What writers put where nobody named the bands: "Band 1", "Layer_2", "3".
_GENERIC = re.compile(r'(?:band|layer)?[ _-]?\d+', re.IGNORECASE)
# Tags of a band's wavelength, and the number in them or in a list of them.
_WAVELENGTH = re.compile(r'(?:cent(?:er|ral)_?)?wavelengths?(?:_?(?:um|nm))?', re.IGNORECASE)
_NUMBER = re.compile(r'\d+(?:\.\d+)?(?:e[+-]?\d+)?', re.IGNORECASE)

#: A file's wavelength may be off a sensor's by this share: cameras differ, neighboring bands are further away.
_NEAR = 0.05
#: A name and a wavelength this share apart contradict each other.
_CONTRADICTION = 0.1
#: A band this wide, as a share of its wavelength, is panchromatic.
_PANCHROMATIC = 0.25

#: Sensors whose files usually come in another order than that of the training data: blue first.
_OTHER_ORDER = ('landsat-c2l1', 'landsat-c2l2-sr', 'satellogic-MSI-L1D')
#: Names of color-infrared images, which are shown, and often tagged, as if they were red, green and blue.
COLOR_INFRARED = re.compile(r'(?<![a-z])(?:cir|nrg|irrg|irg|false[-_ ]?colou?r)(?![a-z])', re.IGNORECASE)


#: Color interpretations of pictures: indexes into a palette, and other models of color than red, green and blue.
_NO_SPECTRUM = (
    'palette', 'hue', 'saturation', 'lightness', 'cyan', 'magenta', 'yellow', 'black', 'Y', 'Cb', 'Cr',
)  # fmt: skip


@dataclass(frozen=True)
class FileBand:
    """What a file says about one of its bands.

    Attributes:
        name: its description; empty if it has none.
        wavelength: of its center, µm; NaN for unknown.
        width: full width at half maximum, µm; NaN for unknown.
        color: GDAL's color interpretation, such as ``red`` or ``undefined``.
    """

    name: str = ''
    wavelength: float = math.nan
    width: float = math.nan
    color: str = 'undefined'

    @property
    def label(self) -> str:
        """How messages call it."""
        return self.name or (f'{self.wavelength:g} µm' if self.wavelength > 0 else '(unnamed)')

    @property
    def is_alpha(self) -> bool:
        """Whether the file calls it alpha."""
        return self.color == 'alpha' or self.name.strip().lower() == 'alpha'


@dataclass(frozen=True)
class BandMatch:
    """The bands of a file that are a sensor's.

    Attributes:
        indexes: the file's bands, from 1, in the order of the sensor's.
        source: what decided: ``names``, ``wavelengths``, ``colors``, ``bands`` (the order was stated) or ``order``.
    """

    indexes: tuple[int, ...]
    source: str


def file_bands(dataset: DatasetReader, path: str | os.PathLike[str]) -> tuple[FileBand, ...]:
    """What a file says about each of its bands. Landsat TM's and ETM+'s band numbers are replaced by names.

    Args:
        dataset: the file, open.
        path: its path.
    """
    tags, envi = dataset.tags(), dataset.tags(ns='ENVI')
    names = tm_band_names(dataset.descriptions, tags, path)
    lists = [_micrometers(_wavelength_tag(t)) for t in (tags, envi)]
    widths = _micrometers(envi.get('fwhm', ''))
    found = []
    for i, (name, color) in enumerate(zip(names, dataset.colorinterp, strict=True)):
        imagery, own = dataset.tags(i + 1, ns='IMAGERY'), dataset.tags(i + 1)
        options = [[imagery.get('CENTRAL_WAVELENGTH_UM', '')], [_wavelength_tag(own)]]
        known = [_micrometers(text[0]) for text in options] + [x[i : i + 1] for x in lists if len(x) == dataset.count]
        width = _micrometers(imagery.get('FWHM_UM') or own.get('fwhm') or '') or widths[i : i + 1]
        wavelength = next((w[0] for w in known if w), math.nan)
        found.append(FileBand(name or '', wavelength, width[0] if width else math.nan, color.name))
    return tuple(found)


def _wavelength_tag(tags: Mapping[str, str]) -> str:
    """The text of the tag that gives wavelengths; empty if there is none."""
    return next((value for name, value in tags.items() if _WAVELENGTH.fullmatch(name)), '')


def _micrometers(text: str) -> list[float]:
    """The positive numbers in a text; those above 100 are nanometers."""
    numbers = (float(number) for number in _NUMBER.findall(text))
    return [n / 1000 if n > 100 else n for n in numbers if n > 0]


def match_bands(
    sensor: Sensor, file: Sequence[FileBand], bands: Sequence[str] | None = None, path: str | os.PathLike[str] = ''
) -> BandMatch:
    """Find a sensor's bands in a file.

    Names decide, then wavelengths. If the file has neither, ``bands`` states its order if there are as many, else its
    color interpretation decides, and for the bands without color the order of the training data.

    Args:
        sensor: the sensor, with all its bands.
        file: of :func:`file_bands`.
        bands: names or aliases of the bands wanted, in the order wanted; None for all of the sensor's.
        path: the file; its name may say that it is color-infrared.

    Returns:
        The bands, in the order of ``sensor.select(bands)``.

    Raises:
        SceneError: if not all bands are found, one is found twice, the file contradicts itself or ``bands``, or its
            order cannot be determined.
        ValueError: if ``bands`` names a band the sensor does not have.
    """
    wanted = sensor.select(bands)
    named = _named(sensor, file)
    by_wavelength = _by_wavelength(sensor, file, set().union(*named.values()))
    found = {name: named.get(name) or by_wavelength.get(name, []) for name in sensor.band_names}
    if any(found.values()):
        _check_found(sensor, wanted, file, found)
        return BandMatch(tuple(found[name][0] for name in wanted.band_names), 'names' if named else 'wavelengths')
    others = [b.name for b in file if b.name and not b.is_alpha and not _GENERIC.fullmatch(b.name.strip())]
    if others:
        raise SceneError(
            f'no band matches: the file has {", ".join(others)}; {sensor.name} has '
            f'{", ".join("/".join(b.names) for b in sensor.bands)}. Is it in the right sensor folder? Else describe '
            'its bands in a sensor of your own.'
        )
    if wrong := [b.color for b in file if b.color in _NO_SPECTRUM and sensor.find(b.color) is None]:
        raise SceneError(f'expected measurements, got the color interpretation {", ".join(wrong)}.')
    colors = _colors(sensor, file)
    if bands is not None and (order := _stated(wanted, file, colors)):
        return BandMatch(order, 'bands')
    return _by_order(sensor, wanted, file, colors, os.path.basename(os.fspath(path)))


def _named(sensor: Sensor, file: Sequence[FileBand]) -> dict[str, list[int]]:
    """Band of the sensor → bands of the file with its name."""
    found: dict[str, list[int]] = {}
    for i, band in enumerate(file, start=1):
        position = sensor.find(re.sub(r'\s*\([^)]*\)$', '', band.name))  # ENVI adds the wavelength in brackets
        if position is None:
            continue
        known = sensor.bands[position]
        off = abs(band.wavelength / known.wavelength - 1)
        if sensor.scale == 'linear' and off > _CONTRADICTION:
            raise SceneError(
                f'band {i} contradicts itself: its name {band.name!r} is {known.name} of {sensor.name} '
                f'({known.wavelength:g} µm), its wavelength {band.wavelength:g} µm. Correct one of them.'
            )
        found.setdefault(known.name, []).append(i)
    return found


def _by_wavelength(sensor: Sensor, file: Sequence[FileBand], taken: set[int]) -> dict[str, list[int]]:
    """Band of the sensor → the band of the file nearest to its wavelength, but those taken."""
    nearest: dict[str, list[tuple[float, int]]] = {}
    for i, band in enumerate(file, start=1):
        if i in taken or sensor.scale != 'linear' or not band.wavelength > 0:
            continue
        if band.width > _PANCHROMATIC * band.wavelength:
            continue
        known = min(sensor.bands, key=lambda b: abs(b.wavelength - band.wavelength))
        off = abs(band.wavelength / known.wavelength - 1)
        if off <= _NEAR:
            nearest.setdefault(known.name, []).append((off, i))
    return {name: [min(candidates)[1]] for name, candidates in nearest.items()}


def _check_found(sensor: Sensor, wanted: Sensor, file: Sequence[FileBand], found: Mapping[str, list[int]]) -> None:
    """Raise for a band that the file does not have, or has twice."""
    labels = [b.label for b in file]
    if missing := [name for name in wanted.band_names if not found[name]]:
        raise SceneError(
            f'bands {", ".join(missing)} of {sensor.name} are missing; the file has {", ".join(labels)}. To use what '
            f'is there give bands={[name for name in sensor.band_names if found[name]]}.'
        )
    for name in wanted.band_names:
        if len(found[name]) > 1:
            names = ', '.join(f'{i} ({labels[i - 1]})' for i in found[name])
            raise SceneError(f'{name} is in the file {len(found[name])} times, as bands {names}; once is right.')


def _colors(sensor: Sensor, file: Sequence[FileBand]) -> dict[int, str]:
    """Band of the file → the sensor's band of its color, where the file has each color once."""
    positions = {i: sensor.find(b.color) for i, b in enumerate(file, start=1) if not b.is_alpha}
    colors = {i: sensor.bands[position].name for i, position in positions.items() if position is not None}
    return colors if len(set(colors.values())) == len(colors) else {}


def _stated(wanted: Sensor, file: Sequence[FileBand], colors: Mapping[int, str]) -> tuple[int, ...]:
    """The file's bands in the order that ``bands`` states; empty if it names another number of bands."""
    every = tuple(range(1, len(file) + 1))
    for order in (tuple(i for i in every if not file[i - 1].is_alpha), every):
        if len(order) != len(wanted):
            continue
        wrong = [i for i, name in zip(order, wanted.band_names, strict=True) if colors.get(i, name) != name]
        # infrared, red and green tagged as red, green and blue is how it is shown; blue, green and red is a mistake
        if wrong and set(colors.values()) <= set(wanted.band_names):
            raise SceneError(
                f'bands= states the order {", ".join(wanted.band_names)}, but its color interpretation says '
                f'{", ".join(f"band {i} is {colors[i]}" for i in wrong)}. Name the bands in the file: names decide.'
            )
        return order
    return ()


def _by_order(
    sensor: Sensor, wanted: Sensor, file: Sequence[FileBand], colors: Mapping[int, str], name: str
) -> BandMatch:
    """The file's bands by color, and those without color in the order of the training data."""
    there = [i for i, band in enumerate(file, start=1) if not band.is_alpha]
    remedy = 'Name them in the file (band descriptions), or give bands=[…] with one name per band, in its order.'
    if len(there) != len(sensor):
        alpha = f' and alpha, which is a mask ({len(file)} bands in all)' if len(there) < len(file) else ''
        few = 'few' if len(there) < len(sensor) else 'many'
        raise SceneError(
            f'too {few} bands: the file has {len(there)} without names{alpha}, {sensor.name} has {len(sensor)} '
            f'({", ".join(sensor.band_names)}). {remedy}'
        )
    by_color = {band: i for i, band in colors.items()}
    rest = iter(i for i in there if i not in colors)
    found = {band: by_color[band] if band in by_color else next(rest) for band in sensor.band_names}
    certain = len(colors) == len(sensor)
    if COLOR_INFRARED.search(name) or (sensor.name in _OTHER_ORDER and not certain):
        why = 'its name says color-infrared' if COLOR_INFRARED.search(name) else f'{sensor.name} usually has blue first'
        raise SceneError(f'the order of its bands cannot be determined: it does not name them, and {why}. {remedy}')
    return BandMatch(tuple(found[band] for band in wanted.band_names), 'colors' if certain else 'order')
