# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Data that fails while a run is under way: files, workers, and other ranks' data."""

import pickle
import shutil
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from torchgeo_clay.datamodules import ClayPretrainDataModule
from torchgeo_clay.datamodules.pretrain.scan import _differences, describe_parts

OPTIONS = {'batch_size': 3, 'patch_size': 16, 'val_split': 0.3, 'seed': 1}


class Counter(pl.LightningModule):
    """Learns one number, and keeps the names of the files it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.paths: list[list[str]] = []

    def training_step(self, batch, batch_idx):
        self.paths.append(batch['paths'])
        return (self.weight - batch['image'].mean()) ** 2

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Do(Callback):
    """Does something before a step."""

    def __init__(self, step: int, what) -> None:
        self.step, self.what = step, what

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.what(trainer)


def fit(root: Path, *callbacks: Callback, **options) -> tuple[Counter, ClayPretrainDataModule]:
    module, data = Counter(), ClayPretrainDataModule(root, **OPTIONS | options)
    pl.Trainer(
        accelerator='cpu', callbacks=list(callbacks), logger=False, enable_checkpointing=False, max_epochs=1,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    ).fit(module, datamodule=data)  # fmt: skip
    return module, data


@pytest.fixture
def chips(root: Path) -> Path:
    """The same sensors, of which linz comes as chips."""
    shutil.rmtree(root / 'linz')
    (root / 'linz').mkdir()
    for i in range(8):
        unknown = dict.fromkeys(('lat_norm', 'lon_norm', 'week_norm', 'hour_norm'), np.zeros(2))
        np.savez(root / 'linz' / f'{i}.npz', pixels=np.full((3, 32, 32), 10 + i, np.uint8), **unknown)
    return root


@pytest.mark.parametrize(('sensor', 'suffix'), [('linz', '.npz'), ('naip', '.tif')])
def test_files_that_go_bad_in_mid_epoch_are_named_counted_and_replaced(chips, caplog, sensor, suffix):
    def spoil(trainer):
        for path in bad:
            path.write_bytes(path.read_bytes()[:300])
        for part in trainer.datamodule._parts['train'].values():  # rasters that are open would be read on
            part.close()

    data = ClayPretrainDataModule(chips, **OPTIONS)
    data.setup('fit')
    bad = [Path(region.path) for region in data._parts['train'][sensor].regions[:2]]
    expected = len(data.train_dataloader())
    whole, _ = fit(chips)
    done, _ = fit(chips, Do(4, spoil))
    assert len(done.paths) == len(whole.paths) == expected
    assert done.paths[:4] == whole.paths[:4]
    before, after = ({path for paths in part for path in paths} for part in (whole.paths, done.paths[6:]))
    assert {str(path) for path in bad} <= before
    assert not {str(path) for path in bad} & after
    skipped = [record.message for record in caplog.records if record.message.startswith('Skipped')]
    assert len(skipped) == 2
    assert {path.name for path in bad} == {Path(line.split(',')[0].removeprefix('Skipped ')).name for line in skipped}
    assert suffix in skipped[0]
    with pytest.raises(OSError, match='2 scenes could not be read, more than max_failures=1'):
        exhaust(data, max_failures=1)


def exhaust(data: ClayPretrainDataModule, max_failures: int) -> None:
    """Load an epoch of a datamodule that looked at its files before they went bad."""
    data.max_failures = max_failures
    data.teardown('fit')
    list(data.train_dataloader())


def test_a_worker_that_dies_during_a_step_ends_the_run_and_says_what_to_do(root):
    """PyTorch raises this from a signal handler, wherever the program is; a real kill would hit pytest itself too."""

    def fail(trainer):
        raise RuntimeError('DataLoader worker (pid 1) is killed by signal: Killed. ')

    with pytest.raises(RuntimeError, match=r'(?s)killed by signal.*lower num_workers.*--ckpt_path'):
        fit(root, Do(1, fail))


@pytest.mark.parametrize(
    'error', [ConnectionResetError('reset by peer'), EOFError(), RuntimeError('DataLoader worker (pid 1) is killed')]
)
def test_a_pipe_that_breaks_while_waiting_for_a_batch_tells_of_a_dead_worker(root, error):
    def batches():
        raise error
        yield

    data = ClayPretrainDataModule(root, **OPTIONS, num_workers=1)
    data.setup('fit')
    loader = data.train_dataloader()
    loader._open = batches
    with pytest.raises(RuntimeError, match=r'lower num_workers or batch_size.*--ckpt_path') as caught:
        next(iter(loader))
    assert caught.value.__cause__ is error


def test_what_ends_a_run_otherwise_is_left_as_it_is(root):
    def fail(trainer):
        raise RuntimeError('of the model')

    with pytest.raises(RuntimeError) as caught:
        fit(root, Do(1, fail))
    assert not hasattr(caught.value, '__notes__')


def test_ranks_that_see_other_scenes(root, scene):
    def look() -> dict[str, tuple[int, str]]:
        data = ClayPretrainDataModule(root, **OPTIONS)
        data.setup('fit')
        return describe_parts(data._parts)

    first = look()
    assert set(first) == {'naip (train)', 'naip (val)', 'linz (train)', 'linz (val)'}
    moved = root.rename(root.with_name('elsewhere'))
    moved.rename(root)
    assert _differences([first, look(), pickle.loads(pickle.dumps(first))]) == []  # noqa: S301
    (root / 'linz/1.tif').rename(root / 'linz/9.tif')
    renamed = _differences([first, first, look()])
    assert renamed
    assert all(line.startswith('rank 2: other scenes of linz') for line in renamed)
    for number in range(5, 9):
        scene(root / 'naip' / f'{number}.tif')
    more = _differences([first, look()])
    assert 'rank 1: 6 scenes of naip (train), rank 0 3' in more
    shutil.rmtree(root / 'linz')
    assert 'rank 1: 0 scenes of linz (train), rank 0 2' in _differences([first, look()])
    assert _differences(['ValueError: root', first]) == ['rank 0: ValueError: root']
