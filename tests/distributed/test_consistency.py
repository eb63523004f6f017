"""How processes find out that they differ, simulated by threads with an in-memory store.

The same with real processes is in test_processes.py.
"""

import concurrent.futures
import os
import threading
import time
from types import SimpleNamespace

import jax
import pytest

from mae_jax.distributed import consistency
from mae_jax.distributed.consistency import disagreement
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train import run_info
from tests.distributed.test_disagreement import records
from tests.helpers import tiny_configs


class Store:
    """In-memory replacement for the coordination service."""

    def __init__(self):
        self._texts, self._news = {}, threading.Condition()

    def set(self, key, value):
        with self._news:
            self._texts[key] = value
            self._news.notify_all()

    def get(self, key, *, until, who):
        with self._news:
            there = self._news.wait_for(
                lambda: key in self._texts, max(until - time.monotonic(), 0)
            )
            if not there:
                raise UsageError(f"{who} did not come")
            return self._texts[key]


def meet(found, store=None):
    """The outcome on each of several processes; a process of None does not start."""
    store = store or Store()

    def one(index):
        try:
            return consistency.exchange(store, index, len(found), found[index])
        except UsageError as error:
            consistency.publish_error(store, index, error)  # as `check_consistency` does
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(found)) as pool:
        waiting = [pool.submit(one, i) for i, record in enumerate(found) if record]
        return [future.result(timeout=60) for future in waiting]


def at(workdirs, found):
    return [record | {"workdir": str(workdirs[i])} for i, record in enumerate(found)]


def test_all_learn_the_same_and_nothing_is_left_in_the_workdir(tmp_path):
    shared = [tmp_path / "runs" / "new"] * 3
    assert meet(at(shared, records(3))) == [None] * 3
    lines = meet(at(shared, records(3, p1={("versions", "jax"): "1"})))
    assert len(set(lines)) == 1 and "process 1 (node1): jax 1, but" in lines[0]
    assert os.listdir(shared[0]) == []


def test_a_workdir_of_its_own_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(consistency, "PROBE_SECONDS", 0.2)
    lines = meet(at([tmp_path / "a", tmp_path / "b"], records(2)))
    assert len(set(lines)) == 1
    assert f"workdir {tmp_path / 'a'} is not shared: process 1 (node1) does not see" in lines[0]
    assert f"(their --workdir is {tmp_path / 'b'})" in lines[0]


def test_a_file_that_appears_late_is_waited_for(tmp_path):
    path = tmp_path / "late"
    timer = threading.Timer(0.3, path.touch)
    timer.start()
    assert consistency._appears(str(path))
    timer.join()


def test_who_does_not_come_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(consistency, "WAIT_SECONDS", 0.2)
    found = at([tmp_path] * 3, records(3))
    lines = meet([found[0], found[1], None])
    assert lines[0] == "process 2 did not come" and lines[1].endswith(lines[0])
    assert os.listdir(tmp_path) == []
    assert meet([None, found[1], None]) == ["process 0 did not come"]


def test_an_error_before_ends_the_wait_of_the_others(tmp_path):
    found = at([tmp_path] * 3, records(3))
    error = UsageError("--config.data.root=/d does not exist")
    for index, others in ((1, [found[0], None, found[2]]), (0, [None, *found[1:]])):
        store = Store()
        consistency.publish_error(store, index, error)
        lines = meet(others, store)
        assert len(lines) == 2 and len(set(lines)) == 1
        assert lines[0].startswith(f"process {index} (")
        assert lines[0].endswith("failed during startup: --config.data.root=/d does not exist")


def test_a_workdir_that_cannot_be_written_is_the_error(tmp_path):
    (tmp_path / "file").touch()
    found = at([tmp_path / "file"] * 2, records(2))
    with pytest.raises(UsageError, match="cannot write to --workdir=.*file"):
        consistency.exchange(Store(), 0, 2, found[0])


@pytest.mark.parametrize("ahead, says", [(0, None), (59, None), (93, "ahead of"), (-93, "behind")])
def test_a_clock_that_is_far_off_is_a_warning(tmp_path, monkeypatch, caplog, ahead, says):
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=time.sleep, time=lambda: 1000.0)
    monkeypatch.setattr(consistency, "time", clock)
    store = Store()
    store.set("probe", "")
    store.set("verdict", consistency._verdict(None))
    clock.time = lambda: 1000.0 + ahead
    (one,) = at([tmp_path], records(1))
    assert consistency.exchange(store, 1, 2, one) is None
    if says:
        assert f"clock of process 1 (node0) is 93 s {says} that of process 0 (" in caplog.text
    else:
        assert not caplog.records


def test_one_process_compares_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(consistency, "describe", lambda *_: pytest.fail("asked"))
    consistency.check_consistency(tiny_configs.config(), str(tmp_path / "new"), {})
    with pytest.raises(KeyError), consistency.propagate_startup_error():
        raise KeyError("x")
    assert not (tmp_path / "new").exists()


def test_what_a_process_says_of_itself(tmp_path):
    config = tiny_configs.config()
    task = Pretrain(config, str(tmp_path))
    say = consistency.describe(
        config, str(tmp_path), {"data": task.data.train_source.fingerprint()}
    )
    assert say["versions"]["jax"] == jax.__version__
    assert say["devices"] == {"devices": "4 x cpu"}
    assert say["config"]["--config.optim.base_lr"] == config.optim.base_lr
    assert say["facts"]["data.count"] == 96
    moved = tiny_configs.config(data__root="/elsewhere", data__workers=3, data__cache_gb=1.0)
    facts = {"data": task.data.train_source.fingerprint() | {"root": "/elsewhere"}}
    again = consistency.describe(moved, str(tmp_path), facts)
    assert disagreement([say, again]) is None
    other = consistency.describe(tiny_configs.config(optim__b1=0.8), str(tmp_path), facts)
    line = disagreement([say, other])
    assert line is not None and "--config.optim.b1 0.8, but 0.9 on process 0" in line


def test_what_is_compared_besides_the_configuration(tmp_path):
    """Everything that a checkpoint records about data and target, and `allow_config_change`."""
    config = tiny_configs.config()
    task = Pretrain(config, str(tmp_path))
    facts = run_info.consistency_facts(task, allow_config_change=False)
    assert facts["--config.target"] == task.metadata(0)["target"]
    assert facts.items() >= task.metadata(0)["data"].items()
    say = consistency.describe(config, str(tmp_path), facts)
    allowed = run_info.consistency_facts(task, allow_config_change=True)
    line = disagreement([say, consistency.describe(config, str(tmp_path), allowed)])
    assert line is not None and "--allow_config_change true, but false" in line
    task.target.metadata = lambda: {"kind": "tokens", "hash": "other"}
    other = run_info.consistency_facts(task, allow_config_change=False)
    line = disagreement([say, consistency.describe(config, str(tmp_path), other)])
    assert line is not None and "--config.target" in line


def test_an_edited_file_is_other_code(tmp_path, monkeypatch):
    for name in ("a.py", "b/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(consistency, "__file__", str(tmp_path / "a.py"))
    before = consistency._source_digest()
    (tmp_path / "notes.txt").write_text("not code")
    assert consistency._source_digest() == before
    (tmp_path / "b" / "c.py").write_text("x = 2\n")
    assert consistency._source_digest() != before
