# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Peak memory of mapping scenes of several heights, each in a process of its own. On Linux.

python docs/scripts/measure_maps.py output/measured
"""

from __future__ import annotations

import argparse
import os
import threading
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from torchgeo.tasks import BaseTask

from torchgeo_clay.callbacks import RasterWriter
from torchgeo_clay.datamodules import SceneDataModule

WIDTH = 2048


class Threshold(BaseTask):
    """Eight classes without a model, so that what is measured is all the rest."""

    def configure_models(self) -> None:
        """There is none."""
        self.model = torch.nn.Identity()
        self.hparams.update({'task': 'multiclass', 'num_classes': 8})

    def predict_step(self, batch: dict, batch_idx: int = 0) -> torch.Tensor:
        """The bands twice, as probabilities."""
        return batch['image'].repeat(1, 2, 1, 1).softmax(1)


def write_scene(path: Path, height: int) -> None:
    """A NAIP scene, tiled as such scenes are, written tile by tile."""
    profile = {'driver': 'GTiff', 'count': 4, 'height': height, 'width': WIDTH, 'dtype': 'uint8', 'tiled': True}
    where = {'crs': 'EPSG:32611', 'transform': from_origin(500_000, 3_600_000, 1, 1)}
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, 'w', **profile, **where, blockxsize=256, blockysize=256) as file:
        for _, window in file.block_windows():
            file.write(rng.integers(1, 255, (4, window.height, window.width), dtype=np.uint8), window=window)
        file.descriptions = ('red', 'green', 'blue', 'nir')


def anonymous() -> float:
    """Megabytes of this process that are no files'."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('RssAnon')) / 1024


def map_scene(path: Path, out: Path) -> None:
    """Map it, and print what this process has held at most beside what it held before."""
    samples, ended = [anonymous()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            samples.append(anonymous())

    threading.Thread(target=watch, daemon=True).start()
    data = SceneDataModule(str(path), 'naip', chip=256, stride=128, unit_size=None, batch_size=8)
    trainer = pl.Trainer(accelerator='cpu', logger=False, enable_progress_bar=False, callbacks=[RasterWriter(str(out))])
    trainer.predict(Threshold(), datamodule=data, return_predictions=False)
    ended.set()
    print(f'{path.stem}: {max(samples) - samples[0]:.0f} MB at most', flush=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('out', type=Path)
    parser.add_argument('--heights', type=int, nargs='+', default=[2048, 4096, 8192])
    arguments = parser.parse_args()
    for height in arguments.heights:
        if (child := os.fork()) == 0:
            scene = arguments.out / 'scenes' / f'{height} rows.tif'
            write_scene(scene, height)
            map_scene(scene, arguments.out / f'maps-{height}')
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == '__main__':
    main()
