# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Principal components against numpy's singular values, patch rasters, pictures."""

import resource
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import rasterio
import shapely
from pyproj import CRS
from rasterio.transform import from_origin

from torchgeo_clay.writers import (
    OutputError,
    Rows,
    embedding_table,
    write_geoparquet,
    write_patch_cogs,
    write_quicklooks,
)
from torchgeo_clay.writers.quicklook import pca_picture, principal_components

UTM = CRS.from_epsg(32611)


@pytest.fixture
def table(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Patches of a scene of 5 x 7 patches, one of them missing, and of another scene: (path, (35, 6))."""
    rng = np.random.default_rng(0)
    grid = [(r, c) for r in range(5) for c in range(7)]
    values = rng.normal(size=(35, 6)).astype(np.float32) * np.array([5, 4, 3, 1, 1, 1], np.float32)
    tables = []
    for name, cells in (('x/a.tif', [i for i in range(35) if i != 9]), ('y/a.tif', [0, 1])):
        n = len(cells)
        rows = Rows(
            embedding=values[cells],
            geometry=[shapely.box(0, 0, 1, 1)] * n,
            time=np.full(n, np.nan),
            sensor=['naip'] * n,
            gsd=np.ones(n, np.float32),
            source=[name] * n,
            row=np.array([grid[i][0] * 8 for i in cells]),
            col=np.array([grid[i][1] * 8 for i in cells]),
            valid=np.ones(n, np.float32),
        )
        tables.append(embedding_table(rows))
    path = tmp_path / 'e.parquet'
    write_geoparquet(path, tables, crs=UTM, metadata={'pooling': 'patches'})
    every = np.concatenate([np.delete(values, 9, 0), values[:2]])
    return path, every


def test_components_are_numpys(table: tuple[Path, np.ndarray]) -> None:
    path, values = table
    mean, components = principal_components(path, 3)
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-5, atol=1e-6)
    _, _, vectors = np.linalg.svd(values - values.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs((components * vectors[:3]).sum(1)), 1, rtol=0, atol=1e-4)
    assert (np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1) > 0).all()
    with pytest.raises(ValueError, match='components: expected 1 to 6'):
        principal_components(path, 7)


def test_patches_lie_on_the_patch_grid(table: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, values = table
    where = {'height': 38, 'width': 56, 'crs': UTM, 'transform': from_origin(5e5, 36e5, 2, 3)}
    scenes = [SimpleNamespace(path=name, **where) for name in ('z.tif', 'x/a.tif')]
    (out,) = write_patch_cogs(tmp_path / 'p', path, scenes)
    assert [p.name for p in (tmp_path / 'p').iterdir()] == [out.name] == ['a_1.tif']
    with rasterio.open(out) as file:
        found = file.read()
        assert file.crs == UTM
        assert tuple(file.transform)[:6] == (16, 0, 5e5, 0, -24, 36e5)
        assert (file.height, file.width) == (5, 7)
    flat = found.reshape(len(found), -1).T
    assert np.isnan(flat[9]).all()
    np.testing.assert_array_equal(np.delete(flat, 9, 0), values[:34])


def test_quicklooks(table: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    written = write_quicklooks(table[0], tmp_path / 'pictures')
    assert [p.name for p in written] == ['a_0_pca.png', 'a_1_pca.png', 'scatter.png']
    picture = plt.imread(written[0])
    assert picture.shape == (5 * 36, 7 * 36, 4)
    assert picture[36, 36 * 2, 3] == 0
    assert (picture[..., 3] == 1).mean() == pytest.approx(34 / 35)
    assert len(np.unique(picture[::36, ::36].reshape(-1, 4), axis=0)) > 20


def test_a_picture_is_stretched() -> None:
    values = np.array([[0, 0, 0], [1, 2, 3], [2, 4, 6]], np.float32)
    picture = pca_picture(values, np.array([0, 0, 8]), np.array([0, 8, 0]), values[0], values[2])
    assert picture.tolist() == [[[0, 0, 0, 255], [128, 128, 128, 255]], [[255, 255, 255, 255], [0, 0, 0, 0]]]


@pytest.mark.parametrize('size', [1, 400, 3000])
def test_a_full_disk_is_an_error_with_a_remedy(table: tuple[Path, np.ndarray], tmp_path: Path, size: int) -> None:
    """Whatever is being written when the room ends; nothing half-written is left."""
    scenes = [SimpleNamespace(path='x/a.tif', height=40, width=56, crs=UTM, transform=from_origin(0, 0, 1, 1))]
    folder = tmp_path / 'p'
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(OutputError, match=r'a_0\.tif: could not be written .*room on the disk'):
            write_patch_cogs(folder, table[0], scenes)
        with pytest.raises(OutputError, match=r'png: could not be written .*room on the disk'):
            write_quicklooks(table[0], folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in folder.rglob('*') if path.is_file() and path.suffix != '.png'] == []
