"""One run at a time in a workdir: real processes that race, are killed, or run elsewhere."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mae_jax.runtime import abort, filesystem, workdir, workdir_lock
from mae_jax.runtime.errors import FAILED, UsageError
from tests.helpers.processes import REPO

# Takes the lock once the file `go` exists, prints the outcome, and holds it until stdin closes.
STARTER = """
import os, sys, time
from mae_jax.runtime import workdir_lock
from mae_jax.runtime import workdir
from mae_jax.runtime.errors import UsageError
folder, go, workdir_lock.TOUCH_SECONDS = sys.argv[1], sys.argv[2], float(sys.argv[3])
print("ready", flush=True)
while not os.path.exists(go):
    time.sleep(0.001)
try:
    with workdir.lock(folder, first=True):
        print("won", flush=True)
        sys.stdin.read()
except UsageError as error:
    print("lost:", error, flush=True)
assert "jax" not in sys.modules
"""


def starter(folder, go, touch=60.0):
    command = [sys.executable, "-c", STARTER, str(folder), str(go), str(touch)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=REPO, text=True, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT
    )
    assert process.stdout.readline() == "ready\n"
    return process


def run_alone(folder):
    """Holds the lock for a moment; returns its content."""
    path = os.path.join(folder, workdir_lock.LOCK)
    with workdir.lock(str(folder), first=True), open(path, encoding="utf-8") as file:
        return json.load(file)


def leave_lock(folder, **changes):
    """A lock file as written by another run."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, workdir_lock.LOCK)
    held = run_alone(folder) | changes
    with open(path, "w", encoding="utf-8") as file:
        json.dump(held, file)
    return path


@pytest.mark.parametrize("left_over", [False, True])
def test_of_many_starters_exactly_one_wins(tmp_path, left_over):
    starters = []
    for number in range(3):
        folder, go = tmp_path / f"w{number}", tmp_path / f"go{number}"
        if left_over:
            leave_lock(folder, pid=2**22 + 1)  # above the largest PID of Linux
        starters.append([starter(folder, go) for _ in range(3)])
        go.touch()
    for processes in starters:
        said = [process.stdout.readline() for process in processes]
        if left_over:
            again = ["left over" in line for line in said]
            assert sum(again) == 1
            said[again.index(True)] = processes[again.index(True)].stdout.readline()
        assert sorted(line.split()[0] for line in said) == ["lost:", "lost:", "won"], said
        winner = processes[[line == "won\n" for line in said].index(True)]
        assert all(f"in use by process {winner.pid} on" in line for line in said if "lost" in line)
        for process in processes:
            process.communicate()
    assert not os.path.exists(tmp_path / "w0" / workdir_lock.LOCK)


def test_two_that_look_at_an_old_lock_together_do_not_both_take_it(tmp_path, monkeypatch):
    leave_lock(tmp_path, pid=2**22 + 1)
    started, outcomes = workdir_lock._process_started, []

    def slowly(pid):
        time.sleep(0.2)
        return started(pid)

    def start():
        try:
            outcomes.append(workdir_lock.Lock(str(tmp_path)))
        except UsageError as error:
            outcomes.append(error)

    monkeypatch.setattr(workdir_lock, "_process_started", slowly)
    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, workdir_lock.Lock)]
    winner.release()
    assert len(outcomes) == 3


def test_a_killed_run_does_not_keep_the_next_one_out(tmp_path, caplog):
    (tmp_path / "go").touch()
    process = starter(tmp_path / "w", tmp_path / "go")
    assert process.stdout.readline() == "won\n"
    with pytest.raises(UsageError, match=f"in use by process {process.pid} on .* since 2"):
        run_alone(tmp_path / "w")
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    began = time.monotonic()
    run_alone(tmp_path / "w")
    assert time.monotonic() - began < 5
    assert f"left over from process {process.pid}" in caplog.text
    process.communicate()


def test_a_process_number_that_is_used_again_is_another_process(tmp_path):
    leave_lock(tmp_path, process_started="0")  # with the PID of this process
    run_alone(tmp_path)
    leave_lock(tmp_path)
    with pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
        run_alone(tmp_path)


def test_the_lock_is_given_back_however_a_run_ends(tmp_path):
    for error in (UsageError, FloatingPointError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), workdir.lock(str(tmp_path / "w"), first=True):
            (tmp_path / "w" / "metrics.jsonl").touch()
            raise error
        assert os.listdir(tmp_path / "w") == ["metrics.jsonl"]
    with pytest.raises(UsageError), workdir.lock(str(tmp_path / "new"), first=True):
        raise UsageError("no such data")
    assert not os.path.exists(tmp_path / "new")


class TestAnotherMachine:
    """Its processes cannot be looked up; its lock is valid as long as it is touched."""

    def test_an_old_lock_is_taken_over(self, tmp_path):
        path = leave_lock(tmp_path, machine="elsewhere", host="far")
        os.utime(path, (time.time() - 201,) * 2)
        run_alone(tmp_path)

    def test_one_that_is_no_longer_touched_is_taken_over_after_a_while(self, tmp_path, monkeypatch):
        monkeypatch.setattr(workdir_lock, "STALE_SECONDS", 0.4)
        leave_lock(tmp_path, machine="elsewhere")
        began = time.monotonic()
        run_alone(tmp_path)
        assert time.monotonic() - began > 0.3

    def test_one_that_is_touched_is_respected(self, tmp_path, monkeypatch):
        path = leave_lock(tmp_path, machine="elsewhere", host="far")
        monkeypatch.setattr(workdir_lock, "STALE_SECONDS", 20.0)
        threading.Timer(0.2, os.utime, [path]).start()
        with pytest.raises(UsageError, match="in use by process .* on far since"):
            run_alone(tmp_path)

    def test_it_is_touched(self, tmp_path, monkeypatch):
        monkeypatch.setattr(workdir_lock, "TOUCH_SECONDS", 0.02)
        with workdir.lock(str(tmp_path), first=True):
            os.utime(tmp_path / workdir_lock.LOCK, (0, 0))
            time.sleep(0.5)
            assert time.time() - os.stat(tmp_path / workdir_lock.LOCK).st_mtime < 60

    def test_one_from_the_future_is_waited_for_no_longer(self, tmp_path, monkeypatch):
        """Its machine was rebooted with another clock. Checking costs next to nothing."""
        path, probe, sizes = leave_lock(tmp_path, machine="elsewhere"), filesystem.probe, []
        os.utime(path, (time.time() + 86_400,) * 2)

        def count(workdir, size=0):
            sizes.append(size)
            assert len(sizes) < 10
            return probe(workdir, size)

        monkeypatch.setattr(filesystem, "probe", count)
        monkeypatch.setattr(workdir_lock, "STALE_SECONDS", 0.4)
        run_alone(tmp_path)
        assert sizes == [workdir.PROBE_BYTES, 1]  # whether it is writable; the current time


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": "x"}'])
def test_a_lock_that_was_never_finished_is_taken_over(tmp_path, monkeypatch, text):
    monkeypatch.setattr(workdir_lock, "WRITING_SECONDS", 0.1)
    (tmp_path / workdir_lock.LOCK).write_text(text)
    os.utime(tmp_path / workdir_lock.LOCK, (time.time() - 201,) * 2)
    run_alone(tmp_path)


def test_a_run_whose_lock_was_taken_ends_at_once(tmp_path):
    (tmp_path / "go").touch()
    process = starter(tmp_path / "w", tmp_path / "go", touch=0.1)
    assert process.stdout.readline() == "won\n"
    path = tmp_path / "w" / workdir_lock.LOCK
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": 1, "host": "far"}))
    output, _ = process.communicate("", timeout=20) if process.wait(20) else ("", "")
    assert process.returncode == FAILED
    assert "now belongs to process 1 on far" in output


@pytest.mark.parametrize("left_over", [False, True])
def test_a_full_disk_is_what_is_said(tmp_path, monkeypatch, left_over):
    """No empty lock is left behind, which would make the next start wait."""
    if left_over:
        leave_lock(tmp_path, pid=2**22 + 1)

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        workdir_lock.Lock(str(tmp_path))
    assert os.path.exists(tmp_path / workdir_lock.LOCK) == left_over


class Left(BaseException):
    """The process would have exited."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder locked by this process; `abort` raises instead of exiting."""

    def leave(status, why):
        raise Left(why)

    monkeypatch.setattr(abort, "abort", leave)
    monkeypatch.setattr(workdir_lock, "GONE_SECONDS", 0.5)
    with workdir.lock(str(tmp_path / "run"), first=True):
        yield tmp_path / "run"


def test_a_folder_that_is_renamed_is_not_written_again(run):
    workdir.ensure_held(now=True)
    run.rename(run.parent / "other")
    said = f"--workdir={run} was renamed .continue with --workdir={run.parent}/other"
    with pytest.raises(Left, match=said):
        workdir.ensure_held(now=True)
    assert os.listdir(run.parent) == ["other"]


def test_nor_one_that_is_deleted_or_another_one_by_now(run):
    (run / workdir_lock.LOCK).unlink()
    run.rmdir()
    with pytest.raises(Left, match=f"--workdir={run} was deleted"):
        workdir.ensure_held(now=True)
    run.mkdir()
    with pytest.raises(Left, match=f"--workdir={run} was deleted"):
        workdir.ensure_held(now=True)
    assert os.listdir(run) == []


def test_a_folder_that_is_away_for_a_moment_is_waited_for(run):
    other = run.parent / "other"
    run.rename(other)
    threading.Timer(0.1, other.rename, [run]).start()
    workdir.ensure_held(now=True)
    assert os.path.exists(run / workdir_lock.LOCK)


def test_a_lock_that_is_removed_is_made_again(run, caplog):
    mine = (run / workdir_lock.LOCK).read_text()
    (run / workdir_lock.LOCK).unlink()
    workdir.ensure_held(now=True)
    assert (
        run / workdir_lock.LOCK
    ).read_text() == mine and "was removed: created again" in caplog.text


@pytest.mark.parametrize("clock", ["monotonic", "time"])
def test_after_a_pause_a_run_looks_whether_another_has_its_workdir(run, monkeypatch, clock):
    """A stopped process, or a machine restored from a snapshot: not all clocks advance."""
    held = json.loads((run / workdir_lock.LOCK).read_text())
    (run / workdir_lock.LOCK).write_text(
        json.dumps(held | {"pid": 1, "host": "far", "token": "other"})
    )
    workdir.ensure_held()  # checked a moment ago, so not checked again at every step
    real = getattr(time, clock)
    monkeypatch.setattr(time, clock, lambda: real() + workdir_lock.STALE_SECONDS)
    with pytest.raises(Left, match="now belongs to process 1 on far"):
        workdir.ensure_held()


def test_a_disk_that_is_away_is_asked_again_later(run, monkeypatch, caplog):
    """Not at every step, and without ending the run."""

    def away(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(workdir_lock, "_read", away)
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + workdir_lock.STALE_SECONDS)
    for _ in range(3):
        workdir.ensure_held()
    assert len(caplog.records) == 1 and "cannot be read" in caplog.text
    monkeypatch.undo()
