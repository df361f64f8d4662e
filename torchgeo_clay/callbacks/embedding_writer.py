# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Writes embeddings of whole scenes. Shapes: B samples, D width, h × w patches of p pixels."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from pyproj import CRS

import torchgeo_clay
from torchgeo_clay.callbacks.embedding_rows import (
    Window,
    common_crs,
    datamodule_of,
    own_cells,
    rows_of,
    show_rate,
    valid_shares,
)
from torchgeo_clay.callbacks.skipped import LeftOut, report_left_out
from torchgeo_clay.datasets.raster.windows import PATCH
from torchgeo_clay.models.weights.files import tensor_digest
from torchgeo_clay.writers import PartStore, embedding_table, read_metadata, write_patch_cog, write_quicklooks

__all__ = ('EmbeddingWriter',)


class EmbeddingWriter(Callback):
    """Writes what :class:`~torchgeo_clay.tasks.ClayEmbedding` predicts as one GeoParquet file.

    Each unit of chips is written as soon as it is done (see :class:`~torchgeo_clay.writers.PartStore`): a run that was
    killed goes on where it was when started again, on any number of processes, and ends with the same table. At the end
    the parts become one file. Scenes that can't be read are left out as a whole and named; the run then ends with
    :class:`~torchgeo_clay.callbacks.ScenesLeftOut`, hence with an exit code other than 0.
    """

    def __init__(
        self,
        out: str,
        precision: Literal['float32', 'float16', 'int8'] = 'float32',
        crs: Literal['wgs84', 'scene'] = 'wgs84',
        overwrite: bool = False,
        left_out: LeftOut = 'raise',
        quicklooks: bool = True,
        patch_cogs: bool = False,
        components: int | None = None,
    ) -> None:
        """Initialise.

        Args:
            out: the file, which ends in ``.parquet``.
            precision: of the embeddings; ``int8`` comes with a column ``scale`` to multiply by.
            crs: of the footprints: WGS84, or the scenes' own, which has to be the same for all.
            overwrite: whether a file or parts of another run are replaced.
            left_out: whether scenes that can't be used make the run fail, after all others are written.
            quicklooks: whether to draw PNGs of the table into the folder ``OUT_quicklooks``, see
                :func:`torchgeo_clay.writers.write_quicklooks`.
            patch_cogs: with every patch embedded, whether each scene's are written as a COG on the patch grid too,
                into the folder ``OUT_patches``.
            components: how many principal components these have; None for all dimensions.

        Raises:
            ValueError: for values that are not among those named.
        """
        for name, value, known in (
            ('precision', precision, ('float32', 'float16', 'int8')),
            ('crs', crs, ('wgs84', 'scene')),
            ('left_out', left_out, ('raise', 'warn')),
        ):
            if value not in known:
                raise ValueError(f'{name}: expected one of {", ".join(known)}, got {value!r}.')
        PartStore(out, {})  # so that a wrong suffix is told now
        self.out, self.precision, self.crs, self.overwrite, self.left_out = out, precision, crs, overwrite, left_out
        self.quicklooks, self.patch_cogs, self.components = quicklooks, patch_cogs, components

    # before -----------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look for what is done already, before anything is predicted.

        Args:
            trainer: the trainer.
            pl_module: the task.
            stage: only ``predict`` matters.

        Raises:
            ValueError: for another datamodule, scenes of several CRSs with ``crs='scene'``, or chips whose patches lie
                on no common grid where every patch is wanted.
            OutputError: if another table is there, or the folder can't be written to.
        """
        if stage != 'predict':
            return
        self.data, self.pooling = datamodule_of(trainer), pl_module.hparams['pooling']
        if self.patch_cogs and self.pooling != 'patches':
            raise ValueError(f'patch_cogs need every patch: give the task pooling: patches, not {self.pooling!r}.')
        if self.pooling == 'patches' and self.data.align != PATCH:
            raise ValueError(
                "pooling='patches' needs chips whose patches lie on one grid: give the datamodule patch_grid: true."
            )
        self.file_crs = CRS.from_epsg(4326) if self.crs == 'wgs84' else common_crs(self.data)
        self.data.leave_out(lambda: self._begin(trainer, pl_module))

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> set[str]:
        """Keys of the units that are done; when the weights are there."""
        self.store = PartStore(self.out, self._run(pl_module))
        self.complete = False
        if trainer.is_global_zero:
            self.complete = self.store.begin([u.key for u in self.data.units], overwrite=self.overwrite)
        self.complete = trainer.strategy.broadcast(self.complete)
        done = {u.key for u in self.data.units} if self.complete else self.store.done()
        done = trainer.strategy.broadcast(done)  # one view of it: a process that is ahead may be writing already
        if done:
            rank_zero_info(f'{len(done)} of {len(self.data.units)} parts are there already and not done again.')
        self.mine = self.data.my_units
        self.windows: dict[int, list[Window]] = {}
        self.pending = {i: len(u.corners) for i, u in enumerate(self.mine) if u.key not in done}
        self.broken: set[int] = set()
        self.count = self.empty = 0
        self.start = time.monotonic()
        return done

    def _run(self, pl_module: LightningModule) -> dict[str, Any]:
        """What all rows have in common: model, weights, settings."""
        hparams = pl_module.hparams
        encoder = {k: v for k, v in pl_module.state_dict().items() if '.head.' not in k}
        return {
            'model': hparams['model'],
            'weights_sha256': tensor_digest(encoder),
            'pooling': self.pooling,
            'latlon_order': hparams['latlon_order'],
            'precision': self.precision,
            'crs': self.crs,
            **self.data.settings,
        }

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
        """Take a batch's embeddings, and write the units that are complete.

        Args:
            trainer: the trainer.
            pl_module: the task.
            outputs: (B, D), or (B, h, w, D).
            batch: of :class:`~torchgeo_clay.datamodules.SceneDataModule`.
            batch_idx: ignored.
            dataloader_idx: ignored.
        """
        values = outputs.float().cpu().numpy()
        share = valid_shares(batch['valid'], values.ndim == 4)
        metadata = [batch[key].double().cpu().numpy() for key in ('time', 'res')]
        for i, (unit, (row, col)) in enumerate(zip(batch['unit'], batch['corner'], strict=True)):
            when, gsd = (float(m[i]) for m in metadata)
            if unit not in self.pending:  # done in a former run, in the same batch as others that were not
                continue
            found = self.windows.setdefault(unit, [])
            if values.ndim == 2:
                found.append((values[i], row, col, self.data.chip, float(share[i]), when, gsd))
                continue
            for y, x in own_cells(self.data, self.mine[unit], row, col):
                if share[i, y, x] > 0:
                    where = row + y * PATCH, col + x * PATCH
                    found.append((values[i, y, x], *where, PATCH, float(share[i, y, x]), when, gsd))
        self.count, self.empty = self.count + len(batch['unit']), self.empty + len(batch['empty'])
        for unit, reason in batch['failed']:
            self.broken.add(unit)
            self.store.fail(self.mine[unit].key, self.mine[unit].source, reason)
        for unit in [*batch['unit'], *batch['empty'], *(unit for unit, _ in batch['failed'])]:
            if unit in self.pending:
                self.pending[unit] -= 1
                if self.pending[unit] == 0:
                    self._write(unit)
        show_rate(trainer, self.count / max(time.monotonic() - self.start, 1e-9))

    def _write(self, place: int) -> None:
        """Write a unit that is complete."""
        windows, unit = self.windows.pop(place, []), self.mine[place]
        if place in self.broken:
            return
        rows = rows_of(windows, unit, self.data.scene(unit), wgs84=self.crs == 'wgs84')
        self.store.write(unit.key, embedding_table(rows, self.precision))

    # after ------------------------------------------------------------------------------------------------------------

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make one file of the parts, and say what became of the scenes.

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
        trainer.strategy.barrier('EmbeddingWriter')
        if not trainer.is_global_zero:
            return
        failed = dict(self.data.skipped)
        if self.complete:
            failed |= read_metadata(self.out)['failed']
        else:
            failed |= self.store.failures()
            parts = {u.key: u.source for u in self.data.units}
            rows = self.store.finish(parts, crs=self.file_crs, metadata={'torchgeo_clay': torchgeo_clay.__version__})
            self._summarise(rows)
            if rows is not None:
                self._draw(rows)
        report_left_out(failed, f'{self.out} has all others', self.left_out)

    def _draw(self, rows: int) -> None:
        """Draw the table, and write the patches of each scene as a raster."""
        stem = self.store.path.with_suffix('')
        if self.quicklooks and rows > 1:
            write_quicklooks(self.out, f'{stem}_quicklooks')
        if not self.patch_cogs:
            return
        (folder := Path(f'{stem}_patches')).mkdir(exist_ok=True)
        failed = self.data.skipped + list(read_metadata(self.out)['failed'].items())
        for i, scene in enumerate(s for raster in self.data.rasters.values() for s in raster.scenes):
            if scene.path not in dict(failed):
                where = {'height': scene.height, 'width': scene.width, 'crs': scene.crs, 'transform': scene.transform}
                name = f'{Path(scene.path).stem}_{i}.tif'
                write_patch_cog(folder / name, self.out, scene.path, components=self.components, **where)

    def _summarise(self, rows: int | None) -> None:
        """Say what was done."""
        seconds = time.monotonic() - self.start
        did = (
            f'{self.count} chips in {seconds:.1f} s, {self.count / max(seconds, 1e-9):.1f} chips/s on this process; '
            f'{self.empty} without data were left out'
        )
        if rows is None:
            rank_zero_info(f'{did}. Parts are still missing: run again to go on with {self.store.folder}.')
        else:
            rank_zero_info(f'{did}. {self.out}: {rows} rows, {self.store.path.stat().st_size / 1e6:.1f} MB.')
