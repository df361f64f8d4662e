# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Whether a TIFF is all there. GDAL opens a truncated one, warns of tags it lost, and fails at the pixels it lacks.

Layout of the file: TIFF 6.0, section 2 (https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf), and BigTIFF
(https://www.awaresystems.be/imaging/tiff/bigtiff.html).
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, NamedTuple

import numpy as np

__all__ = ('missing_bytes',)

# bytes per value, by field type
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
# strips and tiles: the field of where blocks begin, and that of how long they are
_BLOCKS = ((273, 279), (324, 325))


class _Layout(NamedTuple):
    """How directories are written: classic or big."""

    order: str  # < or >
    number: str  # number of entries
    entry: str  # tag, type, number of values
    offset: str  # place in the file


class _Cut(Exception):
    """The file ends before something that it refers to."""

    def __init__(self, end: int) -> None:
        """Keep where that something ends."""
        super().__init__(end)
        self.end = end


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    """Read exactly so many bytes."""
    file.seek(start)
    content = file.read(length)
    if len(content) < length:
        raise _Cut(start + length)
    return content


def _header(file: BinaryIO) -> tuple[_Layout, int] | None:
    """The layout and the place of the first directory; None for what is no TIFF."""
    head = _read(file, 0, 8)
    order = {b'II': '<', b'MM': '>'}.get(head[:2])
    version = struct.unpack(f'{order}H', head[2:4])[0] if order else 0
    if order is not None and version == 42:
        return _Layout(order, 'H', 'HHI', 'I'), struct.unpack(f'{order}I', head[4:])[0]
    if order is not None and version == 43:
        return _Layout(order, 'Q', 'HHQ', 'Q'), struct.unpack(f'{order}Q', _read(file, 8, 8))[0]
    return None


def _directory(file: BinaryIO, layout: _Layout, start: int) -> int:
    """Check what one directory refers to; the place of the next one, 0 after the last."""
    order, count_size, width = layout.order, struct.calcsize(layout.number), struct.calcsize(layout.offset)
    (count,) = struct.unpack(order + layout.number, _read(file, start, count_size))
    head = struct.calcsize(order + layout.entry)
    size = head + width
    entries = _read(file, start + count_size, count * size + width)
    fields: dict[int, np.ndarray] = {}
    for i in range(count):
        entry = entries[i * size : (i + 1) * size]
        tag, kind, number = struct.unpack(order + layout.entry, entry[:head])
        length = _SIZES.get(kind, 1) * number
        if length <= width:
            value = entry[head : head + length]
        else:
            value = _read(file, struct.unpack(order + layout.offset, entry[head:])[0], length)
        if any(tag in pair for pair in _BLOCKS) and kind in (3, 4, 16):
            fields[tag] = np.frombuffer(value, f'{order}u{_SIZES[kind]}').astype(np.int64)
    for starts, lengths in _BLOCKS:
        if starts in fields and lengths in fields and len(fields[starts]) == len(fields[lengths]):
            ends = np.where(fields[lengths] > 0, fields[starts] + fields[lengths], 0)  # sparse blocks have no bytes
            if ends.max(initial=0) > os.fstat(file.fileno()).st_size:
                raise _Cut(int(ends.max()))
    return int(struct.unpack(order + layout.offset, entries[-width:])[0])


def missing_bytes(path: str | os.PathLike[str]) -> int:
    """How many bytes a TIFF lacks at its end.

    Args:
        path: the file, on disk.

    Returns:
        The bytes from the file's end to that of the block of pixels or the tag found beyond it; 0 if none is, or the
        file is no TIFF.
    """
    with open(path, 'rb') as file:
        try:
            found = _header(file)
            seen: set[int] = set()
            while found is not None and found[1] and found[1] not in seen:
                seen.add(found[1])
                found = found[0], _directory(file, *found)
        except _Cut as cut:
            return max(cut.end - os.fstat(file.fileno()).st_size, 1)
    return 0
