# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Pretraining on a teacher's targets that were computed before: the same numbers, and the teacher at rest."""

import threading
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from timm.models import register_model
from torch import Tensor, nn

from torchgeo_clay.conditioning import encode_latlon
from torchgeo_clay.datamodules import ClayPretrainDataModule
from torchgeo_clay.datamodules.pretrain import dataset as pretrain_dataset
from torchgeo_clay.datamodules.pretrain import teacher_targets as teaching
from torchgeo_clay.datasets import SceneError
from torchgeo_clay.sensors import get_sensor
from torchgeo_clay.tasks import ClayPretraining

SIZE = 32
NAIP, MODIS = 8, 6

#: Batch size of each call of a teacher.
calls: list[int] = []


class Patches(nn.Module):
    """A teacher that tells a flipped image from the image: means of its corners, mixed."""

    num_features = 5

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator('cpu').manual_seed(seed)
        with torch.device('cpu'):
            self.mix = nn.Parameter(torch.randn(12, 5, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 518, 518)
        calls.append(len(x))
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1) @ self.mix


@register_model
def teacher_of_tests(pretrained: bool = False, **kwargs: Any) -> Patches:
    """Known to timm under this name, as a user's would be."""
    return Patches(seed=int(pretrained))


@register_model
def teacher_of_tests_other(pretrained: bool = False, **kwargs: Any) -> Patches:
    """The same with other weights."""
    return Patches(seed=2)


@pytest.fixture(autouse=True)
def _from_none() -> None:
    """Count the teacher's calls from none."""
    calls.clear()


def write_chip(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    place = encode_latlon(torch.tensor([47.0]), torch.tensor([8.0]))[0].numpy()
    time = np.array([0.0, 1.0])
    np.savez(path, pixels=pixels, lat_norm=place[:2], lon_norm=place[2:], week_norm=time, hour_norm=time)


def write_chips(root: Path, name: str, count: int, size: tuple[int, int] = (SIZE, SIZE)) -> None:
    """Chips of noise about the mean of each band."""
    sensor, rng = get_sensor(name), np.random.default_rng(0)
    for i in range(count):
        noise = rng.normal(sensor.mean, sensor.std, (*size, len(sensor))).transpose(2, 0, 1)
        write_chip(root / name / f'{i}.npz', noise.clip(1, 255 if name == 'naip' else 1e4).astype(np.int16))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_chips(tmp_path / 'chips', 'naip', NAIP)
    write_chips(tmp_path / 'chips', 'modis', MODIS, (24, SIZE))  # padded
    return tmp_path / 'chips'


def make_data(root: Path, **options: Any) -> ClayPretrainDataModule:
    return ClayPretrainDataModule(root, **{'batch_size': 2, 'patch_size': SIZE, 'val_split': 0.3} | options)


def make_task(store: Path | None, teacher: str | None = 'teacher_of_tests', **options: Any) -> ClayPretraining:
    torch.manual_seed(0)
    targets = None if store is None else str(store)
    return ClayPretraining('clay_mae_tiny_patch8', teacher=teacher, teacher_targets=targets, **options)


def make_trainer(folder: Path, **options: Any) -> pl.Trainer:
    defaults = {
        'accelerator': 'cpu', 'default_root_dir': folder, 'logger': False, 'enable_checkpointing': False,
        'enable_progress_bar': False, 'enable_model_summary': False, 'max_epochs': 1, 'num_sanity_val_steps': 0,
    }  # fmt: skip
    return pl.Trainer(**defaults | options)


def fit(task: ClayPretraining, data: ClayPretrainDataModule, folder: Path, **options: Any) -> dict[str, float]:
    path = options.pop('ckpt_path', None)
    trainer = make_trainer(folder, **options)
    with warnings.catch_warnings():  # a teacher that comes along is frozen on purpose
        warnings.filterwarnings('ignore', message='Found 1 module.s. in eval mode at the start of training')
        trainer.fit(task, datamodule=data, ckpt_path=path)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def set_up(task: ClayPretraining, data: ClayPretrainDataModule, folder: Path) -> None:
    """Do what a trainer does before the first step."""
    trainer = make_trainer(folder)
    trainer._data_connector.attach_datamodule(task, datamodule=data)
    task.trainer = trainer
    data.setup('fit')
    task.setup('fit')


@pytest.fixture
def upright(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training that flips nothing."""
    monkeypatch.setattr(pretrain_dataset, 'FLIP', 0)


# the same numbers -----------------------------------------------------------------------------------------------------


def test_without_flips_all_losses_are_those_of_the_teacher_that_looks(root, tmp_path, upright):
    live = fit(make_task(None), make_data(root), tmp_path)
    assert 'train_representation_loss/modis' in live
    seen = sum(calls)
    calls.clear()
    cached = fit(make_task(tmp_path / 'store'), make_data(root), tmp_path)
    assert sum(calls) == NAIP + MODIS < seen
    assert cached == pytest.approx(live, rel=2e-5)


def test_workers_read_the_same_targets(root, tmp_path):
    def targets(workers: int) -> list[Tensor]:
        data = make_data(root, num_workers=workers)
        set_up(make_task(tmp_path / 'store'), data, tmp_path)
        found = [batch['teacher_target'] for batch in data.train_dataloader()]
        data.teardown('fit')
        return found

    torch.testing.assert_close(targets(2), targets(0), rtol=0, atol=0)
    assert sum(calls) == NAIP + MODIS


def test_with_flips_validation_is_the_same_and_training_asks_for_the_answer_to_the_chip_as_it_is(root, tmp_path):
    results = []
    for store in (None, tmp_path / 'store'):
        trainer = make_trainer(tmp_path)
        results.append(trainer.validate(make_task(store), datamodule=make_data(root), verbose=False)[0])
    assert sum(calls[-2:]) <= 4  # of the scenes that validate alone: nothing else is computed
    assert results[0] == pytest.approx(results[1], rel=1e-5)

    task, data = make_task(tmp_path / 'store'), make_data(root, batch_size=1)
    set_up(task, data, tmp_path)
    teacher = Patches(seed=1)
    flipped = 0
    for batch in data.train_dataloader():
        batch = data.on_after_batch_transfer(batch, 0)
        options = [torch.flip(batch['target'], dims) for dims in ((), (2,), (3,), (2, 3))]
        answers = [teaching.teach(teacher, image, data.selected[batch['sensor']]) for image in options]
        # chips of 24 rows are flipped before they are padded
        if batch['sensor'] == 'naip':
            same = [torch.allclose(answer, batch['teacher_target'], atol=1e-5) for answer in answers]
            assert sum(same) == 1
            flipped += not same[0]
    assert flipped


def test_a_teacher_that_comes_along_is_asked_even_if_the_data_has_targets_of_another(root, tmp_path):
    data = make_data(root, sensors=['naip'])
    other = make_trainer(tmp_path)
    other.validate(make_task(tmp_path / 'store', 'teacher_of_tests_other'), datamodule=data, verbose=False)
    results = [
        make_trainer(tmp_path).validate(make_task(None), datamodule=held, verbose=False)[0]
        for held in (data, make_data(root, sensors=['naip']))
    ]
    assert results[0] == results[1]


def test_weights_that_hold_a_teacher_teach_as_if_it_came_along(root, tmp_path):
    task = make_task(None, 'teacher_of_tests_other')
    path = tmp_path / 'released.ckpt'
    torch.save({'state_dict': task.state_dict(), 'hyper_parameters': {}}, path)
    trainer = make_trainer(tmp_path)
    live = trainer.validate(make_task(None, weights=path), datamodule=make_data(root), verbose=False)[0]
    cached = make_trainer(tmp_path).validate(
        make_task(tmp_path / 'store', weights=path), datamodule=make_data(root), verbose=False
    )[0]
    assert cached == pytest.approx(live, rel=1e-5)


# the store ------------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_where_it_was_and_only_what_is_new_is_computed(root, tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, 'PART_CHIPS', 2)
    forward = Patches.forward

    def killed(self: Patches, x: Tensor) -> Tensor:
        if sum(calls) == 6:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(Patches, 'forward', killed)
    with pytest.raises(KeyboardInterrupt):
        set_up(make_task(tmp_path / 'store'), make_data(root), tmp_path)
    monkeypatch.setattr(Patches, 'forward', forward)
    calls.clear()
    set_up(make_task(tmp_path / 'store'), make_data(root), tmp_path)
    assert sum(calls) == NAIP + MODIS - 6

    calls.clear()
    write_chips(root, 'modis', MODIS + 1, (24, SIZE))  # the same chips written again, and one more
    write_chip(root / 'naip/3.npz', np.full((4, SIZE, SIZE), 9, np.int16))
    set_up(make_task(tmp_path / 'store'), make_data(root), tmp_path)
    assert sum(calls) == 2
    calls.clear()
    set_up(make_task(tmp_path / 'store'), make_data(root), tmp_path)
    assert calls == []


@pytest.mark.parametrize(
    ('options', 'teacher'),
    [
        ({'patch_size': 40}, 'teacher_of_tests'),
        ({'readers': {'naip': {'bands': ['blue', 'red', 'green']}}}, 'teacher_of_tests'),
        ({}, 'teacher_of_tests_other'),
    ],
)
def test_what_the_teacher_would_answer_otherwise_has_a_place_of_its_own(root, tmp_path, options, teacher):
    first, store = {'sensors': ['naip']}, tmp_path / 'store'
    set_up(make_task(store), make_data(root, **first), tmp_path)
    calls.clear()
    task, data = make_task(store, teacher), make_data(root, **first | options)
    set_up(task, data, tmp_path)
    assert sum(calls) == NAIP
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    expected = teaching.teach(task._teacher(), batch['target'], data.selected['naip'])
    torch.testing.assert_close(batch['teacher_target'], expected)
    assert len(list(store.glob('*/*/*.safetensors'))) == 2


def test_targets_of_another_teacher_in_the_folder_of_this_one_are_refused(root, tmp_path):
    store = tmp_path / 'store'
    for teacher in ('teacher_of_tests', 'teacher_of_tests_other'):
        set_up(make_task(store, teacher), make_data(root, sensors=['naip']), tmp_path)
    (mine,) = store.glob('teacher_of_tests-*/*/*.safetensors')
    (others,) = store.glob('teacher_of_tests_other-*/*/*.safetensors')
    others.rename(mine)
    with pytest.raises(ValueError, match=r"expected teacher 'teacher_of_tests', got 'teacher_of_tests_other'; sha256"):
        set_up(make_task(store), make_data(root, sensors=['naip']), tmp_path)


def test_a_chip_that_changes_while_a_run_trains_is_passed_over_and_named(root, tmp_path):
    data = make_data(root, sensors=['naip'])
    set_up(make_task(tmp_path / 'store'), data, tmp_path)
    scenes = data.train_dataset.scenes['naip']
    region = scenes.regions[0]
    write_chip(Path(region.path), np.full((4, SIZE, SIZE), 9, np.int16))
    with pytest.raises(SceneError, match=r'\.npz: .* has changed since the run began'):
        scenes.sources[0].patch(region.scene, 0, 0, (SIZE, SIZE))
    loader = data.train_dataloader()
    assert all(batch['teacher_target'].shape == (2, 5) for batch in loader)
    assert list(loader.failures) == [region.path]


def damage(path: Path) -> None:
    """Change a byte of a chip's pixels, which only reading them tells."""
    held = bytearray(path.read_bytes())
    held[1000] ^= 0xFF
    path.write_bytes(held)


def test_damaged_chips_are_passed_over_up_to_a_limit(root, tmp_path):
    for i in (1, 2, 3):  # the first is looked at whole before anything else
        damage(root / f'naip/{i}.npz')
    data = make_data(root)
    with pytest.warns(UserWarning, match=r'3 chips have no teacher target and are passed over:\n.*1\.npz: .*CRC'):
        set_up(make_task(tmp_path / 'store'), data, tmp_path)
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        assert batch['teacher_target'].shape == (len(batch['image']), 5)
    with pytest.raises(ValueError, match=r'every chip but max_failures=2, 3 have none(.|\n)*1\.npz: .*CRC'):
        set_up(make_task(tmp_path / 'store'), make_data(root, max_failures=2), tmp_path)


def test_ranks_share_the_work_and_all_have_all_targets(root, tmp_path):
    barrier, seen = threading.Barrier(2), []
    datamodules = [make_data(root) for _ in range(2)]

    def run(rank: int) -> None:
        data = datamodules[rank]
        strategy = SimpleNamespace(barrier=barrier.wait, root_device=torch.device('cpu'))
        data.trainer = SimpleNamespace(
            strategy=strategy, global_rank=rank, world_size=2, is_global_zero=rank == 0, precision='32-true',
            precision_plugin=SimpleNamespace(forward_context=nullcontext),
        )  # fmt: skip
        try:
            seen.append(teaching.attach_targets(data, tmp_path / 'store', Patches(seed=1), 'mine'))
        except Exception:
            barrier.abort()
            raise

    for data in datamodules:
        data.setup('fit')
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert sum(calls) == NAIP + MODIS
    parts = list((tmp_path / 'store').glob('*/*/*.safetensors'))
    assert len(parts) == 4  # two sensors, two ranks
    for data in datamodules:
        for scenes in data.train_dataset.scenes.values():
            for region in scenes.regions:
                assert scenes.sources[0].targets[region.scene].shape == (5,)


# checkpoints ----------------------------------------------------------------------------------------------------------


def test_checkpoints_go_on_with_and_without_the_teacher(root, tmp_path, monkeypatch):
    store, path = tmp_path / 'store', tmp_path / 'saved.ckpt'

    def save(trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(path)

    task, again = make_task(store), make_task(store)
    whole = fit(
        task,
        make_data(root, sensors=['naip']),
        tmp_path,
        max_epochs=2,
        callbacks=[pl.callbacks.LambdaCallback(on_train_epoch_end=save)],
    )
    saved = torch.load(path, weights_only=True)
    assert not any('teacher' in key for key in saved['state_dict'])
    calls.clear()
    resumed = fit(again, make_data(root, sensors=['naip']), tmp_path, max_epochs=2, ckpt_path=path)
    assert calls == []
    assert resumed == pytest.approx(whole, rel=1e-5)
    assert not torch.equal(again.model.proj.weight, saved['state_dict']['model.proj.weight'])
    torch.testing.assert_close(again.state_dict(), task.state_dict())

    alone = ClayPretraining.load_from_checkpoint(path)  # the store is not needed
    assert alone.model.teacher is None
    assert all(torch.equal(value, saved['state_dict'][key]) for key, value in alone.state_dict().items())
    live = ClayPretraining.load_from_checkpoint(path, teacher_targets=None)
    results = [
        make_trainer(tmp_path).validate(model, datamodule=make_data(root, sensors=['naip']), verbose=False)[0]
        for model in (alone, live)
    ]
    assert results[0] == pytest.approx(results[1], rel=1e-5)

    monkeypatch.setattr(Patches.__init__, '__kwdefaults__', None)
    build = Patches.__init__
    monkeypatch.setattr(Patches, '__init__', lambda self, seed: build(self, seed + 7))  # other weights, same name
    with pytest.raises(ValueError, match=r'teacher: expected weights with SHA-256 .* start a new run with weights='):
        make_trainer(tmp_path, max_epochs=3).fit(
            make_task(store), datamodule=make_data(root, sensors=['naip']), ckpt_path=path
        )


# mistakes -------------------------------------------------------------------------------------------------------------


def test_targets_without_a_teacher(tmp_path):
    with pytest.raises(ValueError, match=r'teacher_targets: expected teacher= too'):
        make_task(tmp_path, None)


def test_rasters_and_crops_are_refused_before_anything_is_computed(root, tiny_scenes, tmp_path):
    for data, message in (
        (ClayPretrainDataModule(**tiny_scenes), r'got 3 rasters in the folder modis, .*teacher_targets=null'),
        (make_data(root, patch_size=24), r'at most patch_size=24 .*got 24 x 32: .*\d\.npz\. Give patch_size=32'),
    ):
        with pytest.raises(ValueError, match=message):
            fit(make_task(tmp_path / 'store'), data, tmp_path)
    assert calls == []
    assert not (tmp_path / 'store').exists()


def test_sensors_without_rgb_and_other_datamodules_are_refused(root, tmp_path):
    data = make_data(root, readers={'naip': {'bands': ['nir']}})
    with pytest.raises(ValueError, match='has no rgb bands for a teacher'):
        fit(make_task(tmp_path / 'store'), data, tmp_path)
    assert calls == []
    task = make_task(tmp_path / 'store')
    with pytest.raises(ValueError, match=r'expected a ClayPretrainDataModule with chips \(\.npz\).* got NoneType'):
        make_trainer(tmp_path).validate(task, dataloaders=[0])
