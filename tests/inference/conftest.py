# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Scenes made on the spot."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin


@pytest.fixture
def write_scene(tmp_path: Path) -> Callable[..., Path]:
    """Write a NAIP scene of four named bands."""

    def write(name: str = 'scene.tif', height: int = 70, width: int = 90, seed: int = 0, **profile: Any) -> Path:
        pixels = profile.pop('pixels', None)
        if pixels is None:
            pixels = np.random.default_rng(seed).integers(1, 255, (4, height, width)).astype(np.uint8)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tags = profile.pop('tags', {'DATETIME': '2020-04-15T17:00:00', 'SENSOR': 'NAIP'})
        descriptions = profile.pop('descriptions', ('red', 'green', 'blue', 'nir')[: len(pixels)])
        options = {'crs': 'EPSG:32611', 'transform': from_origin(500_000, 3_600_000, 1, 1), 'nodata': 0, **profile}
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with rasterio.open(
                path,
                'w',
                driver='GTiff',
                count=len(pixels),
                height=pixels.shape[1],
                width=pixels.shape[2],
                dtype=pixels.dtype.name,
                **{k: v for k, v in options.items() if v is not None},
            ) as file:
                file.write(pixels)
                file.descriptions = descriptions
                file.update_tags(**tags)
        return path

    return write
