# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""`torchgeo predict` on scenes from elsewhere, in half precision, on full disks, and what a shell sees of it."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import lightning.pytorch as pl
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from lightning.pytorch import Callback
from rasterio.transform import from_origin

from torchgeo_clay.callbacks import EmbeddingWriter, RasterWriter
from torchgeo_clay.datamodules import SceneDataModule
from torchgeo_clay.datasets import ClayEmbeddings, SceneError
from torchgeo_clay.tasks import ClayEmbedding, ClaySemanticSegmentation
from torchgeo_clay.writers import OutputError


def write_scene(path: Path, height: int = 40, width: int = 64, **profile: Any) -> Path:
    """A NAIP scene."""
    pixels = np.random.default_rng(0).integers(1, 255, (4, height, width)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {'crs': 'EPSG:32611', 'transform': from_origin(500_000, 3_600_000, 1, 1), 'nodata': 0, **profile}
    shape = {'count': 4, 'height': height, 'width': width, 'dtype': 'uint8'}
    with rasterio.open(path, 'w', driver='GTiff', **shape, **options) as file:
        file.write(pixels)
        file.descriptions = ('red', 'green', 'blue', 'nir')
        file.update_tags(DATETIME='2020-04-15T17:00:00', SENSOR='NAIP')
    return path


def run(task: pl.LightningModule, paths: Any, writer: Callback, precision: str = '32-true', **data: Any) -> None:
    options = {'chip': 32, 'stride': 24, 'batch_size': 5, **data}
    module = SceneDataModule([str(p) for p in paths], **options)
    trainer = pl.Trainer(
        accelerator='cpu',
        precision=precision,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[writer],
    )
    trainer.predict(task, datamodule=module, return_predictions=False)


@pytest.fixture
def task() -> ClayEmbedding:
    torch.manual_seed(0)
    return ClayEmbedding('clay_tiny_patch8', weights=False).eval()


def test_half_precision_is_close(task: ClayEmbedding, tmp_path: Path) -> None:
    scene, found = write_scene(tmp_path / 'a.tif'), {}
    for precision in ('32-true', 'bf16-mixed'):
        out = str(tmp_path / f'{precision}.parquet')
        run(task, [scene], EmbeddingWriter(out, quicklooks=False), precision)
        found[precision] = ClayEmbeddings(out).embeddings
    assert not np.array_equal(found['bf16-mixed'], found['32-true'])
    product = (found['bf16-mixed'] * found['32-true']).sum(1)
    cosine = product / np.prod([np.linalg.norm(f, axis=1) for f in found.values()], axis=0)
    assert len(cosine) == 6
    assert cosine.min() >= 0.999


# URLs -----------------------------------------------------------------------------------------------------------------


# Serves parts of files, as any store of COGs does. In a process of its own: GDAL opens files with Python's lock held.
_SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
class Ranges(BaseHTTPRequestHandler):
    def do_GET(self, body=True):
        path = Path(sys.argv[1] + self.path)
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        first, last, asked = 0, len(content) - 1, self.headers.get('Range')
        if asked:
            begin, _, end = asked.removeprefix('bytes=').partition('-')
            first, last = int(begin), min(int(end or last), last)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header('Content-Range', f'bytes {first}-{last}/{len(content)}')
        self.send_header('Accept-Ranges', 'bytes')
        self.send_header('Content-Length', str(last + 1 - first))
        self.end_headers()
        if body:
            self.wfile.write(content[first : last + 1])
    def do_HEAD(self):
        self.do_GET(body=False)
server = HTTPServer(('127.0.0.1', 0), Ranges)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Where a folder is served on the loopback."""
    command = [sys.executable, '-c', _SERVER, str(tmp_path / 'served')]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        yield f'http://127.0.0.1:{int(server.stdout.readline())}'
        server.kill()


def test_a_scene_by_its_url(task: ClayEmbedding, url: str, tmp_path: Path) -> None:
    scene = write_scene(
        tmp_path / 'served/a.tif', 300, 70, compress='deflate', tiled=True, blockxsize=64, blockysize=64
    )
    near, far = tmp_path / 'near.parquet', tmp_path / 'far.parquet'
    run(task, [scene], EmbeddingWriter(str(near), quicklooks=False))
    run(task, [f'{url}/a.tif'], EmbeddingWriter(str(far), quicklooks=False))
    found, expected = gpd.read_parquet(far), gpd.read_parquet(near)
    assert set(found['source']) == {f'{url}/a.tif'}
    assert found.drop(columns='source').equals(expected.drop(columns='source'))
    dense = ClaySemanticSegmentation(backbone='clay_tiny_patch8', weights=False, num_classes=2).eval()
    run(dense, [f'{url}/a.tif'], RasterWriter(str(tmp_path / 'maps')), unit_size=None)
    with rasterio.open(tmp_path / 'maps/a.tif') as file:
        assert file.shape == (300, 70)
    with pytest.raises(ValueError, match=r'(?s)found none to use.*b\.tif: not readable as a raster'):
        run(task, [f'{url}/b.tif'], EmbeddingWriter(str(tmp_path / 'b.parquet')))


# bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings('ignore:naip. please check:UserWarning')
def test_across_the_antimeridian_the_centre_is_there(task: ClayEmbedding, tmp_path: Path) -> None:
    where = {'crs': 'EPSG:32701', 'transform': from_origin(1.65e5, 8e6, 1000, 1000)}
    scene = write_scene(tmp_path / 'x.tif', 32, 32, **where)
    run(task, [scene], EmbeddingWriter(str(tmp_path / 'e.parquet'), quicklooks=False))
    table = ClayEmbeddings(tmp_path / 'e.parquet')
    footprint = table.data.geometry.iloc[0]
    assert footprint.geom_type == 'MultiPolygon'
    assert abs(footprint.centroid.x) < 170  # which the plain centroid would be
    ((lon,), (lat,)) = rasterio.warp.transform(where['crs'], 'EPSG:4326', [1.65e5 + 16_000], [8e6 - 16_000])
    assert table[0]['x'].item() == pytest.approx(lon, abs=1e-3)
    assert table[0]['y'].item() == pytest.approx(lat, abs=1e-3)
    box = pq.read_table(tmp_path / 'e.parquet')['bbox'][0].as_py()  # by GeoParquet from the west edge to the east edge
    assert 170 < box['xmin'] < 180
    assert -180 < box['xmax'] < -170
    edges = rasterio.warp.transform(where['crs'], 'EPSG:4326', [1.65e5, 1.97e5], [8e6, 8e6])[0]
    np.testing.assert_allclose([box['xmin'], box['xmax']], edges, atol=0.01)


def test_a_folder_that_can_not_be(task: ClayEmbedding, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(OutputError, match='expected a folder that can be written to'):
        run(task, [write_scene(tmp_path / 'a.tif')], EmbeddingWriter(str(tmp_path / 'file/e.parquet')))


def test_a_full_disk(task: ClayEmbedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, out = write_scene(tmp_path / 'in/a.tif'), tmp_path / 'out/e.parquet'
    sync, room = os.fsync, [4]  # run.json and its folder, a part and its folder

    def until_full(handle: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, 'No space left on device')
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', until_full)
        with pytest.raises(OutputError, match='No space left'):
            run(task, [scene], EmbeddingWriter(str(out)), unit_size=2)
    assert not out.exists()
    assert len(list(out.with_name('e.parquet.parts').glob('*.parquet'))) == 1
    run(task, [scene], EmbeddingWriter(str(out), quicklooks=False), unit_size=2)  # room was made
    assert len(gpd.read_parquet(out)) == 6


def test_missing_bands_are_named(task: ClayEmbedding, tmp_path: Path) -> None:
    good, lacking = write_scene(tmp_path / 'naip/good.tif'), write_scene(tmp_path / 'naip/lacking.tif')
    with rasterio.open(lacking, 'r+') as file:
        file.descriptions = ('red', 'green', 'blue', 'height')
    with pytest.raises(ValueError, match=r'(?s)1 file could not be used.*lacking\.tif: bands nir of naip are missing'):
        run(task, [tmp_path / 'naip'], EmbeddingWriter(str(tmp_path / 'e.parquet'), quicklooks=False))
    assert set(gpd.read_parquet(tmp_path / 'e.parquet')['source']) == {str(good)}


@pytest.mark.slow
def test_a_shell_sees_the_exit_code(tmp_path: Path, repo_root: Path) -> None:
    write_scene(tmp_path / 'in/good.tif')
    (tmp_path / 'in/broken.tif').write_bytes(b'II*\x00no')
    command = [
        sys.executable, '-m', 'torchgeo', 'predict', f'--config={repo_root}/configs/clay_embed.yaml',
        '--model.model=clay_tiny_patch8', '--model.weights=false', f'--data.paths={tmp_path}/in', '--data.chip=32',
        '--trainer.accelerator=cpu', f'--trainer.default_root_dir={tmp_path}/out',
        f'--trainer.callbacks.out={tmp_path}/out/e.parquet', '--trainer.callbacks.quicklooks=false',
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert 'SkippedScenesError: 1 file could not be used' in ended.stderr
    assert 'broken.tif: not readable as a raster' in ended.stderr
    assert len(gpd.read_parquet(tmp_path / 'out/e.parquet')) == 4


def test_what_is_no_scene_is_no_failure(task: ClayEmbedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Globs and the home folder are expanded; a scene through a link counts once; own results are no scenes."""
    monkeypatch.setenv('HOME', str(tmp_path))
    scene = write_scene(tmp_path / 'in/a.tif')
    (tmp_path / 'in/link.tif').symlink_to(scene)
    for name in ('a.tfw', 'notes.txt', 'item.json'):
        (tmp_path / 'in' / name).write_text('')
    for paths in (['~/in'], [tmp_path / 'in/*.tif'], ['~/in/?.tif', tmp_path / 'in']):
        run(task, paths, EmbeddingWriter(str(tmp_path / 'in/e.parquet')))  # whose pictures lie among the scenes
        assert set(gpd.read_parquet(tmp_path / 'in/e.parquet')['source']) == {str(scene)}


def test_a_link_that_leads_nowhere_is_skipped_alone(task: ClayEmbedding, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / 'in/a.tif')
    (tmp_path / 'in/b.tif').symlink_to(tmp_path / 'nowhere.tif')
    with pytest.raises(SceneError, match=r'(?s)1 file could not be used.*b\.tif'):
        run(task, [tmp_path / 'in'], EmbeddingWriter(str(tmp_path / 'e.parquet'), quicklooks=False))
    assert set(gpd.read_parquet(tmp_path / 'e.parquet')['source']) == {str(scene)}
