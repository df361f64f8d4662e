# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The README's Python does what it says, on a scene made here and the tiny model."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from rasterio.transform import from_origin

from torchgeo_clay.models import clay_tiny_patch8
from torchgeo_clay.sensors import SENSORS


def test_from_a_geotiff_to_an_embedding(repo_root: Path, tmp_path: Path) -> None:
    code = re.search(r'```python\n(.*?)```', (repo_root / 'README.md').read_text(), re.DOTALL).group(1)
    sensor = SENSORS['sentinel-2-l2a']
    profile = {'driver': 'GTiff', 'count': 10, 'height': 230, 'width': 240, 'dtype': 'uint16', 'crs': 'EPSG:32736'}
    path = tmp_path / 'scene.tif'
    pixels = np.random.default_rng(0).integers(300, 4000, (10, 230, 240), dtype=np.uint16)
    with rasterio.open(path, 'w', transform=from_origin(5e5, 9e6, 10, 10), **profile) as file:
        file.write(pixels)
        file.descriptions = sensor.band_names
        file.update_tags(DATETIME='2023-06-10T07:46:21')
    torch.manual_seed(0)
    tiny = clay_tiny_patch8().eval()
    for there, here in (
        ("'scene.tif'", repr(str(path))),
        ('clay_large_patch8(weights=ClayLarge8_Weights.CLAY_V1_5)', 'tiny'),
    ):
        assert there in code
        code = code.replace(there, here)
    names = {'tiny': tiny}
    exec(code, names)  # noqa: S102
    x = (
        torch.from_numpy(pixels[None, :, :224, :224].astype(np.float32)) - torch.tensor(sensor.mean)[:, None, None]
    ) / torch.tensor(sensor.std)[:, None, None]
    assert names['embedding'].shape == (1, 192)
    assert names['batch']['res'].item() == 10
    # what was told of time and place changed the embedding
    with torch.no_grad():
        assert not torch.allclose(names['embedding'], tiny(x, sensor.wavelengths, 10.0))


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
    assert printed['model']['init_args'].items() >= written['model']['init_args'].items()
    assert printed['data']['init_args']['sensor'] == 'naip'
    inner = written['data']['init_args']['datamodule']
    assert printed['data']['init_args']['datamodule']['init_args'].items() >= inner['init_args'].items()


def test_the_table_of_sensors_is_that_of_the_package(repo_root: Path) -> None:
    rows = re.findall(r'^\| `([^`]+)` \| ([0-9.]+) \| (\d+), ', (repo_root / 'README.md').read_text(), re.MULTILINE)
    assert {name: (float(gsd), int(count)) for name, gsd, count in rows} == {
        name: (sensor.gsd, len(sensor)) for name, sensor in SENSORS.items()
    }


def test_files_that_are_linked_are_there(repo_root: Path) -> None:
    links = re.findall(r'\]\(([^)#:]+)\)', (repo_root / 'README.md').read_text())
    assert len(links) > 10
    assert [link for link in links if not (repo_root / link).is_file()] == []
