# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What TorchGeo's datasets hold where they do not say it: the names of channels, the product, and what cannot be used.

Sources are the papers of the datasets and how TorchGeo 0.10.1 reads their files. Keys are those of a dataset's sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchgeo import datasets as tg

__all__ = ('REFUSED', 'STACKED', 'known_channels', 'other_product')

Names = tuple[str, ...]

_RGB = ('red', 'green', 'blue')
_RGBN = (*_RGB, 'nir')
_S2_L2A = ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12')
#: Bands of WorldView-2 and -3, as SpaceNet's papers list them.
_WORLDVIEW = ('coastal', 'blue', 'green', 'yellow', 'red', 'rededge', 'nir08', 'nir09')
_SPACENET: Mapping[str, Names] = {
    '3band': _RGB,
    'RGB-PanSharpen': _RGB,
    'PS-RGB': _RGB,
    'PRE-event': _RGB,
    'POST-event': _RGB,
    'RGBNIR': _RGBN,
    'PS-RGBNIR': _RGBN,
    'PAN': ('panchromatic',),
    'SAR-Intensity': ('HH', 'HV', 'VH', 'VV'),
    **dict.fromkeys(('8band', 'MUL', 'MUL-PanSharpen', 'PS-MS'), _WORLDVIEW),
}
# TM and ETM+ number other bands than OLI, whose numbers the sensors' aliases are, so they are named here.
_TM = {'B1': 'blue', 'B2': 'green', 'B3': 'red', 'B4': 'nir08', 'B5': 'swir16', 'B6': 'thermal', 'B7': 'swir22'}
#: ETM+ as L7 Irish numbers its bands; the sixth is there in two gains, the eighth panchromatic.
_ETM = {
    **{f'{name}0': band for name, band in _TM.items() if name != 'B6'},
    **dict.fromkeys(('B61', 'B62'), 'thermal'),
    'B80': 'panchromatic',
}
#: Unfiltered complex values of VH and VV, then filtered intensities and the covariance (So2Sat LCZ42, section III).
_SO2SAT_S1 = ('VH real', 'VH imaginary', 'VV real', 'VV imaginary', 'vh', 'vv', 'covariance real', 'covariance imag')


def _tm_or_oli(split: str) -> Names:
    """Channels of a split of SSL4EO-L."""
    names: Names = tg.SSL4EOL.metadata[split]['all_bands']
    return names if split.startswith('oli') else tuple(_TM.get(n, n) for n in names)


def _chesapeake(dataset: Any, key: str) -> Names:
    """Channels of the image layers, in order; those of a second layer carry the layer's name."""
    names: list[str] = []
    for layer in dataset.layers:
        own: Sequence[str] = ()
        if layer in ('naip-new', 'naip-old'):
            own = ('R', 'G', 'B', 'N')
        elif layer in ('landsat-leaf-on', 'landsat-leaf-off'):
            own = [f'B{i}' for i in (1, 2, 3, 4, 5, 6, 7, 10, 11)]
        names += [f'{layer}/{n}' for n in own] if names else own
    return tuple(names)


def _mmflood(dataset: Any, key: str) -> Names:
    return ('vv', 'vh', *(('dem',) if dataset.include_dem else ()), *(('hydro',) if dataset.include_hydro else ()))


def _biomassters(dataset: Any, key: str) -> Names:
    if key.endswith('S1') or list(dataset.sensors) == ['S1']:
        return ('asc VV', 'asc VH', 'desc VV', 'desc VH')
    return ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12', 'CLP')


def _bigearthnet(dataset: Any, key: str) -> Names:
    """Both versions sort the files of Sentinel-1 by name: VH before VV."""
    radar, optical = ('VH', 'VV'), _S2_L2A
    if key == 'image_s1' or dataset.bands == 's1':
        return radar
    if key == 'image_s2' or dataset.bands == 's2':
        return optical
    return radar + optical


def _so2sat(dataset: Any, key: str) -> Names:
    return tuple(_SO2SAT_S1[int(b[-1]) - 1] if b.startswith('S1') else b.removeprefix('S2_') for b in dataset.bands)


def _treesatai(dataset: Any, key: str) -> Names | None:
    return {'image_aerial': ('nir', 'green', 'blue', 'red')}.get(key) or dataset.all_bands_dict.get(
        key.removeprefix('image_')
    )


def _flair(dataset: Any, key: str) -> Names | None:
    return {
        'image_aerial_rgbi': _RGBN,
        'image_spot_rgbi': _RGBN,
        'image_dem_elev': ('surface height', 'terrain height'),
        'image_aerial_rlt_pan': ('panchromatic',),
        'image_sentinel2': dataset.sentinel2_ts_bands,
        'image_sentinel1_asc': ('VV', 'VH'),
        'image_sentinel1_desc': ('VV', 'VH'),
    }.get(key)


def _always(*names: str) -> Callable[[Any, str], Names]:
    return lambda dataset, key: names


#: Innermost dataset, key of its image → names of the channels, in order; None for unknown.
_CHANNELS: Mapping[type, Callable[[Any, str], Names | None]] = {
    tg.BigEarthNet: _bigearthnet,
    tg.BigEarthNetV2: _bigearthnet,
    tg.BioMassters: _biomassters,
    tg.ChesapeakeCVPR: _chesapeake,
    tg.FieldsOfTheWorld: _always(*_RGBN),  # of two windows of the season, the later one first
    tg.L7Irish: lambda dataset, key: tuple(_ETM[b] for b in dataset.datasets[0].bands),
    tg.MMFlood: _mmflood,
    tg.SSL4EOL: lambda dataset, key: _tm_or_oli(dataset.split) * dataset.seasons,
    tg.SSL4EOLBenchmark: lambda dataset, key: _tm_or_oli(dataset.sensor),
    tg.SSL4EOS12: lambda dataset, key: tuple(dataset.bands) * dataset.seasons,
    tg.SeasonalContrastS2: lambda dataset, key: tuple(dataset.bands) * dataset.seasons,
    tg.So2Sat: _so2sat,
    tg.SpaceNet: lambda dataset, key: _SPACENET.get(dataset.image),
    tg.TreeSatAI: _treesatai,
    tg.Vaihingen2D: _always('nir', 'red', 'green'),
    tg.Potsdam2D: _always(*_RGBN),
    tg.USAVars: _always(*_RGBN),
    tg.PASTIS: lambda dataset, key: tuple(b[4:] if b.startswith('S1') else b for b in dataset.bands),
    tg.QuakeSet: _always('vv', 'vh'),
    tg.CaFFe: _always('radar amplitude'),
    tg.DigitalTyphoon: lambda dataset, key: ('infrared',) * getattr(dataset, 'sequence_length', 1),
    tg.TropicalCyclone: _always('infrared', 'infrared', 'infrared'),
    **dict.fromkeys(
        (
            tg.COWC, tg.DeepGlobeLandCover, tg.DLRSD, tg.DLRSDMultilabel, tg.FAIR1M, tg.GeoNRW, tg.GID15,
            tg.InriaAerialImageLabeling, tg.LandCoverAI, tg.LandCoverAIGeo, tg.LEVIRCD, tg.LEVIRCDPlus, tg.LoveDA,
            tg.NASAMarineDebris, tg.ReforesTree, tg.VHR10, tg.xBD,
        ),
        _always(*_RGB),
    ),
}  # fmt: skip

#: Datasets that stack this number of dates as channels.
STACKED: Mapping[type, int] = {tg.FieldsOfTheWorld: 2, tg.QuakeSet: 2}

#: Datasets that Clay cannot use, and why; by class.
REFUSED: Mapping[type, str] = {
    tg.BRIGHTDFC2025: (
        'its two dates are of two sensors, an optical image and a radar image repeated three times, and a batch has '
        'one sensor. Take one date as a dataset of your own'
    ),
    tg.ETCI2021: (
        'its radar images are pictures of 8 bits, each polarization repeated three times, which no longer give decibels'
    ),
    tg.SKIPPD: 'its photographs look up to the sky and have no meters per pixel',
    tg.SustainBenchCropYield: 'its images are histograms of pixels over time and have no meters per pixel',
}


def known_channels(leaf: Any, key: str = 'image') -> Names | None:
    """Names of a dataset's channels by the table.

    Args:
        leaf: the innermost dataset.
        key: of its image in its samples, before any is renamed.

    Returns:
        The names, in order; None for datasets that are not in the table.
    """
    if type(leaf).__name__.startswith('FLAIRHUB'):
        return _flair(leaf, key)
    return next((names(leaf, key) for kind, names in _CHANNELS.items() if isinstance(leaf, kind)), None)


def other_product(dataset: Any, sensor: str) -> str | None:
    """Name a dataset's product if the sensor's statistics are of another one.

    Args:
        dataset: the innermost dataset, or an intersection or union of such.
        sensor: name of the sensor.

    Returns:
        The product; None if no difference is known.
    """
    for part in getattr(dataset, 'datasets', ()):
        if (product := other_product(part, sensor)) is not None:
            return product
    if sensor == 'sentinel-2-l2a':
        level1 = isinstance(dataset, tg.Sentinel2) and any('MSIL1C' in str(p) for p in dataset.index.filepath)
        split = isinstance(dataset, tg.SSL4EOS12) and dataset.split == 's2c'
        # SEN12MS, So2Sat and SeCo: their papers take Sentinel-2 from Earth Engine's collection of level 1C
        known = isinstance(dataset, tg.EuroSAT | tg.OSCD | tg.SEN12MS | tg.So2Sat | tg.SeasonalContrastS2)
        return 'Sentinel-2 L1C, reflectance at the top of the atmosphere' if level1 or split or known else None
    products = {
        tg.L7Irish: 'Landsat 7 level 1 in 8 bits',
        tg.L8Biome: 'Landsat 8 level 1 from before Collection 1',
        tg.SSL4EOL: 'Landsat in 8 bits',
        tg.SSL4EOLBenchmark: 'Landsat in 8 bits',
    }
    found = (product for kind, product in products.items() if isinstance(dataset, kind))
    return next(found, None) if sensor.startswith('landsat') else None
