# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A prediction that gets a SIGTERM, or whose worker is killed: the commands, each in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from lightning.pytorch import seed_everything

from torchgeo_clay.models import clay_tiny_patch8, save_encoder

pytestmark = pytest.mark.slow

#: Runs a command after the third batch of which something happens: to this process and its workers, or to a worker.
PROGRAM = """
import multiprocessing, os, signal, sys
what, door, *arguments = sys.argv[1:]
from torchgeo_clay.inference import output
add, count = output.SceneOutput.add, 0
def counted(self, outputs, batch):
    global count
    count += 1
    if count == 3:
        workers = multiprocessing.active_children()
        assert workers
        pids = [worker.pid for worker in workers] + ([os.getpid()] if what == 'SIGTERM' else [])
        # by another process: workers obey a SIGTERM of the one they belong to
        os.system(f'kill -{getattr(signal, what)} ' + ' '.join(map(str, pids)))
    add(self, outputs, batch)
if what != 'nothing':
    output.SceneOutput.add = counted
if door == 'torchgeo':
    from torchgeo.main import main
else:
    from torchgeo_clay.__main__ import main
main(arguments)
"""


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('weights') / 'tiny.safetensors'
    seed_everything(0, verbose=False)
    save_encoder(clay_tiny_patch8(), path)
    return path


def run(what: str, door: str, scenes: Path, weights: Path, out: Path, root: Path) -> subprocess.CompletedProcess[str]:
    reading = {'chip': 32, 'stride': 8, 'unit_size': 16, 'batch_size': 6, 'num_workers': 1}
    if door == 'torchgeo':
        arguments = [
            'predict', f'--config={root}/configs/clay_embed.yaml', '--model.model=clay_tiny_patch8',
            f'--model.weights={weights}', f'--data.paths={scenes}', f'--trainer.default_root_dir={out.parent}',
            '--trainer.accelerator=cpu', f'--trainer.callbacks.out={out}', '--trainer.enable_progress_bar=false',
            *(f'--data.{name}={value}' for name, value in reading.items()),
        ]  # fmt: skip
    else:
        options = {'model': 'clay_tiny_patch8', 'weights': weights, 'out': out, 'device': 'cpu', **reading}
        arguments = ['embed', str(scenes), *(f'--{name}={value}' for name, value in options.items())]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    command = [sys.executable, '-c', PROGRAM, what, door, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.mark.parametrize('door', ['torchgeo', 'torchgeo-clay'])
def test_a_prediction_stops_after_its_part_and_goes_on(door, write_scene, weights, tmp_path, repo_root) -> None:
    scenes, out = write_scene('scenes/a.tif'), tmp_path / 'out/e.parquet'
    stopped = run('SIGTERM', door, scenes, weights, out, repo_root)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert 'SIGTERM: stops after the part in work' in stopped.stderr
    (line,) = [line for line in stopped.stderr.splitlines() if line.startswith('SIGTERM: stopped')]
    assert 'the same command goes on' in line
    assert 'Traceback' not in stopped.stderr
    parts = sorted((out.parent / 'e.parquet.parts').glob('[!.]*.parquet'))
    assert len(parts) == 1  # of 16 chips, of which the 18 of three batches are the first
    assert not out.exists()

    again = run('nothing', door, scenes, weights, out, repo_root)
    assert again.returncode == 0, again.stderr
    assert '1 of ' in again.stderr
    whole = run('nothing', door, scenes, weights, tmp_path / 'whole/e.parquet', repo_root)
    assert whole.returncode == 0, whole.stderr
    found, expected = gpd.read_parquet(out), gpd.read_parquet(tmp_path / 'whole/e.parquet')
    assert found.drop(columns='embedding').equals(expected.drop(columns='embedding'))
    np.testing.assert_allclose(np.stack(found['embedding']), np.stack(expected['embedding']), rtol=0, atol=1e-6)


@pytest.mark.parametrize('door', ['torchgeo', 'torchgeo-clay'])
def test_a_killed_worker_is_missed(door, write_scene, weights, tmp_path, repo_root) -> None:
    killed = run('SIGKILL', door, write_scene(), weights, tmp_path / 'e.parquet', repo_root)
    assert killed.returncode == 1
    assert 'A process that loads data died. Most often the machine ran out of memory' in killed.stderr
    assert 'run the same command again' in killed.stderr
