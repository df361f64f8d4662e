# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Pretrain a tiny Clay with several position codes, all else equal, and print the losses that docs/position.md shows.

python docs/scripts/compare_positions.py output/positions --codes release graded --seeds 3 --epochs 20

A run that is in ``results.csv`` is not repeated, so that a stopped comparison goes on where it was. Chips, their order
and the masks are the same in all runs; a seed changes the initial weights. The loss is also measured on chips of 256
pixels, whose grid no run with chips of 64 pixels has seen.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd
import torch
from einops import repeat
from torch import Tensor

from torchgeo_clay.datamodules import ClayPretrainDataModule
from torchgeo_clay.models import clay
from torchgeo_clay.tasks import ClayPretraining

#: From 0.5 to 500 m.
SENSORS = ['linz', 'naip', 'sentinel-2-l2a', 'landsat-c2l2-sr', 'modis']


def graded(low: float, gsd_dim: int = 16, meters: bool = False) -> Callable[[int, int, Tensor, int], Tensor]:
    """A code with frequencies from 1 to ``low`` per patch, or per 8 m, and ``gsd_dim`` channels of the GSD."""

    def code(height: int, width: int, gsd: Tensor, dim: int) -> Tensor:
        count = (dim - gsd_dim) // 4
        omega = low ** (torch.arange(count) / (count - 1))
        scale = gsd.float()[:, None] if meters else torch.ones(len(gsd), 1)
        grid = clay.axes_code(height, width, omega * scale)
        angles = gsd.float().log2()[:, None] * 0.5 ** (torch.arange(gsd_dim // 2) / 2)
        ground = repeat(torch.cat([angles.sin(), angles.cos()], dim=-1), 'g d -> g l d', l=height * width)
        return torch.cat([grid, ground], dim=-1)

    return code


#: Name → code of the grid. The release's in the package is used as it is.
CODES: dict[str, Callable[[int, int, Tensor, int], Tensor]] = {
    'release': clay.grid_code,
    'graded': clay.graded_code,
    'graded, no GSD': graded(1e-2, gsd_dim=0),
    'graded to 1/10': graded(1e-1),
    'graded to 1/1000': graded(1e-3),
    'meters': graded(8 / 200_000, gsd_dim=0, meters=True),
}


def data(root: Path, size: int, batch: int) -> ClayPretrainDataModule:
    """Simulated scenes, always the same."""
    synthetic = {'sensors': SENSORS, 'scenes_per_sensor': 12, 'size': 512}
    module = ClayPretrainDataModule(
        root=str(root / 'scenes'), synthetic=synthetic, batch_size=batch, patch_size=size, num_workers=0
    )
    module.prepare_data()
    return module


def compare(root: Path, name: str, seed: int, epochs: int, size: int, batch: int, lr: float) -> dict[str, float]:
    """Train with one code and return the reconstruction losses of validation."""
    pl.seed_everything(seed, verbose=False)
    clay.graded_code = CODES[name]
    task = ClayPretraining('clay_mae_tiny_patch8', position='graded', lr=lr)
    quiet = {'logger': False, 'enable_progress_bar': False, 'enable_model_summary': False, 'accelerator': 'cpu'}
    trainer = pl.Trainer(
        max_epochs=epochs,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        default_root_dir=root,
        **quiet,
    )
    trainer.fit(task, data(root, size, batch))
    losses: dict[str, float] = {}
    for grid in (64, 256):
        metrics = pl.Trainer(default_root_dir=root, **quiet).validate(
            task, data(root, grid, 4 if grid > 64 else 16), verbose=False
        )[0]
        for key, value in metrics.items():
            if key.startswith('val_reconstruction_loss'):
                losses[f'{grid} {key.partition("/")[2] or "all"}'] = value
    return losses


def main() -> None:
    """Run what is missing, and print means and standard deviations over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', type=Path)
    parser.add_argument('--codes', nargs='+', choices=CODES, default=['release', 'graded'])
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--size', type=int, default=64, help='pixels a side of the training chips')
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--lr', type=float, default=1e-3)
    args = parser.parse_args()
    args.root.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings('ignore', module='lightning')
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    table = args.root / 'results.csv'
    done = pd.read_csv(table).to_dict('records') if table.exists() else []
    for seed in range(args.seeds):
        for name in args.codes:
            run = {'code': name, 'seed': seed, 'epochs': args.epochs, 'size': args.size, 'lr': args.lr}
            if any(all(row[k] == v for k, v in run.items()) for row in done):
                continue
            losses = compare(args.root, name, seed, args.epochs, args.size, args.batch, args.lr)
            done.append({**run, **losses})
            pd.DataFrame(done).to_csv(table, index=False)
            print(run, {k: round(v, 4) for k, v in losses.items()}, flush=True)
    results = pd.DataFrame(done)
    keys = ['size', 'lr', 'epochs', 'code']
    print(results.groupby(keys).agg(['mean', 'std']).drop(columns='seed').round(3).T.to_string())


if __name__ == '__main__':
    main()
