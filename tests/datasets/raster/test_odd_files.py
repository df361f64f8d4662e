# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""One odd file among good ones is named and left out alone: in Python, in prediction, in pretraining."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from rasterio.control import GroundControlPoint

from torchgeo_clay.datamodules import SceneDataModule
from torchgeo_clay.datamodules.pretrain.scan import SensorFolder, scan_folder
from torchgeo_clay.datasets import SensorRaster
from torchgeo_clay.sensors import get_sensor

NAIP = get_sensor('naip')
LOCAL = 'LOCAL_CS["site",UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
ONE_POINT = ([GroundControlPoint(0, 0, 500_000, 4_600_000)], rasterio.CRS.from_epsg(32630))
GOOD = ('a_20200101.tif', 'z_20200101.tif')
BAD = {
    'nan': ({'transform': Affine(np.nan, 0, 5e5, 0, -1, 46e5)}, 'not finite'),
    'flat': ({'transform': Affine(0, 0, 5e5, 0, 0, 46e5)}, 'no area'),
    'local': ({'crs': rasterio.CRS.from_wkt(LOCAL)}, 'local'),
    'point': ({'crs': None, 'transform': None, 'gcps': ONE_POINT}, 'control points'),
    'degrees': ({'crs': 'EPSG:4326'}, 'in degrees'),
    'nowhere': ({'crs': None, 'transform': None}, 'no CRS'),
    'missing': ({'descriptions': ('red', 'green', 'blue', 'depth')}, 'bands nir of naip are missing'),
}


@pytest.fixture
def folder(write_raster: Callable[..., Path]) -> Path:
    """Two good scenes, and between them in order one of each kind of odd file."""
    grid = {'transform': rasterio.transform.from_origin(500_000, 4_600_000, 1, 1)}
    for name in GOOD:
        root = write_raster(f'naip/{name}', **grid).parent
    for name, (profile, _) in BAD.items():
        write_raster(f'naip/{name}.tif', **{**grid, **profile})
    os.replace(write_raster('naip/moved.tif', **grid), os.fsencode(root) + b'/caf\xe9.tif')
    (root / 'dangling.tif').symlink_to(root / 'gone.tif')
    (root / 'empty.tif').touch()
    (root / 'link.tif').symlink_to(root / GOOD[0])
    for beside in ('a.tfw', 'a.txt', 'a.json', 'a.parquet'):
        (root / beside).write_text('{}')
    return root


def by_python(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    with pytest.warns(UserWarning, match='left out 10 of 12 files'):
        dataset = SensorRaster(folder, NAIP)
    return [s.path for s in dataset.scenes], dataset.skipped


def by_prediction(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    data = SceneDataModule(str(folder), chip=8)
    data.setup('predict')
    return [s.path for s in data.rasters['naip'].scenes], data.skipped


def by_pretraining(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    found = scan_folder(SensorFolder(folder, NAIP, {}), 8)
    return [r.path for r in found.regions], found.skipped


@pytest.mark.parametrize('scan', [by_python, by_prediction, by_pretraining])
def test_odd_files_leave_the_good_ones(
    folder: Path, scan: Callable[[Path], tuple[list[str], list[tuple[str, str]]]], capfd: pytest.CaptureFixture[str]
) -> None:
    scenes, skipped = scan(folder)
    assert [os.path.basename(path) for path in scenes] == list(GOOD)
    reasons = {os.path.basename(path): reason for path, reason in skipped}
    expected = {f'{name}.tif': reason for name, (_, reason) in BAD.items()}
    expected |= {'caf\\xe9.tif': 'not UTF-8', 'dangling.tif': 'which does not exist', 'empty.tif': 'zero bytes'}
    assert set(reasons) == set(expected)
    for name, reason in expected.items():
        assert reason in reasons[name], name
    assert 'Traceback' not in capfd.readouterr().err
