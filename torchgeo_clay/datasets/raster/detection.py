# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Which product, sensor and bands a raster holds, by its names, wavelengths, tags and color interpretation."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rasterio.io import DatasetReader

from torchgeo_clay.datasets.raster.files import SceneError
from torchgeo_clay.datasets.raster.georeference import georeferencing, window_gsd
from torchgeo_clay.sensors import SENSORS, Sensor
from torchgeo_clay.sensors.sensor import fold

__all__ = (
    'FAR', 'BandMatch', 'FileBand', 'boa_offset', 'file_bands', 'hls', 'match_bands', 'processing_baseline',
    'product_remark', 'reflectance_tags', 'sensor_of', 'tm_band_names',
)  # fmt: skip

Tags = Mapping[str, str]

#: Tags that name a platform, an instrument or a product.
_NAMING = (
    'SENSOR', 'SENSOR_ID', 'INSTRUMENT', 'PLATFORM', 'SPACECRAFT_NAME', 'SPACECRAFT_ID', 'SATELLITE', 'MISSION',
    'LEVEL', 'PROCESSING_LEVEL', 'PRODUCT', 'SHORTNAME', 'COLLECTION', 'PRODUCT_URI', 'LANDSAT_PRODUCT_ID',
    'LANDSAT_SCENE_ID', 'ASSOCIATEDSENSORSHORTNAME', 'TIFFTAG_IMAGEDESCRIPTION',
)  # fmt: skip

#: TM and ETM+ number their bands otherwise than OLI; 6 is thermal. USGS, Landsat 4-7 Data Format Control Book.
_TM_BANDS = {1: 'blue', 2: 'green', 3: 'red', 4: 'nir08', 5: 'swir16', 6: 'thermal', 7: 'swir22'}


def _product_text(tags: Tags, path: str | os.PathLike[str]) -> tuple[str, str]:
    """The tags that name the product, joined, and the file's name; upper case."""
    folded = {key.upper(): value for key, value in tags.items()}
    named = ' '.join(str(folded[key]) for key in _NAMING if key in folded)
    return named.upper(), os.path.basename(os.fspath(path)).upper()


def hls(tags: Tags, path: str | os.PathLike[str]) -> str | None:
    """Recognize Harmonized Landsat Sentinel-2: ``S30`` is Sentinel-2's part, ``L30`` Landsat's; else None."""
    tagged, name = _product_text(tags, path)
    match = re.search(r'HLS[-_. ]?(?:FMASK[-_. ])?([SL]30)', name) or re.search(r'HLS[-_. ]?([SL]30)', tagged)
    if match is not None:
        return match[1]
    if 'HLS_PROCESSING_TIME' not in {key.upper() for key in tags}:
        return None
    return 'S30' if re.search(r'SENTINEL-?2|S2[ABC]_', tagged) else 'L30'


def tm_band_names(
    descriptions: Sequence[str | None], tags: Tags, path: str | os.PathLike[str]
) -> tuple[str | None, ...]:
    """Replace the band numbers of Landsat 4, 5 and 7 by the names of the bands; others stay.

    Those of MSS (Landsat 1 to 5), which no sensor of Clay's resembles, become names that match nothing.
    """
    tagged, name = _product_text(tags, path)
    mss = re.match(r'LM0[1-5]_|LM[1-5]\d{13}', name) or re.search(r'\bMSS\b', tagged)
    if not (
        mss
        or re.match(r'L[TE]0[457]_|L[TE][457]\d{13}', name)
        or re.search(r'LANDSAT[-_ ]?[457]\b|\bE?TM\b|\bL[TE]0[457]_', tagged)
    ):
        return tuple(descriptions)
    numbers = (re.fullmatch(r'(?:SR_)?B(?:AND)?[ _]?0?([1-7])', (text or '').strip().upper()) for text in descriptions)
    return tuple(
        text if number is None else f'MSS {text}' if mss else _TM_BANDS[int(number[1])]
        for text, number in zip(descriptions, numbers, strict=True)
    )


def processing_baseline(tags: Tags, path: str | os.PathLike[str]) -> float | None:
    """Read Sentinel-2's processing baseline: 4.0 for ``04.00`` in a tag or ``_N0400_`` in a name; None if unknown."""
    folded = {key.upper(): str(value) for key, value in tags.items()}
    written = next((v for k, v in folded.items() if k.endswith('PROCESSING_BASELINE')), '')
    match = re.fullmatch(r'\s*N?(\d{1,2})\.?(\d{2}|\d)\s*', written.upper())
    if match is None:
        tagged, name = _product_text(tags, path)
        safe = r'S2[A-D]_MSIL[12][AC]_\d{8}T\d{6}_N(\d{2})(\d{2})_'  # a folder's name
        match = re.search(r'_N(\d{2})(\d{2})_', f'{name} {tagged}') or re.search(safe, os.fspath(path))
    return None if match is None else float(f'{match[1]}.{match[2]}')


def boa_offset(tags: Tags, path: str | os.PathLike[str]) -> tuple[float, str] | None:
    """Find what has to be added to the digital numbers of Sentinel-2 (-1000 since baseline 04.00), and what says so."""
    folded = {key.upper(): str(value) for key, value in tags.items()}
    applied = next((v for k, v in folded.items() if k.endswith('BOA_OFFSET_APPLIED')), '')
    if applied.lower() in ('true', '1', 'yes') or re.search('HARMONI[SZ]ED', ' '.join(_product_text(tags, path))):
        return 0.0, 'harmonized'
    for key, value in folded.items():
        if re.match('REFLECTANCE_OFFSET_DN|(BOA|RADIO)_ADD_OFFSET', key) and (number := _number(value)) is not None:
            return number, f'{key}={value}'
    baseline = processing_baseline(tags, path)
    if baseline is None or baseline > 90:  # 99.99 is a reprocessing for tests
        return None
    return (-1000.0 if baseline >= 4 else 0.0), f'processing baseline {baseline:05.2f}'


def reflectance_tags(tags: Tags) -> tuple[float, float] | None:
    """Read scale and offset (reflectance = DN · scale + offset) from REFLECTANCE_SCALE and REFLECTANCE_OFFSET_DN."""
    scale = _number(tags.get('REFLECTANCE_SCALE', ''))
    if scale is None or scale <= 0:
        return None
    return scale, scale * (_number(tags.get('REFLECTANCE_OFFSET_DN', '')) or 0.0)


def _number(text: str) -> float | None:
    """A finite number from text; None for anything else."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < 1e30 else None


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
    """Read what a file says about each of its bands. Landsat TM's and ETM+'s band numbers are replaced by names."""
    tags, envi = dataset.tags(), dataset.tags(ns='ENVI')
    names = tm_band_names(dataset.descriptions, tags, path)
    lists = [_micrometers(_wavelength_tag(t)) for t in (tags, envi)]
    widths = _micrometers(envi.get('fwhm', ''))
    found = []
    for i, (name, color) in enumerate(zip(names, dataset.colorinterp, strict=True)):
        imagery, own = dataset.tags(i + 1, ns='IMAGERY'), dataset.tags(i + 1)
        known = [_micrometers(imagery.get('CENTRAL_WAVELENGTH_UM', '')), _micrometers(_wavelength_tag(own))]
        known += [x[i : i + 1] for x in lists if len(x) == dataset.count]
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

    Args: as :func:`~torchgeo_clay.datasets.scan_scene`, and ``file`` of :func:`file_bands`.

    Raises:
        SceneError: if not all bands are found, one is found twice, the file contradicts itself or ``bands``, or its
            order cannot be determined.
    """
    wanted = sensor.select(bands)
    named = _named(sensor, file)
    by_wavelength = _by_wavelength(sensor, file, set().union(*named.values()))
    found = {name: named.get(name) or by_wavelength.get(name, []) for name in sensor.band_names}
    if any(found.values()):
        _check_found(sensor, wanted, file, found)
        return BandMatch(tuple(found[name][0] for name in wanted.band_names), 'names' if named else 'wavelengths')
    if others := [b.name for b in file if b.name and not b.is_alpha and not _GENERIC.fullmatch(b.name.strip())]:
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
        if sensor.scale == 'linear' and abs(band.wavelength / known.wavelength - 1) > _CONTRADICTION:
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
        panchromatic = band.width > _PANCHROMATIC * band.wavelength
        if i in taken or panchromatic or sensor.scale != 'linear' or not band.wavelength > 0:
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
    found = {band: i for i, band in colors.items()}
    others = [band for band in sensor.band_names if band not in found]
    found |= zip(others, (i for i in there if i not in colors), strict=True)
    certain = not others
    infrared = COLOR_INFRARED.search(name)
    if infrared or (sensor.name in _OTHER_ORDER and not certain):
        why = 'its name says color-infrared' if infrared else f'{sensor.name} usually has blue first'
        raise SceneError(f'the order of its bands cannot be determined: it does not name them, and {why}. {remedy}')
    return BandMatch(tuple(found[band] for band in wanted.band_names), 'colors' if certain else 'order')


#: Factor from which on a GSD is far from that of the training data. Sentinel-2 is also delivered at 60 m.
FAR = 12

#: Words in tags and names → the sensors that they may mean. Separators are spaces.
_WORDS = (
    (r'sentinel ?2|\bs2[abc]? (?:msi)?l[12][ac]', ('sentinel-2-l2a',)),
    (r'sentinel ?1|\bs1[a-d] (?:iw|ew|s\d)\b', ('sentinel-1-rtc',)),
    (r'landsat|\bl[cote]0[4-9] ', ('landsat-c2l1', 'landsat-c2l2-sr')),
    (r'\bnaip\b|\bm \d{7} [ns][ew] ', ('naip',)),
    (r'\bmodis\b|\bm[oyc]d(?:09|43)', ('modis',)),
    (r'\blinz\b', ('linz',)),
    (r'planetscope|\bplanet\b|analyticms sr 8b', ('planetscope-sr',)),
    (r'satellogic', ('satellogic-MSI-L1D',)),
)

#: Words of another product of the sensor, whose numbers differ from those that Clay was trained with.
_OTHERS = {
    'sentinel-2-l2a': r'l1c|level ?1',
    'sentinel-1-rtc': r'sigma0|\bslc\b|\bgrd[hmf]?\b(?!.*(?:rtc|gamma0))',
    'landsat-c2l1': r'\bl2|level ?2|reflectance|\bsr\b|collection 1',
    'landsat-c2l2-sr': r'\bl1|level ?1|collection 1',
}

#: Names of bands that no other sensor has.
_MARKS = {'b8a': 'sentinel-2-l2a', 'b08a': 'sentinel-2-l2a', 'b12': 'sentinel-2-l2a'}


def sensor_of(dataset: DatasetReader, path: str | os.PathLike[str]) -> tuple[Sensor, str]:
    """Detect the sensor of an open raster.

    Its folder's name decides if it is a sensor's, as in pretraining; else tags and the file's name as far as they name
    a product; else the names or wavelengths of its bands, if they fit one sensor alone and the GSD is not far from it.
    A photograph of red, green, blue and alpha, as drones take, is read as ``linz``, with a remark.

    Returns:
        One of :data:`torchgeo_clay.sensors.SENSORS`, and what the user should check; empty for nothing.

    Raises:
        SceneError: if nothing decides; the message says what to do.
    """
    folder = os.path.basename(os.path.dirname(os.fspath(path)))
    if folder in SENSORS:
        return SENSORS[folder], ''
    file = file_bands(dataset, path)
    named, others = _product(dataset.tags(), path, file)
    complete = [s for s in SENSORS.values() if (named is None or s in named) and _is_complete(s, file)]
    candidates = _best([s for s in complete if named is not None or not _is_far(dataset, s)], file)
    if len(candidates) == 1:
        return candidates[0], ''
    if not candidates and named is not None and len(named) == 1:
        (sensor,) = named
        try:
            match_bands(sensor, file)  # by color or order, or else it says what is missing
        except SceneError as error:
            raise SceneError(
                f'it is of {sensor.name}, but {error} With bands= give sensor={sensor.name!r} too.'
            ) from error
        return sensor, ''
    if named is None and _is_photograph(dataset, path, file):
        return SENSORS['linz'], (
            'nothing names its sensor: an image of 8-bit red, green, blue and alpha is taken as linz; give sensor= if '
            'it is another, such as color-infrared'
        )
    hints = [f'{name} is excluded, as its tags or name say {word!r}' for name, word in others.items()]
    if candidates:
        hints.append(f'candidates: {", ".join(s.name for s in candidates)}')
    elif complete:
        hints += [f'{s.name} is excluded, as its GSD is far from {s.gsd:g} m' for s in complete]
    elif {'red', 'green', 'blue'} <= {b.color for b in file}:
        hints.append('an aerial image of 8-bit red, green and blue is read with sensor=linz')
    raise SceneError(
        f'its sensor cannot be determined from its tags ({_product_text(dataset.tags(), path)[0] or "none"}), its name '
        f'and its bands ({", ".join(b.label for b in file)}); {"; ".join([*hints, "give sensor="])}, or put it into a '
        'folder named for its sensor.'
    )


def _is_photograph(dataset: DatasetReader, path: str | os.PathLike[str], file: Sequence[FileBand]) -> bool:
    """True for an aerial image of unnamed 8-bit red, green and blue with alpha, unless its name says color-infrared.

    Without alpha it may be any picture of three bands, which writers interpret as red, green and blue.
    """
    colors = [band.color for band in file if not band.is_alpha]
    return (
        len(file) == 4
        and colors == ['red', 'green', 'blue']
        and not any(band.name for band in file)
        and set(dataset.dtypes) == {'uint8'}
        and not COLOR_INFRARED.search(os.path.basename(os.fspath(path)))
        and not _is_far(dataset, SENSORS['linz'])
    )


def _best(candidates: Sequence[Sensor], file: Sequence[FileBand]) -> list[Sensor]:
    """The sensors that know the most of a file's names, and those that read these names otherwise."""
    counts = [sum(s.find(b.name) is not None for b in file) for s in candidates]
    top = [s for s, count in zip(candidates, counts, strict=True) if count == max(counts)]
    return [s for s in candidates if s in top or _contradict(s, top[0], file)]


def product_remark(
    sensor: Sensor, tags: Mapping[str, str], path: str | os.PathLike[str], file: Sequence[FileBand]
) -> str:
    """Say that tags or a name speak of another product than the sensor's; empty if none do."""
    named, others = _product(tags, path, file)
    if sensor.name in others:
        return f'its tags or name say {others[sensor.name]!r}, which the data of {sensor.name} are not'
    names = [s.name for s in named or ()] or [*others]
    if sensor not in SENSORS.values() or not names or sensor.name in names:
        return ''
    return f'its tags, name or bands speak of {" or ".join(names)}, not of {sensor.name}'


def _product(
    tags: Mapping[str, str], path: str | os.PathLike[str], file: Sequence[FileBand]
) -> tuple[Collection[Sensor] | None, dict[str, str]]:
    """The sensors that tags, name and marks speak of (None if of no known one); others → the word against them."""
    harmonized = hls(tags, path)
    if harmonized is not None:
        return {SENSORS['sentinel-2-l2a' if harmonized == 'S30' else 'landsat-c2l2-sr']}, {}
    text = re.sub('[-_.]', ' ', ' '.join(_product_text(tags, path))).lower()
    for words, names in _WORDS:
        if re.search(words, text):
            others = {n: found[0] for n in names if n in _OTHERS and (found := re.search(_OTHERS[n], text))}
            return [SENSORS[n] for n in names if n not in others], others
    marks = {_MARKS[name] for b in file if (name := fold(b.name)) in _MARKS}
    return ([SENSORS[n] for n in marks] or None), {}


def _is_complete(sensor: Sensor, file: Sequence[FileBand]) -> bool:
    """Whether names or wavelengths of a file's bands include all of a sensor's."""
    try:
        return match_bands(sensor, file).source in ('names', 'wavelengths')
    except SceneError:
        return False


def _contradict(one: Sensor, other: Sensor, file: Sequence[FileBand]) -> bool:
    """Whether a name of a band of the file means another wavelength in one sensor than in another."""
    pairs = [(one.find(b.name), other.find(b.name)) for b in file]
    found = [(one.bands[i].wavelength, other.bands[j].wavelength) for i, j in pairs if i is not None and j is not None]
    return any(abs(a / b - 1) > 0.1 for a, b in found)


def _is_far(dataset: DatasetReader, sensor: Sensor) -> bool:
    """Whether a raster's GSD is known and far from that of a sensor's training data."""
    crs, transform, _ = georeferencing(dataset)
    gsd = window_gsd(crs, transform, 0, 0, dataset.height, dataset.width)
    return gsd > FAR * sensor.gsd or gsd < sensor.gsd / FAR
