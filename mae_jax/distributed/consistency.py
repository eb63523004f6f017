"""Checks that all processes of a run agree on code, config, and data before anything is compiled.

They communicate through the key-value store rather than `multihost_utils.process_allgather`, which
is itself a compiled program over all devices: with mismatched versions or devices it would be the
first thing to hang or crash, and it has no timeout.
"""

import collections
import contextlib
import hashlib
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from mae_jax.config.diff import flatten
from mae_jax.distributed.kv_store import KVStore, Store
from mae_jax.runtime import environment, filesystem
from mae_jax.runtime.errors import UsageError

log = logging.getLogger(__name__)
WAIT_SECONDS = 1800.0  # for the slowest process; listing the data may take long
PROBE_SECONDS = 10.0  # within which a new file must be visible on all hosts
CLOCK_SECONDS = 60.0  # by which clocks may differ
# Config keys that may differ between hosts.
PER_HOST = ("data.root", "data.workers", "data.prefetch", "data.cache", "data.cache_gb")
MAX_LISTED = 4  # items of one kind in a message
# What is compared, by kind, and the remedy if it differs.
REMEDIES = {
    "versions": "install the same requirements everywhere",
    "code": "give every host the same files of mae_jax",
    "devices": "use hosts with the same devices",
    "config": "start every process with the same command",
    "facts": "give every host the same data and the same command",
}
Record = dict[str, Any]  # from `describe`


def check_consistency(config: Any, workdir: str, facts: dict[str, Any]) -> None:
    """Compares the processes of a run. Every process must call this; it does nothing for one.

    Compares package versions, source files of this package, type and number of devices, config, and
    `facts`, and checks that all processes see the workdir. A clock that is far off only leads to a
    warning.

    Args:
      config: the whole configuration.
      workdir: folder of the run.
      facts: JSON-serializable values by name that must be the same everywhere.

    Raises:
      UsageError: on every process; names the processes that differ, that failed (see
        `propagate_startup_error`), or that did not start.
    """
    if jax.process_count() == 1:
        return
    with propagate_startup_error():
        record = describe(config, workdir, facts)
        verdict = exchange(KVStore("consistency"), jax.process_index(), jax.process_count(), record)
    if verdict:
        raise UsageError(verdict)


@contextlib.contextmanager
def propagate_startup_error() -> Iterator[None]:
    """Context for the startup before `check_consistency`: an error there also ends the others."""
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1:
            publish_error(KVStore("consistency"), jax.process_index(), error)
        raise


def publish_error(store: Store, index: int, error: Exception) -> None:
    """Tells the others that this process failed, and why."""
    record = {"host": socket.gethostname(), "error": str(error) or type(error).__name__}
    if index == 0:
        store.set("verdict", _verdict(disagreement([record])))
        store.set("probe", "")  # no file to look for
        store.set("number", "")
    else:
        store.set(f"record/{index}", json.dumps(record))


def from_primary(number: int) -> int:
    """Process 0's number on every process; may be called once, before `check_consistency`.

    Raises:
      UsageError: process 0 failed before.
    """
    if jax.process_count() == 1:
        return number
    return _pass_on(KVStore("consistency"), jax.process_index(), number)


def _pass_on(store: Store, index: int, number: int) -> int:
    if index == 0:
        store.set("number", str(number))
        return number
    text = store.get("number", until=time.monotonic() + WAIT_SECONDS, who="process 0")
    if not text:
        raise UsageError("process 0 failed during startup: see its log")
    return int(text)


def describe(config: Any, workdir: str, facts: dict[str, Any]) -> Record:
    """The record of this process."""
    device = jax.local_devices()[0].device_kind
    settings = {f"--config.{k}": v for k, v in flatten(config).items() if k not in PER_HOST}
    # The same data may be in another folder on another host.
    shared = {k: v for k, v in flatten(facts).items() if k.split(".")[-1] != "root"}
    return {
        "host": socket.gethostname(),
        "workdir": workdir,
        "revision": environment.git_revision(),
        "versions": environment.versions(),
        "code": {"source files": _source_digest()},
        "devices": {"devices": f"{jax.local_device_count()} x {device}"},
        "config": settings,
        "facts": shared,
    }


def _source_digest() -> str:
    """Hash of the package's source files; unlike a git revision it reflects uncommitted edits."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]  # mae_jax/
    for path in sorted(root.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:12]


def exchange(store: Store, index: int, count: int, record: Record) -> str | None:
    """This process's part of the comparison: process 0 collects and compares all records.

    Args:
      store: shared by all processes.
      index: index of this process.
      count: number of processes.
      record: from `describe`.

    Returns:
      The problem, or None; the same on every process.

    Raises:
      UsageError: a process did not start, or process 0 cannot write to the workdir.
    """
    until = time.monotonic() + WAIT_SECONDS
    if index == 0:
        with _probe(record["workdir"]) as name:
            store.set("probe", name)
            texts = [
                store.get(f"record/{i}", until=until, who=f"process {i}") for i in range(1, count)
            ]
        problem = disagreement([record, *map(json.loads, texts)])
        store.set("verdict", _verdict(problem))
        return problem
    name = store.get("probe", until=until, who="process 0")
    sees = bool(name) and _appears(os.path.join(record["workdir"], name))
    store.set(f"record/{index}", json.dumps(record | {"sees": sees}, default=list))
    # Slightly longer than process 0 waits, so that its verdict says which process is missing.
    until = time.monotonic() + WAIT_SECONDS + 60
    verdict = json.loads(store.get("verdict", until=until, who="process 0"))
    # All processes receive the verdict at about the same time.
    ahead = time.time() - verdict["clock"]
    if abs(ahead) > CLOCK_SECONDS:
        log.warning(
            "the clock of process %d (%s) is %.0f s %s that of process 0 (%s): timestamps of files "
            "and logs will be misleading; synchronize the clocks with NTP",
            *(index, record["host"], abs(ahead), "ahead of" if ahead > 0 else "behind"),
            verdict["host"],
        )
    return verdict["problem"]


def _verdict(problem: str | None) -> str:
    return json.dumps({"problem": problem, "clock": time.time(), "host": socket.gethostname()})


@contextlib.contextmanager
def _probe(workdir: str) -> Iterator[str]:
    """Context with a new file in the workdir; yields its name."""
    name = f".probe-{secrets.token_hex(8)}"  # unique, so no host has cached its absence
    path = os.path.join(workdir, name)
    try:
        filesystem.write(path, b"")
    except OSError as error:
        raise UsageError(f"cannot write to --workdir={workdir}: {error.strerror}") from error
    try:
        yield name
    finally:
        filesystem.remove(path)


def _appears(path: str) -> bool:
    """Whether a file exists or appears soon: network disks may be delayed."""
    until = time.monotonic() + PROBE_SECONDS
    while not filesystem.exists(path):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def disagreement(records: list[Record]) -> str | None:
    """One line that lists all differences between processes, or None.

    Args:
      records: records of processes 0, 1, ...
    """
    failed = {i: r["error"] for i, r in enumerate(records) if "error" in r}
    if failed:
        first = min(failed)
        return f"{_who([first], records)} failed during startup: {failed[first]}"
    lines = []
    for kind, remedy in REMEDIES.items():
        found = _differences(kind, records)
        if found:
            more = f" and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
            lines.append(f"{'; '.join(found[:MAX_LISTED])}{more}: {remedy}")
    return "; ".join([*lines, *_not_shared(records)]) or None


def _differences(kind: str, records: list[Record]) -> list[str]:
    """One message for each value that differs from the most common one."""
    names = dict.fromkeys(name for record in records for name in record[kind])
    lines = []
    for name in names:
        groups = collections.defaultdict(list)  # value -> processes
        for i, record in enumerate(records):
            groups[json.dumps(record[kind].get(name), default=list)].append(i)
        if len(groups) == 1:
            continue
        majority = max(groups.values(), key=len)
        expected = _shown(records[majority[0]], kind, name)
        others = f"{len(majority)} others" if len(majority) > 1 else _who(majority, records)
        lines += [
            f"{_who(group, records)}: {name} {_shown(records[group[0]], kind, name)}, but "
            f"{expected} on {others}"
            for group in groups.values()
            if group is not majority
        ]
    return lines


def _shown(record: Record, kind: str, name: str) -> str:
    value = record[kind].get(name)
    text = value if isinstance(value, str) and value else json.dumps(value, default=list)
    # The revision is only shown, not compared: it is unknown on a host without git.
    return f"{text} (git {record['revision']})" if kind == "code" else text


def _not_shared(records: list[Record]) -> list[str]:
    blind = [i for i, record in enumerate(records) if not record.get("sees", True)]
    if not blind:
        return []
    where = records[0]["workdir"]
    elsewhere = sorted({records[i]["workdir"] for i in blind} - {where})
    note = f" (their --workdir is {', '.join(elsewhere[:MAX_LISTED])})" if elsewhere else ""
    see = "does" if len(blind) == 1 else "do"
    return [
        f"workdir {where} is not shared: {_who(blind, records)} {see} not see the file that "
        f"{_who([0], records)} wrote{note}; use a folder that all hosts mount"
    ]


def _who(group: list[int], records: list[Record]) -> str:
    """Text such as "process 3 (node7)" or "processes 2, 3 (node2)"; long lists are truncated."""
    some = group[:MAX_LISTED]
    hosts = ", ".join(dict.fromkeys(records[i]["host"] for i in some))
    more = f" and {len(group) - MAX_LISTED} more" if len(group) > MAX_LISTED else ""
    word = "process" if len(group) == 1 else "processes"
    return f"{word} {', '.join(map(str, some))}{more} ({hosts})"
