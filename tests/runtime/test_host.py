"""CPUs and memory that a process may use."""

import os

from mae_jax.runtime import host


def test_a_system_that_limits_no_process_to_some_cpus(monkeypatch):
    """macOS lacks this call."""
    assert 1 <= host.usable_cpus() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert host.usable_cpus() == os.cpu_count()


def test_processes_of_a_host_share(monkeypatch):
    assert host.share(1000) == 1000
    monkeypatch.setattr(host, "processes", 8)
    assert host.share(1000) == 125
