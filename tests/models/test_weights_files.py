# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Reading tensors out of files: the same numbers torch reads, and a clear error for every kind of damage."""

import os
import zipfile
from pathlib import Path

import lightning
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from torchgeo_clay.models import weights as weights_module
from torchgeo_clay.models.weights import Archive, CheckpointError, tensor_digest, write_safetensors
from torchgeo_clay.writers.atomic import OutputError


def tensors() -> dict[str, Tensor]:
    """Tensors of every kind a checkpoint may hold: views, shared storages, half precision, none or one value."""
    base = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    return {
        'plain': base.clone(),
        'rows': base[2:4],
        'transposed': base.T,
        'expanded': torch.ones(1).expand(3, 5),
        'half': base.bfloat16(),
        'whole': torch.arange(7),
        'scalar': torch.tensor(3.5),
        'empty': torch.empty(0, 3),
        'parameter': nn.Parameter(base.clone()),
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / 'file.ckpt'
    torch.save({'state_dict': tensors(), 'epoch': 3, 'hyper_parameters': {'lr': 0.1, 'names': ['a', None]}}, path)
    return path


def damage(path: Path, entry: str) -> None:
    """Flip one bit in the middle of an entry of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith(entry))
    content = bytearray(path.read_bytes())
    name, extra = (int.from_bytes(content[info.header_offset + at :][:2], 'little') for at in (26, 28))
    content[info.header_offset + 30 + name + extra + info.file_size // 2] ^= 1
    path.write_bytes(content)


def test_reads_what_torch_reads(checkpoint: Path) -> None:
    archive = Archive(checkpoint)
    expected = torch.load(checkpoint, weights_only=True)['state_dict']
    assert archive.shapes == {k: tuple(v.shape) for k, v in expected.items()}
    assert archive.extra == {'epoch': 3, 'hyper_parameters': {'lr': 0.1, 'names': ['a', None]}}
    got = archive.read(expected)
    for key, value in expected.items():
        assert got[key].device.type == 'cpu'
        assert type(got[key]) is Tensor
        assert got[key].dtype == value.dtype
        assert torch.equal(got[key], value), key


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]),
    suffix=st.sampled_from(['.ckpt', '.safetensors']),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path: Path, shapes: list[list[int]], dtype: torch.dtype, suffix: str) -> None:
    path = tmp_path / f'file{suffix}'
    written = {f'tensor {i}': torch.randint(0, 2, shape).to(dtype) for i, shape in enumerate(shapes)}
    if suffix == '.ckpt':
        torch.save(written, path)
    else:
        write_safetensors(written, path, {})
    read = Archive(path).read(written)
    assert all(torch.equal(read[k], v) and read[k].dtype == dtype for k, v in written.items())


@pytest.mark.parametrize('contents', [{'a': torch.ones(2)}, {'state_dict': {'a': torch.ones(2)}}])
def test_plain_state_dict(tmp_path: Path, contents: dict[str, object]) -> None:
    torch.save(contents, tmp_path / 'file.pth')
    assert Archive(tmp_path / 'file.pth').shapes == {'a': (2,)}


def test_lightning_checkpoint(tmp_path: Path) -> None:
    """One written by a run: hyperparameters, optimizer, scheduler, callback and data module states."""

    class Module(lightning.LightningModule):
        def __init__(self, lr: float = 0.1, betas: tuple[float, float] = (0.9, 0.95), name: str | None = None) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = nn.Linear(3, 2)

        def training_step(self, batch: Tensor) -> Tensor:
            return self.layer(batch).square().mean()

        def configure_optimizers(self) -> dict[str, object]:
            optimizer = torch.optim.AdamW(self.parameters(), self.hparams.lr, self.hparams.betas)
            return {'optimizer': optimizer, 'lr_scheduler': torch.optim.lr_scheduler.StepLR(optimizer, 1)}

    class Data(lightning.LightningDataModule):
        def train_dataloader(self) -> torch.utils.data.DataLoader[Tensor]:
            return torch.utils.data.DataLoader(torch.ones(2, 3))

        def state_dict(self) -> dict[str, object]:
            return {'batches': 2, 'order': torch.arange(2)}

    module = Module()
    trainer = lightning.Trainer(
        accelerator='cpu',
        max_epochs=1,
        logger=False,
        callbacks=[ModelCheckpoint(tmp_path, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, Data())
    archive = Archive(tmp_path / 'last.ckpt')
    assert archive.extra['hyper_parameters']['betas'] == (0.9, 0.95)
    assert archive.extra['optimizer_states']
    assert archive.extra[Data.__qualname__]['batches'] == 2
    assert torch.equal(archive.read(['layer.weight'])['layer.weight'], module.layer.weight)


def test_reads_nothing_but_what_is_asked(checkpoint: Path) -> None:
    with zipfile.ZipFile(checkpoint) as file:
        entries = [i.filename for i in file.infolist() if '/data/' in i.filename]
    damage(checkpoint, entries[0])
    archive = Archive(checkpoint)
    assert torch.equal(archive.read(['whole'])['whole'], torch.arange(7))


@pytest.mark.parametrize('share', [0.0, 0.01, 0.3, 0.7, 0.99, 1.0])
def test_truncated_checkpoint(checkpoint: Path, share: float) -> None:
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: min(int(share * len(content)), len(content) - 1)])
    with pytest.raises(CheckpointError, match='not a whole PyTorch checkpoint'):
        Archive(checkpoint)


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('place', ['state_dict', 'hyper_parameters', 'whole'])
def test_code_is_refused_and_never_run(tmp_path: Path, place: str) -> None:
    code = Code(tmp_path / 'was run')
    contents: object = {'state_dict': {'a': torch.ones(1)}, 'hyper_parameters': {}}
    if place == 'whole':
        contents = code
    else:
        contents[place]['b'] = code  # type: ignore[index]
    torch.save(contents, tmp_path / 'file.ckpt')
    with pytest.raises(CheckpointError, match='code, which is never run here'):
        Archive(tmp_path / 'file.ckpt')
    assert not code.path.exists()


def test_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / 'file.pt')
    with pytest.raises(CheckpointError, match='save its state_dict alone'):
        Archive(tmp_path / 'file.pt')


@pytest.mark.parametrize(
    ('contents', 'match'),
    [
        ([torch.ones(1)], 'got a list'),
        (torch.ones(1), 'got a (Fake)?Tensor'),
        ({'state_dict': {'a': torch.ones(1), 'b': 3}}, 'state_dict of tensors'),
        ({'state_dict': {}}, 'state_dict of tensors'),
        ({'epoch': 3}, r"found \['epoch'\]"),
        ({}, 'state_dict of tensors'),
    ],
)
def test_other_contents(tmp_path: Path, contents: object, match: str) -> None:
    torch.save(contents, tmp_path / 'file.ckpt')
    with pytest.raises(CheckpointError, match=match):
        Archive(tmp_path / 'file.ckpt')


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / 'file.ckpt'
    with pytest.raises(CheckpointError, match=r'No weights file at .*file\.ckpt'):
        Archive(path)
    with pytest.raises(CheckpointError, match='No weights file'):
        Archive(tmp_path)
    path.write_text('version https://git-lfs.github.com/spec/v1\n')
    with pytest.raises(CheckpointError, match='not a whole PyTorch checkpoint'):
        Archive(path)
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('holiday.txt', 'sun')
    with pytest.raises(CheckpointError, match='not a PyTorch checkpoint'):
        Archive(path)
    torch.save({'a': torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r'PyTorch before 1\.6'):
        Archive(path)


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    path = tmp_path / 'file.safetensors'
    write_safetensors({'a': torch.arange(5.0), 'b': torch.ones(2, 3).T}, path, {'made': 'here'})
    return path


def test_safetensors(safe: Path) -> None:
    archive = Archive(safe)
    assert archive.shapes == {'a': (5,), 'b': (3, 2)}
    assert archive.extra['made'] == 'here'
    read = archive.read(['a', 'b'])
    assert archive.extra['sha256'] == tensor_digest(read)
    assert torch.equal(read['a'], safetensors.torch.load_file(safe)['a'])
    assert list(safe.parent.iterdir()) == [safe]


def test_safetensors_of_another_program(tmp_path: Path) -> None:
    safetensors.torch.save_file({'a': torch.ones(2)}, tmp_path / 'file.safetensors')
    assert torch.equal(Archive(tmp_path / 'file.safetensors').read(['a'])['a'], torch.ones(2))


def test_safetensors_changed(safe: Path) -> None:
    content = bytearray(safe.read_bytes())
    content[-3] ^= 1
    safe.write_bytes(content)
    with pytest.raises(CheckpointError, match='SHA-256'):
        Archive(safe).read(['a', 'b'])


@pytest.mark.parametrize('share', [0.0, 0.02, 0.5, 0.99])
def test_safetensors_truncated(safe: Path, share: float) -> None:
    content = safe.read_bytes()
    safe.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r'not a whole \.safetensors'):
        Archive(safe)


def test_safetensors_written_whole_or_not_at_all(safe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = safe.read_bytes()

    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b'half')
        raise OSError('No space left on device')

    monkeypatch.setattr(weights_module, 'save_file', full)
    with pytest.raises(OutputError, match='No space'):
        write_safetensors({'a': torch.ones(1)}, safe, {})
    assert safe.read_bytes() == before
    assert list(safe.parent.iterdir()) == [safe]


def test_safetensors_suffix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'ends in \.safetensors'):
        write_safetensors({'a': torch.ones(1)}, tmp_path / 'file.ckpt', {})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('change', ['name', 'dtype', 'shape', 'value'])
def test_digest_sees_every_change(change: str) -> None:
    one = {'a': torch.zeros(4), 'b': torch.ones(1)}
    other = {
        'name': {'c': torch.zeros(4), 'b': torch.ones(1)},
        'dtype': {'a': torch.zeros(4, dtype=torch.int32), 'b': torch.ones(1)},
        'shape': {'a': torch.zeros(2, 2), 'b': torch.ones(1)},
        'value': {'a': torch.zeros(4), 'b': torch.full((1,), 2.0)},
    }[change]
    assert tensor_digest(one) == tensor_digest(dict(reversed(one.items())))
    assert tensor_digest(one) != tensor_digest(other)
