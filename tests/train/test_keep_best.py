"""The best checkpoint of a run: saved when it is evaluated, kept, refused if it cannot be known."""

import json
import math

import pytest

from mae_jax.checkpoint import best, best_tracker, layout, reader
from mae_jax.runtime.errors import UsageError
from mae_jax.train import loop
from mae_jax.train.evaluation_runner import check_keep_best
from mae_jax.train.task import Evaluator
from tests.helpers import tiny_configs
from tests.train.test_task import Measurement, Regression


class Scripted(Regression):
    """Evaluated every two steps, with given values of top1."""

    def __init__(self, values, num_steps=10, scores=("top1",)):
        super().__init__()
        self.values, self.num_steps = values, num_steps
        self.evaluators: dict[str, Evaluator] = {"eval": Evaluator(2, self.top1, scores)}

    def top1(self, state, mesh, on_batch):
        on_batch()
        return {"top1": self.values.get(int(state.step), 0.0), "loss": 1.0}

    def metadata(self, step):
        return {"step": step, "config": {}, "data": {"source": {}}}


def run(workdir, task, metric="eval/top1", **options):
    changes = {"log_every": 1, "checkpoint__keep": 1, "checkpoint__keep_best": metric}
    return loop.run(task, tiny_configs.config(**changes), str(workdir), **options)


def test_the_best_step_is_saved_and_kept(tmp_path, caplog):
    values = {0: 0.99, 2: 0.3, 4: 0.8, 6: math.nan, 8: 0.8, 10: 0.7}
    with caplog.at_level("INFO"):
        assert run(tmp_path, Scripted(values))
    assert layout.steps(str(tmp_path)) == [4, 10]  # nothing else was due, and step 0 is not saved
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "metric": "eval/top1",
        "value": 0.8,
        "step": 4,
    }
    assert "step 4 is the best so far: its checkpoint is kept" in caplog.text
    assert "step 8 is the best" not in caplog.text
    metadata = reader.load_metadata(f"{tmp_path}:best")
    assert metadata["metrics"] == {"eval/top1": 0.8, "eval/loss": 1.0}


def test_the_last_step_may_be_the_best(tmp_path):
    assert run(tmp_path, Scripted({2: 0.1, 10: 0.9}))
    assert layout.steps(str(tmp_path)) == [10]
    assert layout.find(f"{tmp_path}:best").step == 10


class Killed(Exception):
    """Simulates the end of the process."""


@pytest.mark.parametrize("recorded", [True, False])
def test_a_killed_run_continues_with_its_best(tmp_path, monkeypatch, recorded):
    def kill(step):
        if step == 8:
            raise Killed

    write = best.write
    if not recorded:
        monkeypatch.setattr(best_tracker.best, "write", lambda *_: None)
    with pytest.raises(Killed):
        run(tmp_path, Scripted({4: 0.8, 6: 0.5}), before_step=kill)
    monkeypatch.setattr(best_tracker.best, "write", write)
    assert layout.steps(str(tmp_path)) == [4]
    assert (tmp_path / "best.json").exists() == recorded
    assert run(tmp_path, Scripted({6: 0.5, 8: 0.79, 10: 0.7}))
    assert layout.steps(str(tmp_path)) == [4, 10]
    assert layout.find(f"{tmp_path}:best").step == 4


def test_an_interrupted_evaluation_counts_once_it_is_done(tmp_path):
    assert not run(tmp_path, Scripted({2: 0.5, 4: 0.9}), **tiny_configs.stop_in_step(4))
    assert layout.find(f"{tmp_path}:best").step == 2
    assert run(tmp_path, Scripted({2: 0.5, 4: 0.9}))
    assert layout.steps(str(tmp_path)) == [4, 10]
    assert best.read(str(tmp_path)) == ("eval/top1", 0.9, 4)


def test_nothing_more_is_saved_if_it_is_off(tmp_path):
    assert run(tmp_path, Scripted({4: 0.8}), "")
    assert layout.steps(str(tmp_path)) == [10] and best.read(str(tmp_path)) is None


@pytest.mark.parametrize(
    "metric, message",
    [
        ("eval/top5", "no such metric; it must be one of eval/top1, eval/loss"),
        ("train/loss", "no such metric; it must be one of eval/top1"),
        ("knn/top1", r"knn is never evaluated; set --config\.eval\.knn_every, or"),
        ("eval/count", "no such metric"),
    ],
)
def test_a_metric_that_is_never_written_is_refused(tmp_path, metric, message):
    task = Scripted({}, scores=("top1", "loss"))
    task.evaluators |= {"knn": Evaluator(0, task.top1, ("top1",))}
    with pytest.raises(UsageError, match=f"keep_best={metric}: .*{message}") as error:
        run(tmp_path, task, metric)
    assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_run_without_evaluations_or_steps_has_no_best():
    task = Scripted({})
    task.evaluators = {"eval": Evaluator(0, task.top1, ("top1",))}
    with pytest.raises(UsageError, match=r"eval is never evaluated; set --config\.eval_every, or"):
        check_keep_best(task, "eval/top1")
    with pytest.raises(UsageError, match="trains nothing"):
        check_keep_best(Measurement(), "eval/slope")


def test_metrics_of_other_tasks_are_refused_once_they_are_seen(tmp_path):
    with pytest.raises(UsageError, match="higher is better"):
        run(tmp_path, Scripted({}, scores=()), "eval/slope")
    with pytest.raises(UsageError, match="no such metric; eval has top1, loss"):
        run(tmp_path, Scripted({}, scores=()), "eval/accuracy")
    assert not layout.exists(str(tmp_path))
