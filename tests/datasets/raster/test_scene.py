# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

import math
import os
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from torchgeo_clay.datamodules import SceneDataModule
from torchgeo_clay.datasets import SceneError, SensorRaster, scan_scene
from torchgeo_clay.sensors import get_sensor

NAIP, LINZ, S2 = get_sensor('naip'), get_sensor('linz'), get_sensor('sentinel-2-l2a')


def test_describes_a_file(write_raster):
    path = write_raster('m_20200415.tif', nodata=0, descriptions=('nir', 'red', 'green', 'blue'))
    scene = scan_scene(path, NAIP, ['red', 'nir'])
    assert (scene.path, scene.height, scene.width) == (str(path), 40, 50)
    assert scene.crs == 'EPSG:32630'
    assert tuple(scene.transform) == tuple(from_origin(500_000, 4_600_000, 10, 10))
    assert (scene.band_indexes, scene.left_out, scene.remarks) == ((2, 1), ('green', 'blue'), ())
    assert (scene.validity.fill, scene.validity.mask, scene.dtype) == ((0.0, 0.0), False, 'uint8')
    assert scene.version == (path.stat().st_size, path.stat().st_mtime_ns)
    assert scene.time == datetime(2020, 4, 15, 12, tzinfo=UTC).timestamp()
    assert not scene.acquired.has_hour


def test_options_are_kept_and_checked(write_raster):
    path = write_raster()
    scene = scan_scene(path, NAIP, scale=0.5, offset=10, gsd=2.5, time='2020-04-15T09:30:00Z')
    assert (scene.calibration.scale, scene.calibration.offset, scene.gsd(0, 0, 8, 8)) == ((0.5,), (10.0,), 2.5)
    assert scene.time == datetime(2020, 4, 15, 9, 30, tzinfo=UTC).timestamp()
    assert scan_scene(path, NAIP, time=12.5).time == 12.5
    assert math.isnan(scan_scene(path, NAIP).time)
    for wrong in (0, -1, math.nan):
        with pytest.raises(ValueError, match='gsd: expected positive'):
            scan_scene(path, NAIP, gsd=wrong)
    with pytest.raises(ValueError, match='time: expected a date'):
        scan_scene(path, NAIP, time='2014')
    for option in ('scale', 'offset'):
        for wrong in (math.nan, math.inf, 3e38):
            with pytest.raises(ValueError, match=f'{option}: expected a finite'):
                scan_scene(path, NAIP, **{option: wrong})
    with pytest.raises(ValueError, match=r'to_db: expected a sensor .* got naip'):
        scan_scene(path, NAIP, to_db=True)


@pytest.mark.parametrize(
    ('content', 'reason'),
    [(b'', 'zero bytes'), (b'not a raster', 'not readable as a raster'), (b'II*\0', 'not readable')],
)
def test_files_that_are_no_rasters(tmp_path: Path, content, reason):
    path = tmp_path / 'scene.tif'
    path.write_bytes(content)
    with pytest.raises(SceneError, match=reason) as caught:
        scan_scene(path, NAIP)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(SceneError, match='no such file or folder'):
        scan_scene(tmp_path / 'none.tif', NAIP)


@pytest.mark.parametrize('layout', [{}, {'tiled': True, 'blockxsize': 16, 'blockysize': 16}, {'compress': 'deflate'}])
@pytest.mark.parametrize('profile', [{'interleave': 'band'}, {'BIGTIFF': 'YES'}, {'ENDIANNESS': 'BIG'}])
def test_truncated_files_are_seen(write_raster, layout, profile):
    path = write_raster(**layout, **profile)
    scan_scene(path, NAIP)
    content = path.read_bytes()
    for share in (0.99, 0.9, 0.5, 0.01):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(SceneError, match=r'truncated|not readable'):
            scan_scene(path, NAIP)


def test_lost_blocks_are_seen_though_the_directory_is_there(write_raster):
    path = write_raster(descriptions=None, COPY_SRC_OVERVIEWS='NO')
    with rasterio.open(path) as source:
        rasterio.shutil.copy(source, path.with_name('cog.tif'), driver='COG', blocksize=128, compress='none')
    cog = path.with_name('cog.tif')
    os.truncate(cog, cog.stat().st_size - 100)
    with rasterio.open(cog) as file:
        assert file.count == 4
    with pytest.raises(SceneError, match=r'not readable at rows .* truncated or damaged'):
        scan_scene(cog, NAIP)


def test_sparse_files_are_complete(write_raster):
    path = write_raster(
        pixels=np.zeros((4, 64, 64), np.uint8), sparse_ok=True, tiled=True, blockxsize=16, blockysize=16
    )
    assert scan_scene(path, NAIP).height == 64


def test_no_crs_needs_a_gsd(write_raster):
    path = write_raster(crs=None, transform=None)
    with pytest.raises(SceneError, match=r'no CRS.*gsd='):
        scan_scene(path, NAIP)
    scene = scan_scene(path, NAIP, gsd=0.6)
    assert scene.gsd(0, 0, 8, 8) == 0.6
    assert all(math.isnan(v) for v in scene.place(0, 0, 8, 8))


def test_an_order_by_count_is_reported(write_raster):
    path = write_raster(descriptions=None, pixels=np.ones((4, 8, 8), np.uint16))
    remark = scan_scene(path, NAIP, ['nir', 'red']).remarks[0]
    assert remark.startswith('it does not name its bands: taken as 1 red, 4 nir; to state another order give bands=')
    assert scan_scene(path, NAIP, ['nir', 'red', 'green', 'blue']).remarks == ()  # stated
    with pytest.warns(UserWarning, match=r'naip: please check\n  .*scene\.tif: it does not name its bands'):
        SensorRaster(path, 'naip')


def test_tags_and_names_that_disagree_are_reported(write_raster):
    path = write_raster('scene_20190101.tif', tags={'DATETIME': '2020-04-15T09:30:00Z'})
    assert 'its tags give the date 2020-04-15, its name 2019-01-01' in scan_scene(path, NAIP).remarks[0]
    assert scan_scene(path, NAIP, time='2020-04-15').remarks == ()


def test_bands_of_different_types_are_refused(write_raster, tmp_path):
    files = [write_raster(f'{t}.tif', np.ones((1, 8, 8), t), (n,)) for t, n in (('uint8', 'VV'), ('float32', 'VH'))]
    bands = ''.join(
        f'<VRTRasterBand dataType="{dtype}" band="{i}"><Description>{name}</Description><SimpleSource>'
        f'<SourceFilename>{file}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>'
        for i, (file, dtype, name) in enumerate(zip(files, ('Byte', 'Float32'), ('VV', 'VH'), strict=True), start=1)
    )
    path = tmp_path / 'mixed.vrt'
    path.write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><SRS>EPSG:32630</SRS>'
        f'<GeoTransform>500000, 10, 0, 4600000, 0, -10</GeoTransform>{bands}</VRTDataset>'
    )
    radar = get_sensor('sentinel-1-rtc')
    with pytest.raises(SceneError, match=r'mixed\.vrt: its bands have different types, float32, uint8'):
        scan_scene(path, radar)
    assert scan_scene(path, radar, ['VH']).dtype == 'float32'


def test_names_of_bands_that_are_not_utf8(write_raster):
    path = write_raster(descriptions=('red', 'green', 'blue', 'XXXX'))
    path.write_bytes(path.read_bytes().replace(b'XXXX', b'caf\xe9'))
    with pytest.raises(SceneError, match=r'scene\.tif: '):
        scan_scene(path, NAIP)


def test_complex_pixels_are_refused(write_raster):
    path = write_raster(pixels=np.ones((2, 8, 8), np.complex64), descriptions=('VV', 'VH'))
    with pytest.raises(SceneError, match='expected real pixels, got complex64'):
        scan_scene(path, get_sensor('sentinel-1-rtc'))


def test_errors_name_the_file_and_both_lists(write_raster):
    path = write_raster()
    with pytest.raises(
        SceneError, match=r'bands rededge1, .* are missing; the file has red, green, blue, nir'
    ) as caught:
        scan_scene(path, S2)
    assert str(caught.value).startswith(f'{path}: ')


def test_infrared_that_calls_itself_alpha_is_no_mask(write_raster):
    rgba = {'photometric': 'RGB', 'alpha': 'YES'}
    path = write_raster('a.tif', **rgba)
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    assert scan_scene(path, NAIP).validity.alpha == ()
    rgba = write_raster('b.tif', descriptions=None, **rgba)
    scene = scan_scene(rgba, LINZ)
    assert (scene.band_indexes, scene.validity.alpha) == ((1, 2, 3), (4,))


def test_a_sparse_scene_costs_no_memory_before_it_is_read(tmp_path: Path):
    path = tmp_path / 'huge.vrt'
    bands = ''.join(
        f'<VRTRasterBand dataType="Byte" band="{i}"><Description>{name}</Description></VRTRasterBand>'
        for i, name in enumerate(NAIP.band_names, start=1)
    )
    srs = '<SRS>EPSG:32630</SRS><GeoTransform>500000, 1, 0, 4600000, 0, -1</GeoTransform>'
    path.write_text(f'<VRTDataset rasterXSize="1000000" rasterYSize="1000000">{srs}{bands}</VRTDataset>')
    tracemalloc.start()
    scene = scan_scene(path, NAIP)
    data = SceneDataModule(str(path), sensor='naip', nodata=0)
    data.setup('predict')
    assert (scene.height, scene.width) == (10**6, 10**6)
    assert sum(len(unit.corners) for unit in data.units) == 3907**2
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
