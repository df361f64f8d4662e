# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Tables of a trained task's predictions for scenes: a row per chip, or a row per object.

Shapes: B chips, K outputs, N objects, H × W pixels. Boxes are left, top, right, bottom.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rasterio.features
import shapely
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from torchgeo_clay.datamodules.scenes import SceneLoader
from torchgeo_clay.datasets import Scene
from torchgeo_clay.datasets.raster.georeference import outline_wgs84
from torchgeo_clay.inference.embedding import EmbeddingTable
from torchgeo_clay.inference.output import trained_sensors
from torchgeo_clay.tasks import ClayClassification, ClayRegression
from torchgeo_clay.tasks.base import ClayTask
from torchgeo_clay.tasks.detection import ObjectTask
from torchgeo_clay.writers.geoparquet import placed_columns

__all__ = ('ObjectTable', 'PredictionTable', 'merge_objects')

#: Pixels from a window's edge at which a box counts as cut by it.
_NEAR = 1.0


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
        """Initialize a new TaskTable instance; other arguments as those of ``EmbeddingTable``.

        Args:
            names: of classes, labels or values; None for numbers.
            count: of the names there have to be.
            any_sensor: see :func:`~torchgeo_clay.inference.output.trained_sensors`, as for the next.
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


class Found(NamedTuple):
    """Objects of a window: boxes (N, 4) in the scene's pixels, whether each is cut, its outlines; the window's time.

    An outline is a ring of (column, row) in the scene; an object may have several.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    cut: Tensor
    outlines: list[list[npt.NDArray[np.float64]]]
    time: float


def merge_objects(boxes: Tensor, labels: Tensor, scores: Tensor, cut: Tensor, iou: float) -> Tensor:
    """Merge what overlapping windows found: each object once.

    Of boxes of one class that overlap, the one of the highest score is kept (non-maximum suppression). Boxes cut by an
    edge of their window come after all whole ones, and go if they lie mostly inside a whole one of their class.

    Args:
        boxes: (N, 4) pixels of the scene, float64.
        labels: (N,).
        scores: (N,).
        cut: (N,) bool.
        iou: overlap, intersection over union, above which two boxes are one object; for a cut box its share inside.

    Returns:
        Positions of the objects kept, the highest score first.
    """
    whole, rest = torch.where(~cut)[0], torch.where(cut)[0]
    whole = whole[batched_nms(boxes[whole], scores[whole], labels[whole], iou)]
    rest = rest[batched_nms(boxes[rest], scores[rest], labels[rest], iou)]
    tree = shapely.STRtree(shapely.box(*boxes[whole].T.numpy()))
    pieces = shapely.box(*boxes[rest].T.numpy())
    piece, owner = (torch.from_numpy(found) for found in tree.query(pieces, predicate='intersects'))
    mine, other = boxes[rest[piece]], boxes[whole[owner]]
    sides = (torch.minimum(mine[:, 2:], other[:, 2:]) - torch.maximum(mine[:, :2], other[:, :2])).clamp(min=0)
    share = sides.prod(1) / (mine[:, 2:] - mine[:, :2]).prod(1)
    inside = torch.zeros(len(rest), dtype=torch.bool)
    inside[piece[(share > iou) & (labels[rest[piece]] == labels[whole[owner]])]] = True
    kept = torch.cat([whole, rest[~inside]])
    return kept[scores[kept].argsort(descending=True, stable=True)]


class ObjectTable(TaskTable):
    """One GeoParquet file with a row per object: a polygon, its class and score."""

    may_be_empty = whole_scenes = True

    def __init__(
        self,
        loader: SceneLoader,
        task: ObjectTask,
        out: str | os.PathLike[str],
        classes: Sequence[str] | None = None,
        score: float = 0.3,
        iou: float = 0.5,
        **options: Any,
    ) -> None:
        """Initialize a new ObjectTable instance; other arguments as those of ``TaskTable``.

        Args:
            score: of the objects written, at least.
            iou: see :func:`merge_objects`.

        Raises:
            ValueError: for another task, scenes cut into units, or another number of names.
        """
        if not getattr(task, 'takes_boxes', False):
            raise ValueError(
                'DetectionWriter: expected ClayObjectDetection or ClayInstanceSegmentation, got '
                f'{type(task).__name__}. Use RasterWriter for tasks of pixels, PredictionWriter for tasks of chips.'
            )
        self.score, self.iou = score, iou
        about = {'backbone': task.hparams['backbone'], 'score': score, 'iou': iou}
        super().__init__(loader, task, out, classes, task.hparams['num_classes'], about, **options)

    def take(self, outputs: Any, batch: Mapping[str, Any]) -> None:
        """Keep the objects of B chips, dictionaries as torchvision's, until their scenes are complete."""
        self.skip_not_finite(batch)
        for i, (place, corner) in enumerate(zip(batch['unit'], batch['corner'], strict=True)):
            if place in self.pending:
                one = {key: value.cpu() for key, value in outputs[i].items()}
                valid, time = batch['valid'][i, 0].cpu(), float(batch['time'][i])
                found = self._in_scene(one, self.loader.units[place].scene, corner, valid, time)
                self.windows.setdefault(place, []).append(found)

    def _in_scene(
        self, one: Mapping[str, Tensor], scene: Scene, corner: tuple[int, int], valid: Tensor, time: float
    ) -> Found:
        """Return the objects of a window that are good enough and lie on data, in pixels of the scene."""
        (row, col), chip = corner, self.data.chip
        boxes, size = one['boxes'].double(), torch.tensor([scene.width, scene.height]).repeat(2)
        center = ((boxes[:, :2] + boxes[:, 2:]) / 2).long().clamp(0, chip - 1)
        kept = (one['scores'] >= self.score) & valid[center[:, 1], center[:, 0]]
        kept &= (boxes[:, 2:] > boxes[:, :2]).all(1)
        inner = torch.tensor([col > 0, row > 0, col + chip < scene.width, row + chip < scene.height])
        near = torch.cat([boxes[:, :2] < _NEAR, boxes[:, 2:] > chip - _NEAR], 1)
        corners = torch.tensor([col, row]).repeat(2)
        outlines = [_outlines(mask.numpy(), col, row) for mask in one['masks'][kept]] if 'masks' in one else []
        return Found(
            torch.minimum((boxes + corners).clamp(min=0), size.double())[kept],
            one['labels'][kept],
            one['scores'][kept].double(),
            (near & inner).any(1)[kept],
            outlines or [[] for _ in range(int(kept.sum()))],
            time,
        )

    def table(self, place: int) -> pa.Table:
        """Return a scene's objects as a table, and forget them."""
        windows, unit = self.windows.pop(place, []), self.loader.units[place]
        blank = Found(
            torch.zeros(0, 4).double(), torch.zeros(0).long(), torch.zeros(0).double(), torch.zeros(0) > 0, [], 0
        )
        boxes, labels, scores, cut = (torch.cat(parts) for parts in [*zip(*(blank, *windows), strict=True)][:4])
        outlines = [outline for window in windows for outline in window.outlines]
        kept = merge_objects(boxes, labels, scores, cut, self.iou)
        geometry = [_polygon(boxes[i], outlines[i], unit.scene) for i in kept.tolist()]
        time = np.full(len(kept), windows[0].time if windows else np.nan)
        left, top, right, bottom = boxes[kept].T.numpy()
        place_columns = placed_columns(geometry, time)
        return pa.table(
            {
                'geometry': place_columns['geometry'],
                'label': pa.array(labels[kept].numpy(), pa.int32()),
                'class': pa.array([self.names[i] for i in labels[kept].tolist()], pa.string()),
                'score': pa.array(scores[kept].numpy(), pa.float32()),
                'datetime': place_columns['datetime'],
                'sensor': pa.array([unit.sensor] * len(kept), pa.string()),
                'source': pa.array([unit.source] * len(kept), pa.string()),
                'row': pa.array(top),
                'col': pa.array(left),
                'height': pa.array(bottom - top),
                'width': pa.array(right - left),
                'bbox': place_columns['bbox'],
            }
        )


def _polygon(box: Tensor, outlines: Sequence[npt.NDArray[np.float64]], scene: Scene) -> Any:
    """Return an object's outline in longitude and latitude: of its mask, else its box."""
    left, top, right, bottom = box.tolist()
    rings: Any = outlines or [[(left, top), (left, bottom), (right, bottom), (right, top)]]
    return shapely.union_all([outline_wgs84(scene.crs, scene.transform, [*map(tuple, ring)]) for ring in rings])


def _outlines(mask: npt.NDArray[np.uint8], col: int, row: int) -> list[npt.NDArray[np.float64]]:
    """Return the outer rings of a window's mask (H, W), (column, row) in the scene; the last point is not the first."""
    shapes = rasterio.features.shapes(mask, mask > 0)
    return [np.array(shape['coordinates'][0][:-1]) + np.array([col, row], np.float64) for shape, _ in shapes]
