# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Whole scenes as chips, for prediction. Shapes: B chips, C bands, H = W = chip."""

from __future__ import annotations

import hashlib
import json
import math
import os
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import accumulate, groupby
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset, default_collate

from torchgeo_clay.conditioning import check_batch
from torchgeo_clay.datamodules.common import MetadataDataModule, check_at_least, check_precision
from torchgeo_clay.datamodules.sigterm import SIGTERM
from torchgeo_clay.datamodules.workers import WORKER_DIED, ignore_sigterm, is_dead_worker
from torchgeo_clay.datasets import Scene, SceneError, SensorRaster, scan_scene
from torchgeo_clay.datasets.raster.dataset import PATCH, Windows, check_windows, windows
from torchgeo_clay.datasets.raster.files import list_rasters
from torchgeo_clay.datasets.raster.scene import scan_scenes
from torchgeo_clay.sensors import Sensor, get_sensor

__all__ = ('ChipBatches', 'SceneDataModule', 'SceneLoader', 'Unit')

_RUN_AGAIN = 'Then run the same command again: finished parts are kept.'


@dataclass(frozen=True)
class Unit:
    """Windows of one scene whose results are written together, and computed again together after a kill.

    Attributes:
        key: identifies the unit: a digest of the scene's path, size and modification time, the sensor, the windows and
            the settings.
        sensor: name of the scene's sensor.
        index: position of the scene in the sensor's raster.
        scene: the scene.
        corners: upper left corners (row, column) of the windows.
    """

    key: str
    sensor: str
    index: int
    scene: Scene
    corners: Windows

    @property
    def source(self) -> str:
        """Path or URL of the scene."""
        return self.scene.path


class SceneDataModule(MetadataDataModule):
    """Chips of a given size and stride that cover scenes, in order, for prediction.

    Batches follow the contract of :mod:`torchgeo_clay.conditioning`, hold one sensor each, and are normalized on the
    device; invalid pixels are 0, the mean. :class:`ChipBatches` lists the further keys. Chips without data are skipped;
    files that are no scene are named and skipped.

    Attributes:
        rasters: name of a sensor → its scenes, once set up; as for the next two.
        skipped: (path, reason) of each file that is no scene.
        units: the units of work of all processes, in order.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        sensor: str | Sensor | None = None,
        bands: list[str] | None = None,
        chip: int = 256,
        stride: int | None = None,
        patch_grid: bool = False,
        batch_size: int = 16,
        num_workers: int = 0,
        unit_size: int | None = 1024,
        **reading: Any,
    ) -> None:
        """Initialize a new SceneDataModule instance.

        Args:
            paths: files, folders and URLs of scenes.
            sensor: of all scenes; None to detect it for each file from its folder, tags and bands.
            bands: the sensor's bands wanted; None for all. Needs ``sensor``.
            chip: pixels per side, a multiple of 8.
            stride: pixels from one chip to the next; None for the chip size, side by side. The last chip of a row or
                column is moved back so that it ends where the scene ends.
            patch_grid: whether chips begin at multiples of 8, so that all patches lie on one grid.
            batch_size: chips per batch.
            num_workers: worker processes that read.
            unit_size: chips per unit of work; None for whole scenes, as maps need.
            **reading: options of :func:`torchgeo_clay.datasets.scan_scene`, such as ``offset`` and ``gsd``.

        Raises:
            ValueError: for a chip or stride that is out of range, or bands without a sensor.
            TypeError: for an unknown option.
        """
        super().__init__(ChipBatches, batch_size, num_workers)
        self.stride = chip if stride is None else stride
        self.align = PATCH if patch_grid else 1
        check_windows(chip, self.stride, self.align)
        check_at_least(1, batch_size=batch_size, unit_size=1 if unit_size is None else unit_size)
        check_at_least(0, num_workers=num_workers)
        if bands is not None and sensor is None:
            raise ValueError(f'bands={list(bands)} need a sensor to look them up in: give sensor= too.')
        self.paths = [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
        self.sensor, self.bands = None if sensor is None else get_sensor(sensor), bands
        self.chip, self.batch_size, self.num_workers, self.unit_size = chip, batch_size, num_workers, unit_size
        self.reading = reading
        defaults = {k: p.default for k, p in signature(scan_scene).parameters.items() if p.kind is p.KEYWORD_ONLY}
        if unknown := reading.keys() - defaults.keys():
            raise TypeError(f'SceneDataModule has no argument {", ".join(unknown)}; scenes take {", ".join(defaults)}.')
        #: What results depend on besides the scenes and the model, as plain values.
        own = {'chip': chip, 'stride': self.stride, 'align': self.align, 'bands': bands}
        self.settings = own | defaults | reading

    @property
    def selected(self) -> dict[str, Sensor]:
        """Name of a sensor → the sensor, with the bands of its images."""
        return {name: raster.sensor for name, raster in self.rasters.items()}

    def setup(self, stage: str) -> None:
        """Find the scenes, cut them into units, and log what was found; raise if no scene is left."""
        check_precision(self.trainer)
        scenes, self.skipped = scan_scenes(list_rasters(self.paths), self.sensor, self.bands, **self.reading)
        name_of = attrgetter('sensor.name')
        groups = {name: list(some) for name, some in groupby(sorted(scenes, key=name_of), name_of)}
        self.rasters = {name: SensorRaster(some, self.sensor or name, self.bands) for name, some in groups.items()}
        reasons = [f'\n  {path}: {reason}' for path, reason in self.skipped]
        if not self.rasters:
            lines = ''.join(reasons[:10]) or '\n  (no file at all)'
            raise ValueError(f'paths: expected scenes, found none to use in {self.paths}:{lines}')
        self.units = [unit for raster in self.rasters.values() for unit in self._cut(raster)]
        for raster in self.rasters.values():
            small = [s.path for s in raster.scenes if min(s.height, s.width) < self.chip]
            chips = sum(len(u.corners) for u in self.units if u.sensor == raster.sensor.name)
            rank_zero_info(
                f'{raster.sensor.name}: scenes: {len(raster.scenes)}; chips of {self.chip} pixels every {self.stride}: '
                f'{chips}'
                + (f'; scenes smaller than a chip, which are padded: {len(small)} (first: {small[0]})' if small else '')
            )
        if reasons:
            rank_zero_info(f'Skipped files: {len(reasons)}{"".join(reasons)}')

    def _cut(self, raster: SensorRaster) -> Iterator[Unit]:
        """Yield the units of a sensor's scenes, scene by scene."""
        for i, scene in enumerate(raster.scenes):
            corners = windows(scene.height, scene.width, self.chip, self.stride, self.align)
            size = self.unit_size or len(corners)
            for first in range(0, len(corners), size):
                version = [scene.path, scene.height, scene.width, scene.version]
                identity = [version, raster.sensor.name, raster.bands, first, size, self.settings]
                key = hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:24]
                yield Unit(key, raster.sensor.name, i, scene, corners.part(first, size))

    def predict_dataloader(self) -> SceneLoader:
        """Return the loader of this process."""
        return SceneLoader(self)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Check a batch's values while they are on the host."""
        if batch['unit']:
            check_batch(batch)
        return batch

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Normalize on the device, and add ``selection``, the sensor whose bands are the channels."""
        sensor = self.rasters[batch['sensor']].sensor
        return {**batch, 'image': sensor.normalize(batch['image'], batch['valid']), 'selection': sensor}

    def on_exception(self, exception: BaseException) -> None:
        """Add a remedy where a worker process died during a prediction."""
        if is_dead_worker(exception):
            exception.add_note(f'{WORKER_DIED} {_RUN_AGAIN}')

    def teardown(self, stage: str) -> None:
        """Close the files."""
        for raster in self.rasters.values():
            raster.close()


class SceneLoader:
    """The batches of one process, in order.

    It holds a DataLoader instead of being one, so that Lightning leaves the order alone whatever
    ``use_distributed_sampler``: units are shared among processes here.

    Attributes:
        data: the datamodule.
        units: the units of this process.
        batches: (N, 2), first window of each batch and the one after its last, counted over all units.
        stopped: whether a SIGTERM ended it early.
    """

    stopped = False

    def __init__(self, data: SceneDataModule) -> None:
        """Initialize a new SceneLoader instance for a datamodule that is set up."""
        trainer = data.trainer
        rank, world = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        self.data, self.units = data, data.units[rank::world]
        self.ends = list(accumulate(len(unit.corners) for unit in self.units))
        batches, begin = [np.zeros((0, 2), np.int64)], 0
        for _, group in groupby(self.units, key=lambda unit: unit.sensor):
            end = begin + sum(len(unit.corners) for unit in group)
            first = np.arange(begin, end, data.batch_size)
            batches.append(np.stack([first, np.minimum(first + data.batch_size, end)], 1))
            begin = end
        self.batches: npt.NDArray[np.int64] = np.concatenate(batches)

    def skip(self, done: Collection[str]) -> None:
        """Skip units by their keys. The others stay in the same batches, as rounding depends on a batch's size."""
        waiting = np.cumsum([0, *(0 if unit.key in done else len(unit.corners) for unit in self.units)])
        before = np.interp(self.batches, [0, *self.ends], waiting)  # windows to compute before each batch's two ends
        self.batches = self.batches[before[:, 1] > before[:, 0]]

    def __len__(self) -> int:
        """Return the number of batches; 1 where there is none, as Lightning calls no hook on an empty loader."""
        return max(1, len(self.batches))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches in order. A SIGTERM ends this at the end of the current unit, a second one at once.

        Raises:
            ChildProcessError: if a worker process died.
        """
        workers, pin = self.data.num_workers, torch.cuda.is_available()
        loader = DataLoader(
            ChipBatches(self), batch_size=None, num_workers=workers, pin_memory=pin, worker_init_fn=ignore_sigterm
        )
        ends = np.searchsorted(self.ends, self.batches, side='right')  # units that end before each batch's two ends
        ends_unit = [True, *(ends[:, 1] > ends[:, 0]).tolist()]
        batches = iter(loader)
        for is_end in ends_unit:
            if SIGTERM and (is_end or SIGTERM.count > 1):
                self.stopped = True
                return
            try:
                batch = next(batches, None)
            except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
                if not is_dead_worker(error, waiting=workers > 0):
                    raise
                raise ChildProcessError(f'{str(error).strip()} {WORKER_DIED} {_RUN_AGAIN}') from error
            if batch is None:
                return
            yield batch


class ChipBatches(Dataset[dict[str, Any]]):
    """Whole batches by number, raw and in the dtype of the files (float32 where those differ).

    Besides the keys of :mod:`torchgeo_clay.conditioning` a batch has ``unit``, B positions in the units; ``corner``, B
    upper left corners (row, column); ``empty``, the units of windows without data, which are skipped; ``failed``,
    (unit, reason) of windows that could not be read. Where no window is left, B is 0 for these, and the image is one
    without data.
    """

    def __init__(self, loader: SceneLoader) -> None:
        """Initialize a new ChipBatches instance for the batches of a loader."""
        self.rasters, self.chip = loader.data.rasters, loader.data.chip
        self.units, self.ends, self.batches = loader.units, loader.ends, loader.batches

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a batch."""
        samples: list[dict[str, Any]] = []
        batch: dict[str, Any] = {'unit': [], 'corner': [], 'empty': [], 'failed': []}
        for window in range(*self.batches[index].tolist()):
            place = bisect_right(self.ends, window)
            unit = self.units[place]
            row, col = unit.corners[window - self.ends[place] + len(unit.corners)]
            try:
                sample = self.rasters[unit.sensor].patch(unit.index, row, col, (self.chip, self.chip))
            except SceneError as error:
                batch['failed'].append((place, str(error)))
                continue
            if not sample['valid'].any():
                batch['empty'].append(place)
                continue
            samples.append(sample)
            batch['unit'].append(place)
            batch['corner'].append((row, col))
        if len({sample['image'].dtype for sample in samples}) > 1:  # else images stay as small as in the files
            samples = [{**sample, 'image': sample['image'].float()} for sample in samples]
        sensor = self.units[bisect_right(self.ends, self.batches[index, 0])].sensor
        return {**batch, **(default_collate(samples) if samples else self._no_data(sensor)), 'sensor': sensor}

    def _no_data(self, name: str) -> dict[str, Any]:
        """Return a batch of one image without data, as not every model takes a batch of none. Its result is unused."""
        sensor, side = self.rasters[name].sensor, self.chip
        return {
            'image': torch.zeros(1, len(sensor), side, side),
            'valid': torch.zeros(1, 1, side, side, dtype=torch.bool),
            'wavelength': torch.tensor([sensor.wavelengths]),
            'res': torch.tensor([sensor.gsd]),
            **{key: torch.full((1,), math.nan, dtype=torch.float64) for key in ('lat', 'lon', 'time')},
        }
