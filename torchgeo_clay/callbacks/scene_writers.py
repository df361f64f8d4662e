# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Callbacks that write predictions of whole scenes. Shapes: B chips, K channels, H × W pixels, D width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from torchgeo_clay.datamodules.common import check_share
from torchgeo_clay.datamodules.scenes import SceneLoader
from torchgeo_clay.inference.embedding import EmbeddingTable
from torchgeo_clay.inference.maps import MapStyle, SceneMaps
from torchgeo_clay.inference.output import ANSWER, OnSkipped, SceneOutput, report_skipped, stop_if_asked
from torchgeo_clay.inference.predictions import ObjectTable, PredictionTable
from torchgeo_clay.tasks.stopping import exit_code, listen
from torchgeo_clay.writers.atomic import is_newer
from torchgeo_clay.writers.cog import write_patch_cogs
from torchgeo_clay.writers.geoparquet import Precision, check_suffix
from torchgeo_clay.writers.quicklook import write_quicklooks

__all__ = ('DetectionWriter', 'EmbeddingWriter', 'PredictionWriter', 'RasterWriter', 'SceneWriter', 'TaskWriter')


class SceneWriter(Callback, ABC):
    """Passes predictions of :class:`~torchgeo_clay.datamodules.SceneDataModule`'s chips to an output.

    A run that was killed continues when started again, on any number of processes, and ends with the same files. Scenes
    that cannot be read are skipped as a whole and named; the run then ends with
    :class:`~torchgeo_clay.inference.SkippedScenesError`, hence with an exit code other than 0.
    """

    #: Whether there is one file, which ends in ``.parquet``, instead of a folder.
    is_table = True

    def __init__(self, out: str, *, overwrite: bool = False, on_skipped: OnSkipped = 'raise') -> None:
        """Initialize a new SceneWriter instance.

        Args:
            out: the file, which ends in ``.parquet``; for maps their folder, apart from the scenes.
            overwrite: whether a file or parts of another run are replaced.
            on_skipped: whether scenes that cannot be used are an error, after all others are written.

        Raises:
            ValueError: for another suffix, or values that are not among those named.
        """
        if on_skipped not in ('raise', 'warn'):
            raise ValueError(f"on_skipped: expected 'raise' or 'warn', got {on_skipped!r}.")
        if self.is_table:
            check_suffix(out)
        self.out, self.overwrite, self.on_skipped = out, overwrite, on_skipped
        self.output: SceneOutput | None = None

    @abstractmethod
    def make_output(self, trainer: Trainer, pl_module: Any, loader: SceneLoader) -> SceneOutput:
        """Return the output of a loader's predictions."""

    def written(self) -> None:
        """Called on the first process once everything is written."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find finished output, after the weights are loaded and before scenes are read.

        Raises:
            ValueError: for another datamodule, or a task or datamodule that do not fit this output.
            OutputError: if other files exist, or the folder cannot be written to.
        """
        loader = trainer.predict_dataloaders
        if not isinstance(loader, SceneLoader):
            raise ValueError(
                f'{type(self).__name__}: expected the datamodule SceneDataModule, which knows where chips are, got '
                f'{type(loader).__name__}.'
            )
        self.output = self.make_output(trainer, pl_module, loader)
        done = self.output.prepare() if trainer.is_global_zero else set()
        self.output.start(trainer.strategy.broadcast(done))  # all processes skip the same units
        listen(trainer, ANSWER)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the units that are complete, and show chips per second in the progress bar."""
        assert self.output is not None
        self.output.add(outputs, batch)
        bar = trainer.progress_bar_callback
        if isinstance(bar, TQDMProgressBar) and not bar.is_disabled:
            bar.predict_progress_bar.set_postfix_str(f'{self.output.rate:.1f} chips/s')

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no file that is not complete."""
        if self.output is not None:
            self.output.close()
            self.output.release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finish the files, and report the scenes that could not be used.

        Raises:
            SkippedScenesError: if scenes could not be used, unless ``on_skipped='warn'``.
            SystemExit: after a SIGTERM.
        """
        output, self.output = self.output, None
        if output is None:
            return
        try:
            output.close()
            results = [(output.failed, len(output.pending), output.loader.stopped)] * trainer.world_size
            if trainer.world_size > 1:
                torch.distributed.all_gather_object(results, results[0])
            missing, asked = sum(count for _, count, _ in results), any(asked for *_, asked in results)
            failed = {source: reason for some, *_ in results for source, reason in some.items()}
            if trainer.is_global_zero:
                failed = output.finish(failed, missing)
            stop_if_asked(missing, asked=asked, code=exit_code(trainer))
            if trainer.is_global_zero:
                if not missing:
                    self.written()
                report_skipped(failed, self.out, self.on_skipped)
        finally:
            output.release()


class EmbeddingWriter(SceneWriter):
    """Writes what :class:`~torchgeo_clay.tasks.ClayEmbedding` predicts as one GeoParquet file.

    Each unit of chips is written as soon as it is complete, see :class:`~torchgeo_clay.writers.PartStore`; for runs
    that were killed and scenes that are skipped see :class:`~torchgeo_clay.callbacks.scene_writers.SceneWriter`.
    """

    def __init__(
        self,
        out: str,
        precision: Precision = 'float32',
        *,
        quicklooks: bool = True,
        patch_cogs: bool = False,
        **kwargs: Any,
    ) -> None:
        """Initialize a new EmbeddingWriter instance.

        Args:
            out: the file, which ends in ``.parquet``.
            precision: of the embeddings; ``int8`` comes with a column ``scale`` to multiply by.
            quicklooks: whether to draw PNGs of the table into the folder ``OUT_quicklooks``, see
                :func:`torchgeo_clay.writers.write_quicklooks`.
            patch_cogs: with ``pooling='patches'``, whether to write each scene's patches as a COG, too, into the
                folder ``OUT_patches``.
            **kwargs: ``overwrite`` and ``on_skipped``, see :class:`~torchgeo_clay.callbacks.scene_writers.SceneWriter`.

        Raises:
            ValueError: for values that are not among those named.
        """
        super().__init__(out, **kwargs)
        if precision not in ('float32', 'float16', 'int8'):
            raise ValueError(f"precision: expected 'float32', 'float16' or 'int8', got {precision!r}.")
        self.precision, self.quicklooks, self.patch_cogs = precision, quicklooks, patch_cogs

    def make_output(self, trainer: Trainer, pl_module: Any, loader: SceneLoader) -> SceneOutput:
        """Return the table; raise for rasters of patches without patches."""
        if self.patch_cogs and pl_module.hparams['pooling'] != 'patches':
            raise ValueError(
                f'patch_cogs need every patch: give the task pooling: patches, not {pl_module.hparams["pooling"]!r}.'
            )
        self.scenes = [scene for raster in loader.data.rasters.values() for scene in raster.scenes]
        return EmbeddingTable(loader, pl_module, self.out, self.precision, self.overwrite)

    def written(self) -> None:
        """Draw the table, and write the patches of each scene as a raster, unless an earlier run has."""
        stem = Path(self.out).with_suffix('')
        if self.quicklooks and not is_newer(f'{stem}_quicklooks/scatter.png', self.out):  # which is drawn last
            write_quicklooks(self.out, f'{stem}_quicklooks')
        if self.patch_cogs:
            write_patch_cogs(f'{stem}_patches', self.out, self.scenes)


class TaskWriter(SceneWriter):
    """Writes what a trained task predicts; scenes of sensors that it was not trained on are skipped."""

    output_class: type[SceneMaps | PredictionTable | ObjectTable]

    def __init__(self, out: str, *, any_sensor: bool = False, **kwargs: Any) -> None:
        """Initialize a new TaskWriter instance.

        Args:
            out: see :class:`~torchgeo_clay.callbacks.scene_writers.SceneWriter`.
            any_sensor: whether to predict scenes of sensors and bands that the task was not trained on.
            **kwargs: ``overwrite`` and ``on_skipped``, see :class:`~torchgeo_clay.callbacks.scene_writers.SceneWriter`.
        """
        super().__init__(out, **kwargs)
        #: Arguments of the output.
        self.options: dict[str, Any] = {'any_sensor': any_sensor, 'overwrite': self.overwrite}

    def make_output(self, trainer: Trainer, pl_module: Any, loader: SceneLoader) -> SceneOutput:
        """Return the output; the trainer's ``ckpt_path`` says whether the task is trained."""
        return self.output_class(loader, pl_module, self.out, loaded=trainer.ckpt_path is not None, **self.options)


class RasterWriter(TaskWriter):
    """Writes what a task predicts for every pixel, as one cloud-optimized GeoTIFF per scene.

    For :class:`~torchgeo_clay.tasks.ClaySemanticSegmentation` the likeliest class, and the classes' probabilities if
    wanted; of several labels their probabilities; for :class:`~torchgeo_clay.tasks.ClayPixelwiseRegression` its values.
    Windows overlap as the datamodule's ``stride`` says, and are blended with weights that sum to one at every pixel.
    Memory holds the rows of one window, whatever the scene's height.

    A map exists under its name once it is complete; for runs that were killed and scenes that are skipped see
    :class:`~torchgeo_clay.callbacks.scene_writers.SceneWriter`.
    """

    is_table = False
    output_class = SceneMaps

    def __init__(
        self,
        out: str,
        *,
        probabilities: bool = False,
        classes: list[str] | None = None,
        colors: list[list[int]] | None = None,
        threshold: float = 0.5,
        **kwargs: Any,
    ) -> None:
        """Initialize a new RasterWriter instance.

        Args:
            out: the folder of the maps, apart from the scenes; each is named after its scene.
            probabilities: whether the classes' probabilities are written too, to ``…_probabilities.tif``.
            classes: names of the classes; None for the task's ``labels``, if it has any.
            colors: of the classes: red, green and blue from 0 to 255.
            threshold: for a task with ``task='binary'``, the smallest probability of the second class.
            **kwargs: ``any_sensor``, ``overwrite`` and ``on_skipped``; see
                :class:`~torchgeo_clay.callbacks.scene_writers.TaskWriter`.

        Raises:
            ValueError: for values that are not among those named.
        """
        super().__init__(out, **kwargs)
        given = [(red, green, blue) for red, green, blue in colors or ()]
        style = MapStyle(probabilities=probabilities, classes=classes or (), colors=given, threshold=threshold)
        self.options['style'] = style


class PredictionWriter(TaskWriter):
    """Writes what a task of classification or regression predicts for each chip, as one GeoParquet file.

    Columns are ``class`` and ``probability_NAME`` of each class, or the values of a regression by name, then those of
    :class:`EmbeddingWriter`: ``geometry``, ``datetime``, ``sensor``, ``gsd``, ``source``, ``row``, ``col``, ``valid``.
    A folder of chips is predicted with ``chip`` as large as they are.
    """

    output_class = PredictionTable

    def __init__(self, out: str, classes: list[str] | None = None, **kwargs: Any) -> None:
        """Initialize a new PredictionWriter instance.

        Args:
            out: the file, which ends in ``.parquet``.
            classes: names of the classes, labels or values; None for the task's ``labels``, else numbers.
            **kwargs: ``any_sensor``, ``overwrite`` and ``on_skipped``; see
                :class:`~torchgeo_clay.callbacks.scene_writers.TaskWriter`.
        """
        super().__init__(out, **kwargs)
        self.options['classes'] = classes


class DetectionWriter(TaskWriter):
    """Writes the objects of whole scenes, each once, as one GeoParquet file.

    Columns are ``geometry`` in WGS84, boxes, or with :class:`~torchgeo_clay.tasks.ClayInstanceSegmentation` outlines of
    masks, ``label``, ``class`` (its name), ``score``, ``datetime``, ``sensor``, ``source``, and the box in the scene's
    pixels: ``row``, ``col``, ``height``, ``width``. Windows overlap as the datamodule's ``stride`` says, best by more
    than the largest object; see :func:`~torchgeo_clay.inference.predictions.merge_objects`.
    """

    output_class = ObjectTable

    def __init__(
        self, out: str, classes: list[str] | None = None, score: float = 0.3, iou: float = 0.5, **kwargs: Any
    ) -> None:
        """Initialize a new DetectionWriter instance.

        Args:
            out: the file, which ends in ``.parquet``.
            classes: names of the classes, label 0 first; None for their numbers.
            score: of the objects written, at least, 0 to 1.
            iou: overlap above which two boxes of a class are one object, 0 to 1.
            **kwargs: ``any_sensor``, ``overwrite`` and ``on_skipped``; see
                :class:`~torchgeo_clay.callbacks.scene_writers.TaskWriter`.

        Raises:
            ValueError: for numbers out of range.
        """
        super().__init__(out, **kwargs)
        check_share(1, score=score, iou=iou)
        self.options |= {'classes': classes, 'score': score, 'iou': iou}
