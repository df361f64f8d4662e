# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A chip and its neighbours, seen. Shapes: C bands, H = W = size pixels, k neighbours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from torchgeo_clay.datasets import ClayEmbeddings, scan_scene
from torchgeo_clay.datasets.plotting import true_color
from torchgeo_clay.datasets.raster.files import open_raster
from torchgeo_clay.datasets.raster.reading import read_window
from torchgeo_clay.datasets.raster.windows import PATCH
from torchgeo_clay.evaluation.neighbours import nearest_neighbours
from torchgeo_clay.sensors import Sensor, get_sensor
from torchgeo_clay.writers import read_metadata

__all__ = ('plot_neighbours',)


def plot_neighbours(
    table: str | os.PathLike[str],
    query: int,
    k: int = 5,
    *,
    other_scenes: bool = False,
    size: int | None = None,
    sensor: Sensor | None = None,
) -> Figure:
    """Show a chip beside its nearest neighbours, read from the scenes they are of, in true colour.

    Args:
        table: a GeoParquet file of :class:`~torchgeo_clay.callbacks.EmbeddingWriter`, whose scenes are still there.
        query: number of the row.
        k: neighbours shown.
        other_scenes: whether neighbours are to be of other scenes than the query's.
        size: pixels per side shown; None for those that were embedded.
        sensor: of the scenes, where it is none of :data:`torchgeo_clay.sensors.SENSORS`.

    Returns:
        A matplotlib figure; chips of one sensor are stretched together, so that bright and dark can be compared.

    Raises:
        ValueError: see :func:`torchgeo_clay.evaluation.nearest_neighbours`; for a size below 1.
        SceneError: for a scene that can't be read.
    """
    settings, data = read_metadata(table), ClayEmbeddings(os.fspath(table))
    sources = data.data['source'].astype(str).to_numpy()
    found = nearest_neighbours(data, [query], k, groups=sources if other_scenes else None)
    if size is None:
        size = PATCH if settings['pooling'] == 'patches' else int(settings['chip'])
    if size < 1:
        raise ValueError(f'size: expected 1 pixel or more, got {size}.')
    rows = [query, *found.indices[0].tolist()]
    titles = ['query', *(f'cosine {cosine:.3f}' for cosine in found.cosines[0])]
    pictures = _pictures(data, rows, size, settings, sensor)
    figure = Figure(figsize=(2.2 * len(rows), 2.7), layout='constrained')
    axes = figure.subplots(1, len(rows), squeeze=False)[0]
    for axis, row, title, picture in zip(axes, rows, titles, pictures, strict=True):
        axis.imshow(picture)
        axis.set_title(f'{title}\n{Path(sources[row]).stem}', fontsize='small')
        axis.axis('off')
    return figure


def _pictures(
    data: ClayEmbeddings, rows: list[int], size: int, settings: dict[str, Any], sensor: Sensor | None
) -> list[npt.NDArray[np.float64]]:
    """The chips of rows as (size, size, 3) from 0 to 1."""
    table = data.data.iloc[rows]
    pictures: dict[int, npt.NDArray[np.float64]] = {}
    for name in dict.fromkeys(table['sensor']):
        places = np.flatnonzero(table['sensor'] == name).tolist()
        whole = get_sensor(name) if sensor is None else sensor
        shown = whole.select(whole.rgb or None)
        read = [_read(table.iloc[place], size, settings, whole, shown) for place in places]
        image, valid = (torch.cat(part, dim=-1) for part in zip(*read, strict=True))  # side by side: one stretch
        pictures |= dict(zip(places, np.split(true_color(image, shown, valid), len(places), axis=1), strict=True))
    return [pictures[place] for place in range(len(rows))]


def _read(
    row: Any, size: int, settings: dict[str, Any], whole: Sensor, shown: Sensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A chip's pixels (C, size, size) and which are valid (1, size, size)."""
    units = {name: settings[name] for name in ('offset', 'to_db')}
    scene = scan_scene(row['source'], whole, shown.band_names, gsd=float(row['gsd']), **units)
    with open_raster(row['source']) as file:
        pixels, valid = read_window(file, scene, int(row['row']), int(row['col']), size, size)
    return torch.from_numpy(pixels), torch.from_numpy(valid)
