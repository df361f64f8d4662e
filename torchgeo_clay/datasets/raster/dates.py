# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""When a scene was acquired: from its tags, else from its file name, else unknown. Seconds since 1970-01-01 UTC.

The model is told the week and the hour, so a year alone, a month alone or an interval longer than a month says
nothing it could use: these are NaN, as is everything that can't be read. A date without an hour means noon.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

__all__ = ('UNKNOWN', 'Acquisition', 'acquisition', 'from_name', 'from_tags', 'parse_time')

_DAY = 86400.0
_NOON = _DAY / 2
#: Longest interval that still tells the season, seconds: a monthly composite.
_LONGEST = 31 * _DAY
# Digits in file names are taken for a date only between the first Landsat and a year no scene is from yet.
_YEARS = range(1972, 2051)
# Tags may date an old aerial photograph; 0001 and 9999 stand for nothing.
_TAG_YEARS = range(1850, 2051)


@dataclass(frozen=True)
class Acquisition:
    """When a scene was acquired.

    Attributes:
        time: seconds since 1970-01-01 UTC that stand for the scene; NaN for unknown.
        start: first second it can be from; NaN for unknown.
        stop: last second it can be from; NaN for unknown.
        has_hour: whether the hour was given; where it was not, ``time`` is at noon.
    """

    time: float = math.nan
    start: float = math.nan
    stop: float = math.nan
    has_hour: bool = True

    @property
    def known(self) -> bool:
        """Whether there is a time."""
        return math.isfinite(self.time)


#: The acquisition of a scene whose date is unknown.
UNKNOWN = Acquisition()


def _moment(when: datetime) -> Acquisition:
    """An acquisition at a date with an hour; a time without a zone is UTC."""
    seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return Acquisition(seconds, seconds, seconds + 1 - 1e-6)


def _day(when: datetime) -> Acquisition:
    """An acquisition on a date without an hour."""
    start = when.replace(tzinfo=UTC).timestamp()
    return Acquisition(start + _NOON, start, start + _DAY - 1e-6, has_hour=False)


def _interval(first: Acquisition, last: Acquisition) -> Acquisition:
    """The acquisition of an interval: its middle; noon of its middle day where it spans days."""
    if not (first.known and last.known) or not 0 <= last.start - first.start <= _LONGEST:
        return UNKNOWN
    middle = (first.start + last.start) / 2
    if last.start - first.start < _DAY and first.has_hour and last.has_hour:
        return Acquisition(middle, first.start, last.stop)
    return Acquisition(middle // _DAY * _DAY + _NOON, first.start, last.stop, has_hour=False)


# 2022-10-05T11:54:11.123Z, 2020:04:15 09:30:00, 2020/04/15, 20221005T115411, 20200415
_STAMP = re.compile(
    r'(?P<y>\d{4})(?P<sep>[-:/]?)(?P<m>\d{2})(?P=sep)(?P<d>\d{2})'
    r'(?:[T _]?(?P<H>\d{2}):?(?P<M>\d{2})(?::?(?P<S>\d{2})(?P<f>\.\d+)?)?\s*(?P<z>Z|UTC|[+-]\d{2}:?\d{2})?)?'
)


def _zone(text: str | None) -> timedelta:
    """Offset from UTC of ``Z``, ``UTC``, ``+02:00`` or nothing."""
    if text is None or text in ('Z', 'UTC'):
        return timedelta(0)
    sign = -1 if text[0] == '-' else 1
    return sign * timedelta(hours=int(text[1:3]), minutes=int(text[-2:]))


def parse_time(text: str) -> Acquisition:
    """An acquisition from a tag's text.

    Args:
        text: a date, a date with a time (UTC unless a zone is given), or an interval ``start/end`` of two of them.

    Returns:
        The acquisition; :data:`UNKNOWN` for anything else, such as a year alone.
    """
    text = text.strip()
    parts = text.split('/')
    if len(parts) in (2, 6):  # dates written with slashes make six parts
        half = len(parts) // 2
        first, last = ('/'.join(p).strip() for p in (parts[:half], parts[half:]))
        return _interval(parse_time(first), parse_time(last))
    match = _STAMP.fullmatch(text)
    if match is None or int(match['y']) not in _TAG_YEARS:
        return UNKNOWN
    try:
        date = datetime(int(match['y']), int(match['m']), int(match['d']))
        if match['H'] is None:
            return _day(date)
        second = float(match['S'] or 0) + float(match['f'] or 0)
        clock = timedelta(hours=int(match['H']), minutes=int(match['M']), seconds=second)
    except ValueError:
        return UNKNOWN
    if clock >= timedelta(days=1) or int(match['M']) > 59 or second >= 61:
        return UNKNOWN
    return _moment(date + clock - _zone(match['z']))


# Tags that name the acquisition, by the habits of this project's data, STAC exports, Planet, ESA, USGS and MODIS.
_MOMENTS = (
    'DATETIME',
    'ACQUISITION_DATETIME',
    'ACQUISITION_TIME',
    'ACQUISITIONDATETIME',
    'ACQUISITION_DATE',
    'ACQUISITIONDATE',
    'SENSING_TIME',
    'DATATAKE_1_DATATAKE_SENSING_START',
)
_PAIRS = (
    ('START_DATETIME', 'END_DATETIME'),
    ('PRODUCT_START_TIME', 'PRODUCT_STOP_TIME'),
    ('START_TIME', 'END_TIME'),
    ('START_TIME', 'STOP_TIME'),
    ('START_DATE', 'END_DATE'),
)
_DATE_AND_CLOCK = (
    ('DATE_ACQUIRED', 'SCENE_CENTER_TIME', 'DATE_ACQUIRED', 'SCENE_CENTER_TIME'),
    ('RANGEBEGINNINGDATE', 'RANGEBEGINNINGTIME', 'RANGEENDINGDATE', 'RANGEENDINGTIME'),
)
_STARTS = ('PRODUCT_START_TIME', 'START_DATETIME', 'START_TIME')


def _from_tags(tags: Mapping[str, str]) -> Iterator[Acquisition]:
    """What the tags say, the surest first."""
    for name in _MOMENTS:
        yield parse_time(tags.get(name, ''))
    for first, last in _PAIRS:
        yield _interval(parse_time(tags.get(first, '')), parse_time(tags.get(last, '')))
    for date, clock, end_date, end_clock in _DATE_AND_CLOCK:
        first, last = (
            f'{tags.get(date, "")} {tags.get(clock, "")}',
            f'{tags.get(end_date, "")} {tags.get(end_clock, "")}',
        )
        yield parse_time(first) if first == last else _interval(parse_time(first), parse_time(last))
    for name in _STARTS:
        yield parse_time(tags.get(name, ''))


def from_tags(tags: Mapping[str, str]) -> Acquisition:
    """An acquisition from a raster's tags, names compared without regard to case.

    TIFF's own ``TIFFTAG_DATETIME`` is left to :func:`acquisition`: some producers write the hour of processing there.

    Args:
        tags: the raster's tags.
    """
    folded = {name.upper(): value for name, value in tags.items()}
    return next((a for a in _from_tags(folded) if a.known), UNKNOWN)


# Dates in file names. A clock is taken after a T anywhere, after an underscore only where the name begins so (Planet).
_IN_NAME = (
    re.compile(r'(?<!\d)(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})T(?P<H>\d{2})(?P<M>\d{2})(?P<S>\d{2})(?!\d)'),
    re.compile(r'^(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})_(?P<H>\d{2})(?P<M>\d{2})(?P<S>\d{2})(?!\d)'),
    re.compile(r'(?<!\d)(?P<y>\d{4})(?P<sep>[-_.]?)(?P<m>\d{2})(?P=sep)(?P<d>\d{2})(?!\d)'),
    re.compile(r'(?<![A-Za-z0-9])A(?P<y>\d{4})(?P<j>\d{3})(?!\d)'),  # MODIS and VIIRS
    re.compile(r'^L[CETMO]\d\d{6}(?P<y>\d{4})(?P<j>\d{3})[A-Z]{3}\d{2}'),  # Landsat before Collection 1
    re.compile(r'(?<![A-Za-z0-9])(?P<y>\d{4})(?P<j>\d{3})T(?P<H>\d{2})(?P<M>\d{2})(?P<S>\d{2})(?!\d)'),  # HLS
)


def _plausible(match: re.Match[str]) -> Acquisition:
    """The acquisition of one match, unknown if the digits are no date."""
    parts = match.groupdict()
    year = int(parts['y'])
    if year not in _YEARS:
        return UNKNOWN
    try:
        if parts.get('j') is not None:
            date = datetime(year, 1, 1) + timedelta(days=int(parts['j']) - 1)
            if date.year != year:
                return UNKNOWN
        else:
            date = datetime(year, int(parts['m']), int(parts['d']))
        if parts.get('H') is None:
            return _day(date)
        return _moment(date.replace(hour=int(parts['H']), minute=int(parts['M']), second=int(parts['S'])))
    except ValueError:
        return UNKNOWN


def from_name(path: str | os.PathLike[str]) -> Acquisition:
    """An acquisition from a file name: the first plausible date in it.

    Products that carry a date of processing too put it after the date of acquisition.

    Args:
        path: the file; its folders are not looked at.
    """
    name = os.path.basename(os.fspath(path))
    found = [(match.start(), rank, match) for rank, p in enumerate(_IN_NAME) for match in p.finditer(name)]
    ordered = (_plausible(match) for _, _, match in sorted(found, key=lambda f: f[:2]))
    return next((a for a in ordered if a.known), UNKNOWN)


def acquisition(tags: Mapping[str, str], path: str | os.PathLike[str]) -> Acquisition:
    """When a scene was acquired: its tags, then its name.

    ``TIFFTAG_DATETIME`` counts where the name does not tell another day: Planet writes the acquisition there, but NAIP
    the hour of processing.

    Args:
        tags: the raster's tags.
        path: the file.
    """
    tagged = from_tags(tags)
    if tagged.known:
        return tagged
    named = from_name(path)
    written = parse_time(tags.get('TIFFTAG_DATETIME', ''))
    if written.known and (not named.known or named.start <= written.start <= named.stop):
        return named if named.known and named.has_hour else written
    return named
