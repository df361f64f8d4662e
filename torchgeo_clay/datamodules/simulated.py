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

from torchgeo_clay.conditioning import check_batch
from torchgeo_clay.datamodules.arguments import check_at_least, check_patch_size, check_precision, check_share
from torchgeo_clay.datamodules.pretrain.dataset import FLIP, HIDE_METADATA
from torchgeo_clay.datamodules.pretrain.loader import PlannedLoader, ResumableDataModule, ResumableLoader
from torchgeo_clay.datamodules.pretrain.plan import EpochPlan, PatchKey, plan_epoch, plan_evaluation, rng_of
from torchgeo_clay.datamodules.wrapped.datamodule import SensorName
from torchgeo_clay.datasets.simulated import ChipTask, Split, SyntheticChips
from torchgeo_clay.sensors import Sensor
from torchgeo_clay.simulator import SyntheticScenes

__all__ = ('KeyedChips', 'SyntheticDataModule')


class KeyedChips(Dataset[dict[str, Any]]):
    """Chips by key; all that is random in training is drawn from (seed, epoch, number)."""

    def __init__(self, chips: SyntheticChips, *, train: bool, seed: int = 0, hide_metadata: float = 0.0) -> None:
        """Initialize a new instance.

        Args:
            chips: the chips.
            train: whether anything is random.
            seed: seed of the run.
            hide_metadata: share of the samples whose place and time are made unknown in training; 1 for always.
        """
        self.chips, self.train, self.seed, self.hide_metadata = chips, train, seed, hide_metadata

    def __getitem__(self, key: PatchKey) -> dict[str, Any]:
        """Read the chip of a key.

        Args:
            key: see :class:`~torchgeo_clay.datamodules.pretrain.plan.PatchKey`.

        Returns:
            The sample of :class:`~torchgeo_clay.datasets.SyntheticChips`, each of ``image``, ``valid`` and ``mask``
            flipped or none; ``sensor`` and ``path``, strings; ``counts`` and ``failures``, for the loader.
        """
        sample = dict(self.chips[key.number])
        hidden = self.hide_metadata == 1  # a model that never saw them in training would not know what to make of them
        if self.train:
            *flips, hide = rng_of('downstream', self.seed, key.sensor, key.epoch, key.number).random(3)
            dims = [dim for dim, draw in zip((-2, -1), flips, strict=True) if draw < FLIP]
            for name in {'image', 'valid', 'mask'} & set(sample):
                sample[name] = torch.flip(sample[name], dims)
            hidden = hide < self.hide_metadata
        if hidden:
            for name in ('lat', 'lon', 'time'):
                sample[name] = torch.full_like(sample[name], torch.nan)
        path = self.chips.raster.scenes[self.chips.chips[key.number].scene].path
        return {**sample, 'sensor': SensorName(key.sensor), 'path': path, 'counts': key.counts, 'failures': []}


class SyntheticDataModule(ResumableDataModule):
    """Chips of :class:`~torchgeo_clay.datasets.SyntheticScenes` with land cover or vegetation cover to predict.

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
        """Initialize a new instance.

        Args:
            root: folder of the scenes.
            sensor: name of the sensor whose scenes are used.
            task: ``classification``, ``segmentation`` or ``regression``, see
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

        Raises:
            ValueError: for values out of range.
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
        self._loaders: list[PlannedLoader] = []

    def _scenes(self) -> SyntheticScenes:
        """The scenes, written where there are none yet."""
        return SyntheticScenes(self.root, **self.synthetic)

    def prepare_data(self) -> None:
        """Write the scenes, if they are not there. Called by one process only."""
        self._scenes()

    def setup(self, stage: str) -> None:
        """Look for the chips and say how many there are.

        Raises:
            ValueError: for whatever :class:`~torchgeo_clay.datasets.SyntheticChips` refuses, or a precision that cannot
                hold time and place.
        """
        check_precision(None if self.trainer is None else self.trainer.precision)
        wanted: dict[str, tuple[tuple[str, Split], ...]] = {
            'fit': (('train', 'train'), ('val', 'val')),
            'validate': (('val', 'val'),),
            'test': (('test', 'test'),),
            'predict': (('predict', 'test'),),
        }
        scenes = self._scenes()
        for name, split in wanted[stage]:
            chips = SyntheticChips(
                scenes,
                self.sensor,
                split,
                self.task,
                self.patch_size,
                self.bands,
                min_share=self.min_share,
                val_split=self.val_split,
                test_split=self.test_split,
                seed=self.seed,
            )
            setattr(self, f'{name}_dataset', chips)
            self._adopt(chips.sensor)
            without = f', {chips.left_out} without a dominant class skipped' if chips.left_out else ''
            rank_zero_info(f'{name}: {len(chips)} chips of {len(chips.raster.scenes)} scenes of {self.sensor}{without}')

    def _adopt(self, sensor: Sensor) -> None:
        """Normalize with the statistics of a sensor, which TorchGeo's tasks undo for their plots."""
        self.selected = {self.sensor: sensor}
        self.mean, self.std = torch.tensor(sensor.mean), torch.tensor(sensor.std)

    def _loader(self, split: str) -> PlannedLoader:
        """A loader of every chip of a split once, in order."""
        chips = self._valid_attribute(f'{split}_dataset')
        rank, world = self._world
        plan = plan_evaluation({self.sensor: len(chips)}, self.batch_size * world)
        loader = PlannedLoader(
            KeyedChips(chips, train=False, hide_metadata=self.hide_metadata),
            lambda epoch: plan,
            rank=rank,
            world_size=world,
            num_workers=self.num_workers,
        )
        self._loaders.append(loader)
        return loader

    def train_dataloader(self) -> ResumableLoader:
        """The loader of this rank's batches, whose position Lightning saves; an incomplete last batch is dropped."""
        chips = self._valid_attribute('train_dataset')
        rank, world = self._world
        sizes, total, seed = {self.sensor: len(chips)}, self.batch_size * world, self.seed

        def plan(epoch: int) -> EpochPlan:
            return plan_epoch(sizes, total, seed=seed, epoch=epoch)

        identity = {
            'batch_size × devices': total,
            'seed': seed,
            'hide_metadata': self.hide_metadata,
            'task': self.task,
            'bands': list(chips.sensor.band_names),
            'patch_size': self.patch_size,
            'chips': len(chips),
            'scenes': [Path(scene.path).name for scene in chips.raster.scenes],
        }
        loader = ResumableLoader(
            KeyedChips(chips, train=True, seed=seed, hide_metadata=self.hide_metadata),
            plan,
            rank=rank,
            world_size=world,
            num_workers=self.num_workers,
            identity=identity,
            trainer=self.trainer,
        )
        self._loaders.append(loader)
        return self._resumed(loader)

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
        while self._loaders:
            self._loaders.pop().close()
        for name in ('train', 'val', 'test', 'predict'):
            if isinstance(chips := getattr(self, f'{name}_dataset'), SyntheticChips):
                chips.close()

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Check a batch's values on the host.

        Raises:
            ValueError: for whatever :func:`~torchgeo_clay.conditioning.check_batch` refuses.
        """
        check_batch(batch)
        return {key: value for key, value in batch.items() if key not in ('paths', 'counted')}

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Normalize a batch on its device."""
        sensor = self.selected[batch['sensor']]
        # the selection not before the transfer: Lightning refuses to move a frozen dataclass
        return {**batch, 'image': sensor.normalize(batch['image'], batch['valid']), 'selection': sensor}
