# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Detection of a raster's sensor from its folder, its tags, its name and its bands."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence

from rasterio.io import DatasetReader

from torchgeo_clay.datasets.raster.bands import COLOR_INFRARED, FileBand, file_bands, match_bands
from torchgeo_clay.datasets.raster.files import SceneError
from torchgeo_clay.datasets.raster.georeference import georeferencing, window_gsd
from torchgeo_clay.datasets.raster.products import hls, product_text
from torchgeo_clay.sensors import SENSORS, Sensor
from torchgeo_clay.sensors.band import fold

__all__ = ('FAR', 'product_remark', 'sensor_of')

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

    Args:
        dataset: the file, open.
        path: its path.

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
        return _incomplete(next(iter(named)), file), ''
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
        f'its sensor cannot be determined from its tags ({product_text(dataset.tags(), path)[0] or "none"}), its name '
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
    """What to report of tags or a name that speak of another product than the sensor's; empty if none do.

    Args:
        sensor: the sensor, with all its bands.
        tags: the raster's tags.
        path: the file.
        file: its bands.
    """
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
    text = re.sub('[-_.]', ' ', ' '.join(product_text(tags, path))).lower()
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


def _incomplete(sensor: Sensor, file: Sequence[FileBand]) -> Sensor:
    """Raise for the bands that a file of a sensor lacks; the sensor if they are found by color or order."""
    try:
        match_bands(sensor, file)
    except SceneError as error:
        raise SceneError(f'it is of {sensor.name}, but {error} With bands= give sensor={sensor.name!r} too.') from error
    return sensor
