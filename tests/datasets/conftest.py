# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Rasters made on the spot."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

RGBN = ('red', 'green', 'blue', 'nir')


@pytest.fixture
def write_raster(tmp_path: Path) -> Callable[..., Path]:
    """Write a GeoTIFF; four named NAIP bands of 40 x 50 pixels in UTM unless told otherwise."""

    def write(
        name: str = 'scene.tif',
        pixels: Any = None,
        descriptions: tuple[str | None, ...] | None = RGBN,
        tags: dict[str, str] | None = None,
        mask: Any = None,
        colorinterp: Any = None,
        gcps: Any = None,
        **profile: Any,
    ) -> Path:
        if pixels is None:
            pixels = np.random.default_rng(0).integers(1, 255, (4, 40, 50)).astype(np.uint8)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {'crs': 'EPSG:32630', 'transform': from_origin(500_000, 4_600_000, 10, 10), **profile}
        options = {k: v for k, v in options.items() if v is not None}
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
                **options,
            ) as file:
                file.write(pixels)
                if descriptions is not None:
                    file.descriptions = descriptions
                if gcps is not None:
                    file.gcps = gcps
                if colorinterp is not None:
                    file.colorinterp = colorinterp
                if mask is not None:
                    file.write_mask(mask)
                file.update_tags(**(tags or {}))
        return path

    return write
