# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The files and products of samples of TorchGeo's chip datasets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torchgeo.datasets import (
    OSCD,
    SSL4EOL,
    EuroSAT,
    HySpecNet11k,
    L8Biome,
    Sentinel2,
    SSL4EOLBenchmark,
    UCMerced,
)
from torchgeo.datasets.utils import disambiguate_timestamp
from torchvision.datasets import ImageFolder

__all__ = ('Source', 'other_product', 'sources')


@dataclass(frozen=True)
class Source:
    """The file of one date of a sample.

    Attributes:
        path: the file with the image's georeferencing.
        date: text with the date, if the file's name lacks it.
        shape: rows and columns to which the dataset resizes the file; None if it does not.
    """

    path: str
    date: str | None = None
    shape: tuple[int, int] | None = None


def _hyspecnet(dataset: Any, index: int, sample: Mapping[str, Any]) -> tuple[Source, ...]:
    name = dataset.files[index].replace('DATA.npy', 'SPECTRAL_IMAGE.TIF')
    return (Source(os.path.join(dataset.root, 'hyspecnet-11k', 'patches', name)),)


def _ssl4eo(dataset: Any, index: int, sample: Mapping[str, Any]) -> tuple[Source, ...]:
    """Find the drawn season's folder from the sample's time, which is float32."""
    root = os.path.join(dataset.subdir, dataset.scenes[index])
    drawn = [float(t) for t in sample['t']]
    found = []
    for time in drawn:
        for folder in sorted(os.listdir(root)):
            first, last = disambiguate_timestamp(folder[-8:], '%Y%m%d')
            if abs((first.timestamp() + last.timestamp()) / 2 - time) < 43200:
                found.append(Source(os.path.join(root, folder, 'all_bands.tif'), folder))
                break
    return tuple(found) if len(found) == len(drawn) else ()


def _ssl4eo_benchmark(dataset: Any, index: int, sample: Mapping[str, Any]) -> tuple[Source, ...]:
    path = dataset.sample_collection[index][0]
    return (Source(path, os.path.basename(os.path.dirname(path))),)


def _oscd(dataset: Any, index: int, sample: Mapping[str, Any]) -> tuple[Source, ...]:
    files = dataset.files[index]
    return tuple(Source(files[f'images{i}'][0], files['dates'][i - 1]) for i in (1, 2))


def _folder(dataset: Any, index: int, sample: Mapping[str, Any]) -> tuple[Source, ...]:
    return (Source(dataset.samples[index][0], shape=(256, 256) if isinstance(dataset, UCMerced) else None),)


Find = Callable[[Any, int, Mapping[str, Any]], tuple[Source, ...]]

#: Functions that find the files. Datasets of images without georeferencing (LandCover.ai's chips, LoveDA, VHR-10,
#: LEVIR-CD) and BioMassters, whose place is withheld, are missing on purpose.
_FIND: Mapping[type, Find] = {
    HySpecNet11k: _hyspecnet,
    SSL4EOL: _ssl4eo,
    SSL4EOLBenchmark: _ssl4eo_benchmark,
    OSCD: _oscd,
    ImageFolder: _folder,
}


def sources(dataset: Any, index: int, sample: Mapping[str, Any]) -> tuple[Source, ...]:
    """Return the files of a sample.

    Args:
        dataset: the innermost dataset, see :func:`~torchgeo_clay.datasets.wrapped.channels.leaf_of`.
        index: its index.
        sample: its sample.

    Returns:
        One per date; none for other datasets.
    """
    for kind, find in _FIND.items():
        if isinstance(dataset, kind):
            return find(dataset, index, sample)
    return ()


def other_product(dataset: Any, sensor: str) -> str | None:
    """Name a dataset's product if the sensor's statistics are of another one.

    Args:
        dataset: the innermost dataset.
        sensor: name of the sensor.

    Returns:
        The product; None if no difference is known.
    """
    if sensor == 'sentinel-2-l2a':
        level1 = isinstance(dataset, Sentinel2) and any('MSIL1C' in str(p) for p in dataset.index.filepath)
        if isinstance(dataset, EuroSAT | OSCD) or level1:
            return 'Sentinel-2 L1C, reflectance at the top of the atmosphere'
    if isinstance(dataset, L8Biome) and sensor.startswith('landsat'):
        return 'Landsat 8 level 1 from before Collection 1'
    if isinstance(dataset, SSL4EOL | SSL4EOLBenchmark) and sensor.startswith('landsat'):
        return 'Landsat in 8 bits'
    return None
