# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""TorchGeo's index of scenes by place and time, and grids in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from pyproj import CRS
from rasterio import Affine
from rasterio.transform import array_bounds
from rasterio.warp import calculate_default_transform

from torchgeo_clay.datasets.raster.georeference import footprint
from torchgeo_clay.datasets.raster.scene import Scene

__all__ = ('grid_of', 'scene_index', 'scenes_at', 'window_on_grid')

#: How far a query may lie from a scene's grid to count as on it, in pixels; less than any resampling could show.
_ON_GRID = 0.01

# Points along each side of a footprint, so that it bends with the projection.
_POINTS_PER_SIDE = 16


def _outline(scene: Scene, crs: CRS | None) -> shapely.Geometry:
    """Outline of a scene in a CRS; empty where that is not defined."""
    if scene.crs is None:
        return shapely.Polygon()
    outline = footprint(scene.transform, 0, 0, scene.height, scene.width)
    if crs is None or scene.crs == crs:
        return outline
    bent = outline.segmentize(outline.length / 4 / _POINTS_PER_SIDE)
    moved = gpd.GeoSeries([bent], crs=scene.crs).to_crs(crs).iloc[0]
    return moved if np.isfinite(moved.bounds).all() else shapely.Polygon()


def _interval(scene: Scene) -> tuple[pd.Timestamp, pd.Timestamp]:
    """First and last moment of a scene; all of time, as in TorchGeo, where it is unknown."""
    if not scene.acquired.known:
        return pd.Timestamp.min, pd.Timestamp.max
    start, stop = scene.acquired.start, scene.acquired.stop
    return pd.Timestamp(round(start * 1e6), unit='us'), pd.Timestamp(round(stop * 1e6), unit='us')


def _pixel_size(scene: Scene, crs: CRS) -> tuple[float, float]:
    """Size of a scene's pixels in units of a CRS, in x and y."""
    assert scene.crs is not None
    if scene.crs == crs:
        a, b, _, d, e, _ = tuple(scene.transform)[:6]
        return math.hypot(a, d), math.hypot(b, e)
    bounds = array_bounds(scene.height, scene.width, scene.transform)
    transform, _, _ = calculate_default_transform(scene.crs.to_wkt(), crs.to_wkt(), scene.width, scene.height, *bounds)
    return transform.a, -transform.e


def scene_index(scenes: Sequence[Scene], crs: CRS | None = None) -> tuple[gpd.GeoDataFrame, tuple[float, float]]:
    """Build the index of TorchGeo's samplers and set operations: a row per scene, in their order.

    Args:
        scenes: at least one.
        crs: of the index; None for the first that a scene has.

    Returns:
        The index (``filepath``, ``geometry``, and ``datetime`` intervals), and the size of the first scene's pixels in
        units of its CRS. Scenes without CRS are in it with an empty outline, so that no place finds them.
    """
    first = next((s for s in scenes if s.crs is not None), None)
    target = crs if crs is not None else None if first is None else first.crs
    outlines = [_outline(s, target) for s in scenes]
    times = pd.IntervalIndex.from_tuples([_interval(s) for s in scenes], closed='both', name='datetime')
    index = gpd.GeoDataFrame({'filepath': [s.path for s in scenes]}, index=times, geometry=outlines, crs=target)
    return index, (1.0, 1.0) if first is None or target is None else _pixel_size(first, target)


def scenes_at(index: gpd.GeoDataFrame, outline: shapely.Polygon) -> list[int]:
    """Find the rows of the index that share area with an outline, in the index's order; touching it is not enough.

    Args:
        index: of :func:`scene_index`.
        outline: in the index's CRS.
    """
    near = index.sindex.query(outline, predicate='intersects')
    return sorted(int(i) for i in near if not index.geometry.iloc[i].touches(outline))


def grid_of(x: slice, y: slice) -> tuple[Affine, int, int, shapely.Polygon]:
    """Compute the north-up grid of a query.

    Args:
        x: from west to east, with the pixel size as step.
        y: from south to north, with the pixel size as step.

    Returns:
        Its affine, height and width in pixels, and outline.

    Raises:
        ValueError: for an empty query, or steps that are not positive.
    """
    if not (x.step > 0 and y.step > 0 and x.stop > x.start and y.stop > y.start):
        raise ValueError(f'Expected x and y from less to more with a positive pixel size, got {x} and {y}.')
    height, width = round((y.stop - y.start) / y.step), round((x.stop - x.start) / x.step)
    transform = Affine(x.step, 0.0, x.start, 0.0, -y.step, y.stop)
    return transform, max(height, 1), max(width, 1), shapely.box(x.start, y.start, x.stop, y.stop)


def window_on_grid(
    scene: Scene, crs: CRS, transform: Affine, height: int, width: int
) -> tuple[int, int, int, int] | None:
    """Find the window of a scene that is a given grid, if the grid is a part of the scene's own.

    Args:
        scene: the scene.
        crs: of the grid.
        transform: of the grid, north up.
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        Row, column, height and width; None where pixels would have to be resampled.
    """
    own = scene.transform
    if scene.crs != crs or own.b != 0 or own.d != 0:
        return None
    # the far corner must fit as well as the near one, else the pixels are of another size
    left, top = (transform.c - own.c) / own.a, (transform.f - own.f) / own.e
    right = (transform.c + width * transform.a - own.c) / own.a
    bottom = (transform.f + height * transform.e - own.f) / own.e
    row, col = round(top), round(left)
    off = max(abs(top - row), abs(left - col), abs(bottom - row - height), abs(right - col - width))
    return (row, col, height, width) if off < _ON_GRID else None
