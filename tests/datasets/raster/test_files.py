# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Which files are scenes, and odd files among good ones."""

import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from torchgeo_clay.datasets import SceneError, SensorRaster
from torchgeo_clay.datasets.raster.files import list_rasters, open_raster, printable

Write = Callable[..., Path]


def names(paths: object) -> list[str]:
    return [os.path.basename(p) for p in list_rasters(paths)]  # type: ignore[arg-type]


def test_folders_hold_scenes_and_what_lies_beside_them(write_raster: Write, tmp_path: Path) -> None:
    write_raster('a/scene.tif')
    write_raster('a/[b]/other.jp2.tif')
    for name in (
        'scene.tfw',
        'scene.txt',
        'scene.json',
        'scene.tif.aux.xml',
        'scene.tif.ovr',
        'table.parquet',
        'Thumbs.db',
    ):
        (tmp_path / 'a' / name).write_text('')
    (tmp_path / 'a/table_quicklooks').mkdir()
    (tmp_path / 'a/table_quicklooks/scene_pca.png').write_text('')
    (tmp_path / 'a/.hidden.tif').write_text('')
    assert names(tmp_path / 'a') == ['other.jp2.tif', 'scene.tif']
    assert names(tmp_path / 'a/[b]') == ['other.jp2.tif']


def test_what_is_no_scene_in_a_folder_is_tried_where_named(write_raster: Write, tmp_path: Path) -> None:
    good = write_raster('naip/good_20200101.tif')
    junk = ['README', 'a.zip', 'a.md', 'a.csv', 'a.xml', 'a.pdf', 'junk.jpg', 'junk.JPEG', 'overview.png']
    for name in junk:
        (tmp_path / 'naip' / name).write_text('no raster')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dataset = SensorRaster(tmp_path / 'naip', 'naip')
    assert [scene.path for scene in dataset.scenes] == [str(good)]
    assert dataset.skipped == []
    for name in junk:
        with pytest.raises(ValueError, match=rf'{name}: not readable as a raster'):
            SensorRaster(tmp_path / 'naip' / name, 'naip')
    assert names(f'{tmp_path}/naip/*.jpg') == ['junk.jpg']
    assert names(f'{tmp_path}/naip/*') == ['good_20200101.tif']


@pytest.mark.parametrize('beside', ['a.jgw', 'a.JGW', 'a.wld', 'a.jpg.aux.xml', 'a.aux.xml'])
def test_georeferenced_pictures_are_scenes(write_raster: Write, tmp_path: Path, beside: str) -> None:
    write_raster('a/b.tif')
    for name in ('a.jpg', 'c.jpg', beside):
        (tmp_path / 'a' / name).touch()
    assert names(tmp_path / 'a') == ['a.jpg', 'b.tif']


def test_pictures_alone_are_scenes(tmp_path: Path) -> None:
    """Of a drone, for example, whose GSD is given."""
    for name in ('a.jpg', 'b.png', 'notes.txt', 'README'):
        (tmp_path / name).touch()
    assert names(tmp_path) == ['a.jpg', 'b.png']


def test_rasters_without_suffix_are_scenes(write_raster: Write, tmp_path: Path) -> None:
    write_raster('a/scene.tif').rename(tmp_path / 'a/scene')
    for name in ('envi', 'envi.hdr', 'LICENSE'):
        (tmp_path / 'a' / name).write_text('numbers')
    assert names(tmp_path / 'a') == ['envi', 'scene']


def test_globs_and_the_home_folder(write_raster: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raster('a/one.tif')
    write_raster('b/two.tif')
    (tmp_path / 'b/two.tfw').write_text('')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert names(str(tmp_path / '*/*.tif')) == names(f'{tmp_path}/**/*') == names(f'{tmp_path}/[ab]')
    assert names('~/a') == ['one.tif']
    assert names(['~/*/t*', tmp_path / 'a']) == ['one.tif', 'two.tif']


def test_a_file_counts_once(write_raster: Write, tmp_path: Path) -> None:
    path = write_raster('a/scene.tif')
    (tmp_path / 'a/link.tif').symlink_to(path)
    (tmp_path / 'b').symlink_to(tmp_path / 'a')
    assert list_rasters([tmp_path, path, tmp_path / 'b/scene.tif']) == [str(path)]
    assert names(tmp_path / 'a/link.tif') == ['link.tif']


def test_urls_and_gdals_names_stay_as_they_are() -> None:
    given = ['HDF4_EOS:EOS_GRID:"x.hdf":grid:b01', 'https://example.com/*.tif']
    assert list_rasters(given) == given


def test_archives(write_raster: Write, tmp_path: Path) -> None:
    path = write_raster('a/scene.tif')
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.write(path, 'scene.tif')
        archive.writestr('scene.tfw', '')
    assert list_rasters(f'/vsizip/{tmp_path}/a.zip') == [f'/vsizip/{tmp_path}/a.zip/scene.tif']


def test_odd_files_leave_the_others(write_raster: Write, tmp_path: Path) -> None:
    good = write_raster('naip/good_20200101.tif')
    (tmp_path / 'naip/dangling.tif').symlink_to(tmp_path / 'gone.tif')
    (tmp_path / 'naip/empty.tif').touch()
    os.replace(write_raster('naip/moved.tif'), os.fsencode(tmp_path / 'naip') + b'/caf\xe9.tif')
    with pytest.warns(UserWarning, match='left out 4 of 5 files'):
        dataset = SensorRaster([tmp_path / 'naip', tmp_path / 'vanished.tif'], 'naip')
    assert [scene.path for scene in dataset.scenes] == [str(good)]
    reasons = {os.path.basename(path): reason for path, reason in dataset.skipped}
    assert set(reasons) == {'caf\\xe9.tif', 'dangling.tif', 'empty.tif', 'vanished.tif'}
    assert 'not UTF-8' in reasons['caf\\xe9.tif']
    assert f'the link points to {tmp_path / "gone.tif"}, which does not exist' in reasons['dangling.tif']
    assert 'zero bytes' in reasons['empty.tif']
    assert 'no such file' in reasons['vanished.tif']


def test_messages_about_names_that_are_not_utf8_print() -> None:
    name = os.fsdecode(b'/data/caf\xe9.tif')
    with pytest.raises(SceneError) as caught:
        open_raster(name)
    assert str(caught.value).encode('utf-8').startswith(b'/data/caf\\xe9.tif: its name is not UTF-8')
    assert printable(Path('/data/café.tif')) == '/data/café.tif'
