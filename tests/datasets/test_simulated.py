# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Chips of synthetic scenes: what is to be learnt about them, and from which scenes they come."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_clay.datamodules.pretrain.plan import PatchKey
from torchgeo_clay.datamodules.simulated import KeyedChips
from torchgeo_clay.datasets import SyntheticChips, SyntheticScenes
from torchgeo_clay.datasets.simulated import split_scene_numbers
from torchgeo_clay.simulator import CLASSES

SPLITS = ('train', 'val', 'test')
SIZE, PATCH = 80, 32  # two chips fit beside each other, and 16 pixels are left over


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SyntheticScenes:
    """Ten scenes each of a sensor with and one without clouds."""
    root = tmp_path_factory.mktemp('chips') / 'scenes'
    return SyntheticScenes(root, sensors=['sentinel-2-l2a', 'naip'], scenes_per_sensor=10, size=SIZE)


def read(chips: SyntheticChips, kind: str, index: int) -> np.ndarray:
    """What rasterio reads where a chip lies, band by band."""
    chip = chips.chips[index]
    path = Path(str(chips.raster.scenes[chip.scene].path).replace('/images/', f'/{kind}/'))
    with rasterio.open(path) as file:
        return file.read()[:, chip.row : chip.row + PATCH, chip.col : chip.col + PATCH]


@given(st.integers(1, 60), st.floats(0.01, 0.6), st.floats(0.01, 0.6), st.integers(0, 99))
def test_every_scene_is_in_one_split(count: int, val: float, test: float, seed: int) -> None:
    if count - max(1, round(val * count)) - max(1, round(test * count)) < 1:
        with pytest.raises(ValueError, match='Make more scenes'):
            split_scene_numbers(count, val, test, seed)
        return
    parts = split_scene_numbers(count, val, test, seed)
    assert sorted(chain(*parts.values())) == list(range(count))
    assert parts['train'] == list(range(len(parts['train'])))
    assert all(parts.values())
    assert parts == split_scene_numbers(count, val, test, seed)


def test_the_seed_decides_which_held_out_scenes_test() -> None:
    drawn = {tuple(split_scene_numbers(20, 0.2, 0.2, seed)['test']) for seed in range(8)}
    assert len(drawn) > 4


@pytest.mark.parametrize('share', [0.0, 1.0, -0.1, float('nan')])
def test_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match='val_split: expected a share between 0 and 1'):
        split_scene_numbers(9, share, 0.2, 0)
    with pytest.raises(ValueError, match='test_split: expected a share between 0 and 1'):
        split_scene_numbers(9, 0.2, share, 0)


def test_splits_share_no_file(scenes: SyntheticScenes) -> None:
    files = [{s.path for s in SyntheticChips(scenes, 'naip', split, 'segmentation').raster.scenes} for split in SPLITS]
    assert [len(part) for part in files] == [6, 2, 2]
    assert len(set.union(*files)) == 10


def test_a_label_is_the_cover_that_most_pixels_have(scenes: SyntheticScenes) -> None:
    chips = SyntheticChips(scenes, 'sentinel-2-l2a', 'train', patch_size=PATCH)
    assert 0 < chips.left_out < 24
    assert len(chips) + chips.left_out == 6 * 2 * 2
    seen = set()
    for i, sample in ((i, chips[i]) for i in range(len(chips))):
        values, counts = np.unique(read(chips, 'labels', i), return_counts=True)
        assert sample['label'].dtype == torch.int64
        assert sample['label'].item() == values[counts.argmax()]
        assert counts.max() >= PATCH * PATCH / 2
        assert 'mask' not in sample
        seen.add(sample['label'].item())
    assert len(seen) > 2
    assert len(SyntheticChips(scenes, 'sentinel-2-l2a', 'train', patch_size=PATCH, min_share=0)) == 24


def test_masks_are_the_labels_and_targets_there(scenes: SyntheticScenes) -> None:
    covers = SyntheticChips(scenes, 'naip', 'val', 'segmentation', PATCH)
    green = SyntheticChips(scenes, 'naip', 'val', 'regression', PATCH)
    assert len(covers) == len(green) == 8
    for i in range(8):
        cover, target = covers[i], green[i]
        np.testing.assert_array_equal(cover['mask'], read(covers, 'labels', i)[0])
        np.testing.assert_array_equal(target['mask'], read(green, 'targets', i)[0])
        np.testing.assert_array_equal(cover['image'], read(covers, 'images', i))
        assert cover['mask'].dtype == torch.int64
        assert target['mask'].dtype == target['label'].dtype == torch.float32
        assert target['label'].item() == pytest.approx(read(green, 'targets', i).mean(dtype=float), abs=1e-6)
        assert target['label'].shape == ()


def test_bands_and_metadata_are_the_rasters(scenes: SyntheticScenes) -> None:
    chips = SyntheticChips(scenes, 'naip', 'test', 'segmentation', PATCH, bands=['nir', 'red'])
    sample = chips[3]
    np.testing.assert_array_equal(sample['image'], read(chips, 'images', 3)[[3, 0]])
    assert sample['wavelength'].tolist() == pytest.approx(chips.sensor.wavelengths)
    assert sample['res'].item() == pytest.approx(1.0, rel=0.01)
    with rasterio.open(chips.raster.scenes[chips.chips[3].scene].path) as file:
        lon, lat = file.lnglat()
    assert (sample['lat'].item(), sample['lon'].item()) == (pytest.approx(lat, abs=1e-3), pytest.approx(lon, abs=1e-3))


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'split': 'training'}, "split: expected one of train, val, test, got 'training'"),
        ({'task': 'change'}, "task: expected one of classification, segmentation, regression, detection, got 'change'"),
        ({'patch_size': 96}, "patch_size: expected 1 to 80, the scenes' size, got 96"),
        ({'min_share': 1.5}, 'min_share: expected a share from 0 to 1, got 1.5'),
        ({'min_share': 1.0, 'patch_size': 80}, 'min_share: expected chips that a class covers to 100%'),
        ({'sensor': 'modis'}, r"one of the sensors of this set \(sentinel-2-l2a, naip\), got 'modis'"),
        ({'bands': ['B99']}, 'B99'),
    ],
)
def test_mistakes_are_named(scenes: SyntheticScenes, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticChips(**{'scenes': scenes, 'sensor': 'naip', 'patch_size': PATCH, **wrong})


@pytest.mark.parametrize(('task', 'panels'), [('classification', 1), ('segmentation', 3), ('regression', 3)])
def test_plot(scenes: SyntheticScenes, task: str, panels: int) -> None:
    chips = SyntheticChips(scenes, 'naip', 'val', task, PATCH)
    sample = chips[0]
    sample['prediction'] = sample['label' if task == 'classification' else 'mask'].clone()
    figure = chips.plot(sample, suptitle='a chip')
    figure.canvas.draw()
    assert len(figure.axes) == panels
    assert figure.get_suptitle() == 'a chip'
    assert 'naip' in figure.axes[0].get_title()
    if task == 'classification':
        name = CLASSES[int(sample['label'])].name
        assert figure.axes[0].get_title() == f'naip, label: {name}, prediction: {name}'
    else:
        shown = figure.axes[1].images[0].get_array()
        np.testing.assert_allclose(np.asarray(shown), sample['mask'].numpy())


def test_houses_are_boxes_of_masks(tmp_path: Path) -> None:
    """Every chip has a house, whose box is that of its mask, in the pixels of built-up land."""
    scenes = SyntheticScenes(tmp_path, sensors=['linz'], scenes_per_sensor=5, size=192)
    chips = SyntheticChips(scenes, 'linz', 'train', 'detection', patch_size=96)
    assert 0 < len(chips) <= 12
    keyed = KeyedChips(chips, train=True)
    flipped = (keyed[PatchKey('linz', epoch, 0)] for epoch in range(4))
    for sample in chain((chips[i] for i in range(len(chips))), flipped):
        assert len(sample['label']) == len(sample['mask']) == len(sample['bbox_xyxy']) > 0
        assert (sample['label'] == 1).all()
        for mask, box in zip(sample['mask'].numpy(), sample['bbox_xyxy'].tolist(), strict=True):
            rows, cols = np.nonzero(mask)
            assert box == [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
    first, (scene, row, col) = chips[0], chips.chips[0]
    with rasterio.open(scenes.labels / 'linz' / Path(chips.raster.scenes[scene].path).name) as file:
        labels = file.read(1)[row : row + 96, col : col + 96]
    assert (labels[first['mask'].numpy().any(0)] == chips.classes.index('built-up')).all()
    found = {'prediction_bbox_xyxy': first['bbox_xyxy'] + 2, 'prediction_mask': first['mask'][:, None].float()}
    scores = torch.linspace(0, 1, len(first['bbox_xyxy']))
    figure = chips.plot({**first, **found, 'prediction_score': scores})
    assert [len(axes.patches) for axes in figure.axes] == [len(scores), int((scores > 0.5).sum())]
    chips.close()
