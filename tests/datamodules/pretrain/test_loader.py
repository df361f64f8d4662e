# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Loaders that follow a plan and find their place again."""

import logging
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from torch.utils.data import DataLoader, Dataset

from torchgeo_clay.datamodules.pretrain.loader import WORKER_DIED, PlannedLoader, ResumableLoader
from torchgeo_clay.datamodules.pretrain.plan import plan_epoch, plan_evaluation

SIZES = {'naip': 24, 'linz': 16}
IDENTITY = {'global batch': 4, 'seed': 0}


class Echo(Dataset):
    """Samples that are their key; those of ``broken`` replaced another."""

    def __init__(self, broken: int = 0) -> None:
        self.broken = broken

    def __getitem__(self, key):
        failures = [(f'{key.number}.tif', 'broken')] if key.number < self.broken else []
        image = torch.tensor([key.epoch, key.number])
        more = {'sensor': key.sensor, 'path': f'{key.number}.tif', 'counts': key.counts, 'failures': failures}
        return {'image': image, 'index': torch.tensor(key.number), **more}


def loader(world: int = 1, rank: int = 0, progress=None, identity=IDENTITY, **options) -> ResumableLoader:
    def plan(epoch):
        return plan_epoch(SIZES, 4, epoch=epoch)

    return ResumableLoader(Echo(), plan, rank=rank, world_size=world, identity=identity, progress=progress, **options)


def seen(batches) -> list[tuple]:
    return [(b['sensor'], b['image'].tolist()) for b in batches]


def test_it_yields_the_plan_of_the_epoch():
    data = loader()
    assert len(data) == 12
    first = seen(data)
    assert len(first) == 12
    assert seen(data) == first
    _set_sampler_epoch(data, 1)  # as Lightning does
    second = seen(data)
    assert {e for _, rows in second for e, _ in rows} == {1}
    assert [[n for _, n in rows] for _, rows in second] != [[n for _, n in rows] for _, rows in first]
    _set_sampler_epoch(data, 0)
    assert seen(data) == first


def test_epoch_set_after_iter_counts():
    data = loader()
    iterator = iter(data)  # Lightning makes the iterator first when it resumes at the end of an epoch
    _set_sampler_epoch(data, 3)
    assert {e for _, rows in seen(iterator) for e, _ in rows} == {3}


@pytest.mark.parametrize('workers', [0, 2])
def test_a_loader_goes_on_where_another_was(workers):
    whole = loader(num_workers=workers)
    whole.set_epoch(2)
    everything = seen(whole)
    whole.close()
    killed = loader(num_workers=workers)
    killed.set_epoch(2)
    iterator = iter(killed)
    begun = seen(next(iterator) for _ in range(5))
    state = killed.state_dict()
    assert state == {'epoch': 2, 'step': 5, 'identity': IDENTITY}
    iterator.close()
    killed.close()
    resumed = loader(num_workers=workers)
    resumed.load_state_dict(state)
    resumed.set_epoch(2)
    assert len(resumed) == 12  # Lightning counts the steps of the whole epoch
    assert begun + seen(resumed) == everything
    assert resumed.state_dict()['step'] == 12
    resumed.set_epoch(3)
    assert len(seen(resumed)) == 12
    resumed.close()


def test_a_batch_that_was_handed_out_and_not_trained_on_is_done_again():
    progress = SimpleNamespace(trained=3, batches=12)
    killed = loader(progress=progress)
    iterator = iter(killed)
    for _ in range(4):
        next(iterator)
    assert killed.state_dict()['step'] == 3
    killed.set_epoch(1)  # the trainer's count is still that of the last epoch
    progress.trained = 12
    assert killed.state_dict() == {'epoch': 1, 'step': 0, 'identity': IDENTITY}


@pytest.mark.parametrize('limit', [12, 7])
@pytest.mark.parametrize('calls', [[5, 6], [4, 5], [5], [4]])
def test_after_a_whole_epoch_comes_the_next(limit, calls):
    data = loader(progress=SimpleNamespace(trained=limit, batches=limit))
    data.load_state_dict({'epoch': 4, 'step': limit, 'identity': IDENTITY})
    for epoch in calls:  # Lightning's count, which has an empty epoch too much where it resumes by steps
        data.set_epoch(epoch)
    assert {e for _, rows in seen(data) for e, _ in rows} == {5}
    data.set_epoch(calls[-1] + 1)
    assert {e for _, rows in seen(data) for e, _ in rows} == {6}


def test_another_number_of_ranks_goes_on():
    everything = seen(loader())
    state = {'epoch': 0, 'step': 7, 'identity': IDENTITY}
    ranks = [loader(world=2, rank=r) for r in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    halves = [seen(rank) for rank in ranks]
    assert [(s, a + b) for (s, a), (_, b) in zip(*halves, strict=True)] == everything[7:]


def test_another_plan_does_not():
    state = loader().state_dict()
    other = loader(identity={'global batch': 8, 'seed': 0})
    with pytest.raises(ValueError, match=r'global batch: expected 4, got 8\. Resume with'):
        other.load_state_dict(state)


def test_fixed_epoch():
    data = loader(fixed_epoch=True)
    first = seen(data)
    data.set_epoch(5)
    assert seen(data) == first


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    seen(loader())
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_no_dataloader_to_lightning():
    assert not isinstance(loader(), DataLoader)


def test_broken_scenes_are_named_once_and_counted(caplog):
    plan = plan_evaluation({'naip': 8}, 2)
    data = PlannedLoader(Echo(broken=3), lambda epoch: plan, max_failures=3)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for batch in data:
                assert 'failures' not in batch
    assert data.failures == {f'{i}.tif': 'broken' for i in range(3)}
    assert len(caplog.records) == 3
    assert '2.tif' in caplog.text


class Lost(Echo):
    """A dataset that raises what a broken pipe raises."""

    def __getitem__(self, key):
        raise FileNotFoundError('lost.tif')


@pytest.mark.parametrize('workers', [0, 1])
def test_errors_of_the_data_are_not_taken_for_those_of_a_dead_worker(workers):
    plan = plan_evaluation({'naip': 2}, 2)
    with pytest.raises(FileNotFoundError, match=r'lost\.tif') as caught:
        list(PlannedLoader(Lost(), lambda epoch: plan, num_workers=workers))
    assert WORKER_DIED not in str(caught.value)


def test_too_many_broken_scenes_stop_the_run():
    plan = plan_evaluation({'naip': 8}, 2)
    with pytest.raises(OSError, match=r"3 scenes could not be read, more than max_failures=2: \['0.tif', '1.tif'"):
        list(PlannedLoader(Echo(broken=3), lambda epoch: plan, max_failures=2))
