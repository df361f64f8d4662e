# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What docs/clusters.md tells users to give to `torchgeo fit` is what the command takes."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from config_data import PRETRAINING
from lightning.pytorch.callbacks import ModelCheckpoint


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', page.read_text(encoding='utf-8'), flags=re.DOTALL)


@pytest.mark.parametrize('shipped', PRETRAINING, ids=lambda path: path.stem)
def test_the_recipes_are_taken(
    shipped: Path,
    repo_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    torchgeo_command: Callable[..., None],
    capsys: pytest.CaptureFixture,
) -> None:
    page = repo_root / 'docs/clusters.md'
    (overlay,) = blocks(page, 'yaml')
    (tmp_path / 'cluster.yaml').write_text(overlay)
    (tmp_path / 'configs').symlink_to(repo_root / 'configs')
    monkeypatch.chdir(tmp_path)
    commands = [block.replace('\\\n', ' ') for block in blocks(page, 'bash')]
    told = [line for block in commands for line in block.splitlines() if ' fit ' in line]
    assert len(told) == 2
    arguments = [shlex.split(line.split(' fit ')[1].removesuffix('&')) for line in told]
    assert arguments[0] == arguments[1]
    told = [argument.replace('clay_pretrain_v1_5', shipped.stem) for argument in arguments[0]]
    with pytest.raises(SystemExit) as ended:
        torchgeo_command('fit', *told, '--print_config')
    assert ended.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    trainer = config['trainer']
    assert (trainer['num_nodes'], trainer['devices']) == (20, 8)
    assert trainer['strategy']['init_args']['timeout'] == '0:10:00'
    assert trainer['use_distributed_sampler'] is False
    saved = trainer['callbacks'][0]['init_args']
    ModelCheckpoint(**saved)  # which refuses arguments of another callback that were merged in
    assert saved['save_last'] is True
    assert saved['dirpath']
    assert [plugin['class_path'] for plugin in trainer['plugins']] == ['torchgeo_clay.callbacks.AtomicCheckpoints']
    assert config['ckpt_path'] == 'last'
    assert config['data']['init_args']['num_workers'] == 4
