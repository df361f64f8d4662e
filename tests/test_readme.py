# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The README's Python and YAML run, on a scene made here and the tiny model."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from rasterio.transform import from_origin

import torchgeo_clay
from torchgeo_clay.datasets import SensorRaster
from torchgeo_clay.sensors import SENSORS


@pytest.fixture
def blocks(repo_root: Path) -> list[str]:
    """The README's Python."""
    return re.findall(r'```python\n(.*?)```', (repo_root / 'README.md').read_text(), re.DOTALL)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A Sentinel-2 scene that names its bands and its date."""
    profile = {'driver': 'GTiff', 'count': 10, 'height': 230, 'width': 240, 'dtype': 'uint16', 'crs': 'EPSG:32736'}
    with rasterio.open(tmp_path / 'scene.tif', 'w', transform=from_origin(5e5, 9e6, 10, 10), **profile) as file:
        file.write(np.random.default_rng(0).integers(300, 4000, (10, 230, 240), dtype=np.uint16))
        file.descriptions = SENSORS['sentinel-2-l2a'].band_names
        file.update_tags(DATETIME='2023-06-10T07:46:21')
    return tmp_path / 'scene.tif'


def test_from_a_geotiff_to_embeddings(
    blocks: list[str], scene: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = partial(torchgeo_clay.embed, model='clay_tiny_patch8', chip=128, device='cpu')
    monkeypatch.setattr(torchgeo_clay, 'embed', lambda paths, weights: tiny(paths, weights=not weights))
    names: dict = {}
    exec(blocks[0], names)  # noqa: S102
    chips = names['chips']
    assert {'embedding', 'geometry', 'datetime', 'gsd'} <= set(chips.columns)
    assert len(chips) == 4
    assert np.stack(chips['embedding']).shape == (4, 192)
    assert chips['gsd'].tolist() == [10.0] * 4
    assert chips['datetime'].iloc[0].isoformat() == '2023-06-10T07:46:21+00:00'


def test_a_batch(blocks: list[str], scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raster = SensorRaster(scene, 'sentinel-2-l2a')
    batch = torch.utils.data.default_collate([raster.patch(0, row=0, col=0, size=(64, 64))])
    batch['image'] = raster.sensor.normalize(batch['image'])
    tiny = torchgeo_clay.clay_tiny_patch8().eval()
    monkeypatch.setattr(torchgeo_clay, 'clay_large_patch8', lambda weights: tiny)
    names = {'batch': batch}
    exec(blocks[1], names)  # noqa: S102
    with torch.no_grad():
        unconditioned = tiny(batch['image'], raster.sensor.wavelengths, 10.0)
    assert names['embedding'].shape == (1, 192)
    assert not torch.allclose(names['embedding'], unconditioned)  # time and place change the embedding


def test_the_yaml_is_a_configuration(
    repo_root: Path, tmp_path: Path, torchgeo_command: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    text = re.search(r'```yaml\n(.*?)```', (repo_root / 'README.md').read_text(), re.DOTALL).group(1)
    path = tmp_path / 'readme.yaml'
    path.write_text(text)
    with pytest.raises(SystemExit):
        torchgeo_command('fit', f'--config={path}', '--print_config')
    printed, written = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(text)
    assert printed['model']['class_path'] == written['model']['class_path']
    options = {**printed['model']['init_args'], **printed['model'].get('dict_kwargs', {})}
    assert options.items() >= written['model']['init_args'].items()
    assert printed['data']['init_args']['sensor'] == 'naip'
    inner = written['data']['init_args']['datamodule']
    assert printed['data']['init_args']['datamodule']['init_args'].items() >= inner['init_args'].items()


def test_the_table_of_sensors_is_that_of_the_package(repo_root: Path) -> None:
    rows = re.findall(r'^\| `([^`]+)` \| ([0-9.]+) \| (\d+), ', (repo_root / 'README.md').read_text(), re.MULTILINE)
    assert {name: (float(gsd), int(count)) for name, gsd, count in rows} == {
        name: (sensor.gsd, len(sensor)) for name, sensor in SENSORS.items()
    }


def test_linked_files_exist(repo_root: Path) -> None:
    links = re.findall(r'\]\(([^)#:]+)\)', (repo_root / 'README.md').read_text())
    assert len(links) > 10
    assert [link for link in links if not (repo_root / link).is_file()] == []
