# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Whole scenes as chips, for ``torchgeo predict``. Shapes: B samples, C bands, H = W = chip."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchgeo.datamodules import BaseDataModule

from torchgeo_clay.conditioning import check_batch
from torchgeo_clay.datamodules.arguments import check_at_least, check_precision
from torchgeo_clay.datamodules.scenes.batches import BatchLoader, ChipBatches
from torchgeo_clay.datamodules.scenes.work import Unit, batches, plan_units
from torchgeo_clay.datasets import Scene, SceneError, SensorRaster
from torchgeo_clay.datasets.raster.detection import detect_sensor
from torchgeo_clay.datasets.raster.files import list_rasters
from torchgeo_clay.datasets.raster.scanning import scan_scenes
from torchgeo_clay.datasets.raster.windows import PATCH, check_windows
from torchgeo_clay.sensors import Sensor, get_sensor
from torchgeo_clay.sensors.normalization import SensorNormalization, normalize

__all__ = ('SceneDataModule',)


class SceneDataModule(BaseDataModule):
    """Chips of a given size and stride that cover scenes, in order, for prediction.

    Batches follow the contract of :mod:`torchgeo_clay.conditioning`, are of one sensor each, and are normalised on the
    device; invalid pixels are 0, the mean. :class:`~torchgeo_clay.datamodules.scenes.batches.ChipBatches` says which
    windows they are of. Chips without any data are left out, files that are no scene of the sensor named and left out.

    Attributes:
        rasters: name of a sensor → its scenes.
        skipped: of each file left out its path and the reason.
        units: the units of work, in order; see :class:`~torchgeo_clay.datamodules.scenes.work.Unit`.
    """

    def __init__(
        self,
        paths: str | list[str],
        sensor: str | Sensor | None = None,
        bands: list[str] | None = None,
        chip: int = 256,
        stride: int | None = None,
        patch_grid: bool = False,
        batch_size: int = 16,
        num_workers: int = 0,
        offset: float = 0.0,
        to_db: bool = False,
        gsd: float | None = None,
        time: str | float | None = None,
        unit_size: int | None = 1024,
    ) -> None:
        """Initialise.

        Args:
            paths: files, folders and URLs of scenes.
            sensor: of all scenes; None to tell each file's from its folder, tags and bands.
            bands: the sensor's bands wanted; None for all. Needs ``sensor``.
            chip: pixels per side, a multiple of 8.
            stride: pixels from one chip to the next; None for the chip, side by side. The last chip of a row or column
                is moved back so that it ends where the scene ends.
            patch_grid: whether chips begin at multiples of 8, so that the patches of all of them lie on one grid.
            batch_size: chips of a batch.
            num_workers: worker processes that read.
            offset: see :class:`~torchgeo_clay.datasets.SensorRaster`, as for the next three.
            to_db: see there.
            gsd: see there.
            time: see there.
            unit_size: chips that are written together, and done again together after a kill; None for whole scenes,
                as maps are.

        Raises:
            ValueError: for a chip or stride that will not do, or values out of range.
        """
        super().__init__(ChipBatches, batch_size, num_workers)
        self.stride = chip if stride is None else stride
        self.align = PATCH if patch_grid else 1
        check_windows(chip, self.stride, self.align)
        check_at_least(1, batch_size=batch_size, unit_size=1 if unit_size is None else unit_size)
        check_at_least(0, num_workers=num_workers)
        if bands is not None and sensor is None:
            raise ValueError(f'bands={list(bands)} need a sensor to look them up in: give sensor= too.')
        self.paths, self.sensor, self.bands = paths, None if sensor is None else get_sensor(sensor), bands
        self.chip, self.batch_size, self.num_workers, self.unit_size = chip, batch_size, num_workers, unit_size
        self.reader: dict[str, Any] = {'offset': offset, 'to_db': to_db, 'gsd': gsd, 'time': time}
        self.skipped: list[tuple[str, str]] = []
        self._done: Callable[[], Iterable[str]] = tuple
        # a rank may have nothing to do while others have
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @property
    def settings(self) -> dict[str, Any]:
        """What the chips depend on besides the scenes, as plain values."""
        return {'chip': self.chip, 'stride': self.stride, 'align': self.align, 'bands': self.bands, **self.reader}

    @cached_property
    def rasters(self) -> dict[str, SensorRaster]:
        """Name of a sensor → its scenes; looked for when first asked for.

        Raises:
            ValueError: if no scene is left.
        """
        files, self.skipped = list_rasters(self.paths), []
        found: dict[str, SensorRaster] = {}
        for sensor, some in self._by_sensor(files).items():
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', UserWarning)  # what is left out is said below, of all sensors at once
                try:
                    found[sensor.name] = SensorRaster(some, sensor, self.bands, **self.reader)
                except ValueError:
                    self.skipped += _reasons(some, sensor, self.bands, self.reader)
                    continue
            self.skipped += found[sensor.name].skipped
        if not found:
            said = '\n'.join(f'  {path}: {reason}' for path, reason in self.skipped[:10]) or '  (no file at all)'
            raise ValueError(f'paths: expected scenes, found none to use in {self.paths}:\n{said}')
        return found

    def _by_sensor(self, files: Sequence[str]) -> dict[Sensor, list[str]]:
        """Files by their sensor; those whose sensor can't be told are skipped."""
        if self.sensor is not None:
            return {self.sensor: list(files)}
        found: dict[Sensor, list[str]] = {}
        for file in files:
            try:
                found.setdefault(detect_sensor(file), []).append(file)
            except SceneError as error:
                self.skipped.append((file, str(error).removeprefix(f'{file}: ')))
        return dict(sorted(found.items(), key=lambda item: item[0].name))

    @property
    def selected(self) -> dict[str, Sensor]:
        """Name of a sensor → the sensor, with the bands of its images."""
        return {name: raster.sensor for name, raster in self.rasters.items()}

    @cached_property
    def units(self) -> list[Unit]:
        """The units of work of all ranks, in order."""
        return [
            unit
            for raster in self.rasters.values()
            for unit in plan_units(
                raster,
                chip=self.chip,
                stride=self.stride,
                align=self.align,
                size=self.unit_size,
                settings=self.settings,
            )
        ]

    def scene(self, unit: Unit) -> Scene:
        """The scene that a unit is of."""
        return self.rasters[unit.sensor].scenes[unit.scene]

    def setup(self, stage: str) -> None:
        """Look for the scenes, and say what was found.

        Args:
            stage: ``predict``.
        """
        check_precision(getattr(self.trainer, 'precision', None))
        for raster in self.rasters.values():
            small = [s.path for s in raster.scenes if min(s.height, s.width) < self.chip]
            rank_zero_info(
                f'{raster.sensor.name}: {len(raster.scenes)} scenes, '
                f'{sum(len(u.corners) for u in self.units if u.sensor == raster.sensor.name)} chips of '
                f'{self.chip} pixels every {self.stride}'
                + (f'; {len(small)} scenes are smaller than a chip and padded (first: {small[0]})' if small else '')
            )
        if self.skipped:
            lines = ''.join(f'\n  {path}: {reason}' for path, reason in self.skipped)
            rank_zero_info(f'{len(self.skipped)} files are left out:{lines}')

    def leave_out(self, done: Callable[[], Iterable[str]]) -> None:
        """Leave out units that are done already.

        Args:
            done: gives their keys. It is asked when the loader is made, as Lightning loads ``--ckpt_path`` after all
                ``setup``, and what is done depends on the weights.
        """
        self._done = done
        self.__dict__.pop('left_out', None)

    @cached_property
    def left_out(self) -> set[str]:
        """Keys of the units left out; see :meth:`leave_out`."""
        return set(self._done())

    @property
    def my_units(self) -> list[Unit]:
        """The units of this rank, those left out among them, so that they are in the same batches in every run."""
        rank, world = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return self.units[rank::world]

    def predict_dataloader(self) -> BatchLoader:
        """The batches of this rank that hold anything to do.

        Sums are rounded differently in batches of other sizes: a run that goes on has the batches of the first one.
        """
        units = self.my_units
        left = [unit.key not in self.left_out for unit in units]
        plan = [batch for batch in batches(units, self.batch_size) if any(left[i] for i, _ in batch)]
        return BatchLoader(ChipBatches(self.rasters, units, plan, self.chip), self.num_workers)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Check a batch's values while they are on the host.

        Args:
            batch: of :class:`~torchgeo_clay.datamodules.scenes.batches.ChipBatches`.
            dataloader_idx: ignored.
        """
        if batch['unit']:
            check_batch(batch)
        return batch

    @cached_property
    def _statistics(self) -> Callable[[str, torch.device], tuple[Tensor, Tensor]]:
        """Mean and std of a sensor on a device."""
        return SensorNormalization(self.selected).statistics

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Normalise on the device.

        Args:
            batch: see :meth:`on_before_batch_transfer`.
            dataloader_idx: ignored.
        """
        mean, std = self._statistics(batch['sensor'], batch['image'].device)
        return {**batch, 'image': normalize(batch['image'], batch['valid'], mean, std)}

    def teardown(self, stage: str) -> None:
        """Close the files.

        Args:
            stage: ignored.
        """
        for raster in self.rasters.values():
            raster.close()


def _reasons(
    files: Sequence[str | os.PathLike[str]], sensor: Sensor, bands: Sequence[str] | None, reader: dict[str, Any]
) -> list[tuple[str, str]]:
    """Of files that none can be used of, why not."""
    return scan_scenes([os.fspath(f) for f in files], sensor, bands, **reader)[1]
