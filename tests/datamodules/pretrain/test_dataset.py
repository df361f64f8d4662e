# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What a sample is, by key."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from pyproj import Transformer

from torchgeo_clay.datamodules.pretrain.dataset import PretrainDataset, collate
from torchgeo_clay.datamodules.pretrain.plan import PatchKey
from torchgeo_clay.datamodules.pretrain.scan import find_folders, scan_folder
from torchgeo_clay.datasets import SceneError


def dataset(root: Path, train: bool = True, patch_size: int = 16, **options) -> PretrainDataset:
    found = {n: scan_folder(f, patch_size).scenes for n, f in find_folders(root).items()}
    return PretrainDataset(found, patch_size, train=train, **options)


def equal(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(torch.nan_to_num(one[k]), torch.nan_to_num(two[k])) if torch.is_tensor(one[k]) else one[k] == two[k]
        for k in one
    )


def test_a_sample_is_a_function_of_its_key(root):
    keys = [PatchKey('naip', e, n) for e in range(2) for n in range(4)]
    one, two = dataset(root, seed=5), dataset(root, seed=5)
    there = {key: one[key] for key in keys}
    back = {key: two[key] for key in reversed(keys)}
    for key in keys:
        assert equal(there[key], back[key])
    noises = [there[key]['noise'] for key in keys] + [dataset(root, seed=6)[keys[0]]['noise']]
    assert len({tuple(noise.tolist()) for noise in noises}) == len(noises)


def test_training_patches_are_where_rasterio_and_pyproj_say(root):
    data = dataset(root)
    to_degrees = Transformer.from_crs('EPSG:32633', 'EPSG:4326', always_xy=True)
    flips, places = set(), set()
    for number in range(data.sizes['naip']):
        sample = data[PatchKey('naip', 0, number)]
        image = sample['image'].numpy()
        rows, cols, scene = image[0, :, 0], image[1, 0, :], int(image[2, 0, 0]) - 1
        flips.add((rows[0] > rows[1], cols[0] > cols[1]))
        top, left = int(rows.min()) - 1, int(cols.min()) - 1
        places.add((scene, top, left))
        with rasterio.open(root / 'naip' / f'{scene}.tif') as file:
            expected = file.read()[:, top : top + 16, left : left + 16]
            lon, lat = to_degrees.transform(*(file.transform @ (left + 8, top + 8)))
        flipped = [a + 1 for a, flip in enumerate((rows[0] > rows[1], cols[0] > cols[1])) if flip]
        np.testing.assert_array_equal(image, np.flip(expected, flipped))
        if not torch.isnan(sample['lat']):
            assert sample['lat'].item() == pytest.approx(lat, abs=1e-9)
            assert sample['lon'].item() == pytest.approx(lon, abs=1e-9)
            assert sample['time'].item() == 1622889000
        assert sample['res'].item() == pytest.approx(1, rel=1e-3)
        assert sample['image'].dtype == torch.int16
    assert len(flips) == 4
    assert len(places) > 30  # not a grid
    assert {scene for scene, *_ in places} == {0, 1, 2, 3, 4}


def test_what_chance_hides(root):
    data = dataset(root)
    samples = [data[PatchKey('naip', e, n)] for e in range(30) for n in range(45)]
    unknown = [bool(torch.isnan(s['lat'])) for s in samples]
    for s in samples:
        assert torch.isnan(s['lon']) == torch.isnan(s['lat']) == torch.isnan(s['time'])
    kept = [int(s['band_mask'].sum()) for s in samples]
    assert np.mean(unknown) == pytest.approx(0.2, abs=0.035)
    assert all(k == 4 for k, u in zip(kept, unknown, strict=True) if u)
    placed = [k for k, u in zip(kept, unknown, strict=True) if not u]
    assert placed.count(0) / len(placed) == pytest.approx(0.1, abs=0.03)
    assert placed.count(2) / len(placed) == pytest.approx(0.2, abs=0.04)
    assert set(placed) == {0, 2, 4}
    halves = {tuple(s['band_mask'].tolist()) for s, k in zip(samples, kept, strict=True) if k == 2}
    assert len(halves) == 6  # any two of four
    noise = torch.stack([s['noise'] for s in samples])
    assert noise.dtype == torch.float32
    assert noise.shape == (len(samples), 4)
    assert noise.mean().item() == pytest.approx(0.5, abs=0.02)


def test_validation_is_a_grid_without_chance(root):
    data = dataset(root, train=False)
    assert data.sizes == {'naip': 45, 'linz': 12}
    seen = []
    for number in range(45):
        sample = data[PatchKey('naip', 0, number)]
        assert sample['band_mask'].all()
        assert torch.isfinite(sample['lat'])
        image = sample['image']
        seen.append((int(image[2, 0, 0]), int(image[0, 0, 0]), int(image[1, 0, 0])))
        assert (image[0].diff(dim=0) == 1).all()
        assert (image[1].diff(dim=1) == 1).all()
    assert sorted(seen) == [(s, r, c) for s in range(1, 6) for r in (1, 17, 33) for c in (1, 17, 33)]
    noises = {tuple(data[PatchKey('naip', 0, n)]['noise'].tolist()) for n in range(45)}
    assert len(noises) == 45
    assert equal(data[PatchKey('naip', 0, 3)], dataset(root, train=False)[PatchKey('naip', 0, 3)])


def test_patches_of_nodata_are_replaced(tmp_path, scene):
    holes = np.arange(64)[None, :] < 48
    scene(tmp_path / 'naip/a.tif', size=(64, 64), nodata=-9999, holes=holes)
    data = dataset(tmp_path, min_valid=0.5)
    shares = [data[PatchKey('naip', e, n)]['valid'].float().mean().item() for e in range(5) for n in range(16)]
    every = dataset(tmp_path, min_valid=0)
    without = [every[PatchKey('naip', e, n)]['valid'].float().mean().item() for e in range(5) for n in range(16)]
    assert min(shares) > 0
    assert np.mean(shares) > np.mean(without) + 0.1
    grid = dataset(tmp_path, train=False)
    assert grid.sizes == {'naip': 4}
    assert all(grid[PatchKey('naip', 0, n)]['valid'].all() for n in range(4))


def test_values_that_are_not_finite_are_zero_and_not_valid(tmp_path, scene):
    path = scene(tmp_path / 'naip/a.tif', size=(16, 16), dtype='float32')
    with rasterio.open(path, 'r+') as file:
        image = file.read()
        image[0, 2, 3], image[1, 4, 5], image[2, 6, 7] = np.nan, np.inf, -np.inf
        file.write(image)
    sample = dataset(tmp_path, train=False)[PatchKey('naip', 0, 0)]
    assert sorted(map(tuple, (~sample['valid'][0]).nonzero().tolist())) == [(2, 3), (4, 5), (6, 7)]
    assert torch.isfinite(sample['image']).all()
    assert sample['image'][0, 2, 3] == 0


def test_small_scenes_are_padded(tmp_path, scene):
    scene(tmp_path / 'naip/a.tif', size=(12, 20))
    for train in (True, False):
        sample = dataset(tmp_path, train=train)[PatchKey('naip', 0, 0)]
        assert sample['image'].shape == (4, 16, 16)
        assert sample['valid'].shape == (1, 16, 16)
        assert sample['valid'][:, :12].all()
        assert not sample['valid'][:, 12:].any()
        assert not sample['image'][:, 12:].any()


def test_weights_are_shares_of_the_draws(root):
    (root / 'naip/weights.csv').write_text('file,weight\n0.tif,6\n1.tif,3\n2.tif,1\n3.tif,0\n4.tif,0\n')
    data = dataset(root)
    scenes = [int(data[PatchKey('naip', e, n)]['image'][2, 0, 0]) for e in range(20) for n in range(45)]
    shares = np.bincount(scenes, minlength=6)[1:] / len(scenes)
    np.testing.assert_allclose(shares, [0.6, 0.3, 0.1, 0, 0], atol=0.05)
    assert shares[3:].sum() == 0


def test_patches_per_scene(root):
    data = dataset(root, patches_per_scene=7)
    assert data.sizes == {'naip': 35, 'linz': 21}
    scenes = [int(data[PatchKey('linz', 0, n)]['image'][2, 0, 0]) for n in range(21)]
    assert scenes == [1] * 7 + [2] * 7 + [3] * 7


def break_scene(path: Path) -> None:
    """Spoil a scene that could be opened before."""
    path.write_bytes(path.read_bytes()[:400])


def test_a_scene_that_breaks_is_named_and_replaced(root):
    data = dataset(root)
    break_scene(root / 'naip/2.tif')
    data = pickle.loads(pickle.dumps(data))  # as a worker gets it, without open files  # noqa: S301
    samples = [data[PatchKey('naip', 0, n)] for n in range(45)]
    failures = {failure for s in samples for failure in s['failures']}
    assert {path for path, _ in failures} == {str(root / 'naip/2.tif')}
    assert all(reason for _, reason in failures)
    assert [s['index'].item() for s in samples] == list(range(45))
    assert {int(s['image'][2, 0, 0]) for s in samples} == {1, 2, 4, 5}
    again = [data[PatchKey('naip', 0, n)] for n in range(45)]
    assert all(equal(a, b) for a, b in zip(samples, again, strict=True))
    batch = collate(samples)
    assert [path for path, _ in batch['failures']] == [str(root / 'naip/2.tif')]


def test_nothing_left_to_replace_with(root):
    data = dataset(root)
    for i in range(3):
        break_scene(root / 'linz' / f'{i}.tif')
    data = pickle.loads(pickle.dumps(data))  # noqa: S301
    with pytest.raises(SceneError, match=r'linz: none of the scenes tried can be read.*0\.tif'):
        data[PatchKey('linz', 0, 0)]


def test_a_batch_of_scenes_of_different_dtypes_is_float32(tmp_path, scene):
    scene(tmp_path / 'naip/a.tif', size=(16, 16), dtype='uint16')
    scene(tmp_path / 'naip/b.tif', size=(16, 16), dtype='int16')
    data = dataset(tmp_path, train=False)
    batch = collate([data[PatchKey('naip', 0, n)] for n in range(2)])
    assert batch['image'].dtype == torch.float32
    assert batch['sensor'] == 'naip'
    assert batch['wavelength'].shape == (2, 4)
    assert batch['lat'].dtype == batch['time'].dtype == torch.float64
