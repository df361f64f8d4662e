# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The labeled data that benchmark_tasks.py compares models on, as lists of samples of the batch contract.

Shapes: C bands, 64 × 64 pixels. Images are normalized with their sensor's statistics. No file lends chips to training
and test, but for the land use of the three TerraMesh tiles: it is split within each, as no two share their classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import torch
from torch import Tensor
from torchgeo.datasets import NonGeoClassificationDataset

from torchgeo_clay.datasets import SensorRaster, SyntheticChips, SyntheticScenes
from torchgeo_clay.sensors import Band, Sensor, get_sensor

__all__ = ('DATASETS', 'Benchmark')

SIZE = 64
IGNORED = 255

Sample = dict[str, Any]
Tile = tuple[Path, Path]


@dataclass(frozen=True)
class Benchmark:
    """Labelled samples.

    Attributes:
        task: what is predicted.
        classes: number of classes.
        train: samples to train on.
        test: samples to test on.
    """

    task: Literal['classification', 'segmentation']
    classes: int
    train: list[Sample]
    test: list[Sample]


def normalized(sample: Sample, sensor: Sensor) -> Sample:
    """The sample with ``image`` normalized, and what the tasks do not take left out."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (sensor.mean, sensor.std))
    image = torch.nan_to_num((sample['image'].float() - mean) / std)
    if 'valid' in sample:
        image = torch.where(sample['valid'], image, 0.0)
    kept = {key: value for key, value in sample.items() if key not in ('valid', 'bounds', 'transform')}
    return {**kept, 'image': image}


def synthetic(task: Literal['classification', 'segmentation'], folder: Path) -> Benchmark:
    """Simulated Sentinel-2 scenes that nothing was pretrained on: another seed, hence other landscapes."""
    scenes = SyntheticScenes(folder, ['sentinel-2-l2a'], scenes_per_sensor=24, size=384, seed=1)
    splits = []
    for split in ('train', 'test'):
        chips = SyntheticChips(scenes, 'sentinel-2-l2a', split, task, SIZE, val_split=0.05, test_split=0.6)
        splits.append([normalized(chips[i], chips.sensor) for i in range(len(chips))])
        chips.close()
    return Benchmark(task, len(SyntheticChips.classes), splits[0], splits[1])


def eurosat_rgb(real: Path) -> Benchmark:
    """EuroSAT as JPEG: reflectance stretched to 8 bits, which no released sensor is, so a sensor of its own."""
    dataset = NonGeoClassificationDataset(str(real / 'labelled/eurosat_rgb'))
    samples = [dataset[i] for i in range(len(dataset))]
    # every second file of a class, in the order of their names
    train, test = samples[::2], samples[1::2]
    pixels = torch.stack([s['image'] for s in train])
    waves = [get_sensor('sentinel-2-l2a').select([name]).wavelengths[0] for name in ('red', 'green', 'blue')]
    bands = tuple(
        Band(name, wave, float(pixels[:, i].mean()), float(pixels[:, i].std()))
        for i, (name, wave) in enumerate(zip(('red', 'green', 'blue'), waves, strict=True))
    )
    sensor = Sensor('eurosat-rgb', 10.0, bands, rgb=('red', 'green', 'blue'))
    about = {'wavelength': torch.tensor(sensor.wavelengths), 'res': torch.tensor(sensor.gsd)}
    samples = [[normalized({**s, **about}, sensor) for s in split] for split in (train, test)]
    return Benchmark('classification', len(dataset.classes), samples[0], samples[1])


def cut(
    tile: Tile, sensor: Sensor, columns: tuple[float, float], classes: Callable[[Tensor], Tensor]
) -> Iterator[Sample]:
    """Chips of an image and its labels, side by side, between two shares of its width."""
    image, labels = tile
    raster = SensorRaster([image], sensor, gsd=1.0 if sensor.name == 'naip' else None)
    with rasterio.open(labels) as file:
        mask = classes(torch.from_numpy(file.read(1).astype(np.int64)))
    height, width = mask.shape
    first, last = (round(share * width) for share in columns)
    for row in range(0, height - SIZE + 1, SIZE):
        for col in range(first, last - SIZE + 1, SIZE):
            chip = mask[row : row + SIZE, col : col + SIZE]
            if (chip != IGNORED).any():
                yield {**normalized(raster.patch(0, row, col, (SIZE, SIZE)), sensor), 'mask': chip.clone()}
    raster.close()


def chesapeake(real: Path) -> Benchmark:
    """NAIP and land cover in six classes; the files named train_ train, those named val_ test."""
    folder, sensor = real / 'labelled/chesapeake_naip', get_sensor('naip')

    def chips(prefix: str) -> list[Sample]:
        images = sorted(folder.glob(f'{prefix}_*_naip.tif'))
        tiles = [(image, image.with_name(image.name.replace('_naip', '_lc'))) for image in images]
        return [
            chip
            for tile in tiles
            for chip in cut(tile, sensor, (0, 1), lambda m: torch.where((m >= 1) & (m <= 6), m - 1, IGNORED))
        ]

    return Benchmark('segmentation', 6, chips('train'), chips('val'))


def sen1floods11(real: Path) -> Benchmark:
    """Water on Sentinel-1; two scenes of five test."""
    folder, sensor = real / 'labelled/sen1floods11', get_sensor('sentinel-1-rtc')

    def chips(*names: str) -> list[Sample]:
        tiles = [(folder / f'{name}_s1.tif', folder / f'{name}_label.tif') for name in names]
        return [c for t in tiles for c in cut(t, sensor, (0, 1), lambda m: torch.where(m >= 0, m, IGNORED))]

    train = chips('Ghana_53713', 'India_900498', 'Mekong_333434')
    return Benchmark('segmentation', 2, train, chips('Nigeria_812045', 'Spain_6860600'))


def land_use(real: Path) -> Benchmark:
    """Land use on three Sentinel-2 tiles; the left two thirds of each train, the right third tests."""
    sensor = get_sensor('sentinel-2-l2a')
    splits: list[list[Sample]] = [[], []]
    for image in sorted((real / 'sentinel2').glob('terramesh_*_s2l2a.tif')):
        labels = real / 'labelled/terramesh_lulc' / image.name.replace('_s2l2a', '_lulc')
        for split, columns in zip(splits, ((0, 0.66), (0.66, 1)), strict=True):
            split += cut((image, labels), sensor, columns, lambda m: torch.where((m >= 1) & (m <= 9), m - 1, IGNORED))
    return Benchmark('segmentation', 9, splits[0], splits[1])


#: Name → how it is made from the folder of real data and one for simulated scenes.
DATASETS: dict[str, Callable[[Path, Path], Benchmark]] = {
    'synthetic classes': lambda real, made: synthetic('classification', made),
    'EuroSAT RGB': lambda real, made: eurosat_rgb(real),
    'synthetic land cover': lambda real, made: synthetic('segmentation', made),
    'Chesapeake': lambda real, made: chesapeake(real),
    'Sen1Floods11': lambda real, made: sen1floods11(real),
    'TerraMesh land use': lambda real, made: land_use(real),
}
