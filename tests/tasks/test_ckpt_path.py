# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""`--ckpt_path` of TorchGeo's command: what cannot be used is refused by name, before data are read or written."""

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace

from torchgeo_clay.models import CheckpointError, ClayMAE, clay_mae_tiny_patch8
from torchgeo_clay.models.weights import Archive
from torchgeo_clay.tasks.resuming import newest_checkpoint


@pytest.fixture
def fit(torchgeo_command: Callable[..., None], repo_root: Path, tmp_path: Path) -> Callable[..., None]:
    """Start a pretraining whose data would be written to a folder, which is not to come into being."""

    def run(path: Path | str, command: str = 'fit') -> None:
        data = tmp_path / 'data'
        config = f'--config={repo_root}/configs/clay_pretrain.yaml'
        try:
            torchgeo_command(command, config, f'--data.root={data}', '--trainer.accelerator=cpu', f'--ckpt_path={path}')
        finally:
            assert not data.exists()

    return run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What Lightning would save of a pretraining, in short."""
    path = tmp_path / 'run.ckpt'
    contents = {
        'state_dict': {'model.weight': torch.arange(10_000.0)},
        'pytorch-lightning_version': '2.6.0', 'optimizer_states': [], 'loops': {}, 'epoch': 0, 'global_step': 1,
        'hyper_parameters': {'_class_path': 'torchgeo_clay.tasks.ClayPretraining'},
    }  # fmt: skip
    torch.save(contents, path)
    return path


def with_flipped_bit(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        (part,) = (part for part in file.infolist() if part.filename.endswith('data/0'))
    content[part.header_offset + 20_000] ^= 4
    path.write_bytes(content)
    return path


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:20_000])
    return path


def without(path: Path, *names: str, **others: object) -> Path:
    contents = torch.load(path, weights_only=True)
    torch.save({**{k: v for k, v in contents.items() if k not in names}, **others}, path)
    return path


def of_another_task(path: Path) -> Path:
    return without(path, hyper_parameters={'_class_path': 'torchgeo_clay.tasks.ClayClassification'})


def pipe(path: Path) -> Path:
    os.mkfifo(path.with_name('pipe.ckpt'))
    return path.with_name('pipe.ckpt')


def folder(path: Path) -> Path:
    path.with_name('folder').mkdir()
    return path.with_name('folder')


def with_pickle(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, 'w', compression) as file:
        for name, part in {'data.pkl': content, 'version': b'3\n', 'byteorder': b'little'}.items():
            file.writestr(f'run/{name}', part)
    return path


def of_empty_sets(path: Path) -> Path:
    """17 MB, which would become 3.8 GB."""
    return with_pickle(path, b'\x80\x02](' + b'\x8f' * 17_000_000 + b'e.')


def of_an_array(path: Path) -> Path:
    """Some bytes, which would become 2 GB."""
    return with_pickle(path, b'\x80\x02cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.')


def deflated(path: Path) -> Path:
    return with_pickle(path, b'\x80\x02](' + b'N' * 1_000_000 + b'e.', zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [
        (truncated, 'run.ckpt: not a whole PyTorch checkpoint in zip format. Is it truncated?'),
        (with_flipped_bit, 'run.ckpt: run/data/0 does not match the checksum written with it'),
        (of_another_task, 'run.ckpt: expected a checkpoint of ClayPretraining, got one of ClayClassification'),
        (folder, 'folder: it is a folder.'),
        (pipe, 'pipe.ckpt: it is a pipe'),
        (lambda path: path.with_name('none.ckpt'), 'No weights file at .*none.ckpt. Expected a .ckpt'),
        (lambda path: path.with_name('a.safetensors'), 'a.safetensors: expected a checkpoint of a run, got weights'),
        (lambda path: without(path, 'optimizer_states'), 'found none of its optimizer_states: it holds weights alone'),
        (of_empty_sets, 'run.ckpt: holds more than 2,000,000 plain values'),
        (of_an_array, 'run.ckpt: holds more than'),
        (deflated, 'run.ckpt: holds deflated parts'),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(fit, checkpoint, spoil, said) -> None:
    path = spoil(checkpoint)
    with pytest.raises(CheckpointError, match=said):
        fit(path)
    if spoil in (truncated, pipe):
        with pytest.raises(CheckpointError, match=re.escape(path.name)):
            fit(path, 'validate')


@pytest.mark.parametrize('spoil', [of_empty_sets, of_an_array, deflated, pipe, folder])
def test_weights_are_refused_alike(checkpoint, spoil) -> None:
    with pytest.raises(CheckpointError, match=r'expected|Expected'):
        Archive(spoil(checkpoint))


@pytest.mark.parametrize('dtype', [torch.int32, torch.complex64])
def test_weights_of_another_kind_are_refused(tmp_path, dtype) -> None:
    model: ClayMAE = clay_mae_tiny_patch8()
    state = model.state_dict()
    state['encoder.blocks.0.attn.qkv.weight'] = state['encoder.blocks.0.attn.qkv.weight'].to(dtype)
    torch.save(state, tmp_path / 'w.ckpt')
    with pytest.raises(CheckpointError, match=rf'w\.ckpt: .*blocks\.0\.attn\.qkv\.weight is {dtype}'):
        clay_mae_tiny_patch8(tmp_path / 'w.ckpt')


def test_last_is_the_newest_of_all_runs(tmp_path) -> None:
    for version, time in (('version_0', 20), ('version_1', 30), ('version_10', 10)):
        path = tmp_path / 'runs' / version / 'checkpoints/last.ckpt'
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (time, time))
    logger = Namespace(init_args=Namespace(save_dir=str(tmp_path / 'runs'), name=None, version=None))
    saved = Namespace(init_args=Namespace(dirpath=None))
    trainer = Namespace(logger=logger, callbacks=[saved], default_root_dir=str(tmp_path))
    assert newest_checkpoint(trainer) == tmp_path / 'runs/version_1/checkpoints/last.ckpt'
    saved.init_args.dirpath = 'elsewhere'  # Lightning looks there
    assert newest_checkpoint(trainer) is None
    trainer.callbacks, trainer.logger = None, False
    assert newest_checkpoint(trainer) is None
    trainer.logger = None
    assert newest_checkpoint(trainer) is None  # there is no folder lightning_logs
