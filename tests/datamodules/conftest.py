# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Tiny rasters whose pixels tell where they are from."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from torchgeo_clay.sensors import get_sensor

CRS = 'EPSG:32633'
ORIGIN = 500_000.0, 5_600_000.0


def write_scene(
    path: Path,
    sensor: str = 'naip',
    size: tuple[int, int] = (48, 48),
    *,
    dtype: str = 'int16',
    nodata: float | None = None,
    holes: np.ndarray | None = None,
    number: int = 0,
    crs: str | None = CRS,
    bands: int | None = None,
) -> Path:
    """Write a scene: band 1 holds the row + 1, band 2 the column + 1, the others the number of the scene + 1."""
    known = get_sensor(sensor)
    count = len(known) if bands is None else bands
    image = np.full((count, *size), number + 1)
    image[0] = np.arange(size[0])[:, None] + 1
    image[1] = np.arange(size[1])[None, :] + 1
    if holes is not None:
        image[:, np.broadcast_to(holes, size)] = -9999
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {'crs': crs, 'transform': from_origin(*ORIGIN, known.gsd, known.gsd)} if crs else {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        file = rasterio.open(
            path, 'w', driver='GTiff', count=count, height=size[0], width=size[1], dtype=dtype, nodata=nodata, **profile
        )
    with file:
        file.write(image.astype(dtype))
        file.update_tags(DATETIME='2021-06-05T10:30:00Z')
        if bands is None:
            file.descriptions = known.band_names
    return path


@pytest.fixture
def scene() -> Callable[..., Path]:
    """The function that writes a scene."""
    return write_scene


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sensors: naip with five scenes, 45 patches of 16 pixels, linz with three scenes, 12 patches."""
    for i in range(5):
        write_scene(tmp_path / 'root/naip' / f'{i}.tif', 'naip', (48, 48), number=i)
    for i in range(3):
        write_scene(tmp_path / 'root/linz' / f'{i}.tif', 'linz', (32, 40), number=i)
    return tmp_path / 'root'
