# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The command line: sensors and configs."""

import subprocess
import sys
from pathlib import Path

import pytest

from torchgeo_clay import __main__ as command
from torchgeo_clay.sensors import sensor_table


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up installation with two configs inside the package; the folder of these."""
    folder = tmp_path / 'site/torchgeo_clay/configs'
    folder.mkdir(parents=True)
    for name in ('a.yaml', 'b.yaml'):
        (folder / name).write_text(name)
    monkeypatch.setattr(command, '__file__', str(folder.parent / '__main__.py'))
    return folder


def test_sensors(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(['sensors'])
    assert capsys.readouterr().out == sensor_table() + '\n'


def test_a_reader_that_has_seen_enough(repo_root: Path) -> None:
    """As ``torchgeo-clay sensors | head``, whose pipe is closed before all is written."""
    command = [sys.executable, '-W', 'ignore', '-m', 'torchgeo_clay', 'sensors']
    with subprocess.Popen(command, cwd=repo_root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, '')


def test_configs_of_an_installation(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(['configs'])
    assert capsys.readouterr().out.split() == [str(configs), 'a.yaml', 'b.yaml']
    command.main(['configs', 'b.yaml'])
    assert Path(capsys.readouterr().out.strip()).read_text() == 'b.yaml'


def test_configs_of_a_checkout(repo_root: Path) -> None:
    assert command.configs_folder() == repo_root / 'configs'


def test_copies_but_replaces_nothing(configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / 'mine/configs'
    command.main(['configs', '--copy', str(target)])
    assert {p.name: p.read_text() for p in target.iterdir()} == {'a.yaml': 'a.yaml', 'b.yaml': 'b.yaml'}
    (target / 'a.yaml').write_text('edited')
    (target / 'b.yaml').unlink()
    with pytest.raises(SystemExit):
        command.main(['configs', '--copy', str(target)])
    assert 'already holds a.yaml; nothing was copied' in capsys.readouterr().err
    assert [p.read_text() for p in target.iterdir()] == ['edited']


def test_unknown_config_and_none_at_all(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(['configs', 'c.yaml'])
    assert "no config 'c.yaml'" in capsys.readouterr().err
    for path in configs.iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match='install the package again'):
        command.configs_folder()


@pytest.mark.parametrize('given', ['red,green', '[red, green]', 'red, green'])
def test_bands_are_separated_by_commas(given: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """They reach the function as a list, whose unknown name the error quotes."""
    options = ['--weights', 'false', '--model', 'clay_tiny_patch8', '--out', str(tmp_path / 'a.parquet')]
    with pytest.raises(SystemExit):
        command.main(['embed', 'a.tif', '--sensor', 'naip', '--bands', given.replace('green', 'grreen'), *options])
    assert "naip has no band 'grreen'. Did you mean 'green'?" in capsys.readouterr().err


@pytest.mark.parametrize(('text', 'value'), [('nan', 'nan'), ('0', 0.0), ('-9999.5', -9999.5), ('null', None)])
def test_nodata_is_a_number_or_nan(text: str, value: object) -> None:
    arguments = command._parser().parse_args(['embed', 'scene.tif', '--weights', 'false', '--nodata', text])
    assert arguments.embed.nodata == value
