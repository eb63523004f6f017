"""Unreadable images are replaced, reported once and bounded."""

import logging

import numpy as np
import pytest

from mae_jax.data import eval_batches, train_batches
from mae_jax.data.transforms.decode import is_plain_jpeg, to_array
from mae_jax.runtime.errors import UsageError
from tests.data.helpers import MemorySource, jpeg, picture
from tests.helpers.faults import broken_table

GOOD = [jpeg(picture(i)) for i in range(20)]


BAD = {
    "truncated": GOOD[3][:-200],
    "empty": b"",
    "text": b"404 Not Found",
    "table": broken_table(),
}


def batches(data, *, steps=5, start_step=0, limit=1.0, hosts=1, host=0, workers=2):
    iterator = train_batches(
        MemorySource(data),
        data_config={"max_bad_fraction": limit, "workers": workers},
        image_size=(8, 8),
        channels=3,
        batch_size=8,
        seed=0,
        start_step=start_step,
        process_index=host,
        process_count=hosts,
    )
    return [next(iterator) for _ in range(steps)], iterator


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_replaced_the_same_way_everywhere(kind, caplog):
    data = [*GOOD]
    data[3] = BAD[kind]
    with caplog.at_level(logging.WARNING):
        ours, iterator = batches(data)
    rows = np.concatenate([b["index"] for b in ours])
    labels = np.concatenate([b["label"] for b in ours])
    images = np.concatenate([b["image"] for b in ours])
    assert (rows == 3).sum() == 2  # 40 rows: two epochs
    assert (labels[rows == 3] != 3).all()  # the replacement's own label
    assert (labels[rows != 3] == rows[rows != 3]).all()
    assert iterator.bad_count == 1
    warnings = [r.getMessage() for r in caplog.records if "bad image" in r.getMessage()]
    assert len(warnings) == 1 and "memory#3" in warnings[0]

    again, _ = batches(data, steps=3, start_step=2, workers=1)
    assert np.array_equal(np.concatenate([b["image"] for b in again]), images[16:])
    halves = [batches(data, hosts=2, host=host)[0] for host in range(2)]
    joined = [np.concatenate([a["image"], b["image"]]) for a, b in zip(*halves, strict=True)]
    assert np.array_equal(np.concatenate(joined), images)


def test_decoders_disagree_with_the_header_check_only_here():
    assert is_plain_jpeg(BAD["table"], exif_transpose=True)
    with pytest.raises(OSError, match="broken data stream"):
        to_array(BAD["table"], channels=3, dtype="uint8", exif_transpose=True)


def test_the_other_rows_of_the_batch_are_untouched():
    clean, _ = batches(GOOD)
    data = [*GOOD]
    data[3] = BAD["table"]
    ours, _ = batches(data)
    for a, b in zip(clean, ours, strict=True):
        rows = a["index"] != 3
        assert np.array_equal(a["image"][rows], b["image"][rows])


def test_too_many_bad_images_stop_the_run_and_are_listed():
    data = GOOD[:3] + [BAD["empty"], *GOOD[4:]] + GOOD + [BAD["text"]] * 10
    with pytest.raises(UsageError, match=r"(?s)11 of 50 .* 10 that .*fraction=0.2 .*#3: .*#40: "):
        batches(data, limit=0.2, steps=13)
    assert batches(data, limit=0.22, steps=13)[1].bad_count == 11


@pytest.mark.parametrize("total, bad", [(25, 1), (350, 1), (350, 10), (20, 10)])
def test_a_few_bad_images_stop_no_run(total, bad):
    data = [BAD["truncated"]] * bad + [GOOD[0]] * (total - bad)
    _, iterator = batches(data, limit=0.001, steps=total // 8 + 1)
    assert iterator.bad_count == bad


@pytest.mark.parametrize("total, bad", [(20, 11), (350, 11)])
def test_half_of_a_small_set_or_more_than_a_few_of_a_large_one_stop_it(total, bad):
    data = [BAD["truncated"]] * bad + [GOOD[0]] * (total - bad)
    with pytest.raises(UsageError, match=f"{bad} of {total} images of memory cannot be used"):
        batches(data, limit=0.001, steps=total // 8 + 1)


def test_when_nothing_can_be_read_the_reason_is_given():
    wide = [np.zeros((9, 9, 4), np.uint8)] * 20
    with pytest.raises(UsageError, match="--config.model.channels=4"):
        batches(wide)
    with pytest.raises(UsageError, match="--config.data.dtype=float32"):
        batches([np.zeros((9, 9, 3), np.uint16)] * 20, limit=0.001)


def evaluate(data, limit):
    return list(
        eval_batches(
            MemorySource(data),
            data_config={"max_bad_fraction": limit},
            image_size=(8, 8),
            channels=3,
            batch_size=6,
        )
    )


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_does_not_count_in_evaluation(kind):
    data = [*GOOD]
    data[4] = BAD[kind]
    ours = evaluate(data, 0.05)
    valid = np.concatenate([b["valid"] for b in ours])
    index = np.concatenate([b["index"] for b in ours])
    assert sorted(index[valid]) == [i for i in range(20) if i != 4]
    assert len(ours) == 4
    with pytest.raises(UsageError, match="memory#4"):
        evaluate(data, 0.0)
