"""Every example once per epoch, in an order that hosts, restarts and batch sizes do not change."""

import numpy as np
import pytest

from mae_jax.data.sampler import EvalSampler, TrainSampler, hash64, holdout_split, host_rows
from mae_jax.runtime.errors import UsageError


def plans(order, steps, batch_size, hosts=1, start=0, num_draws=3):
    """Global plans of some steps, joined from all hosts."""
    for step in range(start, start + steps):
        parts = [
            order.plan(
                step,
                batch_size=batch_size,
                rows=host_rows(batch_size, process_index=h, process_count=hosts),
                num_draws=num_draws,
            )
            for h in range(hosts)
        ]
        yield [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def test_each_epoch_contains_every_example_once_and_epochs_have_no_gaps():
    order = TrainSampler(103, seed=5)
    seen = np.concatenate([wanted for wanted, _, _ in plans(order, 103, batch_size=8)])
    epochs = seen.reshape(8, 103)
    assert (np.sort(epochs, axis=1) == np.arange(103)).all()
    assert len({epoch.tobytes() for epoch in epochs}) == 8  # each epoch has its own order


def test_the_order_is_numpys_permutation_of_seed_and_epoch():
    _, examples = TrainSampler(50, seed=9).at(np.arange(150))
    expected = [np.random.default_rng([9, epoch]).permutation(50) for epoch in range(3)]
    assert examples.tolist() == np.concatenate(expected).tolist()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_out_the_same_global_batches(hosts):
    one = list(plans(TrainSampler(30, seed=1), 9, batch_size=8))
    many = list(plans(TrainSampler(30, seed=1), 9, batch_size=8, hosts=hosts))
    for a, b in zip(one, many, strict=True):
        for x, y in zip(a, b, strict=True):
            assert np.array_equal(x, y)


def test_starting_late_equals_skipping():
    full = list(plans(TrainSampler(20, seed=1), 12, batch_size=6))
    late = list(plans(TrainSampler(20, seed=1), 5, batch_size=6, start=7))
    for a, b in zip(full[7:], late, strict=True):
        for x, y in zip(a, b, strict=True):
            assert np.array_equal(x, y)


def test_a_batch_may_be_longer_than_the_set():
    ((wanted, candidates, _),) = plans(TrainSampler(3, seed=0), 1, batch_size=16)
    assert (np.bincount(wanted[:15]) == 5).all()
    assert candidates.shape == (16, 9) and candidates.min() >= 0 and candidates.max() < 3


def test_draws_are_uniform_and_belong_to_seed_epoch_and_example():
    order = TrainSampler(500, seed=3)
    (wanted, _, draws), (again, _, later) = plans(order, 2, batch_size=500, num_draws=20)
    assert draws.min() >= 0 and draws.max() < 1
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    assert ((counts - 500) ** 2 / 500).sum() < 45  # chi-square, 19 degrees: p = 0.0007
    columns = np.corrcoef(draws, rowvar=False) - np.eye(20)
    assert np.abs(columns).max() < 0.2
    assert not np.array_equal(draws[np.argsort(wanted)], later[np.argsort(again)])
    (_, _, other), *_ = plans(TrainSampler(500, seed=4), 1, batch_size=500, num_draws=20)
    assert not np.intersect1d(draws, other).size


def test_hash_depends_on_every_part_and_on_their_order():
    values = {
        int(hash64(*parts)) for parts in [(1, 2), (2, 1), (1,), (1, 2, 0), (0, 1, 2), (-1, 2)]
    }
    assert len(values) == 6


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_evaluation_counts_each_of_1003_examples_once(hosts):
    order = EvalSampler(1003)
    steps = order.num_batches(64)
    wanted = np.concatenate([w for w, _, _ in plans(order, steps, batch_size=64, hosts=hosts)])
    assert len(wanted) == 16 * 64
    assert wanted[wanted >= 0].tolist() == list(range(1003))


def test_a_limited_evaluation_is_spread_over_the_set():
    assert EvalSampler(1000, limit=4).examples.tolist() == [0, 250, 500, 750]
    assert EvalSampler(3, limit=9).examples.tolist() == [0, 1, 2]


def test_batches_must_divide_over_the_hosts():
    with pytest.raises(UsageError, match=r"--config.batch_size=10 .*\(4\)"):
        host_rows(10, process_index=0, process_count=4)


def test_held_out_examples_are_fixed_and_never_trained_on():
    train, held = holdout_split(100, 10)
    assert len(held) == 10
    assert sorted([*train, *held]) == list(range(100))
    with pytest.raises(UsageError, match="--config.data.holdout=100"):
        holdout_split(100, 100)
