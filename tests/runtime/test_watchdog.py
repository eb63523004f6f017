"""Reports of stuck processes: decisions with a fake clock, the rest with real processes."""

import contextlib
import glob
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from mae_jax.runtime import watchdog
from mae_jax.runtime.watchdog import Watchdog
from tests.helpers.processes import REPO


@pytest.fixture
def clock(monkeypatch):
    """A fake clock; the watchdog's thread sleeps during the test."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@contextlib.contextmanager
def watching(workdir, **options):
    options = {"seconds": 600.0, "start_seconds": 3600.0} | options
    with contextlib.closing(Watchdog(workdir=str(workdir), **options)) as dog:
        yield dog


def reports(folder):
    return sorted(glob.glob(os.path.join(str(folder), "stuck-*")))


def looks(dog, clock, folder, until):
    """Seconds at which a new report appears, checking every ten seconds."""
    began, found = clock.seconds, []
    while clock.seconds < began + until:
        clock.seconds += 10
        before = len(reports(folder))
        dog._check()
        if len(reports(folder)) > before:
            found.append(clock.seconds - began)
    return found


def test_phases_have_their_limits_and_reports_become_rarer(tmp_path, clock):
    with watching(tmp_path) as dog:
        assert looks(dog, clock, tmp_path, 8000) == [3600, 7200]
        with dog.phase("train"):
            assert looks(dog, clock, tmp_path, 5000) == [600, 1200, 2400, 4800]
            with dog.phase("compile", starting=True):
                assert looks(dog, clock, tmp_path, 3500) == []
            assert looks(dog, clock, tmp_path, 590) == []  # the end of a phase is a heartbeat
            assert looks(dog, clock, tmp_path, 10) == [10]  # back in the outer phase


def test_a_pause_is_no_silence(tmp_path, clock, caplog):
    """Of the process or the machine: the watchdog did not run either."""
    with watching(tmp_path) as dog, dog.phase("train"):
        for slept in (10.2, 49.0):
            dog._detect_pause(slept)
        assert not caplog.records
        clock.seconds += 5000
        dog._detect_pause(5000.0)
        (said,) = caplog.records
        assert "was paused for 5000 s; the watchdog starts over" in said.getMessage()
        assert dog._timer_seconds() == 660
        assert looks(dog, clock, tmp_path, 2000) == [600, 1200]  # after which it is watched again


def test_signs_of_life_keep_it_quiet(tmp_path, clock):
    with watching(tmp_path) as dog, dog.phase("train"):
        for step in range(20):
            assert looks(dog, clock, tmp_path, 590) == []
            dog.heartbeat(step)


@pytest.mark.parametrize("limits", [(0.0, 0.0), (0.0, 3600.0)])
def test_zero_is_never(tmp_path, clock, limits):
    with watching(tmp_path, seconds=limits[0], start_seconds=limits[1]) as dog:
        with dog.phase("train"):
            assert looks(dog, clock, tmp_path, 100_000) == []
        assert looks(dog, clock, tmp_path, 5000) == ([3600] if limits[1] else [])


def test_the_log_says_who_where_and_when_it_goes_on(tmp_path, clock, caplog):
    with watching(tmp_path, process=3) as dog, dog.phase("evaluate"):
        dog.heartbeat(120)
        clock.seconds += 700
        dog._check()
        clock.seconds += 50
        dog.heartbeat(121)
        dog._check()
    stuck, moves = [record.getMessage() for record in caplog.records]
    assert stuck.startswith("process 3 (")
    assert "has not moved for 700 s in phase evaluate after step 120" in stuck
    assert stuck.endswith(str(tmp_path / "stuck-3-1.txt"))
    assert moves.startswith("process 3 (") and moves.endswith("moves again after 750 s")


def wait_here(ready, release):
    ready.set()
    release.wait(30)


def test_a_report_shows_all_threads_by_name_the_main_one_first(tmp_path, clock):
    ready, release = threading.Event(), threading.Event()
    thread = threading.Thread(target=wait_here, args=(ready, release), name="the reader")
    thread.start()
    ready.wait(10)
    (tmp_path / "stuck-0-1.txt").write_text("of an earlier start")
    with watching(tmp_path) as dog, dog.phase("save"):
        clock.seconds += 601
        dog._check()
    release.set()
    thread.join()
    assert (tmp_path / "stuck-0-1.txt").read_text() == "of an earlier start"
    head, first, *others = (tmp_path / "stuck-0-2.txt").read_text().split("\n\n")
    assert "in phase save" in head
    assert first.startswith("Thread MainThread:")
    assert "in test_a_report_shows_all_threads" in first and os.path.basename(__file__) in first
    (reader,) = [part for part in others if part.startswith("Thread the reader:")]
    assert "in wait_here" in reader


@pytest.mark.parametrize(
    "place, why", [("gone", "No such file or directory"), ("file", "Not a directory")]
)
def test_without_a_folder_the_report_goes_to_stderr(tmp_path, clock, caplog, capsys, place, why):
    """The folder is not created: the run may have been moved."""
    (tmp_path / "file").touch()
    gone = tmp_path / place
    with watching(gone) as dog, dog.phase("train"):
        clock.seconds += 601
        dog._check()
    assert "Thread MainThread:" in capsys.readouterr().err
    assert f"cannot be written ({why})" in caplog.text
    assert os.listdir(tmp_path) == ["file"]


def test_code_far_below_reaches_the_one_that_runs(tmp_path, clock):
    watchdog.heartbeat(1)  # no watchdog is running
    with watchdog.phase("train"):
        pass
    with watching(tmp_path) as dog:
        with watchdog.phase("evaluate"):
            watchdog.heartbeat(7)
            assert dog._mark[1:] == ("evaluate", False, 7)
        assert dog._mark[1:] == ("start", True, 7)
    watchdog.heartbeat(8)
    assert dog._mark.step == 7


def test_it_watches_by_itself_and_leaves_no_thread(tmp_path, caplog):
    before = set(threading.enumerate())
    with caplog.at_level(logging.WARNING), watching(tmp_path, seconds=0.1) as dog:
        assert [t.name for t in set(threading.enumerate()) - before] == ["watchdog"]
        with dog.phase("train"):
            deadline = time.monotonic() + 30
            while not reports(tmp_path):
                assert time.monotonic() < deadline
                time.sleep(0.01)
    assert set(threading.enumerate()) == before


CHILD = """
import ctypes, sys, threading, time
from mae_jax.runtime import watchdog
assert not {"jax", "numpy"} & sys.modules.keys()
dog = watchdog.Watchdog(seconds=0.3, start_seconds=0.3, abort=True, workdir=sys.argv[1])
def held():  # compiled code that holds the GIL
    ctypes.PyDLL(None).sleep(60)
def lock():
    lock = threading.Lock()
    with lock:
        lock.acquire()
with dog.phase("train"):
    if sys.argv[2] == "paused":
        for step in range(40):  # heartbeats all the time, except during the pause
            if step == 5:
                print("pause", flush=True)
            time.sleep(0.1)
            dog.heartbeat(step)
        sys.exit()
    {"lock": lock, "held": held, "compiled": lambda: ctypes.CDLL(None).sleep(60)}[sys.argv[2]]()
"""


@pytest.mark.parametrize(
    "kind, status", [("lock", 70), ("compiled", 70), ("held", -signal.SIGUSR2)]
)
def test_a_process_that_hangs_is_ended(tmp_path, kind, status):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), kind],
        env=os.environ | {"PYTHONPATH": REPO},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == status, done.stderr
    if kind == "held":  # only the timer could act
        assert "Current thread" in done.stderr and "in held" in done.stderr
        return
    (report,) = reports(tmp_path)
    with open(report, encoding="utf-8") as file:
        assert f"in {kind if kind == 'lock' else '<lambda>'}" in file.read()
    assert "exits with status 70" in done.stderr and report in done.stderr


@pytest.mark.parametrize("abort", [False, True])
def test_a_paused_process_goes_on(tmp_path, abort):
    """For ten times its limit, which neither the thread nor the timer counts."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            CHILD.replace("abort=True", f"abort={abort}"),
            str(tmp_path),
            "paused",
        ],
        env=os.environ | {"PYTHONPATH": REPO},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "pause\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=50)
    assert process.returncode == 0, said
    assert "was paused for 3 s; the watchdog starts over" in said
    assert "Current thread" not in said and not reports(tmp_path)
