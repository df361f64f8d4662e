# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Compare ways to use a tiny Clay on labeled data, random or pretrained, beside resnet18 and RCF.

    python docs/scripts/benchmark_tasks.py output/pretrain/version_0/checkpoints/last.ckpt ../shared/data/real

Every row is trained for the same number of steps on the same batches, by the tasks of TorchGeo or of this package, and
tested once, after the last step. Prints a Markdown table. Each run is added to a CSV; those it holds are not run again.
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
import warnings
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from benchmark_data import DATASETS, IGNORED, Benchmark
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchgeo.models import RCF
from torchgeo.tasks import Classification, SemanticSegmentation

from torchgeo_clay.tasks import ClayClassification, ClaySemanticSegmentation

METHODS = (
    'random, frozen',
    'pretrained, frozen',
    'pretrained, LoRA',
    'pretrained, full',
    'resnet18',
    'RCF',
)
RATES = {'frozen': 3e-3, 'LoRA': 2e-3, 'full': 5e-4, 'resnet18': 1e-3, 'RCF': 1e-2}
FEATURES = 192  # of RCF, as many as the tiny Clay has


class RandomFeatures(nn.Module):
    """TorchGeo's RCF of each pixel; its own forward gives their mean alone, and nothing a head could learn on."""

    def __init__(self, channels: int) -> None:
        """Draw the filters."""
        super().__init__()
        self.rcf = RCF(channels, FEATURES, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        """Positive and negative responses: (B, C, H, W) → (B, F, H, W)."""
        found, bias = nn.functional.conv2d(x, self.rcf.weights, padding=1), self.rcf.biases[:, None, None]
        return torch.cat([torch.relu(found + bias), torch.relu(-found + bias)], dim=1)


class RCFClassification(Classification):
    """TorchGeo's classification on random convolutional features."""

    def configure_models(self) -> None:
        """RCF, their mean and a linear layer."""
        head = nn.Linear(FEATURES, self.hparams['num_classes'])
        features = RandomFeatures(self.hparams['in_channels'])
        self.model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


class RCFSegmentation(SemanticSegmentation):
    """TorchGeo's segmentation on random convolutional features."""

    def configure_models(self) -> None:
        """RCF and a linear layer of each pixel."""
        head = nn.Conv2d(FEATURES, self.hparams['num_classes'], 1)
        self.model = nn.Sequential(RandomFeatures(self.hparams['in_channels']), head)


def make_task(method: str, data: Benchmark, checkpoint: Path) -> LightningModule:
    """The task of a row."""
    rate = next(value for key, value in RATES.items() if key in method)
    common: dict[str, Any] = {'num_classes': data.classes, 'lr': rate}
    dense = data.task == 'segmentation'
    if dense:
        common['ignore_index'] = IGNORED
    channels = data.train[0]['image'].shape[0]
    if method == 'resnet18':
        if dense:
            return SemanticSegmentation('unet', 'resnet18', in_channels=channels, **common)
        return Classification('resnet18', in_channels=channels, **common)
    if method == 'RCF':
        return (RCFSegmentation if dense else RCFClassification)(in_channels=channels, **common)
    common |= {'weights': None if method.startswith('random') else str(checkpoint)}
    common |= {'freeze_backbone': 'frozen' in method, 'lora': 8 if 'LoRA' in method else None}
    if dense:
        return ClaySemanticSegmentation(backbone='clay_tiny_patch8', **common)
    return ClayClassification('clay_tiny_patch8', pooling='mean', **common)


def run(method: str, data: Benchmark, checkpoint: Path, seed: int, steps: int, batch: int) -> float:
    """Train and test once.

    Returns:
        Overall accuracy of a classification, mean intersection over union of a segmentation, in per cent.
    """
    seed_everything(seed)
    task = make_task(method, data, checkpoint)
    repeats = 1 + -(-steps * batch // len(data.train))  # no epoch ends, as the stock schedule would validate then
    train = DataLoader(data.train * repeats, batch, shuffle=True, drop_last=True)  # type: ignore[arg-type]
    quiet = {
        'logger': False,
        'enable_checkpointing': False,
        'enable_progress_bar': False,
        'enable_model_summary': False,
    }
    trainer = Trainer(accelerator='cpu', max_steps=steps, gradient_clip_val=1.0, limit_val_batches=0, **quiet)
    trainer.fit(task, train)
    (metrics,) = trainer.test(task, DataLoader(data.test, 64), verbose=False)  # type: ignore[arg-type]
    return 100 * metrics['test_OverallAccuracy' if data.task == 'classification' else 'test_AverageJaccardIndex']


def table(rows: list[dict[str, str]]) -> str:
    """Mean and spread over the seeds, a row per method and a column per dataset."""
    values = defaultdict(list)
    for row in rows:
        values[row['method'], row['data']].append(float(row['value']))
    names = [name for name in DATASETS if any(key[1] == name for key in values)]
    lines = ['| | ' + ' | '.join(names) + ' |', '|---' * (len(names) + 1) + '|']
    for method in METHODS:
        cells = [values[method, name] for name in names]
        texts = [f'{statistics.mean(c):.1f} ± {statistics.pstdev(c):.1f}' if c else '–' for c in cells]
        lines.append(f'| {method} | ' + ' | '.join(texts) + ' |')
    return '\n'.join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('checkpoint', type=Path, help='of ClayPretraining, model clay_mae_tiny_patch8')
    parser.add_argument('real', type=Path, help='folder of the real data')
    parser.add_argument('--scenes', type=Path, default=Path('data/benchmark'), help='folder for simulated scenes')
    parser.add_argument('--results', type=Path, default=Path('output/benchmark.csv'))
    parser.add_argument('--data', nargs='+', default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument('--methods', nargs='+', default=list(METHODS), choices=METHODS)
    parser.add_argument('--seeds', type=int, default=2)
    parser.add_argument('--steps', type=int, default=150)
    parser.add_argument('--batch', type=int, default=16)
    args = parser.parse_args()
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    warnings.filterwarnings('ignore')  # Lightning's advice on workers and logging
    args.results.parent.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader(args.results.open())) if args.results.exists() else []
    done = {(row['data'], row['method'], row['seed']) for row in rows}
    data = {name: DATASETS[name](args.real, args.scenes) for name in args.data}
    for name, benchmark in data.items():
        print(f'{name}: {len(benchmark.train)} chips train, {len(benchmark.test)} test', flush=True)
    for seed, name, method in product(range(args.seeds), args.data, args.methods):
        if (name, method, str(seed)) in done:
            continue
        value = run(method, data[name], args.checkpoint, seed, args.steps, args.batch)
        rows.append({'data': name, 'method': method, 'seed': str(seed), 'value': f'{value:.3f}'})
        with args.results.open('w', newline='') as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        print(f'{name}, {method}, seed {seed}: {value:.1f}', flush=True)
    print(table(rows))


if __name__ == '__main__':
    main()
