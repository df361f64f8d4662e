# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Pretraining on folders of scenes: every batch holds one sensor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from torchgeo_clay.datamodules.common import check_at_least, check_patch_size, check_precision, check_share
from torchgeo_clay.datamodules.pretrain.dataset import PretrainDataset
from torchgeo_clay.datamodules.pretrain.loader import PlannedLoader, ResumableDataModule, ResumableLoader
from torchgeo_clay.datamodules.pretrain.plan import Shares, describe_plan
from torchgeo_clay.datamodules.pretrain.regions import SensorScenes, split_scenes
from torchgeo_clay.datamodules.pretrain.scan import check_agreement, describe_parts, find_folders, scan_folder
from torchgeo_clay.sensors import Sensor
from torchgeo_clay.simulator import SyntheticScenes

__all__ = ('ClayPretrainDataModule',)


class ClayPretrainDataModule(ResumableDataModule):
    """Patches of scenes of many sensors, one sensor per batch.

    ``root`` holds one folder per sensor, named as in :data:`~torchgeo_clay.sensors.SENSORS` or with a ``sensor.yaml``
    of its own, and in it GeoTIFF scenes of any size, CRS and dtype and Clay's ``.npz`` chips. Everything random is
    drawn from (seed, epoch, sensor, index): the number of workers and of devices changes nothing, and a killed run
    that is resumed in mid-epoch trains on exactly the batches that were left.

    A ``weights.csv`` in a folder, with the columns ``file`` and ``weight``, sets the shares of its scenes in training.

    A batch of B samples, C bands, H = W = ``patch_size`` and L = (H / 8)² patches, on the device, holds

    * ``image`` (B, C, H, W) float32, normalized, hidden bands and pixels without data zero
    * ``target`` (B, C, H, W) float32, the same without hidden bands
    * ``valid`` (B, 1, H, W) bool, False for nodata · ``band_mask`` (B, C) bool, False for hidden bands
    * ``noise`` (B, L) float32, whose smallest values are masked
    * ``wavelength`` (B, C) µm · ``res`` (B,) meters per pixel, float32
    * ``lat``, ``lon`` (B,) degrees WGS84 · ``time`` (B,) seconds UTC, float64, NaN for unknown
    * ``index`` (B,) int64, number of the sample · ``sensor`` name of the folder, a string
    * ``selection``, the :class:`~torchgeo_clay.sensors.Sensor` whose bands are the channels
    * ``paths``, the files they were read from · ``counted``, B, or 0 where the one sample only keeps a rank busy
    * ``teacher_target`` (B, T) float32, only with ``ClayPretraining(teacher_targets=…)``
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = 'data/synthetic',
        sensors: Sequence[str] | None = None,
        batch_size: int = 16,
        patch_size: int = 256,
        num_workers: int = 0,
        shares: str | dict[str, float] = 'equal',
        val_split: float = 0.1,
        seed: int = 0,
        min_valid: float = 0.5,
        patches_per_scene: int | None = None,
        readers: dict[str, dict[str, Any]] | None = None,
        synthetic: bool | dict[str, Any] = False,
        max_failures: int = 10,
    ) -> None:
        """Initialize a new ClayPretrainDataModule instance.

        Args:
            root: folder of the sensors' folders; with ``synthetic`` the folder to write them to.
            sensors: names of the folders to use; None for all.
            batch_size: samples per batch and device.
            patch_size: pixels per side of a patch, a multiple of 8; smaller scenes are padded.
            num_workers: worker processes per loader.
            shares: ``equal`` for the same number of batches of each sensor, ``size`` for batches in proportion to the
                data, or a weight per sensor; see
                :func:`~torchgeo_clay.datamodules.pretrain.plan.count_batches`.
            val_split: share of each sensor's scenes that validate; see
                :func:`~torchgeo_clay.datamodules.pretrain.regions.split_scenes`.
            seed: seed of all that is random.
            min_valid: share of pixels with data below which a patch is replaced in training, and does not validate
                where others of its scene do.
            patches_per_scene: patches drawn from a scene in an epoch of training; None for as many as lie side by side.
            readers: per folder, how its files are read: ``bands``, ``scale``, ``offset``, ``to_db``, ``nodata``,
                ``gsd``, ``time`` for rasters, ``order`` for chips.
            synthetic: True to write simulated scenes to ``root`` where there are none yet, and use them; or the
                arguments of :class:`~torchgeo_clay.datasets.SyntheticScenes`.
            max_failures: scenes that may fail while read before a run is stopped; each rank counts its own.
        """
        super().__init__(PretrainDataset, batch_size, num_workers)
        check_patch_size(patch_size)
        check_at_least(1, batch_size=batch_size)
        check_at_least(0, num_workers=num_workers, seed=seed, max_failures=max_failures)
        if patches_per_scene is not None:
            check_at_least(1, patches_per_scene=patches_per_scene)
        check_share(1 - 1e-9, val_split=val_split)
        check_share(1, min_valid=min_valid)
        self.root, self.sensors, self.patch_size = root, sensors, patch_size
        self.shares: Shares = shares
        self.val_split, self.seed, self.min_valid = val_split, seed, min_valid
        self.patches_per_scene, self.readers = patches_per_scene, readers or {}
        self.synthetic, self.max_failures = synthetic, max_failures
        self.selected: dict[str, Sensor] = {}
        self._parts: dict[str, dict[str, SensorScenes]] = {}

    def prepare_data(self) -> None:
        """Write the simulated scenes, if ``synthetic``. Called by one process only."""
        self._images()

    def _images(self) -> str | os.PathLike[str]:
        """Return the folder of the sensors' folders, and write simulated scenes to it if ``synthetic``."""
        if self.synthetic is False:
            return self.root
        return SyntheticScenes(self.root, **({} if self.synthetic is True else self.synthetic)).images

    def setup(self, stage: str) -> None:
        """Look at the scenes, split them and log what there is; the scenes that validate are the scenes that test."""
        check_precision(self.trainer)
        options: dict[str, Any] = {'seed': self.seed, 'min_valid': self.min_valid}
        if not self._parts:
            check_agreement(self._look)
            self.val_dataset = PretrainDataset(self._parts['val'], self.patch_size, train=False, **options)
        if stage == 'fit':
            options['patches_per_scene'] = self.patches_per_scene
            self.train_dataset = PretrainDataset(self._parts['train'], self.patch_size, train=True, **options)
            for line in describe_plan(self.train_dataset.sizes, self.batch_size * self._world[1], self.shares):
                rank_zero_info(line)

    def _look(self) -> dict[str, tuple[int, str]]:
        """Look at the scenes of this rank, split them and describe them for the other ranks."""
        parts: dict[str, dict[str, SensorScenes]] = {'train': {}, 'val': {}}
        for name, folder in find_folders(self._images(), self.sensors, self.readers).items():
            found = scan_folder(folder, self.patch_size)
            rank_zero_info(found.summary())
            if found.skipped:
                rank_zero_warn(found.skips())
            scenes = found.scenes
            self.selected[name] = scenes.sensor
            parts['train'][name], val = split_scenes(
                scenes, self.val_split, seed=self.seed, patch_size=self.patch_size, root=folder.path
            )
            if val.regions:
                parts['val'][name] = val
            elif self.val_split:
                rank_zero_warn(
                    f'{name}: its only scene is too small, or holds too little data, to give a part to validation; it '
                    'trains, and nothing of this sensor validates.'
                )
        self._parts = parts
        return describe_parts(parts)

    def train_dataloader(self) -> ResumableLoader:
        """The loader of this rank's batches, whose position Lightning saves."""
        dataset = self._valid_attribute('train_dataset')
        identity = {  # all that an epoch's batches depend on, in plain types
            'shares': self.shares if isinstance(self.shares, str) else dict(self.shares),
            'patch_size': self.patch_size,
            'min_valid': self.min_valid,
            'patches per epoch': dataset.sizes,
            'scenes': {n: part.digest(self.selected[n].band_names) for n, part in self._parts['train'].items()},
        }
        options = {'identity': identity, 'max_failures': self.max_failures}
        return self._training_loader(dataset, dataset.sizes, self.shares, **options)

    def val_dataloader(self) -> PlannedLoader | list[PlannedLoader]:
        """The loader of this rank's batches of validation; none where no scene validates."""
        dataset = self.val_dataset
        if not isinstance(dataset, PretrainDataset) or not dataset.sizes:
            return []
        return self._evaluation_loader(dataset, dataset.sizes, max_failures=self.max_failures)

    def test_dataloader(self) -> PlannedLoader | list[PlannedLoader]:
        """The loader of validation: pretraining holds out one part of the scenes only."""
        return self.val_dataloader()

    def teardown(self, stage: str) -> None:
        """Stop the workers and close the files."""
        super().teardown(stage)
        for part in (part for parts in self._parts.values() for part in parts.values()):
            part.close()

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Normalize a batch on its device, hide bands, and add the sensor whose bands are the channels."""
        # not before the transfer: Lightning refuses to move a frozen dataclass
        sensor = self.selected[batch['sensor']]
        target = sensor.normalize(batch['image'], batch['valid'])
        # bands are hidden after normalization, as in the release
        image = target * batch['band_mask'][:, :, None, None]
        return {**batch, 'target': target, 'image': image, 'selection': sensor}
