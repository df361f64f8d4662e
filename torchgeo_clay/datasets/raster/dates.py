# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Acquisition dates of scenes from tags, then from file names. Seconds since 1970-01-01 UTC.

The model encodes the week and the hour. A year, a month or an interval longer than a month determines neither, so its
time is NaN, as is that of unreadable text. A date without an hour means noon.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import PurePath

__all__ = ('UNKNOWN', 'Acquisition', 'acquisition', 'from_interval', 'from_name', 'from_tags', 'parse_time')

_DAY = 86400.0
#: Longest interval that still determines the season, seconds: a monthly composite.
_LONGEST = 31 * _DAY
# Digits in file names are a date only between the first Landsat and the near future.
_YEARS = range(1972, 2051)
# Tags may date an old aerial photograph; 0001 and 9999 are placeholders.
_TAG_YEARS = range(1850, 2051)


@dataclass(frozen=True)
class Acquisition:
    """When a scene was acquired.

    Attributes:
        time: seconds since 1970-01-01 UTC that represent the scene; NaN for unknown.
        start: first possible second; NaN for unknown.
        stop: last possible second; NaN for unknown.
        has_hour: whether the hour was given; otherwise ``time`` is at noon.
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


def _moment(when: datetime, has_hour: bool) -> Acquisition:
    """An acquisition at a date with a zone; without an hour it is noon."""
    start = when.timestamp()
    if has_hour:
        return Acquisition(start, start, start + 1 - 1e-6)
    return Acquisition(start + _DAY / 2, start, start + _DAY - 1e-6, has_hour=False)


def _interval(first: Acquisition, last: Acquisition) -> Acquisition:
    """The middle of an interval; noon of its middle day if it covers a day or more; no time beyond a month."""
    span = last.start - first.start
    if not (first.known and last.known and span >= 0):
        return UNKNOWN
    if span > _LONGEST:
        return Acquisition(math.nan, first.start, last.stop)
    middle = first.start if span <= 1 else (first.start + last.start) / 2
    if span < _DAY - 2 and first.has_hour and last.has_hour:
        return Acquisition(middle, first.start, last.stop)
    return Acquisition(middle // _DAY * _DAY + _DAY / 2, first.start, last.stop, has_hour=False)


def from_interval(first: datetime, last: datetime) -> Acquisition:
    """Return the acquisition of an interval from one moment to another (UTC), as in TorchGeo's index.

    It is a second for an interval of seconds, noon for whole days, the middle for hours; unknown beyond a month.
    """
    return _interval(_moment(first, has_hour=True), _moment(last, has_hour=True))


_SLASHED = re.compile(r'(?<!\d)(\d{4})([:/])(\d{2})\2(\d{2})(?!\d)')
_STAMP = re.compile(r'(\d{4})(-?)(\d{2})\2(\d{2})(?:[T _]?(\d{2}:?\d{2}[\d:.]*)\s*(Z|UTC|[+-]\d{2}:?\d{2})?)?')


def parse_time(text: str) -> Acquisition:
    """Parse a tag's text; anything else than the following, such as a year alone, has no time.

    Args:
        text: a date, a date with a time (UTC unless a zone is given) in ISO 8601 or the notations of EXIF and of
            14 digits, or an interval of two of them, separated by ``/`` or ``;``.
    """
    text = _SLASHED.sub(r'\1-\3-\4', text.strip().upper())
    parts = re.split('[/;]', text)
    if len(parts) == 2:
        return _interval(parse_time(parts[0]), parse_time(parts[1]))
    match = _STAMP.fullmatch(text)
    if match is None or int(match[1]) not in _TAG_YEARS:
        return UNKNOWN
    year, _, month, day, clock, zone = match.groups()
    try:
        when = datetime.fromisoformat(f'{year}-{month}-{day}T{clock or "00"}{(zone or "Z").replace("UTC", "Z")}')
    except ValueError:
        return UNKNOWN
    if when.replace(tzinfo=UTC).timestamp() == 0:  # what writers put for no date
        return UNKNOWN
    return _moment(when, has_hour=clock is not None)


# Tags of the acquisition, as this project's data, STAC exports, cameras, ESA, USGS and NASA write them.
_MOMENTS = (
    'DATETIME', 'ACQUISITION_DATETIME', 'ACQUISITION_TIME', 'ACQUISITIONDATETIME', 'ACQUISITION_DATE',
    'ACQUISITIONDATE', 'SENSING_TIME', 'DATATAKE_1_DATATAKE_SENSING_START', 'EXIF_DATETIMEORIGINAL',
)  # fmt: skip
# Start and the possible names of the end.
_INTERVALS = (
    ('START_DATETIME', ('END_DATETIME',)),
    ('PRODUCT_START_TIME', ('PRODUCT_STOP_TIME',)),
    ('START_TIME', ('END_TIME', 'STOP_TIME')),
    ('START_DATE', ('END_DATE',)),
)


def _candidates(tags: Mapping[str, str]) -> Iterator[Acquisition]:
    """The acquisitions that tags name, the most reliable first."""
    for name in _MOMENTS:
        yield parse_time(tags.get(name, ''))
    for start, ends in _INTERVALS:
        end = next((tags[name] for name in ends if name in tags), '')
        yield parse_time(f'{tags[start]};{end}' if end else tags[start]) if start in tags else UNKNOWN
    yield parse_time(f'{tags.get("DATE_ACQUIRED", "")} {tags.get("SCENE_CENTER_TIME", "")}')
    begin, end = (f'{tags.get(f"RANGE{e}DATE", "")} {tags.get(f"RANGE{e}TIME", "")}' for e in ('BEGINNING', 'ENDING'))
    yield parse_time(begin if begin == end else f'{begin};{end}')
    yield parse_time(tags.get('DATE', ''))  # Sentinel-1 RTC of AWS


def from_tags(tags: Mapping[str, str]) -> Acquisition:
    """Find an acquisition in a raster's tags, in any case; it has a start but no time if they give a longer interval.

    ``TIFFTAG_DATETIME`` is when the file was written (Sentinel-1, NAIP), so it is ignored.
    """
    folded = {name.upper(): value for name, value in tags.items()}
    return next((a for a in _candidates(folded) if math.isfinite(a.start)), UNKNOWN)


_DATE = r'(?P<y>\d{4})(?P<sep>[-_.]?)(?P<m>\d{2})(?P=sep)(?P<d>\d{2})'
_CLOCK = r'(?P<H>\d{2})[-_:.]?(?P<M>\d{2})(?:[-_:.]?(?P<S>\d{2}))?'
# Dates in file names. A clock follows a T, or the date without a separator; behind an underscore it may be a number of
# another kind, so there it is read only in the names of Planet and of cameras.
_IN_NAME = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf'(?<!\d){_DATE}T{_CLOCK}(?!\d)',
        r'(?<![A-Z0-9])(?:IMG|DJI)?(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})(?P<H>\d{2})(?P<M>\d{2})(?P<S>\d{2})(?!\d)',
        rf'^(?:(?:IMG|DJI|PXL|MVIMG|VID)_)?{_DATE}_(?P<H>\d{{2}})(?P<M>\d{{2}})(?P<S>\d{{2}})(?:\d{{3}})?(?!\d)',
        rf'(?<!\d){_DATE}(?!\d)',
        r'(?<![A-Z0-9])A(?P<y>\d{4})(?P<j>\d{3})(?!\d)',  # MODIS and VIIRS
        r'^L[CETMO]\d\d{6}(?P<y>\d{4})(?P<j>\d{3})[A-Z]{3}\d{2}',  # Landsat before Collection 1
        r'(?<![A-Z0-9])(?P<y>\d{4})(?P<j>\d{3})T(?P<H>\d{2})(?P<M>\d{2})(?P<S>\d{2})(?!\d)',  # HLS
        r'^AST_\w+?_\d{3}(?P<m>\d{2})(?P<d>\d{2})(?P<y>\d{4})(?P<H>\d{2})(?P<M>\d{2})(?P<S>\d{2})',  # ASTER
    )
)
# What precedes the acquisition in the names of Sentinel-2 before 2016; without it they date the processing alone.
_OLD_SENTINEL_2 = re.compile(r'^S2[ABC]_OPER_(?:.*_V(?=\d{8}T)|.*$)', re.IGNORECASE)
# Products whose second date is that of processing.
_PROCESSED = re.compile(r'L[COTEM]\d\d_|m_\d{7}_|OPERA_|AST_|S[123][A-D]_', re.IGNORECASE)
# Composites of MODIS that are named for the first of eight days.
_EIGHT_DAYS = re.compile(r'M[OY]D09[AQ]1', re.IGNORECASE)
_BETWEEN = re.compile(r'[-_. ]+(?:to[-_. ]+)?', re.IGNORECASE)
# Folders that are a product: their names date the files in them.
_PRODUCT = re.compile(r'S[123][A-D]_|L[COTEM]\d\d_|HLS\.|M[OCY]D\d', re.IGNORECASE)


def _matched(match: re.Match[str]) -> Acquisition:
    """The acquisition of one match; unknown if the digits are no date."""
    parts = {name: int(text) for name, text in match.groupdict().items() if text and text.isdigit()}
    if parts['y'] not in _YEARS:
        return UNKNOWN
    try:
        hour, minute, second = (parts.get(unit, 0) for unit in 'HMS')
        date = datetime(parts['y'], parts.get('m', 1), parts.get('d', 1), hour, minute, second, tzinfo=UTC)
        date += timedelta(days=parts.get('j', 1) - 1)
    except ValueError:
        return UNKNOWN
    return _moment(date, has_hour='H' in parts) if date.year == parts['y'] else UNKNOWN


def _from_text(name: str) -> Acquisition:
    """The first plausible date of a name, or the interval of the two first ones."""
    name = _OLD_SENTINEL_2.sub('', name)
    found = [(m.start(), rank, m) for rank, pattern in enumerate(_IN_NAME) for m in pattern.finditer(name)]
    dates = [(m, a) for _, _, m in sorted(found, key=lambda f: f[:2]) if (a := _matched(m)).known]
    if not dates:
        return UNKNOWN
    match, first = dates[0]
    if _EIGHT_DAYS.match(name):
        return _interval(first, replace(first, start=first.start + 7 * _DAY, stop=first.stop + 7 * _DAY))
    for other, last in dates[1:]:
        between = name[match.end() : other.start()]
        if _BETWEEN.fullmatch(between) and not _PROCESSED.match(name) and last.start - first.start >= _DAY:
            return _interval(first, last)
    return first


def from_name(path: str | os.PathLike[str]) -> Acquisition:
    """Find an acquisition in a file name, else in the name of the product's folder, such as a SAFE.

    The first plausible date counts, as products name that of processing after it. Two dates side by side are an
    interval, in products such as Landsat's acquisition and processing.
    """
    name, *folders = reversed(PurePath(path).parts or ('',))
    names = [name, *(folder for folder in folders if _PRODUCT.match(folder))]
    return next((a for n in names if math.isfinite((a := _from_text(n)).start)), UNKNOWN)


def acquisition(tags: Mapping[str, str], path: str | os.PathLike[str]) -> tuple[Acquisition, str]:
    """Find when a scene was acquired: from its tags, else from its name, which adds the hour if the tags lack it.

    Returns:
        The acquisition, and what to report if tags and name disagree by more than a day, else an empty string.
    """
    tagged, named = from_tags(tags), from_name(path)
    if not math.isfinite(tagged.start):
        return named, ''
    if not tagged.has_hour and named.known and named.has_hour and tagged.start <= named.time <= tagged.stop:
        return named, ''
    if named.known and not tagged.start - _DAY <= named.time <= tagged.stop + _DAY:
        days = [datetime.fromtimestamp(a.start, UTC).date().isoformat() for a in (tagged, named)]
        return tagged, f'its tags give the date {days[0]}, its name {days[1]}; the tags are used, see time='
    return tagged, ''
