# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Laws of sharing an epoch among ranks, through the loaders and as Lightning calls them."""

import math
from collections import Counter
from itertools import chain

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from torchgeo_clay.datamodules import ClayPretrainDataModule
from torchgeo_clay.datamodules.pretrain.dataset import PretrainDataset, collate
from torchgeo_clay.datamodules.pretrain.loader import PlannedLoader, ResumableLoader
from torchgeo_clay.datamodules.pretrain.plan import PatchKey, plan_epoch, plan_evaluation, rank_part

SIZES = st.dictionaries(st.sampled_from(['naip', 'linz', 'modis']), st.integers(1, 90), min_size=1)
SHARES = st.sampled_from(['equal', 'size'])
WORLDS = st.integers(1, 16)
Keys = list[tuple[str, list[int], list[int]]]


class Keyed(Dataset):
    """Samples that are their key."""

    def __getitem__(self, key: PatchKey) -> dict:
        image = torch.tensor([key.epoch, key.number])
        more = {'sensor': key.sensor, 'path': '', 'counts': key.counts, 'failures': []}
        return {'image': image, 'index': torch.tensor(key.number), **more}


def steps_of(loader: PlannedLoader) -> Keys:
    """Of each step the sensor, the epoch and number of the samples that count."""
    return [(b['sensor'], *b['image'][: b['counted']].T.tolist()) for b in loader]


def ranks_of(sizes, shares, world, batch, epoch, seed=0, step=0) -> list[Keys]:
    """The batches of each rank in an epoch, from a step on."""

    def plan(number: int):
        return plan_epoch(sizes, world * batch, shares, seed=seed, epoch=number)

    found = []
    for rank in range(world):
        loader = ResumableLoader(Keyed(), plan, rank=rank, world_size=world, identity={})
        loader.load_state_dict({'epoch': epoch, 'step': step, 'identity': {}})
        found.append(steps_of(loader))
    return found


def joined(ranks: list[Keys]) -> Keys:
    """Global batches: the parts of all ranks, one after another."""
    together = []
    for parts in zip(*ranks, strict=True):  # strict: as many steps on every rank
        assert len({sensor for sensor, *_ in parts}) == 1
        together.append((parts[0][0], *(list(chain.from_iterable(part[i] for part in parts)) for i in (1, 2))))
    return together


@settings(max_examples=40)
@given(SIZES, SHARES, WORLDS, st.integers(1, 3), st.integers(0, 4), st.integers(0, 2**31))
def test_ranks_share_the_batches_of_one(sizes, shares, world, batch, epoch, seed):
    assume(min(sizes.values()) >= world * batch)
    ranks = ranks_of(sizes, shares, world, batch, epoch, seed)
    assert all(len(numbers) == batch for rank in ranks for _, _, numbers in rank)
    whole = joined(ranks)
    assert whole == ranks_of(sizes, shares, 1, world * batch, epoch, seed)[0]
    assert {e for _, epochs, _ in whole for e in epochs} == {epoch}
    seen = Counter((sensor, number) for sensor, _, numbers in whole for number in numbers)
    assert max(seen.values()) == 1  # a sample drawn again has another number, hence another place
    visits = Counter((sensor, number % sizes[sensor]) for sensor, number in seen)
    for name, size in sizes.items():
        steps = sum(sensor == name for sensor, *_ in whole)
        assert max(n for (s, _), n in visits.items() if s == name) == math.ceil(steps * world * batch / size)
        if shares == 'size' or size == max(sizes.values()):
            assert all(n == 1 for (s, _), n in visits.items() if s == name)


@settings(max_examples=25)
@given(SIZES, st.sampled_from([(1, 16), (2, 8), (16, 1), (8, 2), (4, 4), (3, 1), (5, 15)]), st.data())
def test_another_world_goes_on_with_what_was_left(sizes, worlds, data):
    before, after = worlds
    total = math.lcm(before, after)
    assume(min(sizes.values()) >= total)
    first = joined(ranks_of(sizes, 'equal', before, total // before, 1))
    step = data.draw(st.integers(0, len(first) - 1))
    rest = joined(ranks_of(sizes, 'equal', after, total // after, 1, step=step))
    assert first[:step] + rest == joined(ranks_of(sizes, 'equal', 1, total, 1))


@settings(max_examples=40)
@given(SIZES, WORLDS, st.integers(1, 3))
def test_ranks_share_an_evaluation(sizes, world, batch):
    plan = plan_evaluation(sizes, world * batch)
    ranks = [steps_of(PlannedLoader(Keyed(), lambda epoch: plan, rank=rank, world_size=world)) for rank in range(world)]
    together = [(s, n) for parts in zip(*ranks, strict=True) for s, _, numbers in parts for n in numbers]
    assert Counter(together) == Counter((name, i) for name, size in sizes.items() for i in range(size))
    assert all(len({sensor for sensor, *_ in parts}) == 1 for parts in zip(*ranks, strict=True))


def test_a_rank_without_a_sample_of_its_own_has_one_that_does_not_count(root):
    data = ClayPretrainDataModule(root, batch_size=3, patch_size=16, val_split=0.3)
    data.setup('validate')
    dataset = data.val_dataset
    assert isinstance(dataset, PretrainDataset)
    keys = [PatchKey('linz', 0, 0)]
    first, second = (collate([dataset[key] for key in rank_part(keys, rank, 2)]) for rank in range(2))
    assert (first['counted'], second['counted']) == (1, 0)
    assert torch.equal(first['image'], second['image'])
    assert first['valid'].all()
    assert not second['valid'].any()
    assert first['paths'] == second['paths'] == [data._parts['val']['linz'].regions[0].path]


@pytest.mark.parametrize('workers', [0, 2])
def test_the_loader_goes_through_the_epochs_of_a_trainer(root, workers):
    """Through a Trainer, whose workers read ahead."""
    epochs: list[set[int]] = []

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def on_train_epoch_start(self):
            epochs.append(set())

        def training_step(self, batch):
            epochs[-1] |= set(batch['epoch'].tolist())
            return self.weight

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters())

    def plan(epoch):
        return plan_epoch({'naip': 12}, 4, epoch=epoch)

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return ResumableLoader(Keyed(), plan, identity={}, num_workers=workers)

        def on_before_batch_transfer(self, batch, dataloader_idx):
            return {'epoch': batch['image'][:, 0]}

    pl.Trainer(
        accelerator='cpu', max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module(), datamodule=Data())  # fmt: skip
    assert epochs == [{0}, {1}, {2}]
