# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""From scenes to a table of embeddings: the task, the datamodule and the callback that writes."""

import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import lightning.pytorch as pl
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
import torch
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin
from rasterio.warp import transform_geom

from torchgeo_clay.callbacks import EmbeddingWriter
from torchgeo_clay.conditioning import encode_latlon, encode_time
from torchgeo_clay.datamodules import SceneDataModule
from torchgeo_clay.datasets import ClayEmbeddings
from torchgeo_clay.datasets.raster.dataset import windows
from torchgeo_clay.inference import SkippedScenesError
from torchgeo_clay.models import save_encoder
from torchgeo_clay.sensors import get_sensor
from torchgeo_clay.tasks import ClayEmbedding
from torchgeo_clay.writers import OutputError, read_metadata

NAIP = get_sensor('naip')


def write_scene(
    path: Path, height: int = 70, width: int = 90, seed: int = 0, *, empty: Any = None, **profile: Any
) -> Path:
    """A NAIP scene in UTM with a date; `empty` is a slice without data."""
    pixels = np.random.default_rng(seed).integers(1, 255, (4, height, width)).astype(np.uint8)
    if empty is not None:
        pixels[(slice(None), *empty)] = 0
    tags = profile.pop('tags', {'DATETIME': '2020-04-15T17:00:00', 'SENSOR': 'NAIP'})
    options = {'crs': 'EPSG:32611', 'transform': from_origin(500_000, 3_600_000, 1, 1), 'nodata': 0, **profile}
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {'count': 4, 'height': height, 'width': width, 'dtype': 'uint8'}
    with rasterio.open(
        path, 'w', driver='GTiff', **shape, **{k: v for k, v in options.items() if v is not None}
    ) as file:
        file.write(pixels)
        file.descriptions = ('red', 'green', 'blue', 'nir')
        file.update_tags(**tags)
    return path


@pytest.fixture
def task() -> ClayEmbedding:
    torch.manual_seed(0)
    return ClayEmbedding('clay_tiny_patch8', weights=False).eval()


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two scenes, one of them with an empty corner."""
    folder = tmp_path / 'scenes'
    write_scene(folder / 'a.tif')
    write_scene(folder / 'b.tif', 40, 64, seed=1, empty=np.s_[:32, :32], transform=from_origin(7e5, 3.7e6, 1, 1))
    return folder


def run(
    task: ClayEmbedding, scenes: Any, out: Path, writer: dict[str, Any] | None = None, limit: Any = 1.0, **data: Any
) -> SceneDataModule:
    options = {'chip': 32, 'stride': 24, 'batch_size': 5, 'unit_size': 4, **data}
    module = SceneDataModule(scenes if isinstance(scenes, list) else str(scenes), **options)
    trainer = pl.Trainer(
        accelerator='cpu',
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EmbeddingWriter(str(out), **(writer or {}))],
        limit_predict_batches=limit,
    )
    trainer.predict(task, datamodule=module, return_predictions=False)
    return module


def expected_embedding(task: ClayEmbedding, path: Path, row: int, col: int, chip: int = 32) -> torch.Tensor:
    """The class token of a chip, by hand: rasterio's pixels, Clay unfolded."""
    with rasterio.open(path) as file:
        window = rasterio.windows.Window(col, row, chip, chip)
        pixels = file.read(window=window).astype(np.float32)
        center = file.transform @ (col + chip / 2, row + chip / 2)
        lon, lat = rasterio.warp.transform(file.crs, 'EPSG:4326', [center[0]], [center[1]])
    mean, std = (np.array(s, np.float32)[:, None, None] for s in (NAIP.mean, NAIP.std))
    image = np.where((pixels == 0).any(axis=0), 0, (pixels - mean) / std).astype(np.float32)
    with torch.no_grad():
        token = task.model(
            torch.from_numpy(image)[None], NAIP.wavelengths, 1.0, encode_time(1586970000.0), encode_latlon(lat, lon)
        )
    return token[0]


def test_a_folder_becomes_one_table(task: ClayEmbedding, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out/e.parquet'
    run(task, scenes, out)
    frame = gpd.read_parquet(out)
    assert frame.crs == 'EPSG:4326'
    expected = [('a.tif', *w) for w in windows(70, 90, 32, 24)]
    expected += [('b.tif', *w) for w in windows(40, 64, 32, 24) if w != (0, 0)]
    found = [(Path(s).name, r, c) for s, r, c in zip(frame['source'], frame['row'], frame['col'], strict=True)]
    assert found == expected
    assert set(frame['sensor']) == {'naip'}
    assert (frame['gsd'] == 1).all()
    assert (frame['datetime'].astype(str) == '2020-04-15 17:00:00+00:00').all()
    for i in (0, 3, len(frame) - 1):
        row = frame.iloc[i]
        token = expected_embedding(task, Path(row['source']), row['row'], row['col'])
        torch.testing.assert_close(torch.tensor(row['embedding']), token, rtol=0, atol=1e-6)
        with rasterio.open(row['source']) as file:
            bounds = rasterio.windows.bounds(rasterio.windows.Window(row['col'], row['row'], 32, 32), file.transform)
            back = shapely.geometry.shape(transform_geom('EPSG:4326', file.crs, row['geometry'].__geo_interface__))
            share = (file.read(window=rasterio.windows.Window(row['col'], row['row'], 32, 32))[0] > 0).mean()
        np.testing.assert_allclose(back.bounds, bounds, rtol=0, atol=1e-6)
        assert row['valid'] == pytest.approx(share)
    assert len(ClayEmbeddings(out)) == len(frame)
    said = read_metadata(out)
    assert said['model'] == 'clay_tiny_patch8'
    assert len(said['weights_sha256']) == 64
    assert said['torchgeo_clay']
    assert sorted(p.name for p in out.parent.rglob('*')) == [
        'a_pca.png',
        'b_pca.png',
        'e.parquet',
        'e_quicklooks',
        'scatter.png',
    ]


def test_a_run_that_was_stopped_goes_on(task: ClayEmbedding, scenes: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / 'whole.parquet', tmp_path / 'parts.parquet'
    run(task, scenes, whole)
    run(task, scenes, parts, limit=2)
    assert not parts.exists()
    done = sorted((tmp_path / 'parts.parquet.parts').glob('*.parquet'))
    assert len(done) == 2
    before = [p.stat().st_mtime_ns for p in done]
    again = run(task, scenes, parts, limit=1)
    assert [p.stat().st_mtime_ns for p in done] == before
    loader = again.predict_dataloader()
    loader.skip({p.stem for p in done})
    chips = [chip for batch in loader for chip in zip(batch['unit'], batch['corner'], strict=True)]
    assert len(loader) < len(again.predict_dataloader())
    assert {i for i, u in enumerate(again.units) if u.key not in {p.stem for p in done}} <= {i for i, _ in chips}
    run(task, scenes, parts)
    assert gpd.read_parquet(parts).equals(gpd.read_parquet(whole))
    stamp = parts.stat().st_mtime_ns
    run(task, scenes, parts)  # nothing is left to do
    assert parts.stat().st_mtime_ns == stamp


def test_ranks_share_the_units(scenes: Path) -> None:
    from types import SimpleNamespace

    keys: list[str] = []
    for rank in range(9):  # three of which find nothing to do
        module = SceneDataModule(str(scenes), chip=32, stride=24, batch_size=5, unit_size=3)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=9)
        module.setup('predict')
        loader = module.predict_dataloader()
        chips = sum(len(b['unit']) + len(b['empty']) for b in loader)
        assert chips == sum(len(u.corners) for u in loader.units)
        assert len(loader) >= 1
        keys += [u.key for u in loader.units]
    assert len(module.units) == 6
    assert sorted(keys) == sorted(u.key for u in module.units)
    assert len(set(keys)) == len(keys)


def test_another_run_is_refused_before_anything_is_done(task: ClayEmbedding, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / 'e.parquet'
    run(task, scenes, out)
    before = out.read_bytes()
    with pytest.raises(OutputError, match='stride is 24 there, 32 here'):
        run(task, scenes, out, stride=32)
    write_scene(scenes / 'c.tif', seed=5)
    with pytest.raises(OutputError, match='of other scenes'):
        run(task, scenes, out)
    assert out.read_bytes() == before
    run(task, scenes, out, {'overwrite': True})
    assert len(set(gpd.read_parquet(out)['source'])) == 3


def test_mean_of_patches(task: ClayEmbedding, scenes: Path, tmp_path: Path) -> None:
    mean = ClayEmbedding('clay_tiny_patch8', weights=False, pooling='mean')
    patches = ClayEmbedding('clay_tiny_patch8', weights=False, pooling='patches')
    for other in (mean, patches):
        other.load_state_dict(task.state_dict())
    write_scene(tmp_path / 'one.tif', 32, 32, seed=3, empty=np.s_[:16, :])
    run(mean, tmp_path / 'one.tif', tmp_path / 'mean.parquet')
    run(patches, tmp_path / 'one.tif', tmp_path / 'patches.parquet', patch_grid=True)
    each = ClayEmbeddings(tmp_path / 'patches.parquet')
    assert list(zip(each.data['row'], each.data['col'], strict=True)) == [
        (r, c) for r in (16, 24) for c in (0, 8, 16, 24)
    ]
    np.testing.assert_allclose(
        ClayEmbeddings(tmp_path / 'mean.parquet').embeddings[0], each.embeddings.mean(0), rtol=0, atol=1e-6
    )


def test_every_patch_is_there_once(task: ClayEmbedding, tmp_path: Path) -> None:
    patches = ClayEmbedding('clay_tiny_patch8', weights=False, pooling='patches')
    patches.load_state_dict(task.state_dict())
    scene = write_scene(tmp_path / 'a.tif', 70, 90)
    run(patches, scene, tmp_path / 'e.parquet', {'patch_cogs': True}, patch_grid=True)
    frame = gpd.read_parquet(tmp_path / 'e.parquet')
    cells = sorted(zip(frame['row'], frame['col'], strict=True))
    assert cells == [(r, c) for r in range(0, 70, 8) for c in range(0, 90, 8)]
    last = frame[(frame['row'] == 64) & (frame['col'] == 88)].iloc[0]
    assert last['valid'] == pytest.approx(6 * 2 / 64)
    back = shapely.geometry.shape(transform_geom('EPSG:4326', 'EPSG:32611', last['geometry'].__geo_interface__))
    inside = 500_088, 3_600_000 - 70, 500_090, 3_600_000 - 64
    np.testing.assert_allclose(back.bounds, inside, rtol=0, atol=1e-6)
    with rasterio.open(tmp_path / 'e_patches/a_0.tif') as file:
        assert (file.count, file.height, file.width) == (192, 9, 12)
        assert tuple(file.transform)[:6] == (8, 0, 500_000, 0, -8, 3_600_000)
        np.testing.assert_array_equal(file.read()[:, 8, 11], last['embedding'])
        assert not np.isnan(file.read()).any()
    with pytest.raises(ValueError, match='patch_grid: true'):
        run(patches, scene, tmp_path / 'f.parquet')


class TestBadInput:
    """What is found wrong is named; what can be done is done."""

    def test_files_that_are_no_scene_are_named_and_counted(
        self, task: ClayEmbedding, scenes: Path, tmp_path: Path
    ) -> None:
        (scenes / 'broken.tif').write_bytes(b'II*\x00no')
        write_scene(scenes / 'other.tif', tags={'SENSOR': 'Sentinel-2', 'LEVEL': 'L1C'})
        out = tmp_path / 'e.parquet'
        with pytest.raises(SkippedScenesError, match=r'(?s)2 files could not be used.*broken\.tif.*other\.tif.*L1C'):
            run(task, scenes, out)
        assert len(set(gpd.read_parquet(out)['source'])) == 2
        with pytest.raises(SkippedScenesError):  # also where nothing is left to do
            run(task, scenes, out)
        with pytest.warns(UserWarning, match=r'(?s)2 files could not be used.*broken\.tif'):
            run(task, scenes, tmp_path / 'f.parquet', {'on_skipped': 'warn'})

    def test_a_scene_that_breaks_while_it_is_read(self, task: ClayEmbedding, scenes: Path, tmp_path: Path) -> None:
        broken = write_scene(scenes / 'c.tif', 200, 200, compress='deflate', tiled=True, blockxsize=16, blockysize=16)
        with open(broken, 'rb+') as file:
            file.seek(broken.stat().st_size // 2)
            file.write(bytes(2000))
        out = tmp_path / 'e.parquet'
        with pytest.raises(SkippedScenesError, match=r'(?s)1 file could not be used.*c\.tif.*not readable at rows'):
            run(task, scenes, out)
        assert {Path(s).name for s in gpd.read_parquet(out)['source']} == {'a.tif', 'b.tif'}

    def test_nothing_to_use(self, task: ClayEmbedding, tmp_path: Path) -> None:
        (tmp_path / 'in').mkdir()
        (tmp_path / 'in/x.tif').write_bytes(b'')
        with pytest.raises(ValueError, match=r'(?s)found none to use.*x\.tif: the file has zero bytes'):
            run(task, tmp_path / 'in', tmp_path / 'e.parquet')
        with pytest.raises(ValueError, match='no such file or folder'):
            run(task, tmp_path / 'nowhere', tmp_path / 'e.parquet')

    def test_missing_bands(self, task: ClayEmbedding, scenes: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match='found none to use'):
            run(task, scenes, tmp_path / 'e.parquet', sensor='sentinel-1-rtc')
        with pytest.raises(ValueError, match=r'bands=.* need a sensor'):
            run(task, scenes, tmp_path / 'e.parquet', bands=['red'])

    def test_no_date_and_no_crs(self, task: ClayEmbedding, tmp_path: Path) -> None:
        with pytest.warns(NotGeoreferencedWarning):
            scene = write_scene(tmp_path / 'in/naip/x.tif', 32, 32, crs=None, transform=None, tags={})
        with pytest.raises(ValueError, match='no CRS'):
            run(task, scene, tmp_path / 'e.parquet')
        run(task, scene, tmp_path / 'e.parquet', gsd=0.6)
        frame = gpd.read_parquet(tmp_path / 'e.parquet')
        assert frame['datetime'].isna().all()
        assert frame.geometry.is_empty.all()
        assert frame['gsd'].iloc[0] == np.float32(0.6)
        assert math.isnan(ClayEmbeddings(tmp_path / 'e.parquet')[0]['x'])

    def test_a_scene_smaller_than_a_chip(self, task: ClayEmbedding, tmp_path: Path) -> None:
        scene = write_scene(tmp_path / 'x.tif', 20, 30)
        run(task, scene, tmp_path / 'e.parquet')
        frame = gpd.read_parquet(tmp_path / 'e.parquet')
        assert len(frame) == 1
        assert frame['valid'].iloc[0] == pytest.approx(20 * 30 / 32**2)
        module = SceneDataModule(str(scene), chip=32)
        module.setup('predict')
        batch = next(iter(module.predict_dataloader()))
        center = rasterio.warp.transform('EPSG:32611', 'EPSG:4326', [500_015], [3_599_990])
        np.testing.assert_allclose([batch['lon'], batch['lat']], center, rtol=0, atol=1e-9)
        back = shapely.geometry.shape(transform_geom('EPSG:4326', 'EPSG:32611', frame.geometry[0].__geo_interface__))
        np.testing.assert_allclose(back.bounds, (500_000, 3_599_980, 500_030, 3_600_000), rtol=0, atol=1e-6)

    def test_mixed_sensors_in_one_folder(self, task: ClayEmbedding, scenes: Path, tmp_path: Path) -> None:
        with rasterio.open(
            scenes / 'radar.tif',
            'w',
            driver='GTiff',
            count=2,
            height=32,
            width=32,
            dtype='float32',
            crs='EPSG:32611',
            transform=from_origin(5e5, 36e5, 10, 10),
        ) as file:
            file.write(np.full((2, 32, 32), -12, np.float32))
            file.descriptions = ('VV', 'VH')
            file.update_tags(SENSOR='Sentinel-1 SAR C', LEVEL='GRD RTC gamma0')
        run(task, scenes, tmp_path / 'e.parquet')
        frame = gpd.read_parquet(tmp_path / 'e.parquet')
        assert {Path(s).name: n for s, n in zip(frame['source'], frame['sensor'], strict=True)} == {
            'a.tif': 'naip',
            'b.tif': 'naip',
            'radar.tif': 'sentinel-1-rtc',
        }

    @pytest.mark.filterwarnings('ignore:naip. please check:UserWarning')
    def test_a_scene_across_the_antimeridian(self, task: ClayEmbedding, tmp_path: Path) -> None:
        scene = write_scene(tmp_path / 'x.tif', 32, 32, crs='EPSG:32701', transform=from_origin(1.5e5, 8e6, 1000, 1000))
        run(task, scene, tmp_path / 'e.parquet')
        assert gpd.read_parquet(tmp_path / 'e.parquet').geometry.iloc[0].geom_type in ('MultiPolygon', 'Polygon')

    def test_a_scene_that_vanishes_while_it_is_read(
        self, task: ClayEmbedding, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forward = ClayEmbedding.predict_step

        def vanishing(*args: Any) -> torch.Tensor:
            (scenes / 'b.tif').unlink(missing_ok=True)
            return forward(*args)

        monkeypatch.setattr(ClayEmbedding, 'predict_step', vanishing)
        with pytest.raises(SkippedScenesError, match=r'(?s)1 file could not be used.*b\.tif'):
            run(task, scenes, tmp_path / 'e.parquet')
        assert {Path(s).name for s in gpd.read_parquet(tmp_path / 'e.parquet')['source']} == {'a.tif'}

    def test_another_datamodule(self, task: ClayEmbedding, tmp_path: Path) -> None:
        trainer = pl.Trainer(accelerator='cpu', logger=False, callbacks=[EmbeddingWriter(str(tmp_path / 'e.parquet'))])
        with pytest.raises(ValueError, match='expected the datamodule SceneDataModule'):
            trainer.predict(task, torch.utils.data.DataLoader([0]))

    def test_unknown_options(self) -> None:
        with pytest.raises(TypeError, match='no argument gds; scenes take scale, offset'):
            SceneDataModule('x', gds=10)

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            ({'stride': 0}, 'stride: expected 1 to 32'),
            ({'stride': 33}, 'stride: expected 1 to 32'),
            ({'chip': 30}, 'chip: expected a multiple of 8'),
            ({'batch_size': 0}, 'batch_size'),
        ],
    )
    def test_windows(self, options: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SceneDataModule('x', **{'chip': 32, **options})

    def test_arguments(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match='weights: expected a checkpoint'):
            ClayEmbedding('clay_tiny_patch8')
        with pytest.raises(ValueError, match='pooling'):
            ClayEmbedding('clay_tiny_patch8', weights=False, pooling='max')
        with pytest.raises(ValueError, match='model'):
            ClayEmbedding('clay_huge_patch8', weights=False)
        with pytest.raises(ValueError, match='precision'):
            EmbeddingWriter('e.parquet', precision='int4')
        with pytest.raises(ValueError, match=r'\.parquet'):
            EmbeddingWriter('e.csv')


def test_from_the_command_line(
    scenes: Path, tmp_path: Path, torchgeo_command: Callable[..., None], repo_root: Path
) -> None:
    out = tmp_path / 'e.parquet'
    torchgeo_command(
        'predict',
        f'--config={repo_root}/configs/clay_embed.yaml',
        '--model.model=clay_tiny_patch8',
        '--model.weights=false',
        f'--data.paths={scenes}',
        '--data.chip=32',
        '--trainer.accelerator=cpu',
        '--trainer.enable_progress_bar=false',
        f'--trainer.default_root_dir={tmp_path}',
        f'--trainer.callbacks.out={out}',
    )
    assert len(gpd.read_parquet(out)) == 3 * 3 + 2 * 2 - 1


_KILLED = """
import os, signal, sys
count, sync = 0, os.fsync
def kill_at(handle):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    sync(handle)
os.fsync = kill_at
from torchgeo.main import main
main(['predict', f'--config={sys.argv[4]}', '--model.model=clay_tiny_patch8', f'--model.weights={sys.argv[5]}',
      f'--data.paths={sys.argv[1]}', '--data.chip=32', '--data.stride=24', '--data.unit_size=4',
      '--data.batch_size=5', '--trainer.accelerator=cpu', f'--trainer.default_root_dir={sys.argv[2]}',
      f'--trainer.callbacks.out={sys.argv[2]}/e.parquet'])
"""


@pytest.mark.slow
def test_a_kill_leaves_no_half_file(task: ClayEmbedding, scenes: Path, tmp_path: Path, repo_root: Path) -> None:
    """SIGKILL as a part is written: what is there is whole, and a rerun ends with the same."""
    weights, folder = tmp_path / 'w.safetensors', tmp_path / 'out'
    save_encoder(task.model, weights)
    run(task, scenes, tmp_path / 'whole.parquet')
    arguments = [str(scenes), str(folder)]
    rest = [f'{repo_root}/configs/clay_embed.yaml', str(weights)]
    # each file is synced, then its folder: run.json is 1 and 2, parts go on from 3; 7 is within the third
    killed = subprocess.run([sys.executable, '-c', _KILLED, *arguments, '7', *rest], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    parts = list((folder / 'e.parquet.parts').glob('[!.]*.parquet'))
    assert len(parts) == 2
    assert all(pq.read_table(path).num_rows <= 4 for path in parts)
    assert not (folder / 'e.parquet').exists()
    run(task, scenes, folder / 'e.parquet')
    found, whole = (gpd.read_parquet(path) for path in (folder / 'e.parquet', tmp_path / 'whole.parquet'))
    assert found.drop(columns='embedding').equals(whole.drop(columns='embedding'))
    # another process, with another number of threads, rounds sums differently
    np.testing.assert_allclose(np.stack(found['embedding']), np.stack(whole['embedding']), rtol=0, atol=1e-5)
    assert not list(folder.glob('.*'))


@torch.inference_mode()  # as the trainer predicts
def test_channels_in_another_order_are_refused(task: ClayEmbedding) -> None:
    sensor = get_sensor('naip')
    batch = {'image': torch.zeros(1, 4, 16, 16), 'sensor': 'naip', 'res': torch.ones(1)}
    waves = torch.tensor([sensor.wavelengths])
    assert task({**batch, 'wavelength': waves}).shape == (1, 192)
    task = ClayEmbedding('clay_tiny_patch8', weights=False).eval()
    with pytest.raises(ValueError, match='naip: expected the wavelengths of red, green, blue, nir in this order'):
        task({**batch, 'wavelength': waves.flip(1)})


def test_what_follows_the_table_is_made_up_for(tmp_path: Path) -> None:
    """A run that was killed between its table and its pictures ends, when run again, with all that it should leave."""
    patches = ClayEmbedding('clay_tiny_patch8', weights=False, pooling='patches')
    write_scene(tmp_path / 'in/a.tif', 64, 64)
    write_scene(tmp_path / 'in/b.tif', 64, 64, seed=1)
    out = tmp_path / 'e.parquet'
    options = {'patch_cogs': True, 'quicklooks': True}

    def files() -> dict[str, bytes]:
        kept = {path for path in tmp_path.rglob('*') if path.is_file() and 'in' not in path.parts}
        return {str(path.relative_to(tmp_path)): path.read_bytes() for path in kept}

    run(patches, tmp_path / 'in', out, options, patch_grid=True)
    whole = files()
    assert len([name for name in whole if name.startswith(('e_patches/', 'e_quicklooks/'))]) == 2 + 3
    run(patches, tmp_path / 'in', out, options, patch_grid=True)
    assert files() == whole
    for lost in ('e_patches/b_1.tif', 'e_quicklooks/scatter.png', 'e_quicklooks/b_pca.png'):
        (tmp_path / lost).unlink()
    (tmp_path / 'e_patches/.x1.torchgeo_clay_patches').mkdir()
    (tmp_path / 'e_patches/.b_1.12.rows.tif').write_bytes(b'half')
    (tmp_path / 'e_patches/.notes_1.txt').write_text('of the user')
    (tmp_path / 'e.parquet.parts').mkdir()
    run(patches, tmp_path / 'in', out, options, patch_grid=True)
    (tmp_path / 'e_patches/.notes_1.txt').unlink()
    assert files() == whole
    assert not (tmp_path / 'e.parquet.parts').exists()
    assert not (tmp_path / 'e_patches/.x1.torchgeo_clay_patches').exists()
