# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Real acquisitions, each spoiled in one way: what is read is the truth, or a message names the file."""

import itertools
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from torchgeo_clay.datasets import SensorRaster
from torchgeo_clay.sensors import SENSORS

pytestmark = pytest.mark.real_data

NO_NIR = ['blue', 'green', 'red', 'rededge1', 'rededge2', 'rededge3', 'nir08', 'swir16', 'swir22']
FILES = {
    'sentinel2/terramesh_38D_378R_2_3_s2l2a.tif': ('sentinel-2-l2a', None),
    'sentinel2/terramesh_282D_485L_3_3_s2l2a.tif': ('sentinel-2-l2a', None),
    'sentinel2/terramesh_609U_541L_3_0_s2l2a.tif': ('sentinel-2-l2a', None),
    'sentinel2/bigearthnet_S2A_MSIL2A_20170617T113321_36_85.tif': ('sentinel-2-l2a', None),
    'sentinel2/S2A_MSIL2A_20221005T115411_N0400_T29UNU_60m_crop.tif': ('sentinel-2-l2a', NO_NIR),
    'multisensor_worldcereal/00002806639B424A_s2l2a_20180802.tif': ('sentinel-2-l2a', None),
    'sentinel1/terramesh_38D_378R_2_3_s1rtc.tif': ('sentinel-1-rtc', None),
    'sentinel1/terramesh_609U_541L_3_0_s1rtc.tif': ('sentinel-1-rtc', None),
    'landsat/LC08_L2SP_008059_20191201_C2L2_overview_crop.tif': ('landsat-c2l2-sr', None),
    'landsat/L8_L1_Elkton_VA_30m.tif': ('landsat-c2l1', None),
    'naip/m_3211605_ne_11_060_20200415_crop.tif': ('naip', None),
    'naip/m_4208701_ne_16_060_20200902_crop.tif': ('naip', None),
    'modis/MOD09A1_A2017193_h18v04_crop.tif': ('modis', None),
    'aerial_rgb/NL_25cm_epsg28992_crop.tif': ('linz', None),
    'aerial_rgb/NZ_coromandel_2m_nztm.tif': ('linz', None),
}


@dataclass(frozen=True)
class Raster:
    """A raster in memory."""

    name: str
    pixels: np.ndarray
    descriptions: tuple[str | None, ...]
    colors: tuple[ColorInterp, ...]
    tags: dict[str, str]
    crs: Any
    transform: Affine
    nodata: float | None
    scale: float = 1.0
    wavelengths: tuple[float, ...] = ()
    hole: np.ndarray | None = None  # (H, W), where the truth is that there is no data

    @property
    def radar(self) -> bool:
        return 'VV' in self.descriptions


def load(path: Path) -> Raster:
    with rasterio.open(path) as file:
        return Raster(
            path.name, file.read(), file.descriptions, file.colorinterp, file.tags(), file.crs, file.transform,
            file.nodata,
        )  # fmt: skip


def save(raster: Raster, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / raster.name
    grid = {'crs': raster.crs, 'transform': raster.transform}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with rasterio.open(
            path, 'w', 'GTiff', raster.pixels.shape[2], raster.pixels.shape[1], len(raster.pixels),
            dtype=raster.pixels.dtype.name, nodata=raster.nodata, **{k: v for k, v in grid.items() if v is not None},
        ) as file:  # fmt: skip
            file.colorinterp = raster.colors
            file.write(raster.pixels)
            file.descriptions = raster.descriptions
            file.update_tags(**raster.tags)
            if raster.scale != 1:
                file.scales = (raster.scale,) * file.count
            for i, wavelength in enumerate(raster.wavelengths, start=1):
                file.update_tags(i, wavelength=wavelength)
    return path


def without(raster: Raster, *keys: str) -> dict[str, str]:
    return {k: v for k, v in raster.tags.items() if k not in keys}


def unit_floats(raster: Raster) -> Raster:
    if raster.radar:
        return replace(raster, pixels=10 ** (raster.pixels / 10))
    top = 255 if raster.pixels.dtype == np.uint8 else 10000
    return replace(raster, pixels=(raster.pixels / top).astype(np.float32), nodata=None)


def other_numbers(raster: Raster) -> Raster:
    if raster.radar:
        return replace(raster, pixels=raster.pixels * 2000 + 60000)
    if raster.pixels.dtype == np.uint8:
        return replace(raster, pixels=raster.pixels.astype(np.uint16) * 200)
    return replace(raster, pixels=(raster.pixels // 40).clip(0, 255).astype(np.uint8), nodata=None)


def reversed_without_names(raster: Raster) -> Raster:
    return replace(
        raster, pixels=raster.pixels[::-1], descriptions=(None,) * len(raster.pixels), colors=raster.colors[::-1]
    )


def reversed_with_names(raster: Raster) -> Raster:
    return replace(raster, pixels=raster.pixels[::-1], descriptions=raster.descriptions[::-1])


def shifted_names(raster: Raster) -> Raster:
    """Names of the next band; nothing but the wavelengths could show it."""
    known = {n: b.wavelength for s in SENSORS.values() if s.scale == 'linear' for b in s.bands for n in b.names}
    wavelengths = tuple(known.get(name or '', 20.0) for name in raster.descriptions)
    return replace(raster, descriptions=(*raster.descriptions[1:], 'extra'), wavelengths=wavelengths)


def one_name_twice(raster: Raster) -> Raster:
    return replace(raster, descriptions=(*raster.descriptions[:-1], raster.descriptions[-2]))


def alpha_behind(raster: Raster) -> Raster:
    alpha = np.full_like(raster.pixels[:1], 255)
    colors = (*(c if c != ColorInterp.alpha else ColorInterp.undefined for c in raster.colors), ColorInterp.alpha)
    return replace(
        raster, pixels=np.concatenate([raster.pixels, alpha]), descriptions=(*raster.descriptions, None), colors=colors
    )


def alpha_without_names(raster: Raster) -> Raster:
    return replace(alpha_behind(raster), descriptions=(None,) * (len(raster.pixels) + 1))


def with_hole(raster: Raster) -> Raster:
    """No data in the upper fifth, which nothing says yet."""
    hole = np.zeros(raster.pixels.shape[1:], bool)
    hole[: len(hole) // 5] = True
    return replace(raster, hole=hole)


def fill_of(value: float | None, tagged: bool = False) -> Callable[[Raster], Raster]:
    """Fill in the hole; None for the type's extreme."""

    def spoil(raster: Raster) -> Raster:
        kind = raster.pixels.dtype
        extreme = -9999 if kind.kind == 'f' else np.iinfo(kind).min or np.iinfo(kind).max
        fill = extreme if value is None else value
        raster = with_hole(raster)
        pixels = np.where(raster.hole, kind.type(fill), raster.pixels)
        return replace(raster, pixels=pixels, nodata=fill if tagged else None)

    return spoil


def alpha_with_hole(raster: Raster) -> Raster:
    raster = alpha_behind(with_hole(raster))
    raster.pixels[-1][raster.hole] = 0
    return raster


def one_band_from_0_to_1(raster: Raster) -> Raster:
    pixels = raster.pixels.astype(np.float32)
    band = 3 if len(pixels) > 4 else 1
    pixels[band] = 10 ** (pixels[band] / 10) if raster.radar else pixels[band] / (255 if len(pixels) < 5 else 10000)
    return replace(raster, pixels=pixels)


def offset_of(added: int, **claimed: str) -> Callable[[Raster], Raster]:
    """Sentinel-2's numbers with or without their offset, and what tags claim of it; other sensors get the tags."""

    def spoil(raster: Raster) -> Raster:
        had, pixels = -float(raster.tags.get('REFLECTANCE_OFFSET_DN', 0)), raster.pixels
        if 'B8A' in raster.descriptions:
            pixels = (pixels + (added - had)).clip(0, 30000).astype(pixels.dtype)
        kept = without(raster, 'REFLECTANCE_OFFSET_DN', 'REFLECTANCE_SCALE', 'PROCESSING_BASELINE')
        return replace(raster, pixels=pixels, tags={**kept, **claimed}, name='scene.tif')

    return spoil


def transform(*values: float) -> Callable[[Raster], Raster]:
    return lambda raster: replace(raster, transform=Affine(*values))


def larger_pixels(raster: Raster) -> Raster:
    a, b, c, d, e, f = tuple(raster.transform)[:6]
    return replace(raster, transform=Affine(100 * a, 100 * b, c, 100 * d, 100 * e, f))


def tags(change: dict[str, str], *dropped: str) -> Callable[[Raster], Raster]:
    return lambda raster: replace(raster, tags={**without(raster, *dropped), **change})


SPOILERS: dict[str, Callable[[Raster], Raster]] = {
    'units: from 0 to 1': unit_floats,
    'units: other numbers': other_numbers,
    'units: a scale tag': lambda r: replace(r, scale=1e-4),
    'units: one band from 0 to 1': one_band_from_0_to_1,
    'units: an offset that nothing tells': offset_of(1000),
    'units: an offset by baseline': offset_of(1000, PROCESSING_BASELINE='05.09'),
    'units: no offset, but its baseline': offset_of(0, PROCESSING_BASELINE='05.09'),
    'units: no offset, but its tag': offset_of(0, REFLECTANCE_OFFSET_DN='-1000', REFLECTANCE_SCALE='0.0001'),
    'order: reversed without names': reversed_without_names,
    'order: reversed with names': reversed_with_names,
    'order: without names': lambda r: replace(r, descriptions=(None,) * len(r.pixels)),
    'order: names shifted against wavelengths': shifted_names,
    'order: one name twice': one_name_twice,
    'mask: an alpha band behind': alpha_behind,
    'mask: an alpha band, no names': alpha_without_names,
    'mask: holes in an alpha band': alpha_with_hole,
    'mask: zeros': fill_of(0),
    'mask: a fill value': fill_of(None),
    'mask: a fill value, tagged': fill_of(None, tagged=True),
    'tag: none at all': lambda r: replace(r, tags={}),
    'tag: says HLS': tags({'PRODUCT': 'HLS L30'}),
    'transform: none': lambda r: replace(r, transform=None),
    'transform: of nothing': transform(0, 0, 500_000, 0, 0, 4_600_000),
    'transform: not finite': transform(np.nan, 0, 500_000, 0, -10, 4_600_000),
    'transform: far outside': transform(10, 0, 5e9, 0, -10, 5e9),
    'transform: pixels × 100': larger_pixels,
    'crs: none': lambda r: replace(r, crs=None),
    'crs: degrees': lambda r: replace(r, crs='EPSG:4326'),
    'crs: local': lambda r: replace(
        r, crs=rasterio.CRS.from_wkt('LOCAL_CS["x",UNIT["metre",1],AXIS["E",EAST],AXIS["N",NORTH]]')
    ),
    'date: a year': tags({'DATETIME': '2021'}),
    'date: of the interval of a year': tags({'DATETIME': '2020-01-01/2020-12-31'}),
    'date: of the writer alone': tags({'TIFFTAG_DATETIME': '2024:05:06 07:08:09'}, 'DATETIME'),
    'date: another in the name': lambda r: replace(r, name='scene_19990101.tif'),
}  # fmt: skip


@contextmanager
def recorded() -> Iterator[list[str]]:
    """The messages of warnings and of Lightning's log."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger('lightning.pytorch.utilities.rank_zero')
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter('always')
            yield found
        found += [str(w.message) for w in warned]
    finally:
        logger.removeHandler(handler)


def look(raster: Raster, folder: Path, bands: list[str] | None) -> tuple[dict[str, Any] | None, set[str]]:
    """The whole scene as a sample, None if it is refused; and the lines of messages about it."""
    path, sample = save(raster, folder), None
    with recorded() as messages:
        try:
            dataset = SensorRaster(path, SENSORS[folder.name], bands)
            sample = dataset.patch(0, 0, 0, raster.pixels.shape[1:])
            dataset.close()
        except ValueError as error:
            messages.append(str(error))
    os.unlink(path)
    lines = {line.replace(str(path), 'FILE') for message in messages for line in message.splitlines()}
    return sample, {line for line in lines if 'FILE' in line}


def same(one: dict[str, Any], other: dict[str, Any], stds: tuple[float, ...]) -> bool:
    """Whether two samples are the same to the model."""
    for key in ('wavelength', 'res', 'lat', 'lon', 'time'):
        if not np.allclose(one[key], other[key], rtol=1e-4, atol=1e-6, equal_nan=True):
            return False
    valid = one['valid'][0]
    if not np.array_equal(valid, other['valid'][0]):
        return False
    off = np.abs(one['image'].numpy().astype(float) - other['image'].numpy().astype(float))[:, valid.numpy()]
    return bool((off <= 0.01 * np.array(stds)[:, None]).all())


def outcome(path: Path, sensor: str, bands: list[str] | None, spoiler: str, root: Path) -> str:
    """What becomes of a spoiled scene: ``refused``, ``right``, ``reported`` or ``silent``.

    Only messages count that the original scene does not have.
    """
    raster = load(path)
    truth, usual = look(raster, root / sensor, bands)
    assert truth is not None
    spoiled = SPOILERS[spoiler](raster)
    found, messages = look(spoiled, root / sensor, bands)
    if found is None:
        return 'refused' if messages - usual else 'silent'
    if spoiled.hole is not None:
        truth['valid'] &= ~torch.from_numpy(spoiled.hole)
    if same(truth, found, SENSORS[sensor].select(bands).std):
        return 'right'
    return 'reported' if messages - usual else 'silent'


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(FILES)), spoiler=st.sampled_from(sorted(SPOILERS)))
def test_no_spoiled_scene_passes_silently(real_data: Path, tmp_path: Path, name: str, spoiler: str) -> None:
    sensor, bands = FILES[name]
    assert outcome(real_data / name, sensor, bands, spoiler, tmp_path) != 'silent'


@pytest.mark.slow
def test_every_spoiled_scene(real_data: Path, tmp_path: Path) -> None:
    """All files spoiled in all ways; run with ``-s`` to see the figure."""
    cases = list(itertools.product(FILES, SPOILERS))
    found = {case: outcome(real_data / case[0], *FILES[case[0]], case[1], tmp_path) for case in cases}
    print(len(found), 'spoiled:', dict(Counter(found.values())))
    assert [case for case, result in found.items() if result == 'silent'] == []
