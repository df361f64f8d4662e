# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Maps of whole scenes: nothing is changed but by the model, and what is written is read by rasterio."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from torch import Tensor, nn

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.datasets import SensorRaster
from torchgeo_clay.datasets.raster.files import open_raster
from torchgeo_clay.inference import MapStyle, map_scenes
from torchgeo_clay.models import clay_tiny_patch8
from torchgeo_clay.sensors import get_sensor
from torchgeo_clay.writers import OutputError

WriteScene = Callable[..., Path]
NAIP = get_sensor('naip')
VALUES = MapStyle('values')


def map_scene(model: nn.Module, scene: Path, out: Path, **options: Any) -> Path:
    (found,) = map_scenes(model, scene, out, sensor='naip', **options)
    return found


def normalized(path: Path) -> np.ndarray:
    with open_raster(path) as file:
        pixels = file.read().astype(np.float32)
    mean, std = (np.array(s, np.float32)[:, None, None] for s in (NAIP.mean, NAIP.std))
    return np.where((pixels == 0).any(axis=0), np.nan, (pixels - mean) / std)


class Shift(nn.Module):
    """Logits that tell what the images are."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0], x[:, 1], x[:, 2]], 1)


class Dense(nn.Module):
    """A Clay whose tokens are spread over their patches; stock code that calls its encoder with the image alone."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = clay_tiny_patch8()
        self.head = nn.Conv2d(192, 2, 1)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        (grid,) = self.encoder.forward_intermediates(x, indices=1, intermediates_only=True)
        return nn.functional.interpolate(self.head(grid), scale_factor=8)


@pytest.mark.parametrize(
    ('height', 'width', 'chip', 'stride'), [(70, 90, 32, 16), (70, 90, 32, 11), (64, 96, 32, 32), (20, 90, 32, 24)]
)
def test_a_model_that_returns_its_input(
    write_scene: WriteScene, tmp_path: Path, height: int, width: int, chip: int, stride: int
) -> None:
    pixels = np.random.default_rng(1).integers(1, 255, (4, height, width)).astype(np.uint8)
    pixels[:, 5:30, 40:60] = 0
    scene = write_scene(pixels=pixels)
    out = map_scene(nn.Identity(), scene, tmp_path / 'out.tif', style=VALUES, chip=chip, stride=stride, batch_size=3)
    with rasterio.open(out) as file, rasterio.open(scene) as given:
        found = file.read()
        assert file.crs == given.crs
        assert file.transform == given.transform
        assert np.isnan(file.nodata)
        assert file.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG'
        assert file.tags()['SENSOR'] == 'naip'
    np.testing.assert_allclose(found, normalized(scene), rtol=2e-6, atol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['out.tif', 'scene.tif']


def test_rows_without_data_at_the_top_and_the_bottom(write_scene: WriteScene, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(1, 255, (4, 120, 40)).astype(np.uint8)
    pixels[:, :70] = 0
    pixels[:, 100:] = 0
    scene = write_scene(pixels=pixels)
    out = map_scene(nn.Identity(), scene, tmp_path / 'out.tif', style=VALUES, chip=16, stride=8)
    with rasterio.open(out) as file:
        np.testing.assert_allclose(file.read(), normalized(scene), rtol=2e-6, atol=1e-6)


def test_a_map_of_classes(write_scene: WriteScene, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(1, 255, (4, 300, 270)).astype(np.uint8)
    pixels[:, :9] = 0
    scene = write_scene(pixels=pixels)
    names, colors = ['red', 'green', 'blue'], [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    style = MapStyle(probabilities=True, classes=names, colors=colors)
    out = map_scene(Shift(), scene, tmp_path / 'map.tif', style=style, chip=64)
    logits = normalized(scene)[:3]
    exponents = np.exp(logits)
    with rasterio.open(out) as file:
        found = file.read(1)
        assert file.nodata == 255
        assert file.dtypes == ('uint8',)
        assert file.overviews(1)
        assert [file.colormap(1)[i][:3] for i in range(3)] == colors
        assert file.colormap(1)[255][3] == 0
        assert json.loads(file.tags()['CLASSES']) == {'0': 'red', '1': 'green', '2': 'blue'}
        assert file.tags(1)['CLASS_2'] == 'blue'
    valid = ~np.isnan(logits).any(axis=0)
    assert (found[~valid] == 255).all()
    top = np.sort(logits, axis=0)
    clear = valid & (top[-1] - top[-2] > 1e-4)
    assert clear.mean() > 0.9
    assert (found[clear] == logits.argmax(axis=0)[clear]).all()
    with rasterio.open(tmp_path / 'map_probabilities.tif') as file:
        assert file.descriptions == tuple(names)
        np.testing.assert_allclose(file.read(), exponents / exponents.sum(axis=0), rtol=1e-5, atol=1e-6)


def test_one_channel_is_there_or_not(write_scene: WriteScene, tmp_path: Path) -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 0]

    scene = write_scene()
    style = MapStyle(classes=['no', 'yes'], threshold=0.6)
    out = map_scene(One(), scene, tmp_path / 'map.tif', style=style, chip=32)
    red = normalized(scene)[0]
    with rasterio.open(out) as file:
        found = file.read(1)
    chance = 1 / (1 + np.exp(-red))
    clear = np.abs(chance - 0.6) > 1e-4
    assert (found[clear] == (chance >= 0.6)[clear]).all()


def test_clay_inside_is_told_what_it_sees(write_scene: WriteScene, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Dense().train()
    model.encoder.eval()
    scene = write_scene(height=32, width=64)
    out = map_scene(model, scene, tmp_path / 'out.tif', style=VALUES, chip=32, stride=32, batch_size=5)
    assert model.training
    assert not model.encoder.training
    assert model.seen == [2]
    raster = SensorRaster(scene, 'naip')
    batch = torch.utils.data.default_collate([raster.patch(0, 0, col, (32, 32)) for col in (0, 32)])
    assert torch.isfinite(batch['lat']).all()
    assert torch.isfinite(batch['time']).all()
    images, conditioning = torch.from_numpy(normalized(scene)).split(32, -1), Conditioning.from_batch(batch)
    images = torch.stack(images)
    model.eval()
    with torch.no_grad(), model.encoder.conditioned_on(conditioning):
        expected = torch.cat(list(model(images)), dim=-1)
    with rasterio.open(out) as file:
        np.testing.assert_allclose(file.read(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_a_scene_without_crs(write_scene: WriteScene, tmp_path: Path) -> None:
    scene = write_scene(crs=None, transform=None)
    with pytest.raises(ValueError, match=r'no CRS.*gsd='):
        map_scene(nn.Identity(), scene, tmp_path / 'out.tif', style=VALUES, chip=32)
    out = map_scene(nn.Identity(), scene, tmp_path / 'out.tif', style=VALUES, chip=32, gsd=1.0)
    with open_raster(out) as file:
        assert file.crs is None
        np.testing.assert_allclose(file.read(), normalized(scene), rtol=2e-6, atol=1e-6)


class TestMistakes:
    """Before anything is written."""

    def test_windows(self, write_scene: WriteScene, tmp_path: Path) -> None:
        scene = write_scene()
        for options, message in (
            ({'chip': 20}, 'chip: expected a multiple of 8'),
            ({'chip': 16, 'stride': 0}, 'stride: expected 1 to 16'),
            ({'chip': 16, 'stride': 24}, 'stride: expected 1 to 16'),
            ({'chip': 16, 'batch_size': 0}, 'batch_size'),
        ):
            with pytest.raises(ValueError, match=message):
                map_scene(nn.Identity(), scene, tmp_path / 'o.tif', style=VALUES, **options)
        assert not (tmp_path / 'o.tif').exists()

    def test_it_is_there_already(self, write_scene: WriteScene, tmp_path: Path) -> None:
        scene = write_scene()
        out = tmp_path / 'o.tif'
        out.write_text('mine')
        with pytest.raises(ValueError, match='is there already, and no map'):
            map_scene(nn.Identity(), scene, out, style=VALUES, chip=32)
        assert out.read_text() == 'mine'
        map_scene(nn.Identity(), scene, out, style=VALUES, chip=32, overwrite=True)
        with rasterio.open(out) as file:
            assert file.count == 4

    def test_one_answer_per_chip(self, write_scene: WriteScene, tmp_path: Path) -> None:
        scene = write_scene()
        model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with pytest.raises(ValueError, match='one that answers for every pixel'):
            map_scene(model, scene, tmp_path / 'o.tif', chip=32)
        assert [p.name for p in tmp_path.iterdir()] == ['scene.tif']

    def test_names_that_do_not_fit(self, write_scene: WriteScene, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match='expected 3 names'):
            map_scene(Shift(), write_scene(), tmp_path / 'o.tif', chip=32, style=MapStyle(classes=['a', 'b']))

    def test_nothing_but_nodata(self, write_scene: WriteScene, tmp_path: Path) -> None:
        scene = write_scene(pixels=np.zeros((4, 40, 40), np.uint8))
        with pytest.raises(ValueError, match='no pixel holds data'):
            map_scene(nn.Identity(), scene, tmp_path / 'o.tif', style=VALUES, chip=32)

    def test_a_folder_that_can_not_be(self, write_scene: WriteScene, tmp_path: Path) -> None:
        (tmp_path / 'file').write_text('')
        with pytest.raises(OutputError, match='expected a folder that can be written to'):
            map_scene(nn.Identity(), write_scene(), tmp_path / 'file/o.tif', style=VALUES, chip=32)

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            ({'kind': 'logits'}, 'kind'),
            ({'kind': 'values', 'classes': ['a']}, "go with kind='classes'"),
            ({'names': ['a']}, "go with kind='values'"),
            ({'threshold': 1.0}, 'threshold'),
        ],
    )
    def test_style(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            MapStyle(**options)


class Overflow(nn.Module):
    """Logits that are infinite where the first band is brightest."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= x.new_tensor((254 - NAIP.mean[0]) / NAIP.std[0]), torch.inf, x)[:, :2]


@pytest.mark.parametrize('style', [VALUES, MapStyle(classes=['land', 'water'])])
def test_a_scene_whose_answers_are_not_finite_has_no_map(
    write_scene: WriteScene, tmp_path: Path, style: MapStyle
) -> None:
    dull = np.random.default_rng(0).integers(1, 100, (4, 70, 90)).astype(np.uint8)
    write_scene('in/a.tif', pixels=dull)
    bright = dull.copy()
    bright[:, 60, 80] = 254
    write_scene('in/b.tif', pixels=bright)
    with pytest.warns(
        UserWarning, match=r'(?s)1 file could not be used.*b\.tif: in the chip at row .* answers NaN or infinity'
    ):
        maps = map_scenes(Overflow(), tmp_path / 'in', tmp_path / 'out', sensor='naip', chip=32, style=style)
    assert [path.name for path in maps] == ['a.tif']
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['a.tif']


def test_weights_that_are_not_finite(write_scene: WriteScene, tmp_path: Path) -> None:
    model = Dense()
    with torch.no_grad():
        model.head.weight[0, 3] = torch.nan
    with pytest.raises(ValueError, match=r'Dense: expected weights that are finite.*head\.weight'):
        map_scenes(model, write_scene(), tmp_path / 'out', sensor='naip', chip=32)
    assert not list(tmp_path.glob('out/*'))
