"""A cache changes how often a source is read, and nothing else."""

import logging
import threading
from collections import Counter

import numpy as np
import pytest

from mae_jax.data import eval_batches, make_sources, train_batches
from mae_jax.data.sources.base import Record
from mae_jax.data.sources.build import with_cache
from mae_jax.data.sources.cache import OVERHEAD, Budget, Cached
from mae_jax.runtime import host
from mae_jax.runtime.errors import UsageError
from mae_jax.runtime.host import available_memory
from tests.data.helpers import MemorySource, jpeg, picture


class Counting(MemorySource):
    """Counts how often each example is read."""

    def __init__(self, data):
        super().__init__(data)
        self.reads = Counter()

    def read(self, indices):
        self.reads.update(int(index) for index in indices)
        return super().read(indices)


def batches(source, *, steps=6, **config):
    iterator = train_batches(
        source,
        data_config={"workers": 3, **config},
        image_size=(16, 24),
        channels=3,
        batch_size=8,
        seed=7,
    )
    result = [next(iterator) for _ in range(steps)]
    iterator.close()
    return result, iterator


def cached(source, kind, gb=1.0):
    (result,) = with_cache([source], {"cache": kind, "cache_gb": gb}, channels=3)
    return result


@pytest.mark.parametrize("kind", ["encoded", "decoded"])
@pytest.mark.parametrize("gb", [1.0, 10_000 / 2**30])  # all records, and some
def test_batches_are_the_same_and_kept_examples_are_read_once(pictures, kind, gb):
    expected, _ = batches(pictures)
    counting = Counting(pictures.data)
    source = cached(counting, kind, gb)
    for a, b in zip(batches(source)[0], expected, strict=True):
        for key in b:
            assert np.array_equal(a[key], b[key]), key
    batches(source)
    often = [index for index, reads in counting.reads.items() if reads > 3]
    assert (often == []) == (gb == 1.0)
    before = counting.reads.copy()
    batches(source)
    assert (counting.reads == before) == (gb == 1.0)


def test_decoded_pixels_are_decoded_once(pictures):
    source = cached(pictures, "decoded")
    (first,), (second,) = source.read([0]), source.read([0])
    assert isinstance(pictures.data[0], bytes) and isinstance(first.data, np.ndarray)
    assert first is second


def test_it_stops_growing_at_the_limit_and_logs_that_once(caplog):
    source = Cached(
        Counting([bytes(1000)] * 10), Budget(3500 + 3 * OVERHEAD), change=lambda record: record
    )
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            source.read(range(10))
    assert source._source.reads == Counter({i: 1 if i < 3 else 3 for i in range(10)})
    (message,) = [r.getMessage() for r in caplog.records if "cache is full" in r.getMessage()]
    assert "3 of 10 images of memory" in message


def test_two_caches_share_one_budget():
    budget = Budget(2 * (1000 + OVERHEAD))
    first, second = (
        Cached(Counting([bytes(1000)] * 2), budget, change=lambda record: record) for _ in range(2)
    )
    first.read([0]), second.read([0]), first.read([1]), second.read([1])
    assert budget.used == budget.limit
    first.read([0, 1]), second.read([0, 1])
    assert first._source.reads == second._source.reads == Counter({0: 1, 1: 2})


def test_many_threads_count_each_record_once():
    budget = Budget(10**9)
    barrier = threading.Barrier(8)

    class Slow(MemorySource):
        def read(self, indices):
            barrier.wait()  # all threads read before the first one keeps
            return super().read(indices)

    source = Cached(Slow([bytes(1000)]), budget, change=lambda record: record)
    threads = [threading.Thread(target=source.read, args=([0],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.used == 1000 + OVERHEAD


@pytest.mark.parametrize("kind", ["encoded", "decoded"])
def test_bad_images_are_reported_as_without_a_cache(kind, caplog):
    data = [jpeg(picture(i)) for i in range(20)]
    data[3] = data[3][:-200]
    with caplog.at_level(logging.WARNING):
        expected, _ = batches(MemorySource(data), max_bad_fraction=1.0)
        ours, iterator = batches(cached(MemorySource(data), kind), max_bad_fraction=1.0)
    for a, b in zip(ours, expected, strict=True):
        assert np.array_equal(a["image"], b["image"])
    assert iterator.bad_count == 1
    plain, with_a_cache = (r.getMessage() for r in caplog.records if "bad image" in r.getMessage())
    assert plain == with_a_cache and "memory#3" in plain
    with pytest.raises(UsageError, match="1 of 20 .*memory#3"):
        batches(cached(MemorySource(data), kind), max_bad_fraction=0.0)


def test_sources_of_a_run_are_cached_for_training_and_evaluation(image_folder):
    config = {"source": "folder", "root": str(image_folder), "cache": "encoded", "cache_gb": 1.0}
    sources = make_sources(config, image_size=(16, 16), channels=3, workdir=None)
    for source, plain in zip(
        sources,
        make_sources(config | {"cache": "none"}, image_size=(16, 16), channels=3, workdir=None),
        strict=True,
    ):
        assert isinstance(source, Cached) and not isinstance(plain, Cached)
        assert len(source) == len(plain) and source.fingerprint() == plain.fingerprint()
        assert source.describe(1) == plain.describe(1) and source.classes == plain.classes
        first = source.read([1])[0]
        assert isinstance(first, Record) and first == plain.read([1])[0]
        assert source.read([1])[0] is first
    (batch,) = eval_batches(
        sources.eval, data_config=config, image_size=(16, 16), channels=3, batch_size=4
    )
    assert batch["valid"].all()


def test_the_limit_is_that_of_a_host_whatever_the_number_of_its_processes(monkeypatch):
    config = {"cache": "encoded", "cache_gb": 4.0}
    monkeypatch.setattr(host, "processes", 8)
    (source,) = with_cache([Counting([b"x"])], config, channels=3)
    assert source._budget.limit == 2**29


def test_half_of_the_available_memory_is_the_default(caplog):
    with caplog.at_level(logging.INFO):
        source = cached(MemorySource([b"x"]), "encoded", gb=0.0)
    assert 0.25 < source._budget.limit / available_memory() < 1.0
    assert "GB" in caplog.text


def test_impossible_values_are_refused():
    for config in ({"cache": "disk"}, {"cache_gb": -1.0}):
        with pytest.raises(UsageError, match=f"--config.data.{next(iter(config))}"):
            make_sources(config, image_size=(16, 16), channels=3, workdir=None)
