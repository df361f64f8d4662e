# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""`torchgeo fit` on one, two and four processes: the same samples and losses, also after one of them was killed."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import rasterio
from ranks import Run, start

from torchgeo_clay.datasets import SyntheticScenes

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('ranks')]

SENSORS = ['naip', 'modis']
EPOCHS, STEPS, BATCH = 2, 6, 4
POISONED = 3
KILLED = 9  # in the second epoch, at neither of its ends


class Runs(NamedTuple):
    """Runs by what they are, and the exit codes of their ranks."""

    runs: dict[str, Run]
    codes: dict[str, list[int]]


def make_scenes(root: Path) -> Path:
    """Scenes of which many patches hold nodata, some much of it: ranks have unlike numbers of pixels that count."""
    images = Path(SyntheticScenes(root, sensors=SENSORS, scenes_per_sensor=4, size=96).images)
    for number, path in enumerate(sorted(images.rglob('*.tif'))):
        with rasterio.open(path, 'r+') as file:
            pixels = file.read()
            file.nodata = 0
            pixels[:, :, : 13 * (number % 4)] = 0
            file.write(pixels)
    return images


def make_run(config: Path, root: Path, folder: Path, ranks: int, *more: str, callbacks: tuple[Any, ...] = ()) -> Run:
    told = [{'class_path': 'ranks.RankLosses', 'init_args': {'folder': str(folder)}}, *callbacks]
    return Run(str(folder), ranks, [
        f'--config={config}', f'--data.root={root}', '--data.synthetic=false', '--data.patch_size=32',
        '--data.val_split=0.3', f'--data.batch_size={BATCH // ranks}', f'--trainer.max_epochs={EPOCHS}',
        f'--trainer.limit_train_batches={STEPS}', '--trainer.num_sanity_val_steps=0', '--trainer.logger=false',
        '--trainer.enable_progress_bar=false', f'--trainer.default_root_dir={folder}',
        f'--trainer.callbacks={json.dumps(told)}', f'--trainer.enable_checkpointing={str(bool(callbacks)).lower()}',
        *more,
    ])  # fmt: skip


@pytest.fixture(scope='module')
def done(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs, done once: what is imported for one of them is there for all."""
    folder = tmp_path_factory.mktemp('ranks')
    root = make_scenes(folder / 'scenes')
    fewer = folder / 'fewer'
    shutil.copytree(root, fewer)
    next((fewer / 'modis').glob('*.tif')).unlink()
    config = repo_root / 'configs/clay_pretrain.yaml'
    poison = (
        {'class_path': 'ranks.PoisonRank', 'init_args': {'rank': 1, 'step': POISONED}},
        {'class_path': 'torchgeo_clay.callbacks.NonFiniteLoss', 'init_args': {'action': 'skip'}},
    )
    kill = (
        {'class_path': 'ranks.KillRank', 'init_args': {'rank': 1, 'step': KILLED}},
        {
            'class_path': 'lightning.pytorch.callbacks.ModelCheckpoint',
            'init_args': {'dirpath': f'{folder}/saved', 'every_n_train_steps': 4, 'save_last': True},
        },
    )
    saved = {'dirpath': f'{folder}/stopped/saved', 'every_n_train_steps': 100, 'save_last': True}
    stop = (
        {'class_path': 'ranks.TerminateRank', 'init_args': {'rank': 1, 'step': KILLED}},
        {'class_path': 'lightning.pytorch.callbacks.ModelCheckpoint', 'init_args': saved},
    )
    last = '--ckpt_path=last'  # where there is none yet, the run starts from scratch
    runs = {
        'one': make_run(config, root, folder / 'one', 1),
        'two': make_run(config, root, folder / 'two', 2),
        'four': make_run(config, root, folder / 'four', 4),
        'killed': make_run(config, root, folder / 'killed', 2, last, callbacks=kill),
        'resumed on one': make_run(config, root, folder / 'resumed1', 1, f'--ckpt_path={folder}/saved/last.ckpt'),
        'resumed on two': make_run(config, root, folder / 'resumed2', 2, last, callbacks=kill[1:]),
        'stopped': make_run(config, root, folder / 'stopped', 2, last, callbacks=stop),
        'resumed after a stop': make_run(config, root, folder / 'resumed3', 2, last, callbacks=stop[1:]),
        'poisoned': make_run(config, root, folder / 'poisoned', 2, '--trainer.max_epochs=1', callbacks=poison),
        'unlike': make_run(config, root, folder / 'unlike', 2),
        'missing': make_run(config, root, folder / 'missing', 2),
    }
    runs['unlike'].of_rank['1'] = [f'--data.root={fewer}']
    runs['missing'].of_rank['0'] = [f'--data.root={folder}/nowhere']
    return Runs(runs, dict(zip(runs, start(list(runs.values())), strict=True)))


@pytest.mark.parametrize('name', ['two', 'four'])
def test_several_processes_train_and_validate_as_one(done, name):
    one, several = done.runs['one'], done.runs[name]
    for run, codes in ((one, done.codes['one']), (several, done.codes[name])):
        assert set(codes) == {0}, run.told(0)
    steps = one.lines('steps')
    assert [line[0] for line in steps] == list(range(1, EPOCHS * STEPS + 1))
    assert len({line[3] for line in steps}) == len(steps)
    assert [line[:3] for line in several.lines('steps')] == [line[:3] for line in steps]
    np.testing.assert_allclose([s[3] for s in several.lines('steps')], [s[3] for s in steps], rtol=0, atol=1e-5)
    assert len(one.lines('val')) == EPOCHS
    for there, here in zip(several.lines('val'), one.lines('val'), strict=True):
        assert there.keys() == here.keys() == {'val_loss', *(f'val_loss/{sensor}' for sensor in SENSORS)}
        assert there == pytest.approx(here, rel=0, abs=1e-5)


def test_a_run_that_lost_a_process_ends_and_goes_on(done):
    whole = done.runs['one'].lines('steps')
    killed = done.runs['killed']
    first, second = done.codes['killed']
    assert second == -signal.SIGKILL
    assert first == 1, killed.told(0)  # ended by itself
    before = killed.lines('steps')
    assert [line[0] for line in before] == list(range(1, KILLED))
    for name in ('resumed on two', 'resumed on one'):
        run = done.runs[name]
        assert set(done.codes[name]) == {0}, run.told(0)
        together = before + run.lines('steps')
        assert [line[:3] for line in together] == [line[:3] for line in whole]
        np.testing.assert_allclose([line[3] for line in together], [line[3] for line in whole], rtol=0, atol=1e-5)


def test_processes_stop_together_when_one_is_asked_to(done):
    whole, stopped, resumed = (done.runs[name].lines('steps') for name in ('one', 'stopped', 'resumed after a stop'))
    run = done.runs['stopped']
    assert done.codes['stopped'] == [143, 143], run.told(0) + run.told(1)
    assert done.codes['resumed after a stop'] == [0, 0], done.runs['resumed after a stop'].told(0)
    assert f'SIGTERM: stopped after step {KILLED}. Saved to {run.folder}/saved/last.ckpt' in run.told(0)
    assert 'SIGTERM: stopped' not in run.told(1)
    assert len(stopped) == KILLED
    assert [line[:3] for line in stopped + resumed] == [line[:3] for line in whole]
    np.testing.assert_allclose([line[3] for line in stopped + resumed], [s[3] for s in whole], rtol=0, atol=1e-5)


def test_a_step_that_is_bad_on_one_rank_is_skipped_on_all(done):
    run, whole = done.runs['poisoned'], done.runs['one'].lines('steps')
    assert done.codes['poisoned'] == [0, 0], run.told(0)
    steps = run.lines('steps')
    assert [line[:3] for line in steps] == [line[:3] for line in whole[:STEPS]]
    assert [i for i, line in enumerate(steps) if not np.isfinite(line[3])] == [POISONED - 1]
    np.testing.assert_allclose([s[3] for s in steps[: POISONED - 1]], [s[3] for s in whole[: POISONED - 1]], atol=1e-5)
    (line,) = [line for line in run.told(0).splitlines() if 'Skipped step' in line]
    assert f'step {POISONED - 1}, rank 1: loss not finite: {steps[POISONED - 1][1]}, loss nan' in line
    assert '.tif (1 of at most 10)' in line
    assert 'Skipped step' not in run.told(1)


def test_ranks_that_see_other_scenes_stop_before_the_first_step(done):
    run = done.runs['unlike']
    assert done.codes['unlike'] == [1, 1]
    for rank in range(2):
        assert 'Expected all 2 ranks to find the same scenes' in run.told(rank)
        assert 'rank 1: ' in run.told(rank)
        assert 'scenes of modis (train), rank 0 ' in run.told(rank)
    assert not list(Path(run.folder).glob('*.jsonl'))


def test_a_rank_without_data_tells_the_others(done):
    run = done.runs['missing']
    assert done.codes['missing'] == [1, 1]
    for rank in range(2):
        assert 'rank 0: ValueError: root: ' in run.told(rank)
