"""launch/babysit.sh: when it restarts the run, recreates the TPU, or gives up."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.pod import NODE, Pod, wait_until

ARGS = (*NODE, "--type=v4-16", "--poll_seconds=0.2")
FLAGS = ("--", "--config=c.py", "--workdir=gs://bucket/run")


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    pod = Pod(tmp_path)
    yield pod
    pod.close()


def events(out: str) -> list[str]:
    return re.findall(r"^[\d-]+ [\d:]+ babysit: (.*)", out, re.M)


def test_a_node_that_is_taken_away_is_made_again(pod: Pod) -> None:
    pod.tell(lose=1)  # the first check finds no node, so ssh is only called in the loop
    pod.plan("stay", 0)
    status, out = pod.run("babysit.sh", *ARGS, "--spot", "--wait_minutes=1", *FLAGS)
    assert status == 0, out
    assert events(out)[2:] == [
        "try 1 of 20: starting the run",
        "no answer from a worker or from Google Cloud: still checking",
        "mine was preempted",
        "try 2 of 20: creating mine",
        "setting up mine",
        "try 2 of 20: starting the run",
        "the run is done",
    ]
    assert pod.calls().count("queued-resources create") == 2
    assert pod.calls().count("tpu-vm scp") == 2


def test_a_run_that_stopped_after_saving_is_started_again_on_the_same_node(pod: Pod) -> None:
    pod.plan(75, 70, 0)
    status, out = pod.run("babysit.sh", *ARGS, "--delete_when_done", *FLAGS)
    assert status == 0, out
    told = events(out)
    assert told.index("the run stopped after saving") < told.index(
        "the run was ended by the watchdog"
    )
    assert pod.starts(0) == pod.starts(1) == 3
    assert pod.calls().count("tpu-vm create") == pod.calls().count("tpu-vm scp") == 1
    assert not pod.node.exists()


def test_an_error_is_the_end_and_shows_the_log(pod: Pod) -> None:
    pod.ready()
    pod.plan(1, 0)
    status, out = pod.run("babysit.sh", *ARGS, *FLAGS)
    assert status == 1 and "exit status 1" in events(out)[-1]
    assert "0: last words of 0" in out and "1: last words of 1" in out
    assert pod.starts(0) == 1 and pod.node.exists()


def test_gives_up_when_there_is_never_a_node(pod: Pod) -> None:
    pod.tell(quota=9)
    status, out = pod.run("babysit.sh", *ARGS, "--tries=3", "--poll_seconds=0.1", *FLAGS)
    assert status == 1 and "RESOURCE_EXHAUSTED" in out
    pauses = [event for event in events(out) if event.startswith("retrying")]
    assert pauses == ["retrying in 0.1 s", "retrying in 0.2 s"]
    assert events(out)[-1] == "gave up after 3 tries"
    assert pod.calls().count("tpu-vm create") == 3


def test_a_lost_connection_is_no_verdict(pod: Pod) -> None:
    pod.ready()
    pod.plan("stay")
    process = pod.start("babysit.sh", *ARGS, "--tries=1", *FLAGS)
    wait_until(lambda: pod.starts(0) and pod.starts(1))
    pod.tell(down=3)
    wait_until(lambda: (pod.folder / "down").read_text() == "0")
    assert process.poll() is None
    assert pod.pod("stop", "--poll_seconds=0.1")[0] == 0
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 1 and "no answer from a worker" in out
    assert events(out)[-2:] == ["the run stopped after saving", "gave up after 1 tries"]


def test_ctrl_c_leaves_the_run_alone_and_the_next_one_watches_it(pod: Pod) -> None:
    pod.ready()
    pod.plan("stay")
    process = pod.start("babysit.sh", *ARGS, *FLAGS)
    wait_until(lambda: pod.starts(0) and pod.starts(1))
    wait_until(lambda: any("worker.sh status" in line for line in asked(pod)[2:]))
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130 and "it continues" in events(out)[-1]
    assert pod.pod("status")[0] == 3
    process = pod.start("babysit.sh", *ARGS, "--tries=1", *FLAGS)
    assert process.stdout and "watching it" in process.stdout.readline()
    pod.pod("stop", "--poll_seconds=0.1")
    process.communicate(timeout=20)
    assert process.returncode == 1 and pod.starts(0) == 1


def asked(pod: Pod) -> list[str]:
    return (pod.folder / "calls").read_text().splitlines()


def test_a_dry_run_executes_nothing(pod: Pod) -> None:
    status, out = pod.run("babysit.sh", *ARGS, "--dry_run", "--delete_when_done", *FLAGS)
    assert status == 0 and pod.calls() == []
    verbs = ("tpu-vm create", "tpu-vm scp", "worker.sh start", "worker.sh status;", "tpu-vm delete")
    places = [out.index(verb) for verb in verbs]
    assert places == sorted(places)


SHARE = "--nfs=10.0.0.2:/share"


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ([], ["--workdir=gs://bucket/run"]),
        ([], ["--workdir", "gs://bucket/run"]),
        ([SHARE], ["--workdir=/mnt/mae_jax/run"]),
        ([SHARE], ["--workdir=gs://bucket/run"]),
        (["--nfs=none"], ["--workdir=/disk/run"]),
        (["--nfs=none"], []),
    ],
)
def test_a_workdir_that_outlives_the_node(pod: Pod, options: list[str], flags: list[str]) -> None:
    status, out = pod.run("babysit.sh", *ARGS, "--dry_run", *options, "--", "--config=c.py", *flags)
    assert status == 0, out
    assert (SHARE in out) == (SHARE in options)  # nothing is mounted without the option
    (start,) = (line for line in out.splitlines() if "worker.sh start" in line)
    assert " ".join(["--config=c.py", *flags, "--config.watchdog.abort=True"]) in start


@pytest.mark.parametrize(
    ("options", "flags", "named"),
    [
        ([], [], "runs/NAME"),
        ([], ["--workdir=runs/mine"], "runs/mine"),
        ([], ["--workdir", "/mnt/mae_jax/run"], "/mnt/mae_jax/run"),
        ([], ["--workdir=gs://bucket/run", "--workdir=/disk/run"], "/disk/run"),
        ([], ["--config.data.root=gs://bucket/data", "--workdir=run"], "run"),
        ([], ["--workdir=gs://"], "gs://"),
        ([SHARE], ["--workdir=/home/me/run"], "/home/me/run"),
        ([SHARE], ["--workdir=/mnt/mae_jax/"], "/mnt/mae_jax/"),
    ],
)
def test_a_workdir_that_is_lost_with_the_node_is_refused(
    pod: Pod, options: list[str], flags: list[str], named: str
) -> None:
    status, out = pod.run("babysit.sh", *ARGS, *options, "--", "--config=c.py", *flags)
    assert status == 2 and out.count("\n") == 1
    assert f"the workdir {named} is on the TPU's own disk" in out
    assert "--workdir=gs://" in out and "--nfs=HOST:/SHARE" in out
    assert pod.calls() == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--zone=z", "--type=v4-8"], "name"),
        ([*NODE], "--type="),
        (["mine", "--type=v4-8"], "--zone="),
        ([*NODE, "--type=v4-8", "--config=c.py"], "unknown option '--config=c.py'"),
        ([*NODE, "--type=v4-8"], "after --"),
        ([*NODE, "--type=v4-8", "--tries=0", *FLAGS], "--tries=0"),
        ([*NODE, "--type=v4-8", "--nfs=share", *FLAGS], "unknown option '--nfs=share'"),
        ([*NODE, "--type=v4-8", "--env=NAME", *FLAGS], "unknown option '--env=NAME'"),
        ([*NODE, "--type=v9-8", *FLAGS], "--runtime="),
    ],
)
def test_bad_input_is_named(pod: Pod, args: list[str], message: str) -> None:
    status, out = pod.run("babysit.sh", *args)
    assert (status, message in out) == (2, True), out
    assert not any("create" in call for call in pod.calls())
