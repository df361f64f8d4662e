# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Tables of a task's predictions for scenes: classes with probabilities, or values. Shapes: B chips, K outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from torchgeo_clay.datamodules.scenes import SceneLoader
from torchgeo_clay.inference.embedding import EmbeddingTable
from torchgeo_clay.inference.scene_maps import check_trained, unknown_sensor
from torchgeo_clay.tasks import ClayClassification, ClayRegression
from torchgeo_clay.tasks.base import ClayTask

__all__ = ('PredictionTable', 'TaskTable')


class TaskTable(EmbeddingTable):
    """A table of a trained task's predictions. Scenes of sensors that it was not trained on are skipped."""

    def __init__(
        self,
        loader: SceneLoader,
        task: ClayTask,
        out: str | os.PathLike[str],
        about: Mapping[str, Any],
        overwrite: bool = False,
        any_sensor: bool = False,
        loaded: bool = False,
    ) -> None:
        """Initialize a new TaskTable instance.

        Args:
            loader: whose chips are predicted.
            task: with its weights.
            out: the file, which ends in ``.parquet``.
            about: settings of the run, which its metadata hold.
            overwrite: whether a file or parts of another run are replaced.
            any_sensor: whether to predict scenes of sensors that the task was not trained on.
            loaded: whether a checkpoint was loaded into the task.

        Raises:
            ValueError: for a task that is not trained.
        """
        check_trained(task, loaded)
        self.trained_on = None if any_sensor else task.trained_on
        super().__init__(loader, task, out, overwrite=overwrite, about=about)

    def begin(self) -> set[str]:
        """Prepare the folder of parts, and skip scenes of sensors that the task was not trained on."""
        reasons = {name: unknown_sensor(self.trained_on, sensor) for name, sensor in self.data.selected.items()}
        if all(reasons.values()):
            raise ValueError(f'No scene to predict: {next(iter(reasons.values()))}')
        done = super().begin()
        self.failed |= {unit.source: reasons[unit.sensor] for unit in self.data.units if reasons[unit.sensor]}
        return done | {unit.key for unit in self.data.units if reasons[unit.sensor]}


class PredictionTable(TaskTable):
    """One GeoParquet file with a row per chip: its class and probabilities, or its values."""

    def __init__(
        self,
        loader: SceneLoader,
        task: ClayClassification | ClayRegression,
        out: str | os.PathLike[str],
        classes: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        """Initialize a new PredictionTable instance.

        Args:
            loader: whose chips are classified.
            task: with its weights.
            out: the file, which ends in ``.parquet``.
            classes: names of the classes, labels or values; None for the task's ``labels``, else numbers.
            **options: see :class:`TaskTable`.

        Raises:
            ValueError: for another task, one that is not trained, or another number of names.
        """
        if not isinstance(task, ClayClassification | ClayRegression):
            raise ValueError(
                f'PredictionWriter: expected ClayClassification or ClayRegression, got {type(task).__name__}. Use '
                'RasterWriter for tasks of pixels, EmbeddingWriter for ClayEmbedding.'
            )
        self.kind = task.hparams['task'] if isinstance(task, ClayClassification) else 'regression'
        count = 2 if self.kind == 'binary' else task.outputs
        self.names = [*(classes or task.hparams['labels'] or map(str, range(count)))]
        if len(self.names) != count:
            raise ValueError(f'classes: expected {count} names, got {len(self.names)}: {", ".join(self.names)}.')
        super().__init__(loader, task, out, {'classes': self.names, 'task': self.kind}, **options)

    def take(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Keep probabilities or values, (B, K) or (B,), until their units are complete."""
        super().take(outputs.reshape(len(outputs), -1), batch)

    def table(self, place: int) -> pa.Table:
        """Return a unit as a table: ``class`` and ``probability_NAME``, or the values by name."""
        table = super().table(place)
        values = np.array(table['embedding'].to_pylist(), np.float32).reshape(table.num_rows, -1)
        if self.kind == 'binary':
            values = np.concatenate([1 - values, values], axis=1)
        columns: dict[str, Any] = {}
        if self.kind in ('binary', 'multiclass'):
            columns['class'] = [self.names[i] for i in values.argmax(1)] if table.num_rows else []
        prefix = '' if self.kind == 'regression' else 'probability_'
        for i, name in enumerate(self.names):
            columns[f'{prefix}{name}'] = pa.array(values[:, i] if table.num_rows else [], pa.float32())
        made = table.drop_columns(['embedding'])
        for i, (name, column) in enumerate(columns.items()):
            made = made.add_column(i, name, pa.array(column, pa.string()) if name == 'class' else column)
        return made
