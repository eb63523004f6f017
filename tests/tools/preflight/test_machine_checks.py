"""Checks of the machines, each with the fault that it detects."""

import builtins
import collections
import io
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from mae_jax.distributed import sharding
from mae_jax.runtime import disk, environment
from mae_jax.tools.preflight import machine_checks
from mae_jax.tools.preflight.run import FAILED, OK, WARNING


def test_an_accelerator_that_jax_does_not_see(monkeypatch):
    monkeypatch.setattr(machine_checks.glob, "glob", lambda pattern: [])
    assert machine_checks.devices().mark == OK
    monkeypatch.setattr(
        machine_checks.glob, "glob", lambda pattern: [pattern] * ("nvidia" in pattern)
    )
    row = machine_checks.devices()
    assert row.mark == WARNING and "nvidia" in row.advice
    assert row.result == f"{jax.device_count()} x cpu, {jax.local_device_count()} in this process"


def test_versions_are_those_that_a_run_records(monkeypatch):
    monkeypatch.setattr(environment, "versions", lambda: {"python": "3.11", "jax": "0.1"})
    monkeypatch.setattr(environment, "git_revision", lambda: "abc+changes")
    assert machine_checks.versions() == (
        OK,
        "versions",
        "python 3.11, jax 0.1, git abc+changes",
        "",
    )


@pytest.fixture
def three_gigabytes(monkeypatch):
    """Free on every disk."""
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage(10**9, 0, 3 * 10**9))
    monkeypatch.setattr(machine_checks, "_file_system", lambda _: "ext4")


def test_too_little_disk_space(tmp_path, three_gigabytes):
    row = machine_checks.disk_space(str(tmp_path / "not" / "there"), 10**9, keep=3)
    assert row.mark == FAILED and "4 more checkpoints take 4.0 GB" in row.result
    assert row.result.startswith("3.0 GB free (ext4), ")
    assert "--config.checkpoint.keep" in row.advice
    assert machine_checks.disk_space(str(tmp_path), 10**9, keep=2).mark == OK
    assert (
        machine_checks.disk_space(str(tmp_path), 10**9, keep=3, existing=3).mark == OK
    )  # a run that continues


def test_a_disk_that_is_memory(tmp_path, three_gigabytes, monkeypatch):
    monkeypatch.setattr(machine_checks, "_file_system", lambda _: "tmpfs")
    row = machine_checks.disk_space(str(tmp_path), 1, keep=1)
    assert row.mark == WARNING and "lost with the machine" in row.advice


MOUNTS = """\
overlay / overlay rw 0 0
/dev/sda /data xfs rw 0 0
tmpfs /data/in\\040memory tmpfs rw 0 0
server:/runs /data/runs nfs4 rw 0 0
old:/over /over nfs rw 0 0
tmpfs /over tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    "folder, kind",
    [
        ("/home", "overlay"),
        ("/data", "xfs"),
        ("/data/runs/a", "nfs4"),
        ("/data/runs2", "xfs"),
        ("/data/in memory", "tmpfs"),
        ("/over/x", "tmpfs"),
    ],
)
def test_the_file_system_of_a_folder(monkeypatch, folder, kind):
    monkeypatch.setattr(builtins, "open", lambda *_, **__: io.StringIO(MOUNTS))
    assert machine_checks._file_system(folder) == kind


def test_mounts_that_are_unknown(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", missing)
    row = machine_checks.disk_space(str(tmp_path), 1, keep=1)
    assert row.mark == OK and "GB free, 2 more" in row.result


@pytest.mark.parametrize("free, mark", [(5e9, OK), (3e9, WARNING)])
def test_memory_of_the_host(monkeypatch, free, mark):
    monkeypatch.setattr(machine_checks.host, "available_memory", lambda: int(free))
    row = machine_checks.host_memory()
    assert row.mark == mark and f"{free / 1e9:.1f} GB of memory free" in row.result
    assert mark == OK or "data.cache" in row.advice


@pytest.mark.parametrize("apart, mark", [(10, OK), (300, WARNING)])
def test_clocks(monkeypatch, apart, mark):
    monkeypatch.setattr(machine_checks.collectives, "all_gather", lambda v: [v, v + 1, v + apart])
    row = machine_checks.clocks()
    assert row.mark == mark and f"{apart} s" in row.result
    assert mark == OK or "process 2" in row.advice


def test_a_sum_over_all_devices():
    mesh = sharding.make_mesh(data=2, fsdp=2)
    row = machine_checks.all_reduce(mesh)
    assert row.mark == OK and "4 MB in " in row.result and "GB/s per device" in row.result
    single = sharding.make_mesh(devices=jax.devices()[:1])
    assert machine_checks.all_reduce(single) == (OK, "all-reduce", "one device", "")


@pytest.mark.parametrize("place", [(0, 0), (3, -1)])
def test_a_sum_that_is_wrong(monkeypatch, place):
    """In any single number."""
    right = machine_checks._numbered
    monkeypatch.setattr(machine_checks, "_numbered", lambda *words: right(*words).at[place].add(1))
    row = machine_checks.all_reduce(sharding.make_mesh())
    assert row.mark == FAILED and "wrong on" in row.result and "broken" in row.advice


def test_a_device_that_is_left_out_of_the_sum(monkeypatch):
    """Every device adds a different number, so counting one twice instead of another shows."""
    right = machine_checks._numbered
    monkeypatch.setattr(
        machine_checks, "_numbered", lambda *words: jnp.roll(right(*words), 1, 0).at[0].set(1)
    )
    assert machine_checks.all_reduce(sharding.make_mesh()).mark == FAILED


@pytest.mark.parametrize("peaks, mark", [((50, 80), OK), ((95, 50), WARNING), ((50, 95), WARNING)])
def test_memory_of_the_fullest_device(peaks, mark):
    def device(peak):
        stats = {"peak_bytes_in_use": peak * 10**9, "bytes_limit": 10**11}
        return SimpleNamespace(memory_stats=lambda: stats)

    (row,) = machine_checks.device_memory([device(peak) for peak in peaks])
    assert row.mark == mark and f"{max(peaks)}.0 of 100.0 GB" in row.result
    assert mark == OK or "performance.md" in row.advice


def test_devices_without_memory_statistics_have_no_row():
    assert machine_checks.device_memory([SimpleNamespace(memory_stats=lambda: None)]) == []
