# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Every YAML of configs/ runs as a user runs it: by TorchGeo's command, at a size that tests can afford."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from config_data import CONFIGS, DATA, DOWNSTREAM, PRETRAINING, TORCHGEO_DATA, one_step, smaller

Command = Callable[..., None]


def holds(whole: Any, part: Any) -> bool:
    """Whether all that nested dictionaries say is said in others."""
    if not isinstance(part, dict):
        return whole == part
    return isinstance(whole, dict) and all(key in whole and holds(whole[key], part[key]) for key in part)


def test_there_are_configurations() -> None:
    names = {path.name for path in CONFIGS}
    assert {'clay_pretrain.yaml', 'clay_pretrain_folders.yaml', 'clay_pretrain_v1_5.yaml'} <= names
    assert set(DATA) == {path.stem for path in DOWNSTREAM}, 'tests/config_data.py has data for each of the others'


# the callback that saves says that it will save elsewhere than in the run that is looked at
@pytest.mark.filterwarnings('ignore:The dirpath has changed')
# Lightning's table of the model counts 4 bytes per parameter, which is right
@pytest.mark.filterwarnings('ignore:Precision bf16-mixed is not supported by the model summary')
@pytest.mark.parametrize('config', PRETRAINING, ids=lambda path: path.stem)
def test_fit_then_validate_and_test(
    config: Path, tiny_scenes: dict[str, Any], tmp_path: Path, torchgeo_command: Command, capsys: pytest.CaptureFixture
) -> None:
    options = smaller(config, tiny_scenes, tmp_path)
    torchgeo_command('fit', *options)
    (last,) = tmp_path.rglob('last.ckpt')
    assert {path.name.split('-epoch')[0] for path in tmp_path.rglob('*.png')} == set(
        tiny_scenes['synthetic']['sensors']
    )
    said = {}
    for stage in ('validate', 'test'):
        capsys.readouterr()
        torchgeo_command(stage, *options, f'--ckpt_path={last}')
        said[stage] = capsys.readouterr().out
    for stage, split in (('validate', 'val'), ('test', 'test')):
        assert f'{split}_loss' in said[stage]
        assert f'{split}_loss/modis' in said[stage]


@pytest.mark.parametrize('config', [*PRETRAINING, *DOWNSTREAM], ids=lambda path: path.stem)
def test_what_is_printed_is_a_configuration(
    config: Path, tmp_path: Path, torchgeo_command: Command, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end:
        torchgeo_command('fit', f'--config={config}', '--print_config')
    assert end.value.code == 0
    text = capsys.readouterr().out
    printed, written = yaml.safe_load(text), yaml.safe_load(config.read_text())
    for part in ('model', 'data'):
        assert printed[part]['class_path'] == written[part]['class_path']
        assert holds(printed[part]['init_args'], written[part]['init_args'])
    again = tmp_path / 'printed.yaml'
    again.write_text(text)
    with pytest.raises(SystemExit):
        torchgeo_command('fit', f'--config={again}', '--print_config')
    assert yaml.safe_load(capsys.readouterr().out) == printed


# EuroSAT and L8 Biome are of another product than the sensor's statistics, which is said
@pytest.mark.filterwarnings('ignore:(EuroSAT|L8Biome) holds')
# TorchGeo 0.10's datasets use what pandas 3 and shapely 3 are to remove; its change detection logs without a batch size
@pytest.mark.filterwarnings('ignore:The inplace keyword')
@pytest.mark.filterwarnings('ignore:The .shapely.ops.transform')
@pytest.mark.filterwarnings('ignore:Trying to infer the `batch_size`')
# its test data for MMFlood are powers up to 1000
@pytest.mark.filterwarnings('ignore:sentinel-1-rtc. expected decibels')
# what kornia's elastic transform, which TorchGeo has for it, asks of torch
@pytest.mark.filterwarnings('ignore:Default grid_sample and affine_grid')
@pytest.mark.parametrize('config', DOWNSTREAM, ids=lambda path: path.stem)
def test_a_step_of_fine_tuning(config: Path, tmp_path: Path, torchgeo_command: Command) -> None:
    if DATA[config.stem].__name__ == 'shared_options' and not TORCHGEO_DATA.is_dir():
        pytest.skip("needs TorchGeo's test data in ../shared/data/torchgeo")
    if 'lora' in yaml.safe_load(config.read_text())['model']['init_args']:
        pytest.importorskip('peft', reason='needs the extra lora')
    options = one_step(config, tmp_path)
    torchgeo_command('fit', *options)
    (last,) = tmp_path.rglob('last.ckpt')
    checkpoint = torch.load(last, weights_only=False)
    assert checkpoint['global_step'] == 1
    callbacks = checkpoint['callbacks'].values()
    (score,) = (state['best_model_score'] for state in callbacks if 'best_model_score' in state)
    assert torch.isfinite(score)
