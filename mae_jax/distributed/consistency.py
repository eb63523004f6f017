"""The processes of a run make sure, before anything is compiled, that they run the same thing.

They talk through a `store`, not in the public way: `multihost_utils.process_allgather` is itself a
compiled program over all devices, so with different versions or devices it is the first thing that
hangs or crashes, and it has no time limit.
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
WAIT_SECONDS = 1800.0  # for the slowest process; reading a listing may take long
PROBE_SECONDS = 10.0  # after which a file must be seen by all hosts
CLOCK_SECONDS = 60.0  # by which clocks may differ
# Keys of the configuration that may suit the host.
OWN = ("data.root", "data.workers", "data.prefetch", "data.cache", "data.cache_gb")
MOST = 4  # things of one kind that a message lists
# What a process says of itself, by kind, and what helps where it differs.
REMEDIES = {
    "versions": "install the same requirements everywhere",
    "code": "give every host the same files of mae_jax",
    "devices": "use hosts with the same devices",
    "config": "start every process with the same command",
    "facts": "give every host the same data and the same command",
}
Record = dict[str, Any]  # from `agreement.describe`


def check_consistency(config: Any, workdir: str, facts: dict[str, Any]) -> None:
    """Compares the processes; one process has nothing to compare. Called on all of them.

    Compared: installed versions, source files of this package, kind and number of devices,
    configuration, `facts`; and whether all of them see the workdir. A clock that is far off is only
    warned of.

    Args:
      config: the whole configuration.
      workdir: folder of the run; made if need be.
      facts: name -> anything JSON can say that must be the same everywhere.

    Raises:
      UsageError: on every process, naming those that differ, or that stopped (see `shared_errors`)
        or did not come.
    """
    if jax.process_count() == 1:
        return
    with propagate_startup_error():
        record = describe(config, workdir, facts)
        verdict = exchange(KVStore("agreement"), jax.process_index(), jax.process_count(), record)
    if verdict:
        raise UsageError(verdict)


@contextlib.contextmanager
def propagate_startup_error() -> Iterator[None]:
    """Around what comes before `check`: an error there also ends the wait of the others."""
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1:
            publish_error(KVStore("agreement"), jax.process_index(), error)
        raise


def publish_error(store: Store, index: int, error: Exception) -> None:
    """Tells the others that this process will not come, and why."""
    record = {"host": socket.gethostname(), "error": str(error) or type(error).__name__}
    if index == 0:
        store.set("verdict", _verdict(disagreement([record])))
        store.set("probe", "")  # nothing to look for
    else:
        store.set(f"record/{index}", json.dumps(record))


def describe(config: Any, workdir: str, facts: dict[str, Any]) -> Record:
    """What this process says of itself."""
    device = jax.local_devices()[0].device_kind
    settings = {f"--config.{k}": v for k, v in flatten(config).items() if k not in OWN}
    # The same data may lie elsewhere on another host.
    equal = {k: v for k, v in flatten(facts).items() if k.split(".")[-1] != "root"}
    return {
        "host": socket.gethostname(),
        "workdir": workdir,
        "revision": environment.git_revision(),
        "versions": environment.versions(),
        "code": {"source files": _source_digest()},
        "devices": {"devices": f"{jax.local_device_count()} x {device}"},
        "config": settings,
        "facts": equal,
    }


def _source_digest() -> str:
    """Of the package's files: also differs by an edit, also where there is no git."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]  # mae_jax/
    for path in sorted(root.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:12]


def exchange(store: Store, index: int, count: int, record: Record) -> str | None:
    """One process's part: process 0 asks for all records and says what is wrong with them.

    Args:
      store: shared by all of them.
      index: of this process.
      count: of processes.
      record: from `describe`.

    Returns:
      What is wrong, or None; the same on every process.

    Raises:
      UsageError: somebody did not come, or process 0 cannot write into the workdir.
    """
    until = time.monotonic() + WAIT_SECONDS
    if index == 0:
        with _probe(record["workdir"]) as name:
            store.set("probe", name)
            texts = [
                store.get(f"record/{i}", until=until, who=f"process {i}") for i in range(1, count)
            ]
        wrong = disagreement([record, *map(json.loads, texts)])
        store.set("verdict", _verdict(wrong))
        return wrong
    name = store.get("probe", until=until, who="process 0")
    sees = bool(name) and _appears(os.path.join(record["workdir"], name))
    store.set(f"record/{index}", json.dumps(record | {"sees": sees}, default=list))
    # A little longer than process 0 waits: then its verdict says who is missing.
    until = time.monotonic() + WAIT_SECONDS + 60
    verdict = json.loads(store.get("verdict", until=until, who="process 0"))
    # All of them waited for this very moment.
    ahead = time.time() - verdict["clock"]
    if abs(ahead) > CLOCK_SECONDS:
        log.warning(
            "the clock of process %d (%s) is %.0f s %s that of process 0 (%s): dates of files and "
            "logs mislead; set the clocks by NTP",
            *(index, record["host"], abs(ahead), "ahead of" if ahead > 0 else "behind"),
            verdict["host"],
        )
    return verdict["wrong"]


def _verdict(wrong: str | None) -> str:
    return json.dumps({"wrong": wrong, "clock": time.time(), "host": socket.gethostname()})


@contextlib.contextmanager
def _probe(workdir: str) -> Iterator[str]:
    """A new file in the workdir, for a while; its name."""
    name = f".probe-{secrets.token_hex(8)}"  # never seen before, so no host remembers its absence
    path = os.path.join(workdir, name)
    try:
        filesystem.write(path, b"")
    except OSError as error:
        raise UsageError(f"cannot write into --workdir={workdir}: {error.strerror}") from error
    try:
        yield name
    finally:
        filesystem.remove(path)


def _appears(path: str) -> bool:
    """Whether a file is there, or soon is: network disks may need a moment."""
    until = time.monotonic() + PROBE_SECONDS
    while not filesystem.exists(path):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def disagreement(records: list[Record]) -> str | None:
    """One line on all that is wrong between processes, or None.

    Args:
      records: of process 0, 1, ...
    """
    failed = {i: r["error"] for i, r in enumerate(records) if "error" in r}
    if failed:
        first = min(failed)
        return f"{_who([first], records)} stopped at its start: {failed[first]}"
    lines = []
    for kind, remedy in REMEDIES.items():
        found = _differences(kind, records)
        if found:
            more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
            lines.append(f"{'; '.join(found[:MOST])}{more}: {remedy}")
    return "; ".join([*lines, *_not_shared(records)]) or None


def _differences(kind: str, records: list[Record]) -> list[str]:
    """One text for each value of each name that is not the commonest one, or process 0's."""
    names = dict.fromkeys(name for record in records for name in record[kind])
    lines = []
    for name in names:
        groups = collections.defaultdict(list)  # value -> processes
        for i, record in enumerate(records):
            groups[json.dumps(record[kind].get(name), default=list)].append(i)
        if len(groups) == 1:
            continue
        most = max(groups.values(), key=len)
        usual = _shown(records[most[0]], kind, name)
        others = f"{len(most)} others" if len(most) > 1 else _who(most, records)
        lines += [
            f"{_who(group, records)}: {name} {_shown(records[group[0]], kind, name)}, but {usual} "
            f"on {others}"
            for group in groups.values()
            if group is not most
        ]
    return lines


def _shown(record: Record, kind: str, name: str) -> str:
    value = record[kind].get(name)
    text = value if isinstance(value, str) and value else json.dumps(value, default=list)
    # The revision only explains: it is unknown on a host without git.
    return f"{text} (git {record['revision']})" if kind == "code" else text


def _not_shared(records: list[Record]) -> list[str]:
    blind = [i for i, record in enumerate(records) if not record.get("sees", True)]
    if not blind:
        return []
    where = records[0]["workdir"]
    elsewhere = sorted({records[i]["workdir"] for i in blind} - {where})
    note = f" (their --workdir is {', '.join(elsewhere[:MOST])})" if elsewhere else ""
    see = "does" if len(blind) == 1 else "do"
    return [
        f"workdir {where} is not shared: {_who(blind, records)} {see} not see what "
        f"{_who([0], records)} wrote{note}; use a folder that all hosts mount"
    ]


def _who(group: list[int], records: list[Record]) -> str:
    """As "process 3 (node7)" or "processes 2, 3 (node2)"; long lists are cut."""
    some = group[:MOST]
    hosts = ", ".join(dict.fromkeys(records[i]["host"] for i in some))
    more = f" and {len(group) - MOST} more" if len(group) > MOST else ""
    word = "process" if len(group) == 1 else "processes"
    return f"{word} {', '.join(map(str, some))}{more} ({hosts})"
