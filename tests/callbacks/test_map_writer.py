# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""From scenes to maps: tasks, the datamodule and the callback that writes."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin
from torch import Tensor
from torchgeo.tasks import BaseTask, SemanticSegmentation

from torchgeo_clay.callbacks import RasterWriter, SensorMetadata
from torchgeo_clay.datamodules import SceneDataModule
from torchgeo_clay.datasets.raster.files import open_raster
from torchgeo_clay.inference import MapStyle, SkippedScenesError, map_scenes
from torchgeo_clay.models.weights import tensor_digest
from torchgeo_clay.sensors import get_sensor
from torchgeo_clay.tasks import ClayPixelwiseRegression, ClaySemanticSegmentation
from torchgeo_clay.writers import OutputError

NAIP = get_sensor('naip')
TINY = {'backbone': 'clay_tiny_patch8'}


def write_scene(
    path: Path, height: int = 70, width: int = 90, seed: int = 0, *, empty: Any = None, **profile: Any
) -> Path:
    """A NAIP scene in UTM with a date; `empty` is a slice without data."""
    pixels = np.random.default_rng(seed).integers(1, 255, (4, height, width)).astype(np.uint8)
    if empty is not None:
        pixels[(slice(None), *empty)] = 0
    options = {'crs': 'EPSG:32611', 'transform': from_origin(500_000, 3_600_000, 1, 1), 'nodata': 0, **profile}
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {'count': 4, 'height': height, 'width': width, 'dtype': 'uint8'}
    with rasterio.open(
        path, 'w', driver='GTiff', **shape, **{k: v for k, v in options.items() if v is not None}
    ) as file:
        file.write(pixels)
        file.descriptions = ('red', 'green', 'blue', 'nir')
        file.update_tags(DATETIME='2020-04-15T17:00:00', SENSOR='NAIP')
    return path


class Same(BaseTask):
    """A task that answers with the images it sees."""

    weights = False

    def configure_models(self) -> None:
        self.model = torch.nn.Identity()

    def predict_step(self, batch: dict[str, Any], batch_idx: int = 0) -> Tensor:
        return batch['image']


@pytest.fixture
def segmentation() -> ClaySemanticSegmentation:
    torch.manual_seed(0)
    task = ClaySemanticSegmentation(weights=False, **TINY, num_classes=3, labels=['a', 'b', 'c'])
    return task.eval()


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two scenes, one of them with an empty corner."""
    folder = tmp_path / 'scenes'
    write_scene(folder / 'a.tif')
    write_scene(folder / 'b.tif', 40, 64, seed=1, empty=np.s_[:32, :32], transform=from_origin(7e5, 3.7e6, 1, 1))
    return folder


def run(
    task: BaseTask,
    scenes: Any,
    out: Path,
    limit: Any = 1.0,
    writer: dict[str, Any] | None = None,
    callbacks: Any = (),
    **data: Any,
) -> None:
    options = {'chip': 32, 'stride': 24, 'batch_size': 5, 'unit_size': None, **data}
    module = SceneDataModule(scenes if isinstance(scenes, list) else str(scenes), **options)
    trainer = pl.Trainer(
        accelerator='cpu',
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, RasterWriter(str(out), **(writer or {}))],
        limit_predict_batches=limit,
    )
    trainer.predict(task, datamodule=module, return_predictions=False)


def normalized(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        pixels = file.read().astype(np.float32)
    mean, std = (np.array(s, np.float32)[:, None, None] for s in (NAIP.mean, NAIP.std))
    return np.where((pixels == 0).any(axis=0), np.nan, (pixels - mean) / std)


@pytest.mark.parametrize(('batch_size', 'stride', 'patch_grid'), [(5, 24, False), (64, 11, False), (3, 16, True)])
def test_a_task_that_returns_its_input(
    tmp_path: Path, scenes: Path, batch_size: int, stride: int, patch_grid: bool
) -> None:
    write_scene(scenes / 'c.tif', 300, 20, seed=2, empty=np.s_[70:230, :])  # rows of windows without data
    run(Same(), scenes, tmp_path / 'out', batch_size=batch_size, stride=stride, patch_grid=patch_grid)
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['a.tif', 'b.tif', 'c.tif']
    for name in ('a', 'b', 'c'):
        with rasterio.open(tmp_path / f'out/{name}.tif') as file, rasterio.open(scenes / f'{name}.tif') as given:
            np.testing.assert_allclose(file.read(), normalized(scenes / f'{name}.tif'), rtol=2e-6, atol=1e-6)
            assert (file.crs, file.transform, file.shape) == (given.crs, given.transform, given.shape)
            assert file.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG'


def test_maps_of_classes_are_those_of_map_scenes(
    segmentation: ClaySemanticSegmentation, scenes: Path, tmp_path: Path
) -> None:
    out, colors = tmp_path / 'out', [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    run(segmentation, scenes, out, writer={'probabilities': True, 'colors': colors})
    alone = map_scenes(segmentation, scenes, tmp_path / 'alone', style=MapStyle(probabilities=True), chip=32, stride=24)
    assert [path.name for path in alone] == ['a.tif', 'b.tif']
    for name in ('a', 'b'):
        beside = f'{name}_probabilities.tif'
        with rasterio.open(out / beside) as file, rasterio.open(tmp_path / 'alone' / beside) as expected:
            assert file.descriptions == ('a', 'b', 'c')
            np.testing.assert_allclose(file.read(), expected.read(), rtol=0, atol=1e-5)
            clear = np.ptp(np.sort(expected.read(), axis=0)[1:], axis=0) > 1e-4
        with rasterio.open(out / f'{name}.tif') as file, rasterio.open(tmp_path / f'alone/{name}.tif') as expected:
            assert (file.read(1) == expected.read(1))[clear].all()
            assert file.nodata == 255
            assert [file.colormap(1)[i][:3] for i in range(3)] == [tuple(c) for c in colors]
            assert json.loads(file.tags()['CLASSES']) == {'0': 'a', '1': 'b', '2': 'c'}
            said = json.loads(file.tags()['TORCHGEO_CLAY'])
    assert (said['backbone'], said['stride'], len(said['weights_sha256'])) == ('clay_tiny_patch8', 24, 64)


def test_a_map_of_values(scenes: Path, tmp_path: Path) -> None:
    task = ClayPixelwiseRegression(weights=False, **TINY, labels=['height']).eval()
    with pytest.raises(ValueError, match='go with kind'):
        run(task, scenes, tmp_path / 'out', writer={'classes': ['a']})
    run(task, scenes, tmp_path / 'out')
    with rasterio.open(tmp_path / 'out/b.tif') as file:
        assert file.descriptions == ('height',)
        assert file.dtypes == ('float32',)
        found = file.read(1)
    assert np.isnan(found[:32, :32]).all()
    assert np.isfinite(found[32:]).all()


def test_binary_and_multilabel(scenes: Path, tmp_path: Path) -> None:
    binary = ClaySemanticSegmentation(weights=False, **TINY, task='binary', loss='bce').eval()
    run(binary, scenes / 'a.tif', tmp_path / 'binary', writer={'classes': ['no', 'yes'], 'threshold': 0.5})
    with rasterio.open(tmp_path / 'binary/a.tif') as file:
        assert set(np.unique(file.read())) <= {0, 1}
    labels = ClaySemanticSegmentation(weights=False, **TINY, task='multilabel', num_labels=2, loss='bce').eval()
    run(labels, scenes / 'a.tif', tmp_path / 'labels')
    with rasterio.open(tmp_path / 'labels/a.tif') as file:
        found = file.read()
    assert found.shape == (2, 70, 90)
    assert ((found > 0) & (found < 1)).all()


def test_torchgeos_own_task(scenes: Path, tmp_path: Path) -> None:
    """Told what it sees by the callback `SensorMetadata`; some of its batches hold nothing."""
    write_scene(scenes / 'c.tif', 300, 20, seed=2, empty=np.s_[70:230, :])
    stock = SemanticSegmentation(
        model='unet',
        backbone='tu-clay_tiny_patch8',
        weights=False,
        in_channels=4,
        task='multiclass',
        num_classes=3,
        loss='ce',
    )
    run(stock, scenes, tmp_path / 'out', batch_size=2, callbacks=[SensorMetadata()])
    with rasterio.open(tmp_path / 'out/c.tif') as file:
        found = file.read(1)
    assert (found[70:230] == 255).all()
    assert (found[230:] < 3).all()
    stock.weights = None
    with pytest.raises(ValueError, match='expected a trained model'):
        run(stock, scenes, tmp_path / 'untrained', callbacks=[SensorMetadata()])
    (alone,) = map_scenes(stock, scenes / 'c.tif', tmp_path / 'alone.tif', chip=32, stride=24, batch_size=2)
    with rasterio.open(alone) as file:  # each Clay inside is conditioned on the batch without the callback
        np.testing.assert_array_equal(file.read(1), found)


def test_batches_without_data(segmentation: ClaySemanticSegmentation, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / 'c.tif', 300, 20, seed=2, empty=np.s_[70:230, :])
    run(segmentation, scene, tmp_path / 'out', batch_size=2)
    with rasterio.open(tmp_path / 'out/c.tif') as file:
        assert (file.read(1)[230:] < 3).all()


def test_a_run_that_was_stopped_goes_on(scenes: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    run(Same(), scenes, whole)
    run(Same(), scenes, parts, limit=3)  # 15 windows: the first scene and a part of the second
    assert [p.name for p in parts.iterdir()] == ['a.tif']
    stamp = (parts / 'a.tif').stat().st_mtime_ns
    (parts / '.b.123.rows.tif').write_bytes(b'half')  # of a kill
    for _ in range(2):  # and then nothing is left to do
        run(Same(), scenes, parts)
        assert sorted(p.name for p in parts.iterdir()) == ['a.tif', 'b.tif']
        assert (parts / 'a.tif').stat().st_mtime_ns == stamp
    with rasterio.open(parts / 'b.tif') as found, rasterio.open(whole / 'b.tif') as expected:
        np.testing.assert_array_equal(found.read(), expected.read())


def test_another_run_is_refused_before_anything_is_done(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    run(Same(), scenes, out)
    before = (out / 'a.tif').read_bytes()
    with pytest.raises(OutputError, match=r'a\.tif is there already.*stride is 24 there, 32 here'):
        run(Same(), scenes, out, stride=32)
    write_scene(scenes / 'b.tif', seed=5)
    with pytest.raises(OutputError, match=r'b\.tif is there already.*scene is'):
        run(Same(), scenes, out)
    assert (out / 'a.tif').read_bytes() == before
    (out / 'a.tif').write_text('mine')
    with pytest.raises(OutputError, match=r'a\.tif is there already, and no map'):
        run(Same(), scenes, out)
    assert (out / 'a.tif').read_text() == 'mine'
    run(Same(), scenes, out, writer={'overwrite': True})
    assert (out / 'a.tif').read_bytes() == before


class TestBadInput:
    """What is found wrong is named; what can be done is done."""

    def test_files_that_are_no_scene_are_named_and_counted(self, scenes: Path, tmp_path: Path) -> None:
        (scenes / 'broken.tif').write_bytes(b'II*\x00no')
        torn = write_scene(scenes / 'c.tif', 200, 200, compress='deflate', tiled=True, blockxsize=16, blockysize=16)
        with open(torn, 'rb+') as file:
            file.seek(torn.stat().st_size // 2)
            file.write(bytes(2000))
        message = r'(?s)2 files could not be used.*broken\.tif.*c\.tif: not readable at rows'
        with pytest.raises(SkippedScenesError, match=message):
            run(Same(), scenes, tmp_path / 'out')
        assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['a.tif', 'b.tif']
        with pytest.raises(SkippedScenesError, match=message):  # also where the others are done
            run(Same(), scenes, tmp_path / 'out')
        with pytest.warns(UserWarning, match='2 files could not be used'):
            run(Same(), scenes, tmp_path / 'out', writer={'on_skipped': 'warn'})

    def test_no_crs_and_no_date(self, segmentation: ClaySemanticSegmentation, tmp_path: Path) -> None:
        with pytest.warns(NotGeoreferencedWarning):
            scene = write_scene(tmp_path / 'in/x.tif', 20, 30, crs=None, transform=None)  # smaller than a chip, too
        with pytest.raises(ValueError, match='no CRS'):
            run(segmentation, scene, tmp_path / 'out')
        run(segmentation, scene, tmp_path / 'out', gsd=0.6)
        with open_raster(tmp_path / 'out/x.tif') as file:
            assert file.shape == (20, 30)

    @pytest.mark.filterwarnings('ignore:naip. please check:UserWarning')
    def test_across_the_antimeridian(self, segmentation: ClaySemanticSegmentation, tmp_path: Path) -> None:
        where = {'crs': 'EPSG:32701', 'transform': from_origin(1.5e5, 8e6, 1000, 1000)}
        scene = write_scene(tmp_path / 'in/x.tif', 40, 40, **where)
        run(segmentation, scene, tmp_path / 'out')
        with rasterio.open(tmp_path / 'out/x.tif') as file:
            assert file.transform == where['transform']
            assert (file.read(1) < 3).all()

    def test_a_full_disk(self, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, 'No space left on device')

        monkeypatch.setattr(os, 'fsync', full)
        with pytest.raises(OutputError, match=r'a\.tif.*No space left'):
            run(Same(), scenes, tmp_path / 'out')
        assert not list((tmp_path / 'out').iterdir())

    def test_a_folder_that_can_not_be(self, scenes: Path, tmp_path: Path) -> None:
        (tmp_path / 'file').write_text('')
        with pytest.raises(OutputError, match='expected a folder that can be written to'):
            run(Same(), scenes, tmp_path / 'file/out')

    @pytest.mark.parametrize('out', ['scenes', 'scenes/maps'])
    def test_maps_among_the_scenes(self, scenes: Path, tmp_path: Path, out: str) -> None:
        with pytest.raises(ValueError, match='expected a folder apart from the scenes'):
            run(Same(), scenes, tmp_path / out, writer={'overwrite': True})
        with pytest.raises(ValueError, match='expected a folder apart from the scenes'):
            run(Same(), [str(scenes / 'a.tif')], scenes, writer={'overwrite': True})

    def test_scenes_of_one_name(self, scenes: Path, tmp_path: Path) -> None:
        write_scene(scenes / 'more/a.tif', seed=7)
        write_scene(scenes / 'more/a_probabilities.tif', seed=8)
        run(Same(), scenes, tmp_path / 'out')
        found = {}
        for path in sorted((tmp_path / 'out').iterdir()):
            with rasterio.open(path) as file:
                found[path.name] = Path(file.tags()['SOURCE']).relative_to(scenes).as_posix()
        assert found == {
            'a.tif': 'a.tif',
            'a_1.tif': 'more/a.tif',
            'a_probabilities_1.tif': 'more/a_probabilities.tif',
            'b.tif': 'b.tif',
        }

    def test_arguments(self, segmentation: ClaySemanticSegmentation, scenes: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match='expected 3 names'):
            run(segmentation, scenes, tmp_path / 'out', writer={'classes': ['a', 'b']})
        with pytest.raises(ValueError, match='unit_size: null'):
            run(segmentation, scenes, tmp_path / 'out', unit_size=8)
        with pytest.raises(ValueError, match='on_skipped'):
            RasterWriter('out', on_skipped='ignore')
        with pytest.raises(ValueError, match='threshold'):
            RasterWriter('out', threshold=2)
        assert not (tmp_path / 'out').exists()


def test_a_model_that_was_never_trained_is_refused(scenes: Path, tmp_path: Path) -> None:
    for weights in (None, True):
        task = ClaySemanticSegmentation(**TINY, num_classes=3)
        task.weights = weights
        with pytest.raises(ValueError, match=r'expected a trained model.*--ckpt_path'):
            run(task, scenes, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_scenes_of_a_sensor_that_the_model_was_not_trained_on(
    segmentation: ClaySemanticSegmentation, scenes: Path, tmp_path: Path
) -> None:
    segmentation.trained_on = {'sentinel-1-rtc': ['vv', 'vh']}
    message = r'trained on, sentinel-1-rtc \(vv, vh\), got naip \(red, green, blue, nir\).*any_sensor: true'
    with pytest.raises(ValueError, match=message):
        run(segmentation, scenes, tmp_path / 'out')
    with pytest.raises(ValueError, match=message):
        map_scenes(segmentation, scenes, tmp_path / 'out', chip=32)
    run(segmentation, scenes, tmp_path / 'out', writer={'any_sensor': True})
    segmentation.trained_on = {'naip': ['blue', 'green', 'red']}
    with pytest.raises(ValueError, match=r"Give sensor='naip', bands=\['blue', 'green', 'red'\]"):
        run(segmentation, scenes, tmp_path / 'rgb')
    run(segmentation, scenes, tmp_path / 'rgb', sensor='naip', bands=['red', 'green', 'blue'])
    with rasterio.open(
        scenes / 'radar.tif', 'w', driver='GTiff', count=2, height=32, width=32, dtype='float32', crs='EPSG:32611',
        transform=from_origin(5e5, 36e5, 10, 10),
    ) as file:  # fmt: skip
        file.write(np.full((2, 32, 32), -12, np.float32))
        file.descriptions = ('VV', 'VH')
        file.update_tags(SENSOR='Sentinel-1 SAR C', LEVEL='GRD RTC gamma0')
    segmentation.trained_on = {'naip': list(NAIP.band_names)}
    with pytest.raises(SkippedScenesError, match=r'(?s)1 file .*radar\.tif: expected a sensor and bands that the'):
        run(segmentation, scenes, tmp_path / 'both')
    assert sorted(p.name for p in (tmp_path / 'both').iterdir()) == ['a.tif', 'b.tif']


# the callback that saves in training is not one of prediction
@pytest.mark.filterwarnings('ignore:Be aware that when using `ckpt_path`')
@pytest.mark.filterwarnings('ignore:linz. please check')
def test_from_the_command_line(tmp_path: Path, torchgeo_command: Callable[..., None], repo_root: Path) -> None:
    """A step of the training that the map's configuration names, then the map from its checkpoint."""
    common = ['--trainer.accelerator=cpu', '--trainer.enable_progress_bar=false']
    torchgeo_command(
        'fit', f'--config={repo_root}/configs/clay_synthetic_segmentation.yaml', *common, '--model.weights=null',
        f'--data.root={tmp_path}/synthetic', '--data.patch_size=16', '--data.batch_size=2', '--trainer.max_epochs=1',
        '--data.synthetic={"scenes_per_sensor": 5, "size": 40, "sensors": ["naip"]}',
        '--trainer.limit_train_batches=1', '--trainer.limit_val_batches=2', '--trainer.num_sanity_val_steps=0',
        f'--trainer.default_root_dir={tmp_path}/run', f'--trainer.logger.save_dir={tmp_path}/run',
    )  # fmt: skip
    torchgeo_command(
        'predict', f'--config={repo_root}/configs/clay_map.yaml', *common,
        f'--ckpt_path={tmp_path}/run/version_0/checkpoints/last.ckpt',
        f'--data.paths={tmp_path}/synthetic/images/naip', '--data.chip=32', '--data.stride=16',
        f'--trainer.default_root_dir={tmp_path}/maps', f'--trainer.callbacks.out={tmp_path}/maps',
    )  # fmt: skip
    scenes = sorted((tmp_path / 'synthetic/images/naip').glob('*.tif'))
    assert sorted((tmp_path / 'maps').glob('*.tif')) == [tmp_path / 'maps' / scene.name for scene in scenes]
    with rasterio.open(tmp_path / 'maps' / scenes[0].name) as file:
        assert json.loads(file.tags()['CLASSES'])['5'] == 'built-up'
        assert file.colormap(1)[5][:3] == (200, 50, 50)
        assert set(np.unique(file.read())) <= set(range(8))
        said = json.loads(file.tags()['TORCHGEO_CLAY'])
    # the weights that the map names are the checkpoint's
    last = tmp_path / 'run/version_0/checkpoints/last.ckpt'
    checkpoint = torch.load(last, weights_only=False)
    assert said['weights_sha256'] == tensor_digest(checkpoint['state_dict'])
    assert checkpoint['torchgeo_clay'] == {'trained_on': {'naip': ['red', 'green', 'blue', 'nir']}}
    # and a script makes the same map of the checkpoint alone
    (alone,) = map_scenes(last, scenes[0], tmp_path / 'alone', chip=32, stride=16)
    with rasterio.open(alone) as found, rasterio.open(tmp_path / 'maps' / scenes[0].name) as expected:
        np.testing.assert_array_equal(found.read(), expected.read())
    with pytest.raises(ValueError, match=r'trained on, naip .*, got linz'):
        map_scenes(last, scenes[0], tmp_path / 'linz', sensor='linz', bands=['red', 'green', 'blue'], chip=32)
