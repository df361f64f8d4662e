# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Laws of the plan of an epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from torchgeo_clay.datamodules.pretrain.plan import (
    PatchKey,
    count_batches,
    plan_epoch,
    plan_evaluation,
    rank_part,
    rng_of,
)

SIZES = st.dictionaries(st.sampled_from(['naip', 'linz', 'modis', 'mine']), st.integers(1, 150), min_size=1)
SHARES = st.sampled_from(['equal', 'size', 'weights'])


def resolve(shares, sizes):
    return {name: 1.0 + i for i, name in enumerate(sizes)} if shares == 'weights' else shares


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 16), st.integers(1, 4), SHARES, st.integers(0, 2**40), st.integers(0, 5))
def test_every_rank_trains_on_its_part_of_one_sensor(sizes, world, batch, shares, seed, epoch):
    assume(min(sizes.values()) >= world * batch)
    shares = resolve(shares, sizes)
    plan = plan_epoch(sizes, world * batch, shares, seed=seed, epoch=epoch)
    assert len(plan) == sum(count_batches(sizes, world * batch, shares).values())
    visits: Counter[tuple[str, int]] = Counter()
    keys: set[PatchKey] = set()
    for step in range(len(plan)):
        parts = [rank_part(plan.keys(step), rank, world) for rank in range(world)]
        assert {len(part) for part in parts} == {batch}
        assert {key.sensor for part in parts for key in part} == {plan.sensors[step]}
        assert [key for part in parts for key in part] == plan.keys(step)
        for key in plan.keys(step):
            assert key not in keys
            keys.add(key)
            visits[key.sensor, key.number % sizes[key.sensor]] += 1
    for name, size in sizes.items():
        counts = [visits[name, i] for i in range(size)]
        assert max(counts) - min(counts) <= 1  # none twice before all once
        if shares == 'size':
            assert max(counts) == 1


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(1, 16), st.integers(1, 3), st.integers(0, 9))
def test_world_size_does_not_change_the_samples(sizes, world, batch, seed):
    assume(min(sizes.values()) >= world * batch)
    many = plan_epoch(sizes, world * batch, seed=seed)
    one = plan_epoch(sizes, batch * world, seed=seed)
    for step in range(len(one)):
        gathered = [key for rank in range(world) for key in rank_part(many.keys(step), rank, world)]
        assert gathered == rank_part(one.keys(step), 0, 1)


def test_seed_and_epoch_shuffle():
    sizes = {'naip': 64, 'linz': 64}
    plans = [plan_epoch(sizes, 4, seed=s, epoch=e) for s, e in [(0, 0), (0, 0), (0, 1), (1, 0), (1, 1)]]
    orders = [[(k.sensor, k.number) for step in range(len(p)) for k in p.keys(step)] for p in plans]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 4
    assert len({plan.sensors for plan in plans}) > 1
    assert orders[0] != sorted(orders[0])


def test_shares():
    sizes = {'naip': 1000, 'linz': 100, 'modis': 35}
    assert count_batches(sizes, 10) == {'naip': 100, 'linz': 100, 'modis': 100}
    assert count_batches(sizes, 10, 'size') == {'naip': 100, 'linz': 10, 'modis': 3}
    weighted = count_batches(sizes, 10, {'naip': 1, 'linz': 2, 'modis': 1})
    assert sum(weighted.values()) == pytest.approx(113, abs=2)
    assert weighted['linz'] == pytest.approx(2 * weighted['naip'], abs=1)


def test_sensors_are_spread_over_the_epoch():
    plan = plan_epoch({'naip': 400, 'linz': 400, 'modis': 100}, 10, 'size', seed=3)
    for part in np.array_split(np.array(plan.sensors), 5):
        counts = Counter(part.tolist())
        assert 6 <= counts['naip'] <= 10
        assert 6 <= counts['linz'] <= 10
        assert 1 <= counts['modis'] <= 3


@given(SIZES, st.integers(1, 16), st.integers(1, 4))
def test_an_evaluation_visits_everything_once(sizes, world, batch):
    plan = plan_evaluation(sizes, world * batch)
    keys = [key for step in range(len(plan)) for key in plan.keys(step)]
    assert Counter(keys) == Counter(PatchKey(n, 0, i) for n, size in sizes.items() for i in range(size))
    for step in range(len(plan)):
        parts = [rank_part(plan.keys(step), rank, world) for rank in range(world)]
        assert [key for part in parts for key in part if key.counts] == plan.keys(step)
        assert all(parts)  # a rank without a batch would leave the others waiting
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_generators_differ_by_every_argument():
    streams = [
        ('a', 0),
        ('b', 0),
        ('a', 1),
        ('a', 0, 'naip'),
        ('a', 0, 'linz'),
        ('a', 0, 'naip', 1),
        ('a', 0, 'naip', 0, 1),
    ]
    draws = [rng_of(*stream).integers(2**60) for stream in streams]
    assert len(set(draws)) == len(streams)
    assert draws == [rng_of(*stream).integers(2**60) for stream in streams]


@pytest.mark.parametrize(
    ('sizes', 'batch', 'shares', 'message'),
    [
        ({'naip': 100, 'linz': 7}, 8, 'equal', r'linz: expected at least one batch of 8 .*got 7 .*batch_size'),
        ({'naip': 0}, 1, 'size', r'naip: expected at least one batch'),
        ({}, 1, 'equal', 'at least one sensor'),
        ({'naip': 9}, 0, 'equal', 'at least one sample'),
        ({'naip': 9}, 1, 'sizes', "expected 'equal', 'size' or a weight per sensor, got 'sizes'"),
        ({'naip': 9, 'linz': 9}, 1, {'naip': 1.0}, r"expected a weight for each of \['linz', 'naip'\]"),
        ({'naip': 9}, 1, {'naip': 0.0}, 'positive weight, got 0.0 for naip'),
        ({'naip': 9}, 1, {'naip': float('nan')}, 'positive weight'),
    ],
)
def test_mistakes(sizes, batch, shares, message):
    with pytest.raises(ValueError, match=message):
        plan_epoch(sizes, batch, shares)


def test_rank_outside_the_world():
    with pytest.raises(ValueError, match='rank from 0 to 1, got 2'):
        rank_part([PatchKey('naip', 0, 0)], 2, 2)
