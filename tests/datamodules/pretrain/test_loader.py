# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Loaders that follow a plan and find their place again."""

import logging
from types import SimpleNamespace

import pytest
import torch
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


def loader(world: int = 1, rank: int = 0, trainer=None, identity=IDENTITY, **options) -> ResumableLoader:
    def plan(epoch):
        return plan_epoch(SIZES, 4, epoch=epoch)

    return ResumableLoader(Echo(), plan, rank=rank, world_size=world, identity=identity, trainer=trainer, **options)


def trainer(trained: int, batches: int = 12, epoch: int = 0, overfit: int = 0) -> SimpleNamespace:
    """What a loader asks of a trainer."""
    progress = SimpleNamespace(current=SimpleNamespace(processed=trained))
    return SimpleNamespace(
        current_epoch=epoch, num_training_batches=batches, overfit_batches=overfit,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )  # fmt: skip


def seen(batches) -> list[tuple]:
    return [(b['sensor'], b['image'].tolist()) for b in batches]


def epochs(batches) -> set[int]:
    return {epoch for _, rows in batches for epoch, _ in rows}


def test_it_yields_the_plan_of_each_epoch():
    data = loader()
    assert len(data) == 12
    first, second = seen(data), seen(data)
    assert len(first) == len(second) == 12
    assert (epochs(first), epochs(second)) == ({0}, {1})
    assert [[n for _, n in rows] for _, rows in second] != [[n for _, n in rows] for _, rows in first]
    assert seen(loader()) == first


def test_an_iterator_that_is_never_asked_counts_for_no_epoch():
    data = loader()
    iter(data)  # Lightning makes one more when it resumes at the end of an epoch
    assert epochs(seen(data)) == {0}


def test_a_trainer_that_has_trained_before_begins_at_its_epoch():
    data = loader(trainer=trainer(0, epoch=3))
    assert epochs(seen(data)) == {3}
    assert epochs(seen(data)) == {4}


@pytest.mark.parametrize('workers', [0, 2])
def test_a_loader_goes_on_where_another_was(workers):
    whole = loader(num_workers=workers, trainer=trainer(12, epoch=2))
    everything = seen(whole)
    whole.close()
    killed = loader(num_workers=workers, trainer=trainer(12, epoch=2))
    iterator = iter(killed)
    begun = seen(next(iterator) for _ in range(5))
    state = killed.state_dict()
    assert state == {'epoch': 2, 'step': 5, 'identity': IDENTITY}
    iterator.close()
    killed.close()
    resumed = loader(num_workers=workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert len(resumed) == 12  # Lightning counts the steps of the whole epoch
    assert begun + seen(resumed) == everything
    assert resumed.state_dict()['step'] == 12
    assert epochs(seen(resumed)) == {3}
    resumed.close()


def test_a_batch_that_was_handed_out_and_not_trained_on_is_done_again():
    killed = loader(trainer=trainer(trained=3))
    iterator = iter(killed)
    for _ in range(4):
        next(iterator)
    assert killed.state_dict() == {'epoch': 0, 'step': 3, 'identity': IDENTITY}


@pytest.mark.parametrize('limit', [12, 7])
def test_after_a_whole_epoch_comes_the_next(limit):
    data = loader(trainer=trainer(trained=limit, batches=limit))
    data.load_state_dict({'epoch': 4, 'step': limit, 'identity': IDENTITY})
    assert epochs(seen(data)) == {5}
    assert epochs(seen(data)) == {6}


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


def test_overfitting_repeats_the_first_epoch():
    data = loader(trainer=trainer(12, overfit=2))
    assert seen(data) == seen(data)


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
