# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Writes maps of whole scenes. Shapes: B samples, K channels of the model's answer, H × W pixels."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rasterio
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

import torchgeo_clay
from torchgeo_clay.callbacks.embedding_rows import datamodule_of, show_rate
from torchgeo_clay.callbacks.map_files import RUN, check_apart, is_done, map_paths, remove_halves, style_of
from torchgeo_clay.callbacks.skipped import LeftOut, report_left_out
from torchgeo_clay.datamodules.scenes.work import Unit
from torchgeo_clay.inference.blender import Blender, check_answer
from torchgeo_clay.inference.maps import MapStream, MapStyle
from torchgeo_clay.models.weights.files import tensor_digest
from torchgeo_clay.writers.atomic import check_writable
from torchgeo_clay.writers.cog import CACHE_BYTES

__all__ = ('RasterWriter',)


class RasterWriter(Callback):
    """Writes what a task predicts for every pixel, as one cloud-optimised GeoTIFF per scene.

    For :class:`~torchgeo_clay.tasks.ClaySemanticSegmentation` the likeliest class, and the classes' probabilities if
    wanted; of several labels their probabilities; for :class:`~torchgeo_clay.tasks.ClayPixelwiseRegression` its values.
    Windows overlap as the datamodule's ``stride`` says, and are blended with weights that sum to one at every pixel.
    Memory holds as many rows as a window is high, whatever the scene's height.

    A map has its name when it is whole. A run that was killed goes on with the scenes that have none when started
    again. Scenes that can't be read are left out and named; the run then ends with
    :class:`~torchgeo_clay.callbacks.ScenesLeftOut`, hence with an exit code other than 0.
    """

    def __init__(
        self,
        out: str,
        probabilities: bool = False,
        classes: list[str] | None = None,
        colours: list[list[int]] | None = None,
        threshold: float = 0.5,
        overwrite: bool = False,
        left_out: LeftOut = 'raise',
    ) -> None:
        """Initialise.

        Args:
            out: the folder of the maps, apart from the scenes; each is called like its scene.
            probabilities: whether the classes' probabilities are written too, as ``…_probabilities.tif``.
            classes: names of the classes; None for the task's ``labels``, if it has any.
            colours: of the classes: red, green and blue from 0 to 255.
            threshold: for a task with ``task='binary'`` the probability from which on the class is there.
            overwrite: whether maps of another run are replaced.
            left_out: whether scenes that can't be used make the run fail, after all others are written.

        Raises:
            ValueError: for values that are not among those named.
        """
        if left_out not in ('raise', 'warn'):
            raise ValueError(f"left_out: expected 'raise' or 'warn', got {left_out!r}.")
        self.out, self.overwrite, self.left_out = Path(out), overwrite, left_out
        self.options: dict[str, Any] = {
            'probabilities': probabilities,
            'classes': list(classes or ()),
            'colours': [(red, green, blue) for red, green, blue in colours or ()],
            'threshold': threshold,
        }
        MapStyle(**self.options)  # so that a wrong value is told now
        self.stack = ExitStack()
        self.open: dict[int, tuple[Blender, MapStream]] = {}

    # before -----------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look for what is done already, before anything is predicted.

        Args:
            trainer: the trainer.
            pl_module: the task.
            stage: only ``predict`` matters.

        Raises:
            ValueError: for another datamodule, one that cuts scenes into units, a folder of maps among the scenes, or
                classes and colours that do not fit the task.
            OutputError: if other files are there, or the folder can't be written to.
        """
        if stage != 'predict':
            return
        self.data = datamodule_of(trainer, 'RasterWriter')
        if self.data.unit_size is not None:
            raise ValueError(
                f'RasterWriter maps whole scenes: give the datamodule unit_size: null, not {self.data.unit_size}.'
            )
        self.style = style_of(pl_module.hparams, self.options)
        sources = [unit.source for unit in self.data.units]
        check_apart(self.out, self.data.paths, sources)
        self.paths = map_paths(self.out, sources)
        check_writable(self.out)
        self.stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES))
        self.data.leave_out(lambda: self._begin(trainer, pl_module))

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> set[str]:
        """Keys of the units that are done; when the weights are there."""
        self.run, units = self._run(pl_module), self.data.units
        done = self._look() if trainer.is_global_zero else set()
        done = trainer.strategy.broadcast(done)  # one view of it: a process that is ahead may be writing already
        if done:
            rank_zero_info(f'{len(done)} of {len(units)} maps are there already and not made again.')
        self.mine = self.data.my_units
        self.pending = {i: len(u.corners) for i, u in enumerate(self.mine) if u.key not in done}
        self.failed: dict[str, str] = {}
        self.maps = self.count = self.empty = 0
        self.start = time.monotonic()
        return done

    def _run(self, pl_module: LightningModule) -> dict[str, Any]:
        """What all maps have in common: model, weights, settings."""
        hparams = pl_module.hparams
        run = {
            **{key: hparams.get(key) for key in ('model', 'decoder', 'task')},
            'weights_sha256': tensor_digest(pl_module.state_dict()),
            **asdict(self.style),
            **self.data.settings,
        }
        found: dict[str, Any] = json.loads(json.dumps(run))  # as it is read back
        return found

    def _tags(self, unit: Unit) -> dict[str, Any]:
        """Of which run and which version of a scene a map is."""
        return {**self.run, 'scene': unit.key}

    def _look(self) -> set[str]:
        """Keys of the units that are done; leftovers of a kill are removed. By one process."""
        units = self.data.units
        options = {'probabilities': self.style.probabilities, 'overwrite': self.overwrite}
        done = {u.key for u in units if is_done(self.paths[u.source], self._tags(u), **options)}
        for path in self.paths.values():
            remove_halves(path)
        return done

    # while ------------------------------------------------------------------------------------------------------------

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take a batch's predictions, and write the rows that are complete.

        Args:
            trainer: the trainer.
            pl_module: the task.
            outputs: (B, K, H, W), or a dictionary that holds it as ``probabilities``, as TorchGeo's.
            batch: of :class:`~torchgeo_clay.datamodules.SceneDataModule`.
            batch_idx: ignored.
            dataloader_idx: ignored.

        Raises:
            ValueError: if the task's answer is not one of every pixel.
            OutputError: if a map can't be written.
        """
        for place, reason in batch['failed']:
            self._fail(place, reason)
        if batch['unit']:
            found = outputs['probabilities'] if isinstance(outputs, dict) else outputs
            values = check_answer(found, batch['image']).float().cpu().numpy()
            valid = batch['valid'][:, 0].cpu().numpy()
            for i, (place, (row, col)) in enumerate(zip(batch['unit'], batch['corner'], strict=True)):
                if place in self.pending:  # else done in a former run, or broken
                    blender, stream = self._opened(place)
                    for rows in blender.add(row, col, values[i], valid[i]):
                        stream.write(*rows)
        self.count, self.empty = self.count + len(batch['unit']), self.empty + len(batch['empty'])
        for place in [*batch['unit'], *batch['empty']]:
            if place in self.pending:
                self.pending[place] -= 1
                if self.pending[place] == 0:
                    self._finish(place)
        show_rate(trainer, self.count / max(time.monotonic() - self.start, 1e-9))

    def _opened(self, place: int) -> tuple[Blender, MapStream]:
        """What blends a scene's windows, and its map."""
        if place not in self.open:
            unit = self.mine[place]
            scene, data = self.data.scene(unit), self.data
            tags = {
                'SENSOR': unit.sensor,
                'SOURCE': unit.source,
                RUN: json.dumps(self._tags(unit)),
                'TORCHGEO_CLAY_VERSION': torchgeo_clay.__version__,
            }
            blender = Blender(scene.height, scene.width, data.chip, data.stride, data.align)
            self.open[place] = blender, MapStream(scene, self.paths[unit.source], self.style, tags)
        return self.open[place]

    def _finish(self, place: int) -> None:
        """End a scene whose windows are all there."""
        del self.pending[place]
        if place not in self.open:
            self.failed[self.mine[place].source] = 'no pixel holds data'
            return
        blender, stream = self.open.pop(place)
        with stream:
            for rows in blender.finish():
                stream.write(*rows)
        self.maps += 1

    def _fail(self, place: int, reason: str) -> None:
        """Leave out a scene that turned out to be broken, with what is written of it."""
        if place not in self.pending:
            return
        source = self.mine[place].source
        self.failed[source] = reason.removeprefix(f'{source}: ')
        del self.pending[place]
        self._drop(place)

    def _drop(self, place: int) -> None:
        """Leave nothing of a map that is not finished."""
        if place in self.open:
            _, stream = self.open.pop(place)
            stream.drop()

    # after ------------------------------------------------------------------------------------------------------------

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no half map.

        Args:
            trainer: the trainer.
            pl_module: the task.
            exception: ignored.
        """
        self._close()

    def _close(self) -> None:
        """Drop maps that are not finished."""
        for place in [*self.open]:
            self._drop(place)
        self.stack.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say what was done.

        Args:
            trainer: the trainer.
            pl_module: the task.
            stage: only ``predict`` matters.

        Raises:
            ScenesLeftOut: if scenes could not be used, unless ``left_out='warn'``.
        """
        if stage != 'predict':
            return
        _ = self.data.left_out  # so that all is known, though no loader was made
        self._close()
        said = [(self.failed, len(self.pending))] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(said, said[0])
        if not trainer.is_global_zero:
            return
        failed = dict(self.data.skipped)
        for more, _ in said:
            failed |= more
        self._summarise(sum(missing for _, missing in said))
        report_left_out(failed, f'{self.out} has maps of all others', self.left_out)

    def _summarise(self, missing: int) -> None:
        """Say how many maps were made how fast, and how many are missing."""
        seconds = time.monotonic() - self.start
        did = (
            f'{self.maps} maps of {self.count} chips in {seconds:.1f} s, {self.count / max(seconds, 1e-9):.1f} chips/s '
            f'on this process; {self.empty} chips without data were left out.'
        )
        rank_zero_info(did + (f' {missing} maps are still missing: run again to go on.' if missing else ''))
