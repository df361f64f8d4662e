# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Synthetic scenes: what the pixels look like, what the files say, and what is left when writing fails."""

import datetime as dt
import errno
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import jsonargparse
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgeo_clay.sensors import SENSORS, Band, Sensor, get_sensor
from torchgeo_clay.simulator import CLASSES, LandCover, SyntheticScenes, store
from torchgeo_clay.simulator.noise import average, borders, fractal, parcels, soften
from torchgeo_clay.simulator.render import make_scene
from torchgeo_clay.simulator.surface import Material, backscatter, reflectance

SMALL = {'scenes_per_sensor': 2, 'size': 32}
ONE = {'sensors': ['naip'], **SMALL}
# Writes a folder slowly, unless another process does or did, and prints what it holds.
WRITER = """
import importlib.util, json, os, pathlib, sys, time
spec = importlib.util.spec_from_file_location('store', sys.argv[1])
store = importlib.util.module_from_spec(spec)
spec.loader.exec_module(store)
root = pathlib.Path(sys.argv[2])
def write(folder):
    time.sleep(0.5)
    (folder / 'writer').write_text(str(os.getpid()))
files = store.complete_folder(root, {}, 0, write)
print(json.dumps(files), (root / 'writer').read_text())
"""
OWN = Sensor('own', 3.7, (Band('a', 0.56, 3.0, 0.5), Band('b', 0.86, -7.0, 2.0), Band('thermal', 10.9, 290, 9)))


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SyntheticScenes:
    """Eight scenes, one of each kind, of every sensor of the table and of a user's own."""
    root = tmp_path_factory.mktemp('synthetic') / 'scenes'
    return SyntheticScenes(root, sensors=[*SENSORS, OWN], scenes_per_sensor=8, size=96)


@lru_cache(maxsize=16)
def read(scenes: SyntheticScenes, sensor: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (C, N) as float64, labels (N,) and targets (N,) of all scenes of a sensor."""
    parts = []
    for kind in ('images', 'labels', 'targets'):
        arrays = []
        for path in scenes.files(sensor, kind):
            with rasterio.open(path) as file:
                arrays.append(file.read().reshape(file.count, -1))
        parts.append(np.concatenate(arrays, axis=1))
    return parts[0].astype(np.float64), parts[1][0], parts[2][0]


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob('*')) if p.is_file()}


class TestPixels:
    @pytest.mark.parametrize('name', [*SENSORS, 'own'])
    def test_statistics_are_near_the_table(self, scenes, name):
        sensor = OWN if name == 'own' else SENSORS[name]
        image, _, _ = read(scenes, name)
        assert np.isfinite(image).all()
        assert np.all(np.abs(image.mean(1) - sensor.mean) < np.array(sensor.std))
        ratio = image.std(1) / sensor.std
        assert np.all((ratio > 1 / 2.5) & (ratio < 2.5)), ratio

    def test_a_sensor_of_ones_own_gets_the_statistics_it_names(self, scenes):
        image, _, _ = read(scenes, 'own')
        assert np.all(np.abs(image.mean(1) - OWN.mean) < 0.35 * np.array(OWN.std))
        np.testing.assert_allclose(image.std(1), OWN.std, rtol=0.25)

    def test_a_borrowed_name_does_not_lend_its_units(self):
        borrowed = Sensor('sentinel-2-l2a', 10, (Band('red', 0.665, 0.15, 0.1),))
        image = make_scene(borrowed, 0, 64, 0).image
        assert image.dtype == np.float32
        assert np.abs(image).max() < 2

    def test_a_selection_of_bands_keeps_the_units(self):
        image = make_scene(get_sensor('sentinel-2-l2a').select(['B08']), 0, 64, 0).image
        assert image.dtype == np.uint16
        assert image.mean() > 1000

    @pytest.mark.parametrize('name', ['sentinel-2-l2a', 'landsat-c2l1', 'landsat-c2l2-sr', 'naip', 'modis'])
    def test_vegetation_has_its_red_edge_and_water_none(self, scenes, name):
        sensor = SENSORS[name]
        image, label, _ = read(scenes, name)
        red, nir = image[sensor.index('red')], image[sensor.index('nir')]
        ndvi = (nir - red) / (nir + red)
        assert ndvi[label == LandCover.FOREST].mean() > ndvi[label == LandCover.SOIL].mean() + 0.1
        land = ~np.isin(label, (LandCover.WATER, LandCover.CLOUD))
        assert nir[label == LandCover.WATER].mean() < np.percentile(nir[land], 20)

    @pytest.mark.parametrize('name', ['sentinel-2-l2a', 'landsat-c2l2-sr', 'modis'])
    def test_snow_is_bright_in_the_red_and_dark_beyond_the_infrared(self, scenes, name):
        sensor = SENSORS[name]
        image, label, _ = read(scenes, name)
        red, swir = image[sensor.index('red')], image[-1]
        snow, soil = label == LandCover.SNOW, label == LandCover.SOIL
        assert np.median(red[snow]) > 2 * np.median(swir[snow])
        assert np.median(swir[snow]) < np.median(swir[soil])

    def test_radar_sees_dark_water_bright_towns_and_no_clouds(self, scenes):
        (vv, vh), label, _ = read(scenes, 'sentinel-1-rtc')
        for band in (vv, vh):
            means = {c: band[label == c].mean() for c in LandCover if (label == c).any()}
            assert min(means, key=means.get) is LandCover.WATER
            assert max(means, key=means.get) is LandCover.BUILT_UP
        assert (label != LandCover.CLOUD).all()
        assert vh.mean() < vv.mean()

    def test_only_what_is_wider_than_a_cloud_has_clouds(self, scenes):
        for sensor in scenes.sensors:
            _, label, _ = read(scenes, sensor.name)
            expected = sensor.gsd >= 3 and sensor.scale == 'linear'
            assert (label == LandCover.CLOUD).any() == expected, sensor.name

    def test_every_class_occurs_and_is_no_rarity(self, scenes):
        _, label, _ = read(scenes, 'sentinel-2-l2a')
        shares = np.bincount(label, minlength=len(CLASSES)) / label.size
        assert len(shares) == len(CLASSES) == len(LandCover)
        assert shares.min() > 0.01
        assert shares.max() < 0.4

    def test_the_target_is_the_green_cover_that_is_seen(self, scenes):
        image, label, target = read(scenes, 'sentinel-2-l2a')
        assert target.dtype == np.float32
        assert target.min() >= 0
        assert target.max() <= 1
        red, nir = image[2], image[6]
        land = ~np.isin(label, (LandCover.WATER, LandCover.CLOUD, LandCover.SNOW))
        assert np.corrcoef(target[land], ((nir - red) / (nir + red))[land])[0, 1] > 0.8
        assert target[label == LandCover.SNOW].max() == 0
        assert target[label == LandCover.CLOUD].max() <= 0.5

    def test_neighbours_resemble_each_other_and_are_not_equal(self, scenes):
        with rasterio.open(scenes.files('sentinel-2-l2a')[0]) as file:
            nir = file.read(7).astype(float)
        near = np.corrcoef(nir[:, 1:].ravel(), nir[:, :-1].ravel())[0, 1]
        far = np.corrcoef(nir[:, 30:].ravel(), nir[:, :-30].ravel())[0, 1]
        assert 0.8 < near < 0.999
        assert far < near - 0.2

    def test_fields_turn_bare_in_winter_and_woods_keep_more(self):
        cover = {True: [], False: []}
        for index in range(0, 8 * 24, 8):  # farmland only
            scene = make_scene(SENSORS['landsat-c2l2-sr'], index, 64, 1)
            means = [scene.target[scene.label == c].mean() for c in (LandCover.CROPS, LandCover.FOREST)]
            if not 0.3 < scene.setting.season < 0.8:
                cover[scene.setting.season > 0.5].append(means)
        crops, woods = np.mean(cover[False], axis=0) / np.mean(cover[True], axis=0)
        assert crops < 0.5
        assert woods > 0.6


class TestFiles:
    def test_images_hold_nothing_but_a_folder_per_sensor(self, scenes):
        assert sorted(p.name for p in scenes.images.iterdir()) == sorted([*SENSORS, 'own'])
        assert {p.name for p in scenes.root.iterdir()} == {'images', 'labels', 'targets', 'manifest.json'}

    @pytest.mark.parametrize('name', [*SENSORS, 'own'])
    def test_label_and_target_lie_on_the_image(self, scenes, name):
        triples = list(zip(*(scenes.files(name, kind) for kind in ('images', 'labels', 'targets')), strict=True))
        assert len(triples) == 8
        for paths in triples:
            assert len({p.name for p in paths}) == 1
            grids = set()
            for path in paths:
                with rasterio.open(path) as file:
                    grids.add((file.crs.to_wkt(), tuple(file.transform), file.shape, file.tags()['DATETIME']))
            assert len(grids) == 1

    @pytest.mark.parametrize('sensor', [*SENSORS.values(), OWN], ids=lambda s: s.name)
    def test_rasters_say_what_they_are(self, scenes, sensor):
        for path in scenes.files(sensor.name):
            with rasterio.open(path) as file:
                assert file.descriptions == sensor.band_names
                assert file.res == pytest.approx((sensor.gsd, sensor.gsd))
                assert file.shape == (96, 96)
                assert file.compression.name == 'deflate'
                assert file.profile['tiled']
                time = dt.datetime.fromisoformat(file.tags()['DATETIME'])
                assert 2016 < time.year < 2025
                assert path.stem.endswith(f'{time:%Y%m%dT%H%M%S}')
                assert file.tags()['SENSOR'] == sensor.name

    def test_label_has_the_classes_colors(self, scenes):
        with rasterio.open(scenes.files('modis', 'labels')[0]) as file:
            assert file.dtypes == ('uint8',)
            colors = file.colormap(1)
            assert [colors[i][:3] for i in range(len(CLASSES))] == [c.color for c in CLASSES]
            assert '0 water' in file.tags()['CLASSES']

    def test_scenes_lie_where_and_when_the_sensor_flies(self, scenes):
        hemispheres = set()
        for sensor in scenes.sensors:
            for path in scenes.files(sensor.name):
                with rasterio.open(path) as file:
                    lon, lat = file.lnglat()
                    epsg, proj = file.crs.to_epsg(), file.crs.to_proj4()
                    time = dt.datetime.fromisoformat(file.tags()['DATETIME'])
                zone = int((lon + 180) // 6) + 1
                solar = (time.hour + time.minute / 60 + lon / 15) % 24
                if sensor.name == 'modis':
                    assert '+proj=sinu' in proj
                elif sensor.name == 'linz':
                    assert epsg == 2193
                    assert -48 < lat < -34
                    assert 166 < lon < 179
                elif sensor.name == 'naip':
                    assert epsg == 26900 + zone
                    assert 24 < lat < 50
                    assert -125 < lon < -66
                else:
                    assert epsg == (32600 if lat > 0 else 32700) + zone
                    hemispheres.add(lat > 0)
                if sensor.scale == 'db':
                    assert min(abs(solar - 5.9), abs(solar - 17.9)) < 0.3
                else:
                    assert 10 < solar < 14.6
        assert hemispheres == {True, False}

    def test_equal_arguments_give_equal_bytes_and_others_do_not(self, tmp_path):
        first, again = (SyntheticScenes(tmp_path / n, **ONE) for n in 'ab')
        assert tree(first.root) == tree(again.root)
        other = SyntheticScenes(tmp_path / 'c', **ONE, seed=1)
        assert other.files('naip')[0].read_bytes() != first.files('naip')[0].read_bytes()

    def test_a_scene_does_not_depend_on_how_many_there_are(self, scenes, tmp_path):
        fewer = SyntheticScenes(tmp_path / 'a', sensors=['modis'], scenes_per_sensor=2, size=96)
        assert fewer.files('modis')[1].read_bytes() == scenes.files('modis')[1].read_bytes()

    def test_what_exists_is_used_untouched(self, tmp_path):
        root = SyntheticScenes(tmp_path / 'a', **ONE).root
        before = {p: p.stat().st_mtime_ns for p in root.rglob('*')}
        SyntheticScenes(str(root), **ONE)
        assert {p: p.stat().st_mtime_ns for p in root.rglob('*')} == before

    def test_the_default_set_stays_under_100_megabytes(self, scenes):
        # By the bytes per pixel of its six sensors here: the set itself takes too long to write for a test.
        names = ('sentinel-2-l2a', 'sentinel-1-rtc', 'landsat-c2l2-sr', 'naip', 'linz', 'modis')
        kinds = ('images', 'labels', 'targets')
        size = sum(p.stat().st_size for n in names for kind in kinds for p in scenes.files(n, kind))
        assert size * (16 * 256**2) / (8 * 96**2) < 100e6

    def test_describe(self, scenes):
        text = scenes.describe()
        assert all(f'  {s.name}: 8 scenes, {len(s)} × 96 × 96, {s.gsd:g} m' in text for s in scenes.sensors)
        assert '7 cloud' in text
        assert repr(scenes).endswith("'own'], scenes_per_sensor=8, size=96, seed=0)")


class TestMistakes:
    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            ({'sensors': ['sentinel-2']}, 'Did you mean'),
            ({'sensors': 'naip'}, r"write \['naip'\]"),
            ({'sensors': []}, 'at least one sensor'),
            ({'sensors': ['naip', 'naip']}, "'naip' 2 times"),
            ({'sensors': [Sensor('a/b', 1, OWN.bands)]}, "'a/b': expected a name that can be that of a folder"),
            ({'sensors': [Sensor('..', 1, OWN.bands)]}, 'folder'),
            ({'scenes_per_sensor': 0}, 'scenes_per_sensor: expected 1 or more, got 0'),
            ({'size': 8}, 'size: expected 32 or more, got 8'),
            ({'seed': -1}, 'seed: expected 0 or more, got -1'),
        ],
    )
    def test_arguments_are_refused_before_anything_is_written(self, tmp_path, arguments, message):
        with pytest.raises(ValueError, match=message):
            SyntheticScenes(tmp_path / 'a', **arguments)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize('change', [{'seed': 1}, {'size': 40}, {'sensors': ['linz']}, {'scenes_per_sensor': 1}])
    def test_other_parameters_in_the_same_root(self, tmp_path, change):
        root = SyntheticScenes(tmp_path / 'a', **ONE).root
        before = tree(root)
        with pytest.raises(ValueError, match=rf'other {next(iter(change))}\. Delete .*choose another root'):
            SyntheticScenes(root, **(ONE | change))
        assert tree(root) == before

    @pytest.mark.parametrize('content', ['holiday.jpg', 'manifest.json'])
    def test_somebody_elses_folder_is_left_alone(self, tmp_path, content):
        (tmp_path / content).write_text('[1, 2]')
        with pytest.raises(ValueError, match='got other files'):
            SyntheticScenes(tmp_path, **ONE)
        assert [p.name for p in tmp_path.iterdir()] == [content]

    def test_a_file_in_place_of_the_folder(self, tmp_path):
        (tmp_path / 'a').write_text('')
        with pytest.raises(ValueError, match='got other files'):
            SyntheticScenes(tmp_path / 'a', **ONE)

    @pytest.mark.parametrize('damage', [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
    def test_a_missing_or_truncated_file_is_named(self, tmp_path, damage):
        scenes = SyntheticScenes(tmp_path / 'a', **ONE)
        damage(scenes.files('naip', 'labels')[1])
        with pytest.raises(ValueError, match=r'labels/naip/001_.* missing or was changed\. Delete'):
            SyntheticScenes(tmp_path / 'a', **ONE)

    def test_files_of_what_is_not_there(self, scenes):
        with pytest.raises(ValueError, match=r'landsat-c2l1.*got'):
            scenes.files('sentinel-2')
        with pytest.raises(ValueError, match="'masks'"):
            scenes.files('naip', 'masks')


class TestWriting:
    def test_a_full_disk_leaves_nothing_and_says_how_much_is_needed(self, tmp_path, monkeypatch):
        written, write = [], Path.write_bytes

        def write_until_full(path: Path, data: bytes) -> int:
            if len(written) == 4:
                write(path, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, 'No space left on device')
            written.append(path)
            return write(path, data)

        monkeypatch.setattr(Path, 'write_bytes', write_until_full)
        monkeypatch.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1_234_567))
        with pytest.raises(OSError, match=r'need up to 3 MB, and 1 MB are free; no file was left') as caught:
            SyntheticScenes(tmp_path / 'deep/a', **(ONE | {'size': 256}))
        assert caught.value.errno == errno.ENOSPC
        assert len(written) == 4
        assert [p.name for p in tmp_path.rglob('*') if p.name != '.a.lock'] == ['deep']
        monkeypatch.undo()
        assert len(SyntheticScenes(tmp_path / 'deep/a', **ONE).files('naip')) == 2

    def test_an_interruption_leaves_nothing(self, tmp_path, monkeypatch):
        def interrupted(path: Path, data: bytes) -> int:
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, 'write_bytes', interrupted)
        with pytest.raises(KeyboardInterrupt):
            SyntheticScenes(tmp_path / 'a', **ONE)
        assert [p.name for p in tmp_path.iterdir()] == ['.a.lock']

    def test_what_a_killed_process_left_is_swept_and_never_taken_for_complete(self, tmp_path):
        draft = tmp_path / '.a.writing/images/naip'
        draft.mkdir(parents=True)
        (draft / '000_half.tif').write_bytes(b'II*')
        scenes = SyntheticScenes(tmp_path / 'a', **ONE)
        assert not (tmp_path / '.a.writing').exists()
        assert len(list(scenes.images.rglob('*.tif'))) == 2

    def test_an_unwritable_place(self, tmp_path):
        (tmp_path / 'file').write_text('')
        with pytest.raises(OSError, match='choose another root'):
            SyntheticScenes(tmp_path / 'file/a', **ONE)

    def test_the_rename_comes_last(self, tmp_path):
        manifest = json.loads((SyntheticScenes(tmp_path / 'a', **ONE).root / 'manifest.json').read_text())
        listed = {name: len(data) for name, data in tree(tmp_path / 'a').items() if name != 'manifest.json'}
        assert manifest['files'] == listed
        assert manifest['parameters']['version'] == 1

    def test_threads_that_start_at_once_write_once(self, tmp_path):
        with ThreadPoolExecutor(4) as pool:
            times = list(pool.map(_manifest_time, [tmp_path / 'a'] * 4))
        assert len(set(times)) == 1
        assert [p.name for p in tmp_path.iterdir() if not p.name.startswith('.')] == ['a']

    def test_processes_that_start_at_once_write_once(self, tmp_path):
        # The module is loaded by its path, as importing the package takes longer than all the rest of this file.
        command = [sys.executable, '-c', WRITER, store.__file__, str(tmp_path / 'a')]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        outputs = {process.communicate(timeout=300)[0] for process in processes}
        assert all(process.returncode == 0 for process in processes)
        writer = (tmp_path / 'a/writer').read_text()
        assert outputs == {f'{{"writer": {len(writer)}}} {writer}\n'}

    def test_jsonargparse_makes_it(self, tmp_path):
        arguments = [str(tmp_path / 'a'), '--sensors=[naip]', '--scenes_per_sensor=2', '--size=32', 'describe']
        assert 'naip: 2 scenes, 4 × 32 × 32, 1 m' in jsonargparse.auto_cli(SyntheticScenes, args=arguments)


def _manifest_time(root: Path) -> int:
    return (SyntheticScenes(root, **ONE).root / 'manifest.json').stat().st_mtime_ns


class TestParts:
    def test_spectra_are_reflectances_and_are_held_beyond_their_ends(self):
        table = reflectance(np.linspace(0.4, 2.5, 200))
        assert table.shape == (200, len(Material))
        assert table.min() >= 0
        assert table.max() < 1
        np.testing.assert_array_equal(reflectance([0.3, 10.9]), reflectance([0.4, 2.5]))

    def test_backscatter_is_power(self):
        vv, vh = 10 * np.log10(backscatter([3.5, 4.0]))
        assert vv[Material.CLEAR_WATER] == pytest.approx(-23)
        assert np.all(vh < vv)

    @given(size=st.integers(32, 80), slope=st.floats(0, 4), seed=st.integers(0, 99))
    @settings(max_examples=15, deadline=None)
    def test_fractals_are_standardised_and_smoother_with_their_slope(self, size, slope, seed):
        field = fractal(np.random.default_rng(seed), size, slope)
        assert field.shape == (size, size)
        assert abs(field.mean()) < 1e-3
        assert field.std() == pytest.approx(1, abs=1e-3)
        smoother = fractal(np.random.default_rng(seed), size, slope + 2)
        assert np.abs(np.diff(smoother)).mean() < np.abs(np.diff(field)).mean()

    @given(size=st.integers(32, 80), length=st.floats(6, 30), seed=st.integers(0, 99))
    @settings(max_examples=15, deadline=None)
    def test_parcels_are_numbered_without_gaps_and_averages_are_constant_on_them(self, size, length, seed):
        rng = np.random.default_rng(seed)
        cell, _ = parcels(rng, size, length)
        assert set(np.unique(cell)) == set(range(cell.max() + 1))
        field = rng.random((size, size)).astype(np.float32)
        mean = average(field, cell)
        for number in range(0, cell.max() + 1, 7):
            np.testing.assert_allclose(mean[cell == number], field[cell == number].mean(), rtol=1e-5)
        inside = ~borders(cell)[:, :-1]
        assert (cell[:, 1:] == cell[:, :-1])[inside].all()

    def test_soften_keeps_what_is_constant_and_spreads_a_point(self):
        np.testing.assert_allclose(soften(np.full((2, 5, 5), 3, np.float32)), 3)
        point = np.zeros((5, 5), np.float32)
        point[2, 2] = 16
        np.testing.assert_allclose(soften(point)[1:4, 1:4], [[1, 2, 1], [2, 4, 2], [1, 2, 1]])
