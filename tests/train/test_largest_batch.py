"""The search for the largest batch."""

from types import SimpleNamespace

import jax
import pytest

from mae_jax.train import largest_batch


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("limit", [10**9, 16 * 10**9, 80 * 10**9])
def test_largest_batch_is_found_in_few_compilations(limit, multiple):
    tried = []

    def bytes_at(batch):
        assert batch % multiple == 0
        tried.append(batch)
        noise = 10**6 * (batch % 7)  # not quite linear
        return 700 * 10**6 + 30 * 10**6 * batch // multiple + noise

    batch = largest_batch.largest_batch(bytes_at, limit=limit, multiple=multiple)
    assert len(tried) <= 8
    best = max(n for n in range(0, 3000 * multiple, multiple) if bytes_at(n) <= limit)
    assert 0.95 * best - multiple <= batch <= best


def test_nothing_fits():
    assert largest_batch.largest_batch(lambda batch: 10 + batch, limit=5, multiple=4) == 0


@pytest.mark.parametrize("power", [0.9, 1.0, 1.2])
def test_memory_that_does_not_grow_linearly(power):
    tried = []

    def bytes_at(batch):
        tried.append(batch)
        return int(10**8 * batch**power)

    batch = largest_batch.largest_batch(bytes_at, limit=10**10, multiple=1)
    best = int(100 ** (1 / power))
    assert 0.95 * best <= batch <= best and len(tried) <= 5


def test_a_bump_at_the_limit_costs_two_percent():
    def bytes_at(batch):
        return 30 * batch + {158: 90, 159: 90, 160: 90, 161: 20}.get(batch, 0)

    assert largest_batch.largest_batch(bytes_at, limit=30 * 161, multiple=1) == 157


def test_memory_of_a_device(monkeypatch):
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 80})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert largest_batch.memory_limit() == 80
    device.memory_stats = lambda: None  # a CPU: its share of the host's memory
    monkeypatch.setattr(largest_batch.host, "available_memory", lambda: 4000)
    monkeypatch.setattr(largest_batch.host, "share", lambda free: free // 2)
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    assert largest_batch.memory_limit() == 500
