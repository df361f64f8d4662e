# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The store of a teacher's targets: what is written is found again, whatever the parts, and nothing else is."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchgeo_clay.datamodules.pretrain.teacher_targets import ChipTargets, TargetStore, chip_key
from torchgeo_clay.datasets import SceneError

ABOUT = {'teacher': 'mean', 'sha256': 'a' * 64, 'mean': (0.1, 2)}

keys = st.binary(min_size=16, max_size=16) | st.integers(0, 40).map(lambda i: bytes([i]) + bytes(15))


def target_of(key: bytes) -> torch.Tensor:
    """A target that tells its key: (16,)."""
    return torch.tensor(list(key), dtype=torch.float32)


def write(path: Path, pixels: np.ndarray, save=np.savez) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, pixels=pixels, lat_norm=np.zeros(2))
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(st.lists(keys, min_size=1, max_size=6), max_size=4), st.lists(keys, max_size=8))
def test_what_is_written_in_parts_is_found_and_nothing_else(tmp_path_factory, parts, others):
    folder = tmp_path_factory.mktemp('store')
    for part in parts:  # by writers of their own, which may write the same chip
        TargetStore(folder, ABOUT).write(part, torch.stack([target_of(key) for key in part]))
    store = TargetStore(folder, ABOUT)
    written = {key for part in parts for key in part}
    wanted = [*written, *others]
    found = store.find(wanted)
    assert found.keys() == written
    for key, place in found.items():
        torch.testing.assert_close(store.read(*place), target_of(key), rtol=0, atol=0)
    assert TargetStore(folder, ABOUT).find(wanted) == found


def test_a_key_follows_name_and_pixels(tmp_path):
    pixels = np.arange(48, dtype=np.int16).reshape(3, 4, 4)
    chip = write(tmp_path / 'a/x/1.npz', pixels)
    key = chip_key(chip, tmp_path / 'a')
    assert len(key) == 16
    moved = write(tmp_path / 'b/x/1.npz', pixels, np.savez_compressed)
    os.utime(moved, (0, 0))
    assert chip_key(moved, tmp_path / 'b') == key
    assert chip_key(write(tmp_path / 'a/x/2.npz', pixels), tmp_path / 'a') != key
    assert chip_key(write(chip, pixels + 1), tmp_path / 'a') != key
    chip.write_bytes(b'PK')
    with pytest.raises(SceneError, match=r'1\.npz: not readable as a chip'):
        chip_key(chip, tmp_path / 'a')


def test_parts_of_something_else_and_damaged_ones_are_refused(tmp_path):
    key = bytes(range(16))
    store = TargetStore(tmp_path, ABOUT)
    store.write([key], target_of(key)[None])
    other = TargetStore(tmp_path, {**ABOUT, 'sha256': 'b' * 64})
    with pytest.raises(ValueError, match=rf"expected sha256 '{'b' * 64}', got '{'a' * 64}'\. Give another folder"):
        other.find([key])
    (part,) = tmp_path.iterdir()
    (tmp_path / f'.{part.name}.123').write_bytes(b'half')  # of a process that was killed
    assert store.find([key]) == {key: (str(part), 0)}
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r'got a damaged file .*Remove it: its targets are then computed again'):
        TargetStore(tmp_path, ABOUT).find([key])


def test_answers_that_are_no_targets_are_refused(tmp_path):
    store = TargetStore(tmp_path / 'new', ABOUT)
    with pytest.raises(ValueError, match=r'expected a vector for each of 1 chips, \(B, T\), got \(1, 4, 3\)'):
        store.write([bytes(16)], torch.zeros(1, 4, 3))
    with pytest.raises(ValueError, match='expected finite numbers'):
        store.write([bytes(16)], torch.tensor([[torch.nan]]))
    assert not (tmp_path / 'new').exists()
    (tmp_path / 'new').write_text('a file, where the folder should be')
    with pytest.raises(ValueError, match=r'could not be written .* room on the disk'):
        store.write([bytes(16)], torch.zeros(1, 4))


def test_a_chip_that_changed_has_no_target(tmp_path):
    files = [str(write(tmp_path / f'{i}.npz', np.full((1, 2, 2), i))) for i in range(3)]
    store = TargetStore(tmp_path / 'store', ABOUT)
    targets = ChipTargets(store, files, tmp_path, [0, 2])
    assert targets.refresh() == [0, 2]
    store.write([targets.keys[2]], torch.tensor([[2.0, 3.0]]))
    assert targets.refresh() == [0]
    targets[2]  # opened, and sent to a worker all the same
    copy = pickle.loads(pickle.dumps(targets))  # noqa: S301
    assert copy[2].tolist() == targets[2].tolist() == [2, 3]
    with pytest.raises(SceneError, match=r"0\.npz: has no teacher's target"):
        targets[0]
    write(tmp_path / '2.npz', np.full((1, 2, 2), 7))
    with pytest.raises(SceneError, match=r'2\.npz: .* has changed since the run began'):
        targets[2]
    assert ChipTargets(store, files, tmp_path, [2]).refresh() == [2]
