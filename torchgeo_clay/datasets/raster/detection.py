# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Which sensor a raster is of, from what is written about it: its folder, its tags, its bands' names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from torchgeo_clay.datasets.raster.bands import match_bands
from torchgeo_clay.datasets.raster.files import SceneError, open_raster, printable
from torchgeo_clay.sensors import SENSORS, Sensor

__all__ = ('detect_sensor',)

#: Words in the tags → the sensors that they may mean.
_WORDS = (
    (r'sentinel[-_ ]?2', ('sentinel-2-l2a',)),
    (r'sentinel[-_ ]?1', ('sentinel-1-rtc',)),
    (r'landsat', ('landsat-c2l1', 'landsat-c2l2-sr')),
    (r'\bnaip\b', ('naip',)),
    (r'\bmodis\b', ('modis',)),
    (r'\blinz\b', ('linz',)),
    (r'planetscope|\bplanet\b', ('planetscope-sr',)),
    (r'satellogic', ('satellogic-MSI-L1D',)),
)

#: Words that say that it is another product, whose numbers mean something else than those that Clay was trained with.
_OTHERS = {
    'sentinel-2-l2a': r'l1c|level[-_ ]?1',
    'sentinel-1-rtc': r'sigma0|\bslc\b',
    'landsat-c2l1': r'\bl2|level[-_ ]?2|reflectance|\bsr\b|hls|collection 1',
    'landsat-c2l2-sr': r'\bl1|level[-_ ]?1|hls|collection 1',
}

_TAGS = ('SENSOR', 'PLATFORM', 'SPACECRAFT_NAME', 'SPACECRAFT_ID', 'MISSION', 'LEVEL', 'PROCESSING_LEVEL')


def detect_sensor(path: str | os.PathLike[str]) -> Sensor:
    """The sensor of a raster.

    Its folder's name decides if it is a sensor's, as in pretraining's folders; else tags such as SENSOR and LEVEL; else
    the names of its bands, if they fit one sensor alone.

    Args:
        path: the file.

    Returns:
        One of :data:`torchgeo_clay.sensors.SENSORS`.

    Raises:
        SceneError: if it can't be opened, or nothing decides; the message begins with its path and says what to do.
    """
    name = os.fspath(path)
    folder = os.path.basename(os.path.dirname(name))
    if folder in SENSORS:
        return SENSORS[folder]
    with open_raster(name) as dataset:
        tags, descriptions = dataset.tags(), dataset.descriptions
    named = {s for s in SENSORS.values() if _has_bands(s, descriptions)}
    told = _told(tags)
    found = named if told is None else named & told
    if len(found) == 1:
        return found.pop()
    said = {key: tags[key] for key in _TAGS if key in tags}
    candidates = ', '.join(sorted(s.name for s in found)) or 'none'
    raise SceneError(
        f'{printable(name)}: which sensor it is of can not be told from its tags ({said or "none"}) and bands '
        f'({", ".join(d or "(unnamed)" for d in descriptions)}); candidates: {candidates}. Give sensor=, or put it '
        'into a folder that is named for its sensor.'
    )


def _has_bands(sensor: Sensor, descriptions: tuple[str | None, ...]) -> bool:
    """Whether the names of a file's bands include all of a sensor's."""
    try:
        return match_bands(sensor, descriptions)[1]
    except SceneError:
        return False


def _told(tags: Mapping[str, str]) -> set[Sensor] | None:
    """The sensors that tags speak of; None if of no known one."""
    text = ' '.join(tags[key] for key in _TAGS if key in tags).lower()
    for word, names in _WORDS:
        if re.search(word, text):
            return {SENSORS[n] for n in names if n not in _OTHERS or not re.search(_OTHERS[n], text)}
    return None
