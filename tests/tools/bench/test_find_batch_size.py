"""The search for the largest batch."""

import types

import pytest

from mae_jax.runtime.errors import UsageError
from mae_jax.tools.bench import find_batch_size
from tests.helpers import tiny_configs


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("limit", [10**9, 16 * 10**9, 80 * 10**9])
def test_largest_batch_is_found_in_few_compilations(limit, multiple):
    tried = []

    def bytes_at(batch):
        assert batch % multiple == 0
        tried.append(batch)
        noise = 10**6 * (batch % 7)  # not quite linear
        return 700 * 10**6 + 30 * 10**6 * batch // multiple + noise

    batch = find_batch_size.largest_batch(bytes_at, limit=limit, multiple=multiple)
    assert len(tried) <= 8
    best = max(n for n in range(0, 3000 * multiple, multiple) if bytes_at(n) <= limit)
    assert 0.95 * best - multiple <= batch <= best


def test_nothing_fits():
    assert find_batch_size.largest_batch(lambda batch: 10 + batch, limit=5, multiple=4) == 0


def test_the_batch_is_a_multiple_of_devices_and_accumulation_steps(monkeypatch):
    def compile_step(config, task, mesh):
        plan = types.SimpleNamespace(
            argument_size_in_bytes=10**6,
            temp_size_in_bytes=10**5 * config.batch_size // mesh.size,
            output_size_in_bytes=10**6,
            alias_size_in_bytes=10**6,
        )
        return types.SimpleNamespace(memory_analysis=lambda: plan)

    monkeypatch.setattr(find_batch_size, "compile_step", compile_step)
    monkeypatch.setattr(
        find_batch_size, "memory_limit", lambda: int(11.5e6 / find_batch_size.USABLE)
    )
    config = tiny_configs.config(grad_accum=2, batch_size=16)
    config.data.source = "shapes"
    batch = find_batch_size.find_batch(config)
    assert batch == 416  # 104 or 105 rows for each of 4 devices; twice 52
    assert config.batch_size == 16
    monkeypatch.setattr(find_batch_size, "memory_limit", lambda: 10**6)
    with pytest.raises(UsageError, match="not even a batch of 8 fits"):
        find_batch_size.find_batch(config)
