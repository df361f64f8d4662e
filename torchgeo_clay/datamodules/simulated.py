# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Downstream tasks on synthetic scenes, offline. Shapes: B samples, C bands, H = W = patch_size pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Dataset

from torchgeo_clay.datamodules.common import check_at_least, check_patch_size, check_precision, check_share, counted
from torchgeo_clay.datamodules.pretrain.dataset import FLIP, HIDE_METADATA
from torchgeo_clay.datamodules.pretrain.loader import PlannedLoader, ResumableDataModule, ResumableLoader
from torchgeo_clay.datamodules.pretrain.plan import PatchKey, rng_of
from torchgeo_clay.datamodules.wrapped.datamodule import SensorName
from torchgeo_clay.datasets.simulated import ChipTask, Split, SyntheticChips, boxes_of
from torchgeo_clay.sensors import Sensor
from torchgeo_clay.simulator import SyntheticScenes

__all__ = ('KeyedChips', 'SyntheticDataModule')


class KeyedChips(Dataset[dict[str, Any]]):
    """Chips by key; all that is random in training is drawn from (seed, epoch, number)."""

    def __init__(self, chips: SyntheticChips, *, train: bool, seed: int = 0, hide_metadata: float = 0.0) -> None:
        """Initialize a new KeyedChips instance; ``hide_metadata`` is as :class:`SyntheticDataModule` says."""
        self.chips, self.train, self.seed, self.hide_metadata = chips, train, seed, hide_metadata

    def __getitem__(self, key: PatchKey) -> dict[str, Any]:
        """Read the chip of a key: a sample of ``SyntheticChips``, and what the loader needs."""
        sample = dict(self.chips[key.number])
        hidden = self.hide_metadata == 1  # a model that never saw them in training would not know what to make of them
        if self.train:
            *flips, hide = rng_of('downstream', self.seed, key.sensor, key.epoch, key.number).random(3)
            dims = [dim for dim, draw in zip((-2, -1), flips, strict=True) if draw < FLIP]
            for name in {'image', 'valid', 'mask'} & set(sample):
                sample[name] = torch.flip(sample[name], dims)
            if 'bbox_xyxy' in sample:
                sample['bbox_xyxy'] = boxes_of(sample['mask'])
            hidden = hide < self.hide_metadata
        if hidden:
            for name in ('lat', 'lon', 'time'):
                sample[name] = torch.full_like(sample[name], torch.nan)
        path = self.chips.raster.scenes[self.chips.chips[key.number].scene].path
        return {**sample, 'sensor': SensorName(key.sensor), 'path': path, 'counts': key.counts, 'failures': []}


class SyntheticDataModule(ResumableDataModule):
    """Chips of :class:`~torchgeo_clay.datasets.SyntheticScenes` with land cover, vegetation cover or houses to predict.

    Existing scenes, such as those of pretraining, are used; else they are written. No scene has chips in two of
    training, validation and test; the images of all, though not their labels, may have been pretrained on. Flips
    and hidden metadata are drawn from (seed, epoch, number of the chip), whatever the number of workers and devices.

    A batch holds what :class:`~torchgeo_clay.datasets.SyntheticChips` says, stacked, with ``wavelength`` (B, C) and
    ``sensor``, a string; on the device ``image`` is normalized with the statistics of the sensor.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data/synthetic',
        sensor: str = 'sentinel-2-l2a',
        task: ChipTask = 'classification',
        bands: Sequence[str] | None = None,
        batch_size: int = 16,
        patch_size: int = 64,
        num_workers: int = 0,
        min_share: float = 0.5,
        hide_metadata: float = HIDE_METADATA,
        val_split: float = 0.2,
        test_split: float = 0.2,
        seed: int = 0,
        synthetic: dict[str, Any] | None = None,
    ) -> None:
        """Initialize a new SyntheticDataModule instance.

        Args:
            root: folder of the scenes.
            sensor: name of the sensor whose scenes are used.
            task: ``classification``, ``segmentation``, ``regression`` or ``detection``, see
                :class:`~torchgeo_clay.datasets.SyntheticChips`.
            bands: names or aliases of the bands wanted, in the order wanted; None for all.
            batch_size: samples per batch and device.
            patch_size: pixels per side of a chip, a multiple of 8.
            num_workers: worker processes per loader.
            min_share: share of a chip that its class must have at least; for classification.
            hide_metadata: share of the training samples whose place and time are made unknown; with 1 those of
                evaluation are, too. All chips of a scene have one time and nearly one place, so that a model can learn
                a few scenes by heart from these.
            val_split: share of the scenes that validate.
            test_split: share of the scenes that test.
            seed: of the split, the order and the flips.
            synthetic: arguments of :class:`~torchgeo_clay.datasets.SyntheticScenes`, which must be those that ``root``
                was written with; None for its defaults.
        """
        super().__init__(SyntheticChips, batch_size, num_workers)
        check_patch_size(patch_size)
        check_at_least(1, batch_size=batch_size)
        check_at_least(0, num_workers=num_workers, seed=seed)
        check_share(1, hide_metadata=hide_metadata)
        self.root, self.sensor, self.task, self.bands = root, sensor, task, bands
        self.patch_size, self.min_share, self.seed = patch_size, min_share, seed
        self.hide_metadata = hide_metadata
        self.val_split, self.test_split, self.synthetic = val_split, test_split, dict(synthetic or {})
        self.selected: dict[str, Sensor] = {}

    def prepare_data(self) -> None:
        """Write the scenes, if they are not there. Called by one process only."""
        SyntheticScenes(self.root, **self.synthetic)

    def setup(self, stage: str) -> None:
        """Look for the chips and say how many there are; the chips of the test are predicted."""
        check_precision(self.trainer)
        wanted: dict[str, tuple[tuple[str, Split], ...]] = {
            'fit': (('train', 'train'), ('val', 'val')),
            'validate': (('val', 'val'),),
            'test': (('test', 'test'),),
            'predict': (('predict', 'test'),),
        }
        scenes = SyntheticScenes(self.root, **self.synthetic)
        options: dict[str, Any] = {k: getattr(self, k) for k in ('min_share', 'val_split', 'test_split', 'seed')}
        for name, split in wanted[stage]:
            chips = SyntheticChips(scenes, self.sensor, split, self.task, self.patch_size, self.bands, **options)
            setattr(self, f'{name}_dataset', chips)
            self.selected = {self.sensor: chips.sensor}
            # TorchGeo's tasks undo the normalization by these for their plots
            self.mean, self.std = torch.tensor(chips.sensor.mean), torch.tensor(chips.sensor.std)
            without = f', {chips.left_out} without a dominant class skipped' if chips.left_out else ''
            source = f'{counted(len(chips.raster.scenes), "scene")} of {self.sensor}'
            rank_zero_info(f'{name}: {counted(len(chips), "chip")} of {source}{without}')

    def _loader(self, split: str) -> PlannedLoader:
        """A loader of every chip of a split once, in order."""
        chips = self._valid_attribute(f'{split}_dataset')
        keyed = KeyedChips(chips, train=False, hide_metadata=self.hide_metadata)
        return self._evaluation_loader(keyed, {self.sensor: len(chips)})

    def train_dataloader(self) -> ResumableLoader:
        """The loader of this rank's batches, whose position Lightning saves; an incomplete last batch is dropped."""
        chips = self._valid_attribute('train_dataset')
        identity = {
            'hide_metadata': self.hide_metadata,
            'task': self.task,
            'bands': list(chips.sensor.band_names),
            'patch_size': self.patch_size,
            'chips': len(chips),
            'scenes': [Path(scene.path).name for scene in chips.raster.scenes],
        }
        keyed = KeyedChips(chips, train=True, seed=self.seed, hide_metadata=self.hide_metadata)
        return self._training_loader(keyed, {self.sensor: len(chips)}, 'equal', identity=identity)

    def val_dataloader(self) -> PlannedLoader:
        """The loader of this rank's batches of validation, the same in every epoch."""
        return self._loader('val')

    def test_dataloader(self) -> PlannedLoader:
        """The loader of this rank's batches of the test."""
        return self._loader('test')

    def predict_dataloader(self) -> PlannedLoader:
        """The loader of the chips that test, to be predicted."""
        return self._loader('predict')

    def teardown(self, stage: str) -> None:
        """Stop the workers and close the files."""
        super().teardown(stage)
        for name in ('train', 'val', 'test', 'predict'):
            if isinstance(chips := getattr(self, f'{name}_dataset'), SyntheticChips):
                chips.close()

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Check a batch's values on the host, and drop what TorchGeo's tasks would take for values of samples."""
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        return {key: value for key, value in batch.items() if key not in ('paths', 'counted')}

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Normalize a batch on its device."""
        sensor = self.selected[batch['sensor']]
        # the selection not before the transfer: Lightning refuses to move a frozen dataclass
        return {**batch, 'image': sensor.normalize(batch['image'], batch['valid']), 'selection': sensor}
