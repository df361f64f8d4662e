# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Products that carry a sensor's band names but other numbers, recognized by their tags and names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

__all__ = ('boa_offset', 'hls', 'processing_baseline', 'product_text', 'reflectance_tags', 'tm_band_names')

Tags = Mapping[str, str]

#: Tags that name a platform, an instrument or a product.
_NAMING = (
    'SENSOR', 'SENSOR_ID', 'INSTRUMENT', 'PLATFORM', 'SPACECRAFT_NAME', 'SPACECRAFT_ID', 'SATELLITE', 'MISSION',
    'LEVEL', 'PROCESSING_LEVEL', 'PRODUCT', 'SHORTNAME', 'COLLECTION', 'PRODUCT_URI', 'LANDSAT_PRODUCT_ID',
    'LANDSAT_SCENE_ID', 'ASSOCIATEDSENSORSHORTNAME', 'TIFFTAG_IMAGEDESCRIPTION',
)  # fmt: skip

#: TM and ETM+ number their bands otherwise than OLI; 6 is thermal. USGS, Landsat 4-7 Data Format Control Book.
_TM_BANDS = {1: 'blue', 2: 'green', 3: 'red', 4: 'nir08', 5: 'swir16', 6: 'thermal', 7: 'swir22'}


def product_text(tags: Tags, path: str | os.PathLike[str]) -> tuple[str, str]:
    """The tags that name the product, joined, and the file's name; upper case.

    Args:
        tags: the raster's tags.
        path: the file.
    """
    folded = {key.upper(): value for key, value in tags.items()}
    named = ' '.join(str(folded[key]) for key in _NAMING if key in folded)
    return named.upper(), os.path.basename(os.fspath(path)).upper()


def hls(tags: Tags, path: str | os.PathLike[str]) -> str | None:
    """Recognize Harmonized Landsat Sentinel-2.

    Args:
        tags: the raster's tags.
        path: the file.

    Returns:
        ``S30`` for Sentinel-2's part, ``L30`` for Landsat's, None for any other product.
    """
    tagged, name = product_text(tags, path)
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

    Args:
        descriptions: of the file's bands.
        tags: the raster's tags.
        path: the file.
    """
    tagged, name = product_text(tags, path)
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
    """Read the processing baseline of Sentinel-2: 4.0 for ``04.00`` in a tag or ``_N0400_`` in a name; None if unknown.

    Args:
        tags: the raster's tags.
        path: the file.
    """
    folded = {key.upper(): str(value) for key, value in tags.items()}
    written = next((v for k, v in folded.items() if k.endswith('PROCESSING_BASELINE')), '')
    match = re.fullmatch(r'\s*N?(\d{1,2})\.?(\d{2}|\d)\s*', written.upper())
    if match is None:
        tagged, name = product_text(tags, path)
        match = re.search(r'_N(\d{2})(\d{2})_', f'{name} {tagged}') or re.search(
            r'S2[A-D]_MSIL[12][AC]_\d{8}T\d{6}_N(\d{2})(\d{2})_',
            os.fspath(path),  # the name of a folder of SAFE
        )
    return None if match is None else float(f'{match[1]}.{match[2]}')


def boa_offset(tags: Tags, path: str | os.PathLike[str]) -> tuple[float, str] | None:
    """Find what has to be added to the digital numbers of Sentinel-2.

    Args:
        tags: the raster's tags.
        path: the file.

    Returns:
        The summand (-1000 since baseline 04.00) and what says so; None if nothing does.
    """
    folded = {key.upper(): str(value) for key, value in tags.items()}
    applied = next((v for k, v in folded.items() if k.endswith('BOA_OFFSET_APPLIED')), '')
    if applied.lower() in ('true', '1', 'yes') or re.search('HARMONI[SZ]ED', ' '.join(product_text(tags, path))):
        return 0.0, 'harmonized'
    for key, value in folded.items():
        if re.match('REFLECTANCE_OFFSET_DN|(BOA|RADIO)_ADD_OFFSET', key) and (number := _number(value)) is not None:
            return number, f'{key}={value}'
    baseline = processing_baseline(tags, path)
    if baseline is None or baseline > 90:  # 99.99 is a reprocessing for tests
        return None
    return (-1000.0 if baseline >= 4 else 0.0), f'processing baseline {baseline:05.2f}'


def reflectance_tags(tags: Tags) -> tuple[float, float] | None:
    """Read scale and offset (reflectance = DN · scale + offset) from REFLECTANCE_SCALE and REFLECTANCE_OFFSET_DN.

    Args:
        tags: the raster's tags.
    """
    scale = _number(tags.get('REFLECTANCE_SCALE', ''))
    if scale is None or scale <= 0:
        return None
    return scale, scale * (_number(tags.get('REFLECTANCE_OFFSET_DN', '')) or 0.0)


def _number(text: str) -> float | None:
    """A finite number from text, None for anything else."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < 1e30 else None
