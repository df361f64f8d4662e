# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A run of TorchGeo's command that is killed, and one that goes on from what it left."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch

# Names of callbacks in the command below are of this module, which the command finds beside this file.
HERE = Path(__file__).parent
EPOCHS, STEPS = 2, 6
KILLED = 9  # in the second epoch, at neither of its ends
KILL = {'class_path': 'test_resuming.Kill', 'init_args': {'step': KILLED}}


class StepLosses(pl.Callback):
    """Writes a line per training step: its number, its samples, its loss to the last bit."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        with open(self.path, 'a', encoding='utf-8') as file:
            line = trainer.global_step, batch['sensor'], batch['index'].tolist(), outputs['loss'].item()
            file.write(json.dumps(line) + '\n')


class Kill(pl.Callback):
    """Kills this process, which can do nothing about it, within a step: after its gradients, before its update."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer, module):
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Terminate(pl.Callback):
    """Sends SIGTERM to this process and its workers, as SLURM does, in a step or in a validation."""

    def __init__(self, step: int, validation: bool) -> None:
        self.step, self.validation = step, validation

    def terminate(self, trainer):
        if trainer.global_step == self.step:
            pids = (*(child.pid for child in multiprocessing.active_children()), os.getpid())
            # by another process: workers obey a SIGTERM of the one they belong to
            subprocess.run(['kill', '-TERM', *map(str, pids)], check=True)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if not self.validation:
            self.terminate(trainer)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if self.validation and batch_idx == 0 and not trainer.sanity_checking:
            self.terminate(trainer)


def run(
    config: Path, scenes: dict[str, Any], folder: Path, *extra: str, more: list[Any] | None = None
) -> tuple[subprocess.CompletedProcess[str], list[list[Any]]]:
    """Run `torchgeo fit` in a process of its own; what it printed, and the lines of its steps."""
    folder.mkdir(exist_ok=True)
    log = folder / 'steps.jsonl'
    log.unlink(missing_ok=True)
    checkpoint = {'dirpath': str(folder / 'saved'), 'every_n_train_steps': 2, 'save_last': True, 'save_top_k': -1}
    callbacks = [
        {'class_path': 'test_resuming.StepLosses', 'init_args': {'path': str(log)}},
        {'class_path': 'lightning.pytorch.callbacks.ModelCheckpoint', 'init_args': checkpoint},
        *(more or []),
    ]
    command = [
        sys.executable, '-c', 'from torchgeo.main import main; main()', 'fit', f'--config={config}',
        *(f'--data.{name}={json.dumps(value)}' for name, value in scenes.items() if name != 'root'),
        f'--data.root={scenes["root"]}', '--data.shares=equal',
        '--trainer.accelerator=cpu', f'--trainer.max_epochs={EPOCHS}', f'--trainer.limit_train_batches={STEPS}',
        '--trainer.limit_val_batches=2', '--trainer.logger=false', '--trainer.enable_progress_bar=false',
        f'--trainer.default_root_dir={folder}', f'--trainer.callbacks={json.dumps(callbacks)}', *extra,
    ]  # fmt: skip
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get('PYTHONPATH')])])
    environment = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return done, lines


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_goes_on_as_if_it_had_not_been(repo_root, tiny_scenes, tmp_path):
    config, options = repo_root / 'configs/clay_pretrain.yaml', {**tiny_scenes, 'num_workers': 2}  # who read ahead
    whole_run, whole = run(config, tiny_scenes, tmp_path / 'whole')
    assert whole_run.returncode == 0, whole_run.stderr
    assert [line[0] for line in whole] == list(range(1, EPOCHS * STEPS + 1))
    assert len({line[3] for line in whole}) == len(whole)

    killed_run, killed = run(config, options, tmp_path / 'killed', more=[KILL])
    assert killed_run.returncode == -signal.SIGKILL
    assert [line[0] for line in killed] == list(range(1, KILLED))
    last = tmp_path / 'killed/saved/last.ckpt'
    saved = torch.load(last, weights_only=False)
    assert (saved['epoch'], saved['global_step']) == (1, KILLED - 1)  # 8, saved every other step

    resumed_run, resumed = run(config, options, tmp_path / 'killed', f'--ckpt_path={last}')
    assert resumed_run.returncode == 0, resumed_run.stderr
    assert [line[:3] for line in resumed] == [line[:3] for line in whole[KILLED - 1 :]]
    assert [line[3] for line in killed + resumed] == pytest.approx([line[3] for line in whole], rel=0, abs=1e-5)
    for done in (whole_run, resumed_run):
        assert 'excepthook' not in done.stderr  # rasterio's, of rasters left open
        assert 'Traceback' not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(('step', 'validation', 'saved'), [(6, False, 7), (6, True, 6)], ids=['step', 'validation'])
def test_a_run_asked_to_stop_saves_and_goes_on(repo_root, tiny_scenes, tmp_path, step, validation, saved):
    """No checkpoint is due at either place; a validation that was stopped is repeated."""
    config, options = repo_root / 'configs/clay_pretrain.yaml', {**tiny_scenes, 'num_workers': 2}
    log = ['--trainer.logger=lightning.pytorch.loggers.CSVLogger']
    whole_run, whole = run(config, options, tmp_path / 'whole', *log, f'--trainer.logger.save_dir={tmp_path}/whole')
    assert whole_run.returncode == 0, whole_run.stderr
    log.append(f'--trainer.logger.save_dir={tmp_path}/stopped')
    stop = {'class_path': 'test_resuming.Terminate', 'init_args': {'step': step, 'validation': validation}}
    stopped_run, stopped = run(config, options, tmp_path / 'stopped', *log, more=[stop])
    assert stopped_run.returncode == 143, stopped_run.stderr
    (line,) = [line for line in stopped_run.stderr.splitlines() if line.startswith('SIGTERM')]
    assert line.startswith(f'SIGTERM: stopped after step {saved}. Saved to {tmp_path}/stopped/saved/last.ckpt; ')
    assert 'Traceback' not in stopped_run.stderr
    assert torch.load(tmp_path / 'stopped/saved/last.ckpt', weights_only=False)['global_step'] == saved

    resumed_run, resumed = run(config, options, tmp_path / 'stopped', '--ckpt_path=last', *log)
    assert resumed_run.returncode == 0, resumed_run.stderr
    assert [line[:3] for line in stopped + resumed] == [line[:3] for line in whole]
    assert [line[3] for line in stopped + resumed] == pytest.approx([line[3] for line in whole], rel=0, abs=1e-5)
    assert validations(tmp_path / 'stopped') == pytest.approx(validations(tmp_path / 'whole'), rel=0, abs=1e-5)


def validations(folder: Path) -> list[float]:
    """The losses of all validations of the runs that logged into a folder."""
    tables = [pd.read_csv(path) for path in sorted(folder.glob('**/metrics.csv'))]
    return [loss for table in tables for loss in table.get('val_loss', pd.Series()).dropna()]
