# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Every YAML of configs/ runs as a user runs it: by TorchGeo's command, at a size that tests can afford."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIGS = sorted((Path(__file__).parents[1] / 'configs').glob('*.yaml'))
Command = Callable[..., None]


def smaller(config: Path, scenes: dict[str, Any], output: Path) -> list[str]:
    """Options that make a run of a configuration tiny, and let it run on a CPU and offline."""
    return [
        f'--config={config}',
        '--model.model=clay_mae_tiny_patch8',
        '--model.teacher=null',
        *(f'--data.{name}={json.dumps(value)}' for name, value in scenes.items() if name != 'root'),
        f'--data.root={scenes["root"]}',
        '--data.num_workers=0',
        '--trainer.accelerator=cpu',
        '--trainer.devices=1',
        '--trainer.strategy=auto',
        '--trainer.max_epochs=1',
        '--trainer.limit_train_batches=3',
        '--trainer.limit_val_batches=3',
        '--trainer.log_every_n_steps=1',
        '--trainer.enable_progress_bar=false',
        f'--trainer.default_root_dir={output}',
        f'--trainer.logger.save_dir={output}',
    ]


def test_there_are_configurations() -> None:
    names = {path.name for path in CONFIGS}
    assert {'clay_pretrain.yaml', 'clay_pretrain_folders.yaml', 'clay_pretrain_v1_5.yaml'} <= names


# the callback that saves says that it will save elsewhere than in the run that is looked at
@pytest.mark.filterwarnings('ignore:The dirpath has changed')
# Lightning's table of the model counts 4 bytes per parameter, which is right
@pytest.mark.filterwarnings('ignore:Precision bf16-mixed is not supported by the model summary')
@pytest.mark.parametrize('config', CONFIGS, ids=lambda path: path.stem)
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


@pytest.mark.parametrize('config', CONFIGS, ids=lambda path: path.stem)
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
        assert printed[part]['init_args'].items() >= written[part]['init_args'].items()
    again = tmp_path / 'printed.yaml'
    again.write_text(text)
    with pytest.raises(SystemExit):
        torchgeo_command('fit', f'--config={again}', '--print_config')
    assert yaml.safe_load(capsys.readouterr().out) == printed
