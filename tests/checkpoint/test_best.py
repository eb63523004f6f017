"""The best checkpoint: which way a metric points, records, restarts, several processes."""

import math
import os
import threading

import pytest

from mae_jax.checkpoint import best, best_tracker, checkpointer, layout
from mae_jax.checkpoint.best import Best, candidate, lower_is_better
from tests.checkpoint.test_checkpointer import make_state, step_names
from tests.helpers.processes import run_two

METRIC = "eval/top1"


@pytest.mark.parametrize(
    "name", ["loss", "baseline_loss", "ema_loss", "error", "top1_error", "mse"]
)
def test_lower_is_better(name):
    assert lower_is_better(f"eval/{name}") is True
    assert Best(f"eval/{name}", 1.0, 9).beats(Best(f"eval/{name}", 2.0, 8))


@pytest.mark.parametrize(
    "name", ["top1", "ema_top5", "accuracy", "AP", "box_AP50", "mAP", "mIoU", "acc", "auc"]
)
def test_higher_is_better(name):
    assert lower_is_better(f"knn/{name}") is False
    assert Best(f"knn/{name}", 2.0, 9).beats(Best(f"knn/{name}", 1.0, 8))


@pytest.mark.parametrize("name", ["count", "perplexity", "stop1", "glossy", "mapping"])
def test_other_names_point_nowhere(name):
    assert lower_is_better(f"eval/{name}") is None


def test_equal_values_and_those_that_are_not_finite_are_not_better():
    assert not Best(METRIC, 0.5, 9).beats(Best(METRIC, 0.5, 8))
    assert candidate(METRIC, 3, {METRIC: 0.5, "eval/loss": 2.0}) == (METRIC, 0.5, 3)
    for value in (math.nan, math.inf, -math.inf):
        assert candidate(METRIC, 3, {METRIC: value}) is None
    assert candidate(METRIC, 3, {}) is None and candidate("", 3, {METRIC: 0.5}) is None


@pytest.mark.parametrize("text", ["", "[]", "null", '{"metric": "eval/top1"}', '{"value": "x"}'])
def test_a_broken_record_is_none(tmp_path, text):
    (tmp_path / best.FILE).write_text(text)
    assert best.read(str(tmp_path)) is None


def open_run(run, metric=METRIC, **options):
    saver = checkpointer.Checkpointer(str(run), **{"keep": 1, "keep_best": metric} | options)
    saver.recover_best()
    return saver


def save(saver, step, **metrics):
    """Saves a step with these values; returns whether it was the best before it was saved."""
    flat = {f"eval/{name}": value for name, value in metrics.items()}
    better = saver.is_best(step, flat)
    saver.save(make_state(step), {"step": step, "metrics": flat})
    saver.wait()
    return better


def test_only_the_best_one_is_kept_besides_the_newest(tmp_path):
    saver = open_run(tmp_path)
    values = {1: 0.2, 2: 0.6, 3: 0.5, 4: 0.6, 5: math.nan, 6: 0.7, 7: 0.1}
    assert [save(saver, step, top1=x) for step, x in values.items()] == [
        *(True, True, False, False, False, True, False),
    ]
    saver.close()
    assert step_names(tmp_path) == ["6", "7"]
    assert best.read(str(tmp_path)) == (METRIC, 0.7, 6)
    assert layout.find(f"{tmp_path}:best").step == 6


def test_a_restart_continues_with_the_record(tmp_path):
    saver = open_run(tmp_path)
    save(saver, 1, top1=0.6)
    save(saver, 2, top1=0.5)
    saver.close()
    again = open_run(tmp_path)
    assert not again.is_best(3, {METRIC: 0.55})
    assert again.is_best(3, {METRIC: 0.65})
    again.close()
    off = open_run(tmp_path, "")  # switched off: what was kept stays
    assert not off.is_best(3, {METRIC: 0.9})
    off.save(make_state(3), {"step": 3})
    off.close()
    assert step_names(tmp_path) == ["1", "3"] and layout.find(f"{tmp_path}:best").step == 1


def test_a_kill_between_a_save_and_its_record_loses_nothing(tmp_path, monkeypatch, caplog):
    saver = open_run(tmp_path)
    save(saver, 1, top1=0.5)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(best_tracker.best, "write", full)
    save(saver, 2, top1=0.6)
    assert "the best step is not recorded: No space left on device" in caplog.text
    assert not saver.is_best(3, {METRIC: 0.55})
    saver.close()
    assert step_names(tmp_path) == ["1", "2"]  # the recorded one stays as long as it is recorded
    assert layout.find(f"{tmp_path}:best").step == 1
    monkeypatch.undo()
    open_run(tmp_path).close()
    assert layout.find(f"{tmp_path}:best").step == 2


def test_a_best_step_that_is_gone_is_replaced_by_the_next_best(tmp_path):
    saver = open_run(tmp_path, keep=3)
    for step, value in {1: 0.3, 2: 0.6, 3: 0.5}.items():
        save(saver, step, top1=value)
    saver.quarantine(2, "a test")
    saver.close()
    open_run(tmp_path).close()
    assert best.read(str(tmp_path)) == (METRIC, 0.5, 3)


def test_another_metric_chooses_again_among_what_is_saved(tmp_path, caplog):
    saver = open_run(tmp_path, keep=2)
    for step, top1, loss in ((1, 0.6, 2.0), (2, 0.5, 1.0), (3, 0.4, 1.5)):
        save(saver, step, top1=top1, loss=loss)
    saver.close()
    assert best.read(str(tmp_path)) == (METRIC, 0.6, 1)
    with caplog.at_level("INFO"):
        other = open_run(tmp_path, "eval/loss")
    assert "by eval/top1 and is now chosen by eval/loss: step 2, eval/loss 1" in caplog.text
    assert not other.is_best(4, {"eval/loss": 1.2}) and other.is_best(4, {"eval/loss": 0.9})
    other.close()
    open_run(tmp_path, "knn/top1").close()  # no saved step has it
    assert best.read(str(tmp_path)) is None


def test_a_step_that_is_saved_before_its_evaluation_is_only_recorded(tmp_path):
    saver = open_run(tmp_path)
    save(saver, 1, top1=0.5)
    save(saver, 2)
    assert not saver.is_best(2, {METRIC: 0.6})
    saver.close()
    assert best.read(str(tmp_path)) == (METRIC, 0.6, 2)


def test_a_save_that_fails_records_nothing(tmp_path, monkeypatch):
    saver = open_run(tmp_path)
    save(saver, 1, top1=0.5)
    monkeypatch.setattr(checkpointer.StepWriter, "_write", lambda *_: 1 / 0)
    with pytest.raises(checkpointer.SaveFailed):
        save(saver, 2, top1=0.6)
    monkeypatch.undo()
    assert best.read(str(tmp_path)) == (METRIC, 0.5, 1)
    assert saver.is_best(3, {METRIC: 0.55})  # better than anything that exists
    saver.close()


def test_the_step_that_is_being_saved_counts(tmp_path, monkeypatch):
    hold, verify = threading.Event(), checkpointer.StepWriter._verify
    monkeypatch.setattr(
        checkpointer.StepWriter, "_verify", lambda self: hold.wait() and verify(self)
    )
    saver = open_run(tmp_path)
    saver.save(make_state(1), {"step": 1, "metrics": {METRIC: 0.6}})
    assert not saver.is_best(2, {METRIC: 0.5}) and saver.is_best(2, {METRIC: 0.7})
    assert best.read(str(tmp_path)) is None  # not before it was read back
    hold.set()
    saver.close()
    assert best.read(str(tmp_path)) == (METRIC, 0.6, 1)


PROCESS = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from mae_jax.checkpoint import checkpointer
from tests.checkpoint.test_checkpointer import make_state
first = jax.process_index() == 0
saver = checkpointer.Checkpointer(sys.argv[3], keep=1, keep_best="eval/top1")
saver.recover_best()
for step, mine, other in ((1, 0.5, 0.9), (2, 0.4, 0.95), (3, 0.6, 0.1)):
    metrics = {"eval/top1": mine if first else other}
    print(saver.is_best(step, metrics))
    saver.save(make_state(step), {"step": step, "metrics": metrics})
    saver.wait()
saver.close()
"""


def test_process_0_decides_for_all(tmp_path):
    for status, output, errors in run_two(PROCESS, [[str(tmp_path)]] * 2, devices=2):
        assert status == 0, output + errors
        lines = [line for line in output.splitlines() if "Gloo" not in line]
        assert lines == ["True", "False", "True"]
    assert best.read(str(tmp_path)) == (METRIC, 0.6, 3)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["3"]
