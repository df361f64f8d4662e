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
from torchgeo_clay.inference.output import trained_sensors
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
        names: Sequence[str] | None,
        count: int,
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
            names: of classes, labels or values; None for numbers.
            count: of the names there have to be.
            about: settings of the run, which its metadata hold.
            overwrite: whether a file or parts of another run are replaced.
            any_sensor: whether to predict scenes of sensors that the task was not trained on.
            loaded: whether a checkpoint was loaded into the task.

        Raises:
            ValueError: for a task that is not trained, or another number of names.
        """
        self.names = [*(names or map(str, range(count)))]
        if len(self.names) != count:
            raise ValueError(f'classes: expected {count} names, got {len(self.names)}: {", ".join(self.names)}.')
        self.trained_on = trained_sensors(task, any_sensor=any_sensor, loaded=loaded)
        super().__init__(loader, task, out, overwrite=overwrite, about={'classes': self.names, **about})

    def begin(self) -> set[str]:
        """Prepare the folder of parts, and skip scenes of sensors that the task was not trained on."""
        return self.skip_sensors() | super().begin()


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
        """Initialize a new PredictionTable instance; arguments as those of ``TaskTable``.

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
        super().__init__(loader, task, out, classes or task.hparams['labels'], count, {'task': self.kind}, **options)

    def take(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Keep probabilities or values, (B, K) or (B,), until their units are complete."""
        super().take(outputs.reshape(len(outputs), -1), batch)

    def table(self, place: int) -> pa.Table:
        """Return a unit as a table: ``class`` and ``probability_NAME``, or the values by name."""
        table = super().table(place)
        width = 1 if self.kind == 'binary' else len(self.names)
        values = table['embedding'].combine_chunks().flatten().to_numpy().reshape(-1, width)
        if self.kind == 'binary':
            values = np.concatenate([1 - values, values], axis=1)
        columns: dict[str, Any] = {}
        if self.kind in ('binary', 'multiclass'):
            columns['class'] = pa.array([self.names[i] for i in values.argmax(1)], pa.string())
        prefix = '' if self.kind == 'regression' else 'probability_'
        columns |= {f'{prefix}{name}': column for name, column in zip(self.names, values.T, strict=True)}
        rest = table.drop_columns(['embedding'])
        return pa.table({**columns, **dict(zip(rest.column_names, rest.columns, strict=True))})
