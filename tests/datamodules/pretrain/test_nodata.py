# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Scenes that are mostly nodata: what validates is where data is, each window once, and no run ends of it."""

import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from torchgeo_clay.datamodules import ClayPretrainDataModule
from torchgeo_clay.datasets import SensorRaster

OPTIONS = {'batch_size': 2, 'patch_size': 16, 'seed': 1}


def set_up(root: Path, **options) -> ClayPretrainDataModule:
    data = ClayPretrainDataModule(root, **OPTIONS | options)
    data.setup('fit')
    return data


def only(size: tuple[int, int], *rows_and_cols: tuple[slice | int, slice | int]) -> np.ndarray:
    """The holes of a scene that holds data in some places only."""
    holes = np.ones(size, bool)
    for place in rows_and_cols:
        holes[place] = False
    return holes


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple]:
    """Count how often each window of each scene is read."""
    reads: Counter[tuple] = Counter()
    patch = SensorRaster.patch

    def counted(self, scene, row, col, size):
        reads[self.scenes[scene].path, row, col] += 1
        return patch(self, scene, row, col, size)

    monkeypatch.setattr(SensorRaster, 'patch', counted)
    return reads


def validated(data: ClayPretrainDataModule) -> list[tuple[str, float, float]]:
    """File and place of every window that validates, each of which holds data."""
    seen = []
    for batch in data.val_dataloader():
        assert batch['valid'].flatten(1).any(1).all()
        assert batch['counted'] == len(batch['image'])
        seen += zip(batch['paths'], batch['lat'].tolist(), batch['lon'].tolist(), strict=True)
    assert len(set(seen)) == len(seen)
    return seen


def test_windows_that_validate_hold_data_and_are_read_once(tmp_path, scene, monkeypatch):
    size = (160, 160)
    for i in range(3):
        scene(tmp_path / f'naip/{i}.tif', size=size, nodata=-9999, holes=only(size, (slice(96, 112), slice(0, 64))))
    data = set_up(tmp_path, val_split=0.3)
    assert data.val_dataset.sizes == {'naip': 4}
    reads = count_reads(monkeypatch)
    assert len(validated(data)) == 4
    assert set(reads.values()) == {1}
    assert len(reads) == 4


def test_a_window_with_too_little_data_validates_only_where_there_is_none_better(tmp_path, scene):
    size = (64, 64)
    better = only(size, (slice(0, 16), slice(0, 16)), (slice(32, 36), slice(32, 48)))
    for i, holes in enumerate((better, only(size, (slice(32, 36), slice(32, 40)), (40, 5)))):
        scene(tmp_path / f'naip/{i}.tif', size=size, nodata=-9999, holes=holes)
    found = {}
    for seed in range(8):  # until each has validated
        (val,) = set_up(tmp_path, val_split=0.5, seed=seed).val_dataset._windows.values()
        data = set_up(tmp_path, val_split=0.5, seed=seed)
        found[Path(data._parts['val']['naip'].regions[0].path).stem] = val[:, 1:].tolist()
    assert found == {'0': [[0, 0]], '1': [[32, 32]]}


@pytest.mark.parametrize('place', [(0, 0), (63, 63), (40, 70)])
def test_one_valid_pixel_trains_and_validates(tmp_path, scene, monkeypatch, place):
    size = (64, 72)  # the last column of patches is no whole one
    for i in range(2):
        scene(tmp_path / f'naip/{i}.tif', size=size, nodata=-9999, holes=only(size, place))
    data = set_up(tmp_path, val_split=0.5)
    assert data.val_dataset.sizes == {'naip': 1}
    assert len(validated(data)) == 1
    reads = count_reads(monkeypatch)
    batches = list(data.train_dataloader())
    assert all(batch['valid'].flatten(1).sum(1).eq(1).all() for batch in batches)
    assert sum(reads.values()) <= 17 * sum(len(batch['image']) for batch in batches)


def test_a_single_scene_is_cut_where_its_data_is(tmp_path, scene):
    size = (64, 160)
    scene(tmp_path / 'naip/0.tif', size=size, nodata=-9999, holes=only(size, (slice(16, 48), slice(16, 80))))
    data = set_up(tmp_path, val_split=0.25)
    train, val = (data._parts[part]['naip'].regions[0] for part in ('train', 'val'))
    assert (val.left, val.left + val.width) == (64, 80)
    assert (train.left, train.left + train.width) == (16, 64)
    assert len(validated(data)) == 2
    assert all(batch['valid'].float().mean() > 0.5 for batch in data.train_dataloader())


def test_scenes_without_any_data_are_left_out_and_named(tmp_path, scene):
    size = (64, 64)
    for i in range(4):
        scene(tmp_path / f'naip/{i}.tif', size=size, nodata=-9999, holes=np.full(size, i == 2))
    with pytest.warns(UserWarning, match=r'2\.tif: all pixels are nodata'):
        data = set_up(tmp_path, val_split=0.3)
    assert data.train_dataset.sizes['naip'] + data.val_dataset.sizes['naip'] == 48


def test_a_scene_that_changes_or_vanishes_counts_for_nothing(tmp_path, scene, caplog):
    size = (32, 32)
    for i in range(9):
        scene(tmp_path / f'naip/{i}.tif', size=size, nodata=-9999)
    data = set_up(tmp_path, val_split=0.34)
    changed, gone, _ = (Path(region.path) for region in data._parts['val']['naip'].regions)
    data.teardown('fit')  # a raster that is open would be read on
    scene(changed, size=size, nodata=-9999, holes=np.ones(size, bool))
    gone.unlink()
    with caplog.at_level(logging.WARNING):
        batches = list(data.val_dataloader())
    assert sum(batch['counted'] for batch in batches) == 4
    assert all(batch['valid'].all() for batch in batches if batch['counted'])
    assert [record.args[0] for record in caplog.records if 'Skipped' in record.message] == [str(changed), str(gone)]


def test_links_that_lead_nowhere_and_damaged_chips_are_left_out_alone(root, tmp_path):
    (root / 'naip/9.tif').symlink_to(tmp_path / 'nowhere.tif')
    codes = dict.fromkeys(('lat_norm', 'lon_norm', 'week_norm', 'hour_norm'), np.zeros(2))
    for i in range(4):
        np.savez(root / f'linz/{i}.npz', pixels=np.full((3, 32, 32), 10, np.uint8), **codes)
    damaged = bytearray((root / 'linz/0.npz').read_bytes())
    damaged[500] ^= 0xFF  # a pixel of the first chip, whose checksum no longer fits
    (root / 'linz/0.npz').write_bytes(damaged)
    with pytest.warns(UserWarning, match='skipped 1 files') as caught:
        data = set_up(root)
    said = '\n'.join(str(warning.message) for warning in caught)
    assert '9.tif: the link points to' in said
    assert '0.npz: not readable as a chip' in said
    assert sum(len(data._parts[part]['linz']) for part in ('train', 'val')) == 6


@pytest.mark.real_data
@pytest.mark.parametrize(
    ('case', 'options'),
    [
        ('3-nodata-landsat', {'readers': {'landsat-c2l2-sr': {'bands': ['red']}}, 'patch_size': 256, 'val_split': 0.5}),
        ('3-nodata-modis', {'patch_size': 32, 'val_split': 0.2}),
    ],
)
def test_real_scenes_that_are_mostly_nodata(cases, tmp_path, case, options):
    root = shutil.copytree(cases / case, tmp_path / case)
    data = set_up(root, **options)
    windows = validated(data)
    ((_, size),) = data.val_dataset.sizes.items()
    assert len(windows) == size > 0
    for batch in [next(iter(data.train_dataloader())), *data.val_dataloader()]:
        assert batch['valid'].flatten(1).any(1).all()
        assert torch.isfinite(batch['image'].float()).all()
    (name,) = data._parts['val']
    for region in data._parts['val'][name].regions:
        with rasterio.open(region.path) as file:
            mask = file.read_masks().all(axis=0)
        p = options['patch_size']
        tops = range(region.top, region.top + region.height - p + 1, p)
        lefts = range(region.left, region.left + region.width - p + 1, p)
        enough = sum(mask[top : top + p, left : left + p].mean() >= 0.5 for top in tops for left in lefts)
        assert sum(path == region.path for path, *_ in windows) == max(enough, 1)
