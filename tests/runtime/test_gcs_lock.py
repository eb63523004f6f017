"""One run at a time in a workdir in a bucket; `test_workdir_lock` has the same for disks."""

import json
import os
import subprocess
import sys
import time

import pytest

from mae_jax.runtime import abort, filesystem, gcs_lock, workdir, workdir_lock
from mae_jax.runtime.errors import UsageError

RUN = "gs://bucket/run"
PATH = f"{RUN}/lock.json"
# Takes the lock, prints the outcome, and holds the lock until stdin closes, renewing it constantly.
STARTER = """
import sys
from mae_jax.runtime import workdir_lock
from mae_jax.runtime import workdir
from mae_jax.runtime.errors import UsageError
workdir_lock.TOUCH_SECONDS = 0.2
print("ready", flush=True)
sys.stdin.readline()
try:
    with workdir.lock("gs://bucket/run", first=True):
        print("won", flush=True)
        sys.stdin.read()
except UsageError as error:
    print("lost:", error, flush=True)
"""


@pytest.fixture(autouse=True)
def quick(gcs, monkeypatch):
    monkeypatch.setattr(gcs_lock, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(gcs_lock, "STALE_SECONDS", 4.0)


def starter():
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER], text=True, stdin=pipe, stdout=pipe, stderr=pipe
    )
    assert process.stdout.readline() == "ready\n"
    return process


def run_alone():
    with workdir.lock(RUN, first=True):
        return json.loads(filesystem.read(PATH))


def leave_lock(**changes):
    """A lock file as written by another run."""
    filesystem.write(PATH, json.dumps(run_alone() | changes).encode())


def test_the_lock_is_given_back_and_nothing_else_is_left(gcs):
    assert run_alone()["pid"] == os.getpid()
    with pytest.raises(KeyError), workdir.lock(RUN, first=True):
        raise KeyError
    assert gcs.names("bucket") == []


def test_two_that_look_at_once_do_not_disturb_each_other(gcs, monkeypatch):
    look = filesystem.written_at

    def meanwhile(path):
        monkeypatch.setattr(filesystem, "written_at", look)
        filesystem.probe(RUN)
        return look(path)

    monkeypatch.setattr(filesystem, "written_at", meanwhile)
    assert filesystem.probe(RUN) > 0
    assert gcs.names("bucket") == []


def test_of_two_that_start_at_once_one_wins(gcs):
    both = [starter(), starter()]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.stdout.readline() for process in both]
    assert sorted(line.split()[0] for line in said) == ["lost:", "won"], said
    winner = both[said.index("won\n")]
    assert any(f"in use by process {winner.pid} on" in line for line in said)
    with pytest.raises(UsageError, match=f"in use by process {winner.pid} on .* remove {PATH}"):
        run_alone()
    winner.kill()
    for process in both:
        process.communicate()
    run_alone()  # a killed run does not block others


def test_a_lock_of_another_machine_counts_as_long_as_it_is_renewed():
    leave_lock(machine="elsewhere", host="far")
    old = filesystem.written_at(PATH)
    run_alone()
    assert time.time() - old >= 4
    leave_lock(machine="elsewhere", host="far")
    held = gcs_lock.BucketLock.__new__(gcs_lock.BucketLock)
    held._workdir, held._path = RUN, PATH
    moments = iter([100.0, 101.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filesystem, "written_at", lambda path: next(moments))
        patch.setattr(filesystem, "probe", lambda workdir: 100.5)
        assert held._is_alive({"machine": "elsewhere", "pid": 1, "host": "far", "locked_at": ""})


def test_a_lock_from_the_future_is_waited_for_no_longer(monkeypatch):
    held = gcs_lock.BucketLock.__new__(gcs_lock.BucketLock)
    held._workdir, held._path = RUN, PATH
    monkeypatch.setattr(gcs_lock, "STALE_SECONDS", 0.2)
    monkeypatch.setattr(filesystem, "written_at", lambda path: 1e12)
    probes = iter([100.0])
    monkeypatch.setattr(filesystem, "probe", lambda workdir: next(probes))
    assert not held._is_alive({"machine": "elsewhere", "pid": 1, "host": "far", "locked_at": ""})


def test_a_lock_that_is_removed_is_made_again_but_not_in_a_folder_that_is_gone(monkeypatch):
    held = gcs_lock.BucketLock(RUN)
    filesystem.write(f"{RUN}/config.json", b"{}")
    filesystem.remove(PATH)
    held.ensure_held(now=True)
    assert json.loads(filesystem.read(PATH)) == held._mine
    filesystem.remove(PATH)
    filesystem.remove(f"{RUN}/config.json")
    monkeypatch.setattr(workdir_lock, "GONE_SECONDS", 0.1)
    monkeypatch.setattr(abort, "abort", lambda status, why: pytest.fail(why))
    with pytest.raises(pytest.fail.Exception, match=f"{RUN} was deleted or renamed: this run ends"):
        held.ensure_held(now=True)
    held.release()


def test_a_lock_is_renewed_while_it_is_held(monkeypatch):
    written, write = [], filesystem.write

    def counting(path, content):
        written.append(content)
        write(path, content)

    monkeypatch.setattr(workdir_lock, "TOUCH_SECONDS", 0.05)
    held = gcs_lock.BucketLock(RUN)
    monkeypatch.setattr(filesystem, "write", counting)
    until = time.monotonic() + 30
    while len(written) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    held.release()
    assert json.loads(written[0]) == json.loads(written[1]) == held._mine


def test_a_lock_that_says_nothing_is_taken_over_when_it_is_old(caplog):
    filesystem.write(PATH, b"{")
    run_alone()
    assert "left over from a run that did not finish writing its lock" in caplog.text


def test_a_run_whose_lock_was_taken_ends_at_once(gcs):
    process = starter()
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "won\n"
    other = workdir_lock.this_process() | {"host": "usurper", "token": "x"}
    filesystem.write(PATH, json.dumps(other).encode())
    status, said = process.wait(60), process.stderr.read()
    assert status == 1 and "belongs to process" in said and "on usurper" in said
    assert json.loads(filesystem.read(PATH)) == other
