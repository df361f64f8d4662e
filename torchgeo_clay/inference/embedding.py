# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""From scenes to a table of embeddings. Shapes: B chips, C bands, H × W pixels, h × w patches, N rows, D width."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities import rank_zero_info
from pyproj import CRS
from torch import Tensor
from torch.nn import functional as F

from torchgeo_clay.conditioning import Conditioning, LatLonOrder
from torchgeo_clay.datamodules.common import counted
from torchgeo_clay.datamodules.scenes import SceneDataModule, SceneLoader, Unit
from torchgeo_clay.datasets.raster.dataset import PATCH, owned, starts
from torchgeo_clay.datasets.raster.georeference import footprint_wgs84
from torchgeo_clay.inference.output import (
    OnSkipped,
    SceneOutput,
    choose_device,
    evaluating,
    predict,
    report_skipped,
    transferred,
    weights_digest,
)
from torchgeo_clay.models import Clay
from torchgeo_clay.sensors import Sensor
from torchgeo_clay.tasks.embedding import ClayEmbedding, pool
from torchgeo_clay.writers.geoparquet import PartStore, Precision, Rows, check_suffix, embedding_table, read_metadata

__all__ = ('EmbeddingTable', 'embed', 'embed_labeled')


def embed(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    weights: bool | str | os.PathLike[str] = True,
    *,
    model: str = 'clay_large_patch8',
    sensor: str | Sensor | None = None,
    bands: list[str] | None = None,
    chip: int = 256,
    stride: int | None = None,
    pooling: Literal['class', 'mean', 'patches'] = 'class',
    out: str | os.PathLike[str] | None = None,
    device: str | None = None,
    overwrite: bool = False,
    on_skipped: OnSkipped = 'warn',
    **scenes: Any,
) -> gpd.GeoDataFrame:
    """Embed scenes: a row per chip.

    Bands, place, date and meters per pixel are read from each file; files that are no scene are named and skipped.
    ``torchgeo predict`` with ``clay_embed.yaml`` gives the same rows, on several devices or in half precision.

    Example::

        chips = torchgeo_clay.embed('scene.tif')

    Args:
        paths: files, folders and URLs of scenes.
        weights: True for the released ones, a checkpoint or ``.safetensors``; False for random initialization.
        model: name of the builder, ``clay_{tiny,small,base,large}_patch8``.
        sensor: of all scenes, a name, YAML file or sensor; None to detect it for each file.
        bands: the sensor's bands wanted; None for all. Needs ``sensor``.
        chip: pixels per side, a multiple of 8.
        stride: pixels from one chip to the next; None for the chip size, side by side.
        pooling: ``class`` for the class token, ``mean`` for the mean of the patches with data, ``patches`` for a row
            per patch.
        out: a ``.parquet`` file to write the table to; a run that was killed continues. None to keep it in memory.
        device: such as ``cuda``; None for a GPU if there is one.
        overwrite: whether a table of another run is replaced.
        on_skipped: whether files that could not be used are an error, after all others are done.
        **scenes: options of :class:`~torchgeo_clay.datamodules.SceneDataModule`, such as ``batch_size``,
            ``num_workers``, ``offset``, ``gsd`` and ``time``.

    Returns:
        Columns ``embedding`` (D,) float32, ``geometry`` in WGS84, ``datetime``, ``sensor``, ``gsd`` in meters per
        pixel, ``source``, ``row``, ``col``, and ``valid``, the share of pixels with data.

    Raises:
        ValueError: for arguments that are out of range, or if no scene is left.
        SkippedScenesError: for files that could not be used, with ``on_skipped='raise'``.
        CheckpointError: for weights that cannot be used.
        OutputError: if ``out`` cannot be written, or holds another run.
    """
    if out is not None:
        check_suffix(out)
    task = ClayEmbedding(model, weights, pooling)
    data = SceneDataModule(paths, sensor, bands, chip, stride, patch_grid=pooling == 'patches', **scenes)
    where = choose_device(device)
    task.to(where).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'embeddings.parquet') if out is None else Path(out)
        data.setup('predict')

        def output(loader: SceneLoader) -> EmbeddingTable:
            return EmbeddingTable(loader, task, path, overwrite=overwrite, temporary=out is None)

        failed = predict(task, data, output, where)
        table = gpd.read_parquet(path)
    report_skipped(failed, 'the table' if out is None else str(out), on_skipped)
    return table


class Window(NamedTuple):
    """A row of the table: ``size`` in pixels per side, ``valid`` the share with data, ``time`` in seconds UTC."""

    embedding: npt.NDArray[np.float32]
    row: int
    col: int
    size: int
    valid: float
    time: float
    gsd: float


class EmbeddingTable(SceneOutput):
    """One GeoParquet file, written in parts; see :class:`~torchgeo_clay.writers.PartStore`."""

    #: Whether a scene or table without rows is a result like any other.
    may_be_empty = False

    def __init__(
        self,
        loader: SceneLoader,
        task: LightningModule,
        out: str | os.PathLike[str],
        precision: Precision = 'float32',
        overwrite: bool = False,
        temporary: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Initialize a new EmbeddingTable instance.

        Args:
            loader: whose chips are embedded.
            task: with its weights.
            out: the file, which ends in ``.parquet``.
            precision: of the embeddings.
            overwrite: whether a file or parts of another run are replaced.
            temporary: whether the file is not kept, and the log does not name it.
            about: further settings of the run, which its metadata hold.
        """
        super().__init__(loader, out)
        pooling = task.hparams.get('pooling')
        if pooling == 'patches' and self.data.align != PATCH:
            raise ValueError(
                "pooling='patches' needs chips whose patches lie on one grid: give the datamodule patch_grid: true."
            )
        self.precision, self.overwrite, self.temporary = precision, overwrite, temporary
        run = {
            'model': task.hparams['model'],
            'weights_sha256': weights_digest(task),
            'pooling': pooling,
            'latlon_order': task.hparams.get('latlon_order'),
            'precision': precision,
            **(about or {}),
            **self.data.settings,
        }
        self.store = PartStore(out, run)
        #: Position of a pending unit → its windows, of which each kind of table keeps its own kind of tuple.
        self.windows: dict[int, list[Any]] = {}
        self.is_complete = False

    def begin(self) -> set[str]:
        """Prepare the folder of parts; see :meth:`~torchgeo_clay.writers.PartStore.begin`."""
        keys = [unit.key for unit in self.data.units]
        self.is_complete = self.store.begin(keys, overwrite=self.overwrite)
        return set(keys) if self.is_complete else self.store.done()

    def take(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Keep embeddings (B, D) or (B, h, w, D) until their units are complete."""
        values = outputs.float().cpu().numpy()
        self.skip_not_finite(batch, values)
        valid = batch['valid'].float()
        share = (F.avg_pool2d(valid, PATCH)[:, 0] if values.ndim == 4 else valid.mean((1, 2, 3))).cpu().numpy()
        time, gsd = (batch[key].cpu().double().numpy() for key in ('time', 'res'))
        for i, (place, (row, col)) in enumerate(zip(batch['unit'], batch['corner'], strict=True)):
            if place not in self.pending:
                continue
            found, when = self.windows.setdefault(place, []), (float(time[i]), float(gsd[i]))
            if values.ndim == 2:
                found.append(Window(values[i], row, col, self.data.chip, float(share[i]), *when))
                continue
            for y, x in self._own_patches(self.loader.units[place], row, col):
                if share[i, y, x] > 0:
                    where = row + y * PATCH, col + x * PATCH
                    found.append(Window(values[i, y, x], *where, PATCH, float(share[i, y, x]), *when))

    def _own_patches(self, unit: Unit, row: int, col: int) -> list[tuple[int, int]]:
        """Return the patches (y, x) of a window that are taken from no other window that overlaps it."""
        spans = []
        for length, first in ((unit.scene.height, row), (unit.scene.width, col)):
            every = starts(length, self.data.chip, self.data.stride, PATCH)
            begin, end = owned(every, self.data.chip, PATCH)[every.index(first)]
            spans.append(range((begin - first) // PATCH, (end - first) // PATCH))
        return [(y, x) for y in spans[0] for x in spans[1]]

    def complete(self, place: int) -> None:
        """Write a unit."""
        self.store.write(self.loader.units[place].key, self.table(place))

    def table(self, place: int) -> pa.Table:
        """Return a unit as a table, and forget it."""
        return embedding_table(_rows(self.windows.pop(place, []), self.loader.units[place]), self.precision)

    def drop(self, place: int) -> None:
        """Forget a unit."""
        self.windows.pop(place, None)

    def finish(self, failed: Mapping[str, str], missing: int) -> dict[str, str]:
        """Make one file of all parts."""
        if self.is_complete:
            return {**failed, **read_metadata(self.store.path)['failed']}
        parts = {unit.key: unit.source for unit in self.data.units}
        if missing:
            rank_zero_info(f'{self.summary}. Parts are missing: run again to continue with {self.store.folder}.')
        elif not set(parts.values()) - failed.keys():
            report_skipped(failed, 'no table', 'raise')
        else:
            if blank := [] if self.may_be_empty else self._without_rows(parts, failed):
                rank_zero_info(
                    f'{counted(len(blank), "scene")} without a row, as no pixel holds data. Is the nodata value right? '
                    f'First: {blank[0]}'
                )
            rows = self.store.finish(parts, failed, crs=CRS.from_epsg(4326), empty=self.may_be_empty)
            size = self.store.path.stat().st_size / 1e6
            where = '' if self.temporary else f'{self.store.path}: '
            rank_zero_info(f'{self.summary}. {where}{counted(rows, "row")}, {size:.1f} MB.')
        return dict(failed)

    def _without_rows(self, parts: Mapping[str, str], failed: Mapping[str, str]) -> list[str]:
        """Return the scenes none of whose parts (key → scene) has a row, except those that failed."""
        rows: Counter[str] = Counter()
        for key, source in parts.items():
            rows[source] += 0 if source in failed else self.store.count(key)
        return [source for source, count in rows.items() if not count and source not in failed]


def _rows(windows: Sequence[Window], unit: Unit) -> Rows:
    """Return windows of a unit as rows of the table."""
    scene, n = unit.scene, len(windows)
    columns: Any = zip(*windows, strict=True) if windows else ((),) * len(Window._fields)
    embedding, row, col, size, valid, time, gsd = columns
    shapes = [
        footprint_wgs84(scene.crs, scene.transform, *scene.inside(r, c, s, s))
        for r, c, s in zip(row, col, size, strict=True)
    ]
    return Rows(
        embedding=np.array(embedding, np.float32).reshape(n, len(embedding[0]) if n else 1),
        geometry=shapes,
        time=np.array(time, np.float64),
        sensor=[unit.sensor] * n,
        gsd=np.array(gsd, np.float32),
        source=[unit.source] * n,
        row=np.array(row, np.int64),
        col=np.array(col, np.int64),
        valid=np.array(valid, np.float32),
    )


def embed_labeled(
    encoder: Clay,
    data: LightningDataModule,
    loader: Iterable[Mapping[str, Any]],
    *,
    pooling: Literal['class', 'mean'] = 'class',
    latlon_order: LatLonOrder = 'latlon',
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Embed the labeled chips of a loader, without gradients and in eval mode.

    Args:
        encoder: on the device to use.
        data: the datamodule, whose hooks check, move and normalize batches.
        loader: one of its loaders, such as ``data.val_dataloader()``, of batches with ``label`` (B,).
        pooling: ``class`` for the class token, ``mean`` for the mean of the patches with data.
        latlon_order: as the encoder was trained, see :func:`torchgeo_clay.conditioning.encode_latlon`.

    Returns:
        (N, D) float32, and labels (N,).

    Raises:
        ValueError: for batches without class labels, no batch, or another pooling.
    """
    if pooling not in ('class', 'mean'):
        raise ValueError(f"pooling: expected 'class' or 'mean', got {pooling!r}.")
    device = next(encoder.parameters()).device
    embeddings, labels = [], []
    with torch.no_grad(), evaluating(encoder):
        for loaded in loader:
            batch = transferred(data, loaded, device)
            labels.append(_labels(batch))
            tokens = encoder.forward_features(batch['image'], **Conditioning.from_batch(batch, latlon_order).arguments)
            embeddings.append(pool(tokens, batch, pooling).cpu().numpy())
    if not embeddings:
        raise ValueError(f'{type(data).__name__}: expected labeled chips, got no batch. Lower batch_size.')
    return np.concatenate(embeddings), np.concatenate(labels)


def _labels(batch: Any) -> npt.NDArray[np.int64]:
    """Return the classes of a batch, (B,)."""
    label = batch.get('label') if isinstance(batch, Mapping) else None
    if not isinstance(label, Tensor) or label.ndim != 1 or label.is_floating_point():
        found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        shape = f' with label {label.dtype} {tuple(label.shape)}' if isinstance(label, Tensor) else ''
        raise ValueError(
            f"Expected batches with 'label' (B,), a class of each chip as a whole number, got {found}{shape}. "
            'Give a datamodule for classification, such as SyntheticDataModule(task="classification").'
        )
    return label.cpu().numpy().astype(np.int64)
