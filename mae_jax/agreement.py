"""The processes of a run make sure, before anything is compiled, that they run the same thing.

They talk through a `store`, not in the public way: `multihost_utils.process_allgather` is itself a
compiled program over all devices, so with different versions or devices it is the first thing that
hangs or crashes, and it has no time limit.
"""

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

from mae_jax import files, run_info
from mae_jax.config import flatten
from mae_jax.disagreement import Record, disagreement
from mae_jax.errors import UsageError
from mae_jax.store import Service, Store
from mae_jax.task import Task

log = logging.getLogger(__name__)

WAIT_SECONDS = 1800.0  # for the slowest process; reading a listing may take long
PROBE_SECONDS = 10.0  # after which a file must be seen by all hosts
CLOCK_SECONDS = 60.0  # by which clocks may differ

# Keys of the configuration that may suit the host.
OWN = ("data.root", "data.workers", "data.prefetch", "data.cache", "data.cache_gb")


def facts_of(task: Task, *, allow_config_change: bool) -> dict[str, Any]:
    """What `check` compares of a run besides its configuration.

    The target is more than the configuration says: a tokenizer's hash is part of it.
    """
    said = task.metadata(0)
    changes = {"--allow_config_change": allow_config_change}
    return {**changes, "--config.target": said.get("target"), **said["data"]}


def check(config: Any, workdir: str, facts: dict[str, Any]) -> None:
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
    with shared_errors():
        record = describe(config, workdir, facts)
        verdict = exchange(Service("agreement"), jax.process_index(), jax.process_count(), record)
    if verdict:
        raise UsageError(verdict)


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
    """Around what comes before `check`: an error there also ends the wait of the others."""
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1:
            publish_error(Service("agreement"), jax.process_index(), error)
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
        "revision": run_info.git_revision(),
        "versions": run_info.versions(),
        "code": {"source files": _source_digest()},
        "devices": {"devices": f"{jax.local_device_count()} x {device}"},
        "config": settings,
        "facts": equal,
    }


def _source_digest() -> str:
    """Of the package's files: also differs by an edit, also where there is no git."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
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
        files.write(path, b"")
    except OSError as error:
        raise UsageError(f"cannot write into --workdir={workdir}: {error.strerror}") from error
    try:
        yield name
    finally:
        files.remove(path)


def _appears(path: str) -> bool:
    """Whether a file is there, or soon is: network disks may need a moment."""
    until = time.monotonic() + PROBE_SECONDS
    while not files.exists(path):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
