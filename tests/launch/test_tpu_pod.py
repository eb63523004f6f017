"""launch/tpu_pod.sh and launch/worker.sh, with a gcloud that runs everything on this machine."""

import os
import re
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.pod import NODE, Pod, wait_until

FLAGS = ("--", "--config=c.py", "--workdir=/two words")


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    pod = Pod(tmp_path)
    yield pod
    pod.close()


def test_from_nothing_to_a_run_that_ended_well(pod: Pod) -> None:
    pod.plan("stay", 0)
    assert pod.pod("status")[0] == 4
    assert pod.pod("create", "--type=v4-16")[0] == 0
    assert pod.pod("setup")[0] == 0
    assert pod.pod("status")[0] == 5
    assert pod.pod("run", "--env=COLOUR=light blue", *FLAGS)[0] == 0
    status, out = pod.pod("status")
    assert status == 3 and "mine is READY" in out
    assert re.search(r"worker 0: launch: running.*\nworker 1: launch: running", out)
    wait_until(lambda: pod.starts(0) and pod.starts(1))
    status, out = pod.pod("logs", "--lines=1")
    assert status == 0
    line = "start 1 on {0}: --config=c.py --workdir=/two words [light blue]"
    assert out.splitlines() == [f"{n}: {line.format(n)}" for n in (0, 1)]
    status, out = pod.pod("run", *FLAGS)
    assert status == 1 and "stop it first" in out and "worker(s) 0 1" in out
    assert pod.pod("status")[0] == 3
    status, out = pod.pod("setup")  # would replace the code under the run
    assert status == 1 and "a run is alive" in out
    status, out = pod.pod("stop", "--poll_seconds=0.2")
    assert status == 0 and out.count("stopped after saving") == 2
    assert pod.pod("status")[0] == 75
    assert pod.pod("run", *FLAGS)[0] == 0
    wait_until(lambda: pod.pod("status")[0] == 0)
    assert pod.pod("delete")[0] == 0
    assert not pod.node.exists()
    assert pod.pod("delete")[0] == 0


def test_create_is_idempotent_and_makes_a_lost_node_again(pod: Pod) -> None:
    status, out = pod.pod("create", "--type=v4-16")
    assert status == 0 and "2 worker(s)" in out
    assert pod.pod("create", "--type=v4-16")[0] == 0
    assert pod.calls().count("tpu-vm create") == 1
    (pod.node / "state").write_text("PREEMPTED")
    assert pod.pod("status")[0] == 4
    assert pod.pod("create", "--type=v4-16")[0] == 0
    assert pod.calls().count("tpu-vm delete") == 1
    assert pod.calls().count("tpu-vm create") == 2


def test_spot_is_queued_and_waited_for(pod: Pod) -> None:
    args = ("create", "--type=v5litepod-16", "--spot", "--poll_seconds=0.1")
    status, out = pod.pod(*args)
    assert status == 0 and "mine is WAITING_FOR_RESOURCES" in out
    created = next(
        line for line in (pod.folder / "calls").read_text().splitlines() if "spot" in line
    )
    assert "--runtime-version=v2-alpha-tpuv5-lite" in created and "tpu-vm create" not in pod.calls()
    (pod.node / "state").write_text("PREEMPTED")
    assert pod.pod(*args)[0] == 0
    assert pod.calls().count("queued-resources create") == 2
    assert pod.pod("delete")[0] == 0
    assert not (pod.folder / "queues" / "mine").exists()


def test_no_quota(pod: Pod) -> None:
    pod.tell(quota=1)
    status, out = pod.pod("create", "--type=v4-16")
    assert status == 1 and "RESOURCE_EXHAUSTED" in out and "another --zone" in out


def test_a_cloud_that_does_not_answer_is_not_taken_for_an_absent_node(pod: Pod) -> None:
    pod.ready()
    pod.tell(unreachable="yes")
    assert pod.pod("status")[0] == 7
    status, out = pod.pod("create", "--type=v4-16")
    assert status == 1 and "Could not reach the server" in out
    assert "tpu-vm create" not in pod.calls()


def test_workers_that_fail_are_named(pod: Pod) -> None:
    assert pod.pod("create", "--type=v4-16")[0] == 0
    pod.tell(no_copy=1)
    status, out = pod.pod("setup")
    assert status == 1 and "worker 1 failed" in out
    pod.tell(no_copy="", no_answer=1)
    status, out = pod.pod("setup")
    assert status == 1 and "not set up: worker(s) 1" in out and "worker 1: no answer" in out
    pod.tell(no_answer="")
    assert pod.pod("setup")[0] == 0
    pod.plan("stay")
    pod.tell(no_answer=1)
    status, out = pod.pod("run", *FLAGS)
    assert status == 1 and "not started on worker(s) 1" in out
    assert pod.pod("status")[0] == 7
    pod.tell(no_answer="")
    wait_until(lambda: pod.pod("status")[0] == 5)  # not left waiting (3) for the other worker


def test_setup_replaces_the_code_and_keeps_what_is_not_code(pod: Pod) -> None:
    pod.ready()
    there = pod.node / "0" / "mae_jax"
    for kept in (".venv", "runs"):
        (there / kept).mkdir()
        (there / kept / "file").touch()
    (there / "old.py").touch()
    (pod.repo / "new.py").touch()
    assert pod.pod("setup")[0] == 0
    assert (there / "new.py").exists() and not (there / "old.py").exists()
    assert (there / ".venv" / "file").exists() and (there / "runs" / "file").exists()


def test_what_git_tracks_is_copied_as_it_is_on_disk(pod: Pod) -> None:
    def git(*args: str) -> None:
        subprocess.run(["git", "-C", str(pod.repo), *args], check=True, capture_output=True)

    for name in ("a b.py", "deleted.py"):
        (pod.repo / name).write_text("old")
    git("init")
    git("add", ".")
    (pod.repo / "a b.py").write_text("changed")
    (pod.repo / "deleted.py").unlink()
    (pod.repo / "secret").touch()
    assert pod.pod("create", "--type=v4-16")[0] == 0
    status, out = pod.pod("setup")
    assert status == 0 and "launch:   secret" in out
    there = pod.node / "1" / "mae_jax"
    assert (there / "a b.py").read_text() == "changed"
    assert not (there / "secret").exists() and not (there / "deleted.py").exists()
    assert not (there / ".git").exists()


def hold(pod: Pod, worker: int, device: str) -> Path:
    """A process in the fake /proc of a worker that has a file open."""
    process = pod.node / str(worker) / "root" / "proc" / "4242"
    (process / "fd").mkdir(parents=True)
    (process / "fd" / "3").symlink_to("/dev/null")
    (process / "fd" / "7").symlink_to(device)
    (process / "cmdline").write_text("python\0their_own.py\0")
    return process


@pytest.mark.parametrize("device", ["/dev/accel0", "/dev/vfio/3"])
def test_a_held_tpu_is_refused_and_a_stale_lock_is_removed(pod: Pod, device: str) -> None:
    pod.ready()
    pod.plan(0)
    lock = pod.node / "1" / "root" / "tmp" / "libtpu_lockfile"
    lock.parent.mkdir(parents=True)
    lock.touch()
    process = hold(pod, 1, device)
    status, out = pod.pod("run", *FLAGS)
    assert status == 1 and "held by process 4242: python their_own.py" in out
    assert "not started on worker(s) 1" in out and lock.exists()
    (process / "fd" / "7").unlink()
    (process / "fd" / "7").symlink_to("/dev/vfio/vfio")  # any container may have this open
    wait_until(lambda: pod.pod("status")[0] != 3)
    assert pod.pod("run", *FLAGS)[0] == 0
    assert not lock.exists()


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [(0, 1, 1), (75, 75, 75), (70, 134, 70), (2, 1, 2), (0, 0, 0), ("", 134, 6)],
)
def test_the_verdict_of_two_workers(pod: Pod, first: int | str, second: int, together: int) -> None:
    assert pod.pod("create", "--type=v4-16")[0] == 0
    for worker, own in enumerate((first, second)):
        home = pod.node / str(worker)
        (home / "mae_jax").symlink_to(pod.repo)
        (home / "mae_jax_run").mkdir()
        (home / "mae_jax_run" / "pid").write_text(f"{os.getpid()} 1 id\n")  # a reused PID
        if own != "":
            (home / "mae_jax_run" / "status").write_text(f"{own}\n")
    assert pod.pod("status")[0] == together


def test_a_worker_that_was_made_anew_is_set_up_again_whatever_the_others_say(pod: Pod) -> None:
    assert pod.pod("create", "--type=v4-16")[0] == 0
    home = pod.node / "1"
    (home / "mae_jax").symlink_to(pod.repo)
    (home / "mae_jax_run").mkdir()
    (home / "mae_jax_run" / "pid").write_text(f"{os.getpid()} 1 id\n")
    (home / "mae_jax_run" / "status").write_text("134\n")
    assert pod.pod("status")[0] == 5


def test_the_worker_script_by_hand(pod: Pod) -> None:
    pod.ready()
    pod.plan("stay", "stay", "stay")
    home = pod.node / "0"
    pod.env |= {"HOME": str(home), "MAE_JAX_SYSROOT": str(home / "root")}
    assert pod.run("worker.sh", "status")[0] == 5
    session = pod.start("worker.sh", "start", "--id=a", *FLAGS)  # as started by ssh
    assert session.wait(timeout=10) == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(session.pid, signal.SIGHUP)  # the run has its own session
    assert pod.run("worker.sh", "start", "--id=a", *FLAGS)[0] == 0  # ssh retried the command
    assert pod.starts(0) == 1
    assert pod.run("worker.sh", "stop", "--force", "--id=b")[0] == 0
    assert pod.run("worker.sh", "status")[0] == 3
    assert "asking" in pod.run("worker.sh", "stop")[1]
    wait_until(lambda: pod.run("worker.sh", "status")[0] == 75)
    assert pod.run("worker.sh", "start", *FLAGS)[0] == 0
    assert pod.run("worker.sh", "stop", "--force")[0] == 0
    wait_until(lambda: pod.run("worker.sh", "status")[0] == 137)
    assert pod.run("worker.sh", "start", *FLAGS)[0] == 0
    child = int((home / "mae_jax_run" / "pid").read_text().split()[0])
    os.killpg(os.getsid(child), signal.SIGKILL)  # the machine was lost
    wait_until(lambda: pod.run("worker.sh", "status")[0] == 6)


@pytest.mark.parametrize(
    ("action", "args", "verbs"),
    [
        ("create", ["--type=v4-16"], ["tpu-vm describe", "tpu-vm create"]),
        ("create", ["--type=v6e-16", "--spot"], ["queued-resources create"]),
        ("setup", [], ["tpu-vm describe", "tpu-vm scp", "tpu-vm ssh"]),
        ("run", ["--", "--config=c.py"], ["worker.sh start", "-- --config=c.py"]),
        ("logs", [], ["worker.sh log --lines=20"]),
        ("logs", ["--follow"], ["worker.sh log --lines=20 --follow"]),
        ("status", [], ["worker.sh status"]),
        ("stop", [], ["worker.sh stop", "worker.sh status"]),
        ("delete", [], ["queued-resources delete", "tpu-vm delete"]),
    ],
)
def test_a_dry_run_prints_and_executes_nothing(
    pod: Pod, action: str, args: list[str], verbs: list[str]
) -> None:
    status, out = pod.pod(action, "--dry_run", "--project=p", *args)
    assert status == 0, out
    assert pod.calls() == []
    assert all(verb in out for verb in verbs), out
    gcloud = [line for line in out.splitlines() if line.startswith("gcloud ")]
    assert gcloud and all("--zone=z --project=p" in line for line in gcloud)
    assert not list(pod.folder.parent.glob("mae_jax_pod.*"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give an action"),
        (["destroy", *NODE], "unknown action 'destroy'"),
        (["create", *NODE, "--tpye=v4-8"], "unknown option '--tpye=v4-8' of create"),
        (["create", *NODE], "needs --type="),
        (["create", *NODE, "--type=v9-8"], "--runtime="),
        (["status", "mine"], "--zone= is needed"),
        (["status", *NODE, "other"], "one name"),
        (["run", *NODE], "after --"),
        (["stop", *NODE, "--wait_minutes=soon"], "--wait_minutes=soon"),
    ],
)
def test_bad_input_is_named(pod: Pod, args: list[str], message: str) -> None:
    status, out = pod.run("tpu_pod.sh", *args)
    assert (status, message in out) == (2, True), out
    assert not any("create" in call for call in pod.calls())


def test_tar_without_git_leaves_out_what_is_not_code(pod: Pod) -> None:
    for name in (".venv/x", "runs/x"):
        (pod.repo / name).parent.mkdir()
        (pod.repo / name).touch()
    assert pod.pod("create", "--type=v4-16")[0] == 0
    pod.tell(no_copy=1)
    pod.pod("setup")
    with tarfile.open(pod.node / "0" / "mae_jax.tar.gz") as archive:
        names = archive.getnames()
    assert "./launch/worker.sh" in names
    assert not any("venv" in name or name.startswith("./runs") for name in names)


def test_setup_mounts_a_share_on_every_worker_once(pod: Pod) -> None:
    """mount and mountpoint are fake; /etc/fstab is in each worker's own root."""
    pod.ready()
    binaries = pod.folder.parent / "bin"
    for name in ("mount", "mount.nfs"):
        (binaries / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"$HOME/mounted"\n')
    (binaries / "mountpoint").write_text('#!/bin/sh\ntest -e "$HOME/mounted"\n')
    for name in ("mount", "mount.nfs", "mountpoint"):
        (binaries / name).chmod(0o755)
    for worker in "01":
        (pod.node / worker / "root" / "etc").mkdir(parents=True)
    for _ in range(2):
        status, out = pod.pod("setup", "--nfs=10.0.0.2:/share")
        assert status == 0, out
    for worker in "01":
        root = pod.node / worker / "root"
        line = f"10.0.0.2:/share {root}/mnt/mae_jax nfs defaults,_netdev 0 0\n"
        assert (root / "etc" / "fstab").read_text() == line
        assert (pod.node / worker / "mounted").read_text() == f"mount {root}/mnt/mae_jax\n"
    assert pod.pod("setup", "--nfs=share")[0] == 2
