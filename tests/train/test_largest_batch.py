"""The search for the largest batch."""

import pytest

from mae_jax.train.largest_batch import largest_batch


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("limit", [10**9, 16 * 10**9, 80 * 10**9])
def test_largest_batch_is_found_in_few_compilations(limit, multiple):
    tried = []

    def bytes_at(batch):
        assert batch % multiple == 0
        tried.append(batch)
        noise = 10**6 * (batch % 7)  # not quite linear
        return 700 * 10**6 + 30 * 10**6 * batch // multiple + noise

    batch = largest_batch(bytes_at, limit=limit, multiple=multiple)
    assert len(tried) <= 8
    best = max(n for n in range(0, 3000 * multiple, multiple) if bytes_at(n) <= limit)
    assert 0.95 * best - multiple <= batch <= best


def test_nothing_fits():
    assert largest_batch(lambda batch: 10 + batch, limit=5, multiple=4) == 0
