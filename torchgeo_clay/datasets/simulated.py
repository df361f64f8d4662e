# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Chips of the synthetic scenes with something to learn about each. Shapes: C bands, H = W = patch_size pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rasterio.windows import Window
from torch import Tensor
from torchgeo.datasets import NonGeoDataset
from torchvision.ops import masks_to_boxes

from torchgeo_clay.datasets.plotting import show, true_color
from torchgeo_clay.datasets.raster.dataset import SensorRaster
from torchgeo_clay.datasets.upstream import Sample
from torchgeo_clay.simulator import CLASSES, SyntheticScenes
from torchgeo_clay.simulator.render import make_scene

__all__ = ('ChipTask', 'Split', 'SyntheticChips', 'boxes_of', 'split_scene_numbers')

Split = Literal['train', 'val', 'test']
ChipTask = Literal['classification', 'segmentation', 'regression', 'detection']

#: Pixels that a house has at least in a chip.
_LEAST = 16

_COLORS = ListedColormap([[part / 255 for part in c.color] for c in CLASSES])


class Chip(NamedTuple):
    """Where a chip lies: position in the raster's scenes, first row and column."""

    scene: int
    row: int
    col: int


def split_scene_numbers(count: int, val_split: float, test_split: float, seed: int) -> dict[Split, list[int]]:
    """Deal out whole scenes, so that no scene lends chips to two splits.

    The last scenes are held out: landscapes take turns, so the first ones hold every kind there is. Which of those held
    out validate and which test is drawn from the seed.

    Args:
        count: number of scenes.
        val_split: share of the scenes that validate, in (0, 1); at least one scene.
        test_split: share of the scenes that test, likewise.
        seed: of the draw.

    Returns:
        Split → numbers of its scenes, ascending.
    """
    for name, share in (('val_split', val_split), ('test_split', test_split)):
        if not 0 < share < 1:
            raise ValueError(f'{name}: expected a share between 0 and 1, got {share}.')
    val, test = (max(1, round(share * count)) for share in (val_split, test_split))
    train = count - val - test
    if train < 1:
        raise ValueError(
            f'Expected scenes for training, validation and test, got {count} in all, of which {val} would validate and '
            f'{test} test. Make more scenes (scenes_per_sensor), or lower val_split and test_split.'
        )
    held = [train + int(i) for i in np.random.default_rng(seed).permutation(val + test)]
    return {'train': list(range(train)), 'val': sorted(held[:val]), 'test': sorted(held[val:])}


def boxes_of(mask: Tensor) -> Tensor:
    """Return the boxes of masks: (N, H, W) → (N, 4), left, top, right and bottom edges in pixels."""
    return masks_to_boxes(mask) + torch.tensor([0.0, 0, 1, 1])


class SyntheticChips(NonGeoDataset):
    """Chips side by side of one sensor's synthetic scenes, for downstream tasks.

    Samples are those of :meth:`~torchgeo_clay.datasets.SensorRaster.patch`: ``image`` (C, H, W) in the sensor's units,
    ``valid``, ``wavelength`` (C,) µm, ``res`` meters per pixel, ``lat``, ``lon`` degrees, ``time`` seconds UTC; and

    * for ``classification``: ``label`` () int64, the land cover that most of the chip has, as position in
      :data:`~torchgeo_clay.simulator.CLASSES`. Chips where no class reaches ``min_share`` are left out: their
      label would be a matter of a few pixels.
    * for ``segmentation``: ``mask`` (H, W) int64, the land cover of each pixel.
    * for ``regression``: ``mask`` (H, W) float32, the green vegetation cover of each pixel, 0 to 1, for pixel-wise
      regression, and ``label`` () float32, its mean over the chip, for regression.
    * for ``detection``: ``mask`` (N, H, W) uint8, the houses, ``bbox_xyxy`` (N, 4) float32, pixels, and ``label`` (N,),
      which is 1. Chips without a house are left out. A plot has some 18 m, so that only sensors of a meter or less show
      houses.

    Splits share no scene, see :func:`split_scene_numbers`. Simulated data serves to try out and compare; it says
    nothing about how good a model is on the Earth.

    Attributes:
        sensor: the sensor, with the bands selected.
        chips: where the chips lie.
        left_out: number of chips without a dominant class.
    """

    classes = tuple(c.name for c in CLASSES)

    def __init__(
        self,
        scenes: SyntheticScenes,
        sensor: str,
        split: Split = 'train',
        task: ChipTask = 'classification',
        patch_size: int = 64,
        bands: Sequence[str] | None = None,
        *,
        min_share: float = 0.5,
        val_split: float = 0.2,
        test_split: float = 0.2,
        seed: int = 0,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        """Initialize a new SyntheticChips instance.

        Args:
            scenes: the scenes.
            sensor: name of one of their sensors.
            split: ``train``, ``val`` or ``test``.
            task: ``classification``, ``segmentation``, ``regression`` or ``detection``.
            patch_size: pixels per side of a chip, at most the scenes' size.
            bands: names or aliases of the bands wanted, in the order wanted; None for all.
            min_share: share of a chip that its class must have at least, 0 to 1; for classification.
            val_split: share of the scenes that validate; see :func:`split_scene_numbers`.
            test_split: share of the scenes that test.
            seed: of the split.
            transforms: called on each sample.
        """
        for name, value, known in (('split', split, get_args(Split)), ('task', task, get_args(ChipTask))):
            if value not in known:
                raise ValueError(f'{name}: expected one of {", ".join(known)}, got {value!r}.')
        if not 1 <= patch_size <= scenes.size:
            raise ValueError(f"patch_size: expected 1 to {scenes.size}, the scenes' size, got {patch_size}.")
        if not 0 <= min_share <= 1:
            raise ValueError(f'min_share: expected a share from 0 to 1, got {min_share}.')
        files = scenes.files(sensor)
        chosen = split_scene_numbers(len(files), val_split, test_split, seed)[split]
        source = next(s for s in scenes.sensors if s.name == sensor)
        self._numbers, self._source, self._houses = chosen, source, dict[int, npt.NDArray[np.int64]]()
        self.raster = SensorRaster([files[i] for i in chosen], source, bands)
        self.sensor = self.raster.sensor
        self.scenes, self.split, self.task, self.patch_size = scenes, split, task, patch_size
        self.min_share, self.transforms = min_share, transforms
        starts = range(0, scenes.size - patch_size + 1, patch_size)
        chips = [Chip(*place) for place in product(range(len(self.raster.scenes)), starts, starts)]
        self._dominant: list[int] = []
        if task == 'detection':
            chips = [chip for chip in chips if len(self._objects(chip)['label'])]
            if not chips:
                raise ValueError(
                    f'detection: expected scenes with houses, got none in the {split} scenes of {sensor}. Give '
                    'a sensor of 1 m or less, such as linz, or more scenes: scenes_per_sensor.'
                )
        self.chips = self._with_dominant_class(chips) if task == 'classification' else chips
        self.left_out = len(chips) - len(self.chips)

    def _with_dominant_class(self, chips: Sequence[Chip]) -> list[Chip]:
        """The chips where a class reaches the share wanted; their classes are kept."""
        whole = (self._read('labels', Chip(i, 0, 0), self.scenes.size) for i in range(len(self.raster.scenes)))
        cover = [labels.astype(np.int64) for labels in whole]
        kept, best = [], 0.0
        for chip in chips:
            rows, cols = (slice(start, start + self.patch_size) for start in (chip.row, chip.col))
            counts = np.bincount(cover[chip.scene][rows, cols].ravel(), minlength=len(CLASSES))
            share = counts.max() / counts.sum()
            best = max(best, share)
            if share >= self.min_share:
                kept.append(chip)
                self._dominant.append(int(counts.argmax()))
        if not kept:
            raise ValueError(
                f'min_share: expected chips that a class covers to {self.min_share:.0%}, but the purest of '
                f'{len(chips)} {self.split} chips has {best:.0%}. Lower min_share or patch_size.'
            )
        return kept

    def _read(self, kind: Literal['labels', 'targets'], chip: Chip, size: int) -> npt.NDArray[np.generic]:
        """Labels or targets of a window of a scene, (size, size)."""
        name = Path(self.raster.scenes[chip.scene].path).name
        folder = self.scenes.labels if kind == 'labels' else self.scenes.targets
        with rasterio.open(folder / self.sensor.name / name) as file:
            return cast(npt.NDArray[np.generic], file.read(1, window=Window(chip.col, chip.row, size, size)))

    def _objects(self, chip: Chip) -> dict[str, Tensor]:
        """Masks, boxes and labels of a chip's houses, of which no file says where they are."""
        if chip.scene not in self._houses:
            scene = make_scene(self._source, self._numbers[chip.scene], self.scenes.size, self.scenes.seed)
            self._houses[chip.scene] = scene.houses
        rows, cols = (slice(start, start + self.patch_size) for start in (chip.row, chip.col))
        window = self._houses[chip.scene][rows, cols]
        numbers, counts = np.unique(window, return_counts=True)
        kept = numbers[(numbers > 0) & (counts >= _LEAST)]
        mask = torch.from_numpy(window[None] == kept[:, None, None]).to(torch.uint8)
        return {'mask': mask, 'bbox_xyxy': boxes_of(mask), 'label': torch.ones(len(mask), dtype=torch.int64)}

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.chips)

    def __getitem__(self, index: int) -> Sample:
        """Read the chip at a position in :attr:`chips`."""
        chip = self.chips[index]
        sample = self.raster.patch(*chip, (self.patch_size, self.patch_size))
        if self.task == 'classification':
            sample['label'] = torch.tensor(self._dominant[index])
        elif self.task == 'segmentation':
            sample['mask'] = torch.from_numpy(self._read('labels', chip, self.patch_size).astype(np.int64))
        elif self.task == 'detection':
            sample |= self._objects(chip)
        else:
            sample['mask'] = torch.from_numpy(self._read('targets', chip, self.patch_size).astype(np.float32))
            sample['label'] = sample['mask'].mean()
        return sample if self.transforms is None else self.transforms(sample)

    def close(self) -> None:
        """Close the files of this process; they are opened again when read."""
        self.raster.close()

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot a chip in true color, with its mask and prediction."""
        if self.task == 'detection':
            return self._plot_objects(sample, suptitle)
        image = true_color(sample['image'], self.sensor, sample.get('valid'))
        maps = [(n, sample[n]) for n in ('mask', 'prediction') if n in sample and sample[n].ndim >= 2]
        titles = [self._caption(sample), *(name for name, _ in maps)] if show_titles else [''] * (1 + len(maps))
        legend: dict[str, Any] = {'cmap': _COLORS, 'vmin': 0, 'vmax': len(CLASSES) - 1, 'interpolation': 'nearest'}
        look: dict[str, Any] = {'cmap': 'YlGn', 'vmin': 0, 'vmax': 1} if self.task == 'regression' else legend
        pictures: list[Any] = [image, *(value for _, value in maps)]
        return show(list(zip(titles, pictures, strict=True)), suptitle, **look)

    def _plot_objects(self, sample: Sample, suptitle: str | None) -> Figure:
        """Plot a chip with its boxes and outlines, and the predicted ones that are likelier than not."""
        image = true_color(sample['image'], self.sensor, sample.get('valid'))
        kinds = [('truth', '')] + [('prediction, score above 0.5', 'prediction_')] * ('prediction_bbox_xyxy' in sample)
        figure = show([(title, image) for title, _ in kinds], suptitle or self.sensor.name)
        for axes, (_, prefix) in zip(figure.axes, kinds, strict=True):
            boxes = sample[f'{prefix}bbox_xyxy'].cpu()
            masks, scores = (sample.get(f'{prefix}{name}') for name in ('mask', 'score'))
            for i in range(len(boxes)):
                if scores is not None and scores[i] <= 0.5:
                    continue
                left, top, right, bottom = boxes[i].tolist()
                axes.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color='w'))
                if masks is not None and (mask := masks[i].cpu().squeeze().numpy() > 0.5).any() and not mask.all():
                    axes.contour(mask, levels=[0.5], colors='c', linewidths=1)
        return figure

    def _caption(self, sample: Sample) -> str:
        """The sensor, and the label and its prediction if they are one for the chip."""
        parts = [self.sensor.name]
        for name in ('label', 'prediction'):
            if name in sample and sample[name].numel() == 1:
                value = float(sample[name])
                parts.append(f'{name}: ' + (f'{value:.2f}' if self.task == 'regression' else self.classes[int(value)]))
        return ', '.join(parts)
