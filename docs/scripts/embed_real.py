# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Embed and map real scenes of many sensors, draw them, and say how fast that was.

    python docs/scripts/embed_real.py ../shared/data/real output/real CHECKPOINT

The source is the collection of open crops that docs/embeddings.md speaks of, CHECKPOINT one of pretraining a tiny Clay.
Maps are of a decoder at random: they show that each scene can be mapped, not what is on it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import rasterio
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from torchgeo_clay.callbacks import EmbeddingWriter, RasterWriter
from torchgeo_clay.datamodules import SceneDataModule
from torchgeo_clay.datasets import ClayEmbeddings, SceneError
from torchgeo_clay.datasets.raster.scene import scan_scene
from torchgeo_clay.tasks import ClayEmbedding, ClaySemanticSegmentation

#: Sentinel-2 delivers its near infrared (B08) at 10 m only, so a scene at 60 m is of nine of the ten bands.
BANDS_60M = ['blue', 'green', 'red', 'rededge1', 'rededge2', 'rededge3', 'nir08', 'swir16', 'swir22']

#: Files whose sensor can't be detected: a name, patterns, and how they are read.
GIVEN: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    'sentinel-2-l2a at 60 m': (
        ('sentinel2/S2A_MSIL2A_*_60m_crop.tif',),
        {'sensor': 'sentinel-2-l2a', 'bands': BANDS_60M, 'offset': -1000},
    ),
    'sentinel-1-rtc, as GRD': (
        ('sentinel1/*_s1grd.tif', 'labelled/sen1floods11/*_s1.tif', 'multisensor_worldcereal/*_s1grd_*.tif'),
        {'sensor': 'sentinel-1-rtc'},
    ),
    'naip without CRS': (('labelled/chesapeake_naip/*_naip.tif',), {'sensor': 'naip', 'gsd': 1.0}),
    'naip at 24 m': (('labelled/chesapeake_naip/*_naip-new.tif',), {'sensor': 'naip'}),
}


def grouped(source: Path) -> tuple[dict[str, tuple[list[Path], dict[str, Any]]], dict[Path, str]]:
    """Groups of files read alike, by name, and the reason for each skipped file."""
    groups: dict[str, tuple[list[Path], dict[str, Any]]] = {}
    for name, (patterns, options) in GIVEN.items():
        groups[name] = sorted(f for pattern in patterns for f in source.glob(pattern)), options
    given = {file for files, _ in groups.values() for file in files}
    refused = {}
    for file in sorted(f for f in source.rglob('*') if f.suffix in ('.tif', '.jpg', '.jpeg') and f not in given):
        try:
            sensor = scan_scene(file).sensor
        except SceneError as error:
            refused[file] = str(error).removeprefix(f'{file}: ')
        else:
            groups.setdefault(sensor.name, ([], {'sensor': sensor.name}))[0].append(file)
    return dict(sorted(groups.items())), refused


def predict(task: pl.LightningModule, data: SceneDataModule, writer: pl.Callback) -> float:
    """Run `torchgeo predict`; its seconds."""
    trainer = pl.Trainer(
        accelerator='cpu', logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[writer]
    )
    start = time.perf_counter()
    trainer.predict(task, datamodule=data, return_predictions=False)
    return time.perf_counter() - start


def model_alone(task: ClayEmbedding, data: SceneDataModule) -> float:
    """Seconds that the model takes for all chips, which lie in memory."""
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.predict_dataloader()]
    batches = [batch for batch in batches if len(batch['image'])]
    with torch.inference_mode():
        task(batches[0])  # folds
        start = time.perf_counter()
        for batch in batches:
            task(batch)
        return time.perf_counter() - start


def rgb(file: str, data: SceneDataModule) -> np.ndarray:
    """A scene's pixels as they may be shown: (H, W, 3)."""
    (raster,) = data.rasters.values()
    number = [scene.path for scene in raster.scenes].index(file)
    scene = raster.scenes[number]
    sample = raster.patch(number, 0, 0, (scene.height, scene.width))
    names = list(raster.sensor.band_names)
    shown = raster.sensor.rgb or (names[0], names[1], names[0])  # radar has no colors
    image = sample['image'][[names.index(band) for band in shown]].float().numpy()
    low, high = np.percentile(image, [2, 98], axis=(1, 2), keepdims=True)
    return np.clip((image - low) / np.maximum(high - low, 1e-6), 0, 1).transpose(1, 2, 0)


def draw_scenes(pictures: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """A scene of each group, and the principal components of its patches below."""
    half = -(-len(pictures) // 2)
    figure = Figure(figsize=(1.9 * half, 8.2), layout='constrained')
    grid = figure.subplots(4, half, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, (name, (above, below)) in enumerate(pictures.items()):
        row, col = divmod(i, half)
        grid[2 * row, col].imshow(above)
        grid[2 * row, col].set_title(name, fontsize=8)
        grid[2 * row + 1, col].imshow(below)
    figure.savefig(path, dpi=75)
    with Image.open(path) as picture:
        small = picture.convert('RGB').quantize(96, dither=Image.Dither.NONE)
    small.save(path, optimize=True)  # a third of the bytes


def draw_scatter(tables: dict[str, np.ndarray], path: Path) -> None:
    """All chips by the first two principal components, colored by group."""
    values = np.concatenate(list(tables.values()))
    mean = values.mean(0)
    basis = np.linalg.svd(values - mean, full_matrices=False)[2][:2]
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.subplots()
    for i, (name, table) in enumerate(tables.items()):
        x, y = ((table - mean) @ basis.T).T
        axes.scatter(x, y, s=6, linewidths=0, alpha=0.7, label=name, color=f'C{i % 10}', marker='os'[i // 10])
    axes.set(xlabel='first principal component', ylabel='second')
    figure.legend(loc='outside right upper', fontsize='small', markerscale=2)
    figure.savefig(path, dpi=75)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('source', type=Path, help='folder of the collection')
    parser.add_argument('out', type=Path, help='folder of the tables and maps; not there yet')
    parser.add_argument('checkpoint', help='of pretraining a tiny Clay')
    parser.add_argument('--chip', type=int, default=64)
    parser.add_argument('--pictures', type=Path, default=Path('docs/images'))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tasks = {
        pooling: ClayEmbedding('clay_tiny_patch8', weights=arguments.checkpoint, pooling=pooling).eval()
        for pooling in ('class', 'patches')
    }
    dense = ClaySemanticSegmentation('unet', 'clay_tiny_patch8', weights=False, num_classes=3).eval()  # random
    groups, refused = grouped(arguments.source.resolve())
    pictures, tables, lines = {}, {}, []
    for name, (files, options) in groups.items():

        def data(**more: Any) -> SceneDataModule:
            windows = {'chip': arguments.chip, 'stride': arguments.chip // 2, 'patch_grid': True}
            return SceneDataModule([str(f) for f in files], **windows, **options, **more)  # noqa: B023

        folder = arguments.out / name.replace(' ', '_').replace(',', '')
        seconds = predict(tasks['class'], data(), EmbeddingWriter(f'{folder}/class.parquet', quicklooks=False))
        predict(tasks['patches'], data(), EmbeddingWriter(f'{folder}/patches.parquet'))
        mapping = predict(dense, data(unit_size=None), RasterWriter(f'{folder}/maps'))
        table = ClayEmbeddings(f'{folder}/class.parquet')
        tables[name] = table.embeddings
        chips = len(table)
        alone = model_alone(tasks['class'], data())
        for file in files:
            with rasterio.open(file) as given, rasterio.open(folder / 'maps' / file.name) as found:
                assert (found.shape, found.crs, found.transform) == (given.shape, given.crs, given.transform), file
        first = str(max(files, key=lambda f: f.stat().st_size))
        shown = imread(folder / 'patches_quicklooks' / f'{Path(first).stem}_pca.png')
        pictures[name] = rgb(first, data()), shown
        rates = ' | '.join(f'{chips / s:.0f}' for s in (seconds, alone, mapping))
        lines.append(f'| {name} | {len(files)} | {chips} | {rates} |')
    print('| read as | scenes | chips | embedded, chips/s | model alone | mapped |\n|---|---|---|---|---|---|')
    print('\n'.join(lines))
    print(f'{len(refused)} files are refused:')
    for file, reason in refused.items():
        print(f'  {file.relative_to(arguments.source.resolve())}: {reason}')
    draw_scenes(pictures, arguments.pictures / 'embeddings-real.png')
    draw_scatter(tables, arguments.pictures / 'embeddings-scatter.png')


if __name__ == '__main__':
    main()
