# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Checkpoints on a disk that is full: files may be only so long, which fails in the middle of writing as that does."""

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from torchgeo_clay.callbacks import AtomicCheckpoints
from torchgeo_clay.writers.atomic import OutputError

MB = 2**20


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file of this process become longer than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Growing(pl.LightningModule):
    """Learns little, and is larger to save from the fourth step on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch):
        return (self.weight - batch.mean()) ** 2

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, fused=True)

    def on_save_checkpoint(self, checkpoint):
        checkpoint['ballast'] = torch.ones(MB if self.global_step >= 4 else 1)


def trainer(folder: Path, **options) -> pl.Trainer:
    saved = ModelCheckpoint(folder, filename='{step}', every_n_train_steps=2, save_last=True, save_top_k=1)
    return pl.Trainer(
        accelerator='cpu', callbacks=[saved], plugins=[AtomicCheckpoints()], logger=False, max_steps=6,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip


@pytest.mark.filterwarnings('ignore:You.re resuming from a checkpoint', 'ignore:Checkpoint directory')
def test_the_checkpoint_before_survives_a_full_disk(tmp_path):
    data = DataLoader(torch.arange(8.0)[:, None])
    whole = Growing()
    trainer(tmp_path / 'whole').fit(whole, data)
    with room_for(MB), pytest.raises(OutputError, match=r'step=4\.ckpt: .*File too large.*room on the disk'):
        trainer(tmp_path / 'full').fit(Growing(), data)
    assert sorted(path.name for path in (tmp_path / 'full').iterdir()) == ['last.ckpt', 'step=2.ckpt']
    assert torch.load(tmp_path / 'full/last.ckpt', weights_only=False)['global_step'] == 2
    resumed = Growing()
    trainer(tmp_path / 'full').fit(resumed, data, ckpt_path=tmp_path / 'full/last.ckpt')
    assert resumed.global_step == 6


def test_what_is_saved_is_what_lightning_loads(tmp_path):
    saved = {'a': torch.arange(3), 'b': {'c': 1.5}}
    io = AtomicCheckpoints()
    for value in (saved, {'a': torch.zeros(2)}, saved):  # a new file, then over an existing one
        io.save_checkpoint(value, tmp_path / 'deep/x.ckpt')
    loaded = io.load_checkpoint(tmp_path / 'deep/x.ckpt')
    assert torch.equal(loaded['a'], saved['a'])
    assert loaded['b'] == saved['b']
    assert [path.name for path in (tmp_path / 'deep').iterdir()] == ['x.ckpt']
    with room_for(10), pytest.raises(OutputError, match='File too large'):
        io.save_checkpoint({'a': torch.zeros(MB)}, tmp_path / 'deep/x.ckpt')
    assert torch.equal(io.load_checkpoint(tmp_path / 'deep/x.ckpt')['a'], saved['a'])


SAVES = """
import os, signal, sys, torch
from torchgeo_clay.plugins import AtomicCheckpoints
def save(checkpoint, file):
    file.write(b'half')
    file.flush()
    if sys.argv[2] == 'live':
        print('writes', flush=True)
        input()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = save
AtomicCheckpoints().save_checkpoint({}, sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize('start', ['loads', 'saves'])
def test_what_a_killed_run_left_is_removed_and_what_another_writes_is_not(tmp_path, start):
    io = AtomicCheckpoints()
    io.save_checkpoint({'a': 1}, tmp_path / 'last.ckpt')
    command = [sys.executable, '-c', SAVES, str(tmp_path / 'other=1.ckpt'), 'live']
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as live:
        assert live.stdout.readline() == 'writes\n'
        killed = subprocess.run([sys.executable, '-c', SAVES, str(tmp_path / 'step=4.ckpt'), 'killed'], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert len(list(tmp_path.glob('.*.partial.ckpt'))) == 2
        if start == 'loads':
            AtomicCheckpoints().load_checkpoint(tmp_path / 'last.ckpt')
        else:
            AtomicCheckpoints().save_checkpoint({'a': 2}, tmp_path / 'last.ckpt')
        (left,) = tmp_path.glob('.*.partial.ckpt')
        assert left.name == f'.other=1.{live.pid}.partial.ckpt'
        live.kill()


def test_other_storage_is_left_to_lightning(tmp_path):
    io = AtomicCheckpoints()
    io.save_checkpoint({'a': 1}, 'memory://torchgeo_clay/x.ckpt')
    assert io.load_checkpoint('memory://torchgeo_clay/x.ckpt') == {'a': 1}
    with pytest.raises(TypeError, match='storage_options'):
        io.save_checkpoint({'a': 1}, tmp_path / 'x.ckpt', storage_options={})
