"""Two real processes that compare their setups; one of them hangs."""

import glob
import os
import re
import signal
import socket

import pytest

from tests.helpers.processes import run_two

# Its arguments: coordinator, index, workdir, what to do. The same as `mae_jax.main` in small.
CHILD = """
import os, sys, time
import jax
from mae_jax.distributed import consistency
from mae_jax.runtime import errors
from mae_jax.distributed import kv_store
from mae_jax.runtime import watchdog

address, index, workdir, what = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
consistency.PROBE_SECONDS = 0.5

def main():
    try:
        kv_store.KVStore("consistency").get("never", until=time.monotonic() + 0.2, who="process 7")
    except errors.UsageError as error:
        print(error)
    with consistency.propagate_startup_error():
        if what == "fail" and index == "1":
            raise errors.UsageError("--config.data.root=/d does not exist")
    lr = 0.2 if what == "differ" and index == "1" else 0.1
    consistency.check_consistency({"optim": {"base_lr": lr}}, workdir, {"data": {"hash": "d1"}})
    if what == "hang":
        try:
            hang()
        except Exception:  # the other process was ended first
            os.abort()

def hang():
    from jax.experimental import multihost_utils
    dog = watchdog.Watchdog(
        seconds=2.0, start_seconds=60.0, abort=True, workdir=workdir, process=jax.process_index()
    )
    multihost_utils.sync_global_devices("compiled")
    with dog.phase("train"):
        for step in range(1, 6):
            if step == 4 and index == "1":
                time.sleep(60)
            multihost_utils.sync_global_devices("step")
            dog.heartbeat(step)

try:
    main()
except errors.UsageError as error:
    print(f"error: {error}")
    sys.exit(2)
"""


def run_both(what, workdirs):
    """(exit status, stdout and stderr) of both."""
    results = run_two(CHILD, [[str(workdir), what] for workdir in workdirs], timeout=120)
    return [(status, output + errors) for status, output, errors in results]


def errors(results):
    """The last line of each."""
    lines = []
    for status, output in results:
        assert status == 2, output
        lines += re.findall("^error: (.*)$", output, re.M)
    return lines


def test_processes_that_differ_stop_with_the_same_line(tmp_path):
    results = run_both("differ", [tmp_path / "a", tmp_path / "b"])
    lines = errors(results)
    assert len(lines) == 2 and len(set(lines)) == 1
    host = socket.gethostname()
    assert lines[0].startswith(
        f"process 1 ({host}): --config.optim.base_lr 0.2, but 0.1 on process 0 ({host}): start "
        f"every process with the same command; workdir {tmp_path / 'a'} is not shared: process 1 ("
    )
    assert os.listdir(tmp_path) == ["a"] and not os.listdir(tmp_path / "a")
    for _, output in results:  # waiting for what never comes ends, and harms nothing
        assert "process 7 did not start in time" in output


@pytest.mark.slow
def test_what_stops_one_process_stops_the_other(tmp_path):
    first, second = errors(run_both("fail", [tmp_path, tmp_path]))
    assert second == "--config.data.root=/d does not exist"
    assert first == f"process 1 ({socket.gethostname()}) failed during startup: {second}"


def test_of_two_processes_the_one_that_hangs_is_seen(tmp_path):
    results = run_both("hang", [tmp_path, tmp_path])
    # The first to be ended may take the other with it, which then aborts.
    assert {status for status, _ in results} <= {70, -signal.SIGABRT}, results
    ended = [index for index, (status, _) in enumerate(results) if status == 70]
    assert ended
    for index in ended:
        (path,) = glob.glob(str(tmp_path / f"stuck-{index}-*.txt"))
        with open(path, encoding="utf-8") as file:
            report = file.read()
        assert report.startswith(f"process {index} (")
        assert "in phase train after step 3\n" in report
        main = report.split("\n\n")[1]
        assert "in hang\n" in main
        assert ("multihost_utils.py" in main) == (index == 0), main  # it waits for the other one
