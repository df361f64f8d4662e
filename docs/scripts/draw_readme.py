# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Draw the README's picture: a real scene, its reconstruction, its embeddings as colors, and a map of them.

    python docs/scripts/arrange_real.py ../shared/data/real data/real-arranged
    OMP_NUM_THREADS=1 torchgeo fit --config configs/clay_pretrain_folders.yaml --data.root data/real-arranged \
        --data.sensors '[sentinel-2-l2a, sentinel-2-l2a-60m]' \
        --data.readers '{sentinel-2-l2a-60m: {offset: -1000}}' --data.patch_size 112 --data.patches_per_scene 16 \
        --data.seed 7 --model.model clay_mae_tiny_patch8 --trainer.max_epochs 150 \
        --trainer.check_val_every_n_epoch 50 --trainer.logger.init_args.save_dir output/readme
    python docs/scripts/draw_readme.py output/readme/version_0/checkpoints/last.ckpt \
        data/real-arranged/sentinel-2-l2a/terramesh_282D_485L_3_3_s2l2a.tif docs/images/readme.png

The map is no segmentation that was trained: it is k-means of the embeddings.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image
from sklearn.cluster import KMeans
from torch import Tensor
from torchgeo.datasets import stack_samples

from torchgeo_clay.callbacks import EmbeddingWriter
from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.datamodules import SceneDataModule
from torchgeo_clay.datasets import SensorRaster
from torchgeo_clay.evaluation import as_embeddings
from torchgeo_clay.models.mae import Masking
from torchgeo_clay.sensors import Sensor
from torchgeo_clay.tasks import ClayEmbedding, ClayPretraining
from torchgeo_clay.writers.quicklook import principal_components, scores

_SENSOR = 'sentinel-2-l2a'
_WINDOW = 112  # pixels, as in training
_PALETTE = ListedColormap(['#0072B2', '#E69F00', '#009E73', '#F0E442', '#CC79A7'])  # for color-blind eyes, too


def statistics(sensor: Sensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (C, 1, 1)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (sensor.mean, sensor.std))
    return mean, std


def reconstruct(task: ClayPretraining, raster: SensorRaster) -> tuple[Tensor, Tensor, Tensor]:
    """A scene window by window, three quarters of its patches hidden.

    Returns:
        The scene, what the encoder saw (NaN where it did not), and the scene with the hidden patches as predicted:
        (C, H, W) in the sensor's units.
    """
    scene = raster.scenes[0]
    rows, cols = (range(0, size - _WINDOW + 1, _WINDOW) for size in (scene.height, scene.width))
    samples = [raster.patch(0, row, col, (_WINDOW, _WINDOW)) for row in rows for col in cols]
    batch = stack_samples(samples)
    mean, std = statistics(raster.sensor)
    image = raster.sensor.normalize(batch['image'], batch['valid'])
    noise = torch.rand((len(samples), (_WINDOW // 8) ** 2), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        predicted = task.model.reconstruct(image, **Conditioning.from_batch(batch).arguments, noise=noise)
    side = _WINDOW // 8
    mask = rearrange(Masking.from_noise(noise, task.model.mask_ratio).mask.bool(), 'b (h w) -> b 1 h w', h=side)
    hidden = mask.repeat_interleave(8, -2).repeat_interleave(8, -1)
    parts = image, torch.where(hidden, torch.nan, image), torch.where(hidden, predicted, image)
    whole = (rearrange(part, '(r c) k h w -> k (r h) (c w)', r=len(rows)) for part in parts)
    original, seen, completed = (part * std + mean for part in whole)
    return original, seen, completed


def embed(checkpoint: str, scene: Path, classes: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    """Embed chips of 16 pixels every 2: three principal components (h, w, 3) from 0 to 1, and k-means (h, w)."""
    with tempfile.TemporaryDirectory() as folder:
        table = f'{folder}/table.parquet'
        trainer = pl.Trainer(
            accelerator='cpu',
            logger=False,
            enable_progress_bar=False,
            callbacks=[EmbeddingWriter(table, quicklooks=False)],
        )
        data = SceneDataModule(str(scene), sensor=_SENSOR, chip=16, stride=2, batch_size=256)
        task = ClayEmbedding('clay_tiny_patch8', weights=checkpoint, pooling='mean')
        trainer.predict(task, datamodule=data, return_predictions=False)
        embeddings = as_embeddings(table)
        values = scores(embeddings, *principal_components(table, 3))
    found = KMeans(classes, n_init=3, random_state=0).fit_predict(embeddings)
    low, high = np.percentile(values, [2, 98], axis=0)
    side = round(len(values) ** 0.5)  # the scene is square
    colors = np.clip((values - low) / (high - low), 0, 1).reshape(side, side, 3)
    return colors.astype(np.float32), found.reshape(side, side)


def shown(image: Tensor, sensor: Sensor, like: Tensor) -> npt.NDArray[np.float64]:
    """True color (H, W, 3), stretched as another image is; gray where nothing is known."""
    bands = list(sensor.rgb_indices)
    low, high = (torch.quantile(like[bands].flatten(1).double(), q, dim=1)[:, None, None] for q in (0.02, 0.98))
    stretched = ((image[bands] - low) / (high - low)).clamp(0, 1) ** 0.7  # dark woods are no black
    return rearrange(stretched.nan_to_num(0.8), 'k h w -> h w k').numpy()


def draw(panels: list[tuple[str, npt.NDArray[np.generic]]], meters: float, path: Path) -> None:
    """Panels beside each other, with a bar of 500 m in the first."""
    figure = Figure(figsize=(16, 3.5), layout='constrained')
    grid: npt.NDArray[np.object_] = figure.subplots(1, len(panels), squeeze=False)[0]
    axes: Axes
    for axes, (title, picture) in zip(grid, panels, strict=True):
        edge = 0 if picture.shape[0] * 10 == meters else 70  # the middles of chips begin 70 m inside
        extent = (edge, meters - edge, edge, meters - edge)
        axes.imshow(picture, cmap=_PALETTE, extent=extent, interpolation='nearest')
        axes.set(xlim=(70, meters - 70), ylim=(70, meters - 70), xticks=[], yticks=[])
        axes.set_title(title, fontsize=13)
        for spine in axes.spines.values():
            spine.set_visible(False)
    grid[0].plot([170, 670], [180, 180], color='white', lw=4, solid_capstyle='butt')
    grid[0].text(420, 215, '500 m', color='white', ha='center', va='bottom', fontsize=12)
    figure.savefig(path, dpi=100)
    with Image.open(path) as picture:
        small = picture.convert('RGB').quantize(200, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('checkpoint', help='of pretraining a tiny Clay')
    parser.add_argument('scene', type=Path, help='of Sentinel-2, square, a multiple of 112 pixels a side')
    parser.add_argument('picture', type=Path)
    parser.add_argument('--classes', type=int, default=5)
    arguments = parser.parse_args()
    raster = SensorRaster(arguments.scene, _SENSOR)
    task = ClayPretraining.load_from_checkpoint(arguments.checkpoint, weights_only=False).eval()
    original, seen, completed = reconstruct(task, raster)
    colors, classes = embed(arguments.checkpoint, arguments.scene, arguments.classes)
    panels = [
        ('scene', shown(original, raster.sensor, original)),
        ('25 % that the encoder sees', shown(seen, raster.sensor, original)),
        ('reconstructed from these', shown(completed, raster.sensor, original)),
        ('embeddings as colors', colors),
        (f'map: k-means, {arguments.classes} groups', classes),
    ]
    draw(panels, 10 * raster.scenes[0].height, arguments.picture)


if __name__ == '__main__':
    main()
