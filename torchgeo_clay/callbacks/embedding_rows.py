# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What :class:`~torchgeo_clay.callbacks.EmbeddingWriter` makes rows of. Shapes: B samples, D width, h × w patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from pyproj import CRS
from torch import Tensor
from torch.nn import functional as F

from torchgeo_clay.datamodules import SceneDataModule
from torchgeo_clay.datamodules.scenes.work import Unit
from torchgeo_clay.datasets import Scene
from torchgeo_clay.datasets.raster.windows import PATCH, owned, starts
from torchgeo_clay.inference import footprint, footprint_wgs84
from torchgeo_clay.writers import Rows

__all__ = ('Window', 'common_crs', 'datamodule_of', 'own_cells', 'rows_of', 'show_rate', 'valid_shares')

#: A window: its embedding (D,), row, column, pixels per side, share of valid pixels, seconds UTC, metres per pixel.
Window = tuple[npt.NDArray[np.float32], int, int, int, float, float, float]


def rows_of(windows: Sequence[Window], unit: Unit, scene: Scene, *, wgs84: bool) -> Rows:
    """Windows of a unit as rows of the table.

    Args:
        windows: the windows; there may be none.
        unit: that they are of.
        scene: that it is of.
        wgs84: whether footprints are in degrees, or in the scene's CRS.
    """
    geometry = [
        footprint_wgs84(scene.crs, scene.transform, row, col, size, size)
        if wgs84
        else footprint(scene.transform, row, col, size, size)
        for _, row, col, size, *_ in windows
    ]
    embeddings, row, col, _, valid, when, gsd = zip(*windows, strict=True) if windows else ((),) * 7
    n = len(windows)
    return Rows(
        embedding=np.array(embeddings, np.float32).reshape(n, len(embeddings[0]) if n else 1),
        geometry=geometry,
        time=np.array(when, np.float64),
        sensor=[unit.sensor] * n,
        gsd=np.array(gsd, np.float32),
        source=[unit.source] * n,
        row=np.array(row, np.int64),
        col=np.array(col, np.int64),
        valid=np.array(valid, np.float32),
    )


def own_cells(data: SceneDataModule, unit: Unit, row: int, col: int) -> list[tuple[int, int]]:
    """The patches (y, x) of a window that no other window of its scene gives.

    Args:
        data: that plans the windows, on the patch grid.
        unit: of the window.
        row: first row of the window.
        col: first column of the window.
    """
    scene, spans = data.scene(unit), []
    for length, first in ((scene.height, row), (scene.width, col)):
        every = starts(length, data.chip, data.stride, PATCH)
        begin, end = owned(every, data.chip, PATCH)[every.index(first)]
        spans.append(range((begin - first) // PATCH, (end - first) // PATCH))
    return [(y, x) for y in spans[0] for x in spans[1]]


def datamodule_of(trainer: Trainer, callback: str = 'EmbeddingWriter') -> SceneDataModule:
    """The trainer's datamodule, as a callback of a name needs it."""
    data: Any = getattr(trainer, 'datamodule', None)
    if not isinstance(data, SceneDataModule):
        raise ValueError(
            f'{callback}: expected the datamodule SceneDataModule, which says where chips are, got '
            f'{type(data).__name__}.'
        )
    return data


def common_crs(data: SceneDataModule) -> CRS | None:
    """The CRS that all scenes have."""
    found = {scene.crs.srs if scene.crs else None: scene.crs for r in data.rasters.values() for scene in r.scenes}
    if len(found) > 1:
        raise ValueError(f"crs='scene' needs one CRS for all scenes, got {len(found)}; use crs='wgs84'.")
    return next(iter(found.values()))


def valid_shares(valid: Tensor, patches: bool) -> npt.NDArray[np.float32]:
    """Share of valid pixels of each chip, (B,), or of each of its patches, (B, h, w); valid (B, 1, H, W)."""
    share: npt.NDArray[np.float32]
    if patches:
        share = F.avg_pool2d(valid.float(), PATCH)[:, 0].cpu().numpy()
    else:
        share = valid.float().mean((1, 2, 3)).cpu().numpy()
    return share


def show_rate(trainer: Trainer, rate: float) -> None:
    """Chips per second beside the progress bar."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, TQDMProgressBar) and math.isfinite(rate) and not bar.is_disabled:
        bar.predict_progress_bar.set_postfix_str(f'{rate:.1f} chips/s')
