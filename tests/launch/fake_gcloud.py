"""A fake gcloud: TPUs are folders, and ssh commands really run, with one HOME per worker.

All is kept in the folder that FAKE_GCLOUD names: calls (one JSON list a line), nodes/NAME/state,
nodes/NAME/0 and so on (the workers' HOMEs), queues/NAME. These files make it fail:

- quota: how many more times creation fails; down: how many more times ssh does not connect
- no_answer: the number of a worker that ssh does not reach; no_copy: one that scp does not
- lose: how many more times "status" is asked before the node is taken away
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ["FAKE_GCLOUD"])
WORKERS = 2


def fail(message: str) -> None:
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    sys.exit(1)


def count_down(name: str) -> bool:
    """Whether it should fail now."""
    path = FOLDER / name
    left = int(path.read_text()) if path.exists() else 0
    if left:
        path.write_text(str(left - 1))
    return left > 0


def read(name: str) -> str:
    path = FOLDER / name
    return path.read_text() if path.exists() else ""


def end_runs(node: Path) -> None:
    """All processes that a worker of the node has started."""
    homes = {str(home) for home in node.iterdir() if home.is_dir()}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().decode(errors="ignore").split("\0")
            if {f"HOME={home}" for home in homes} & set(variables):
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            pass  # it has ended, or belongs to another user


def make_node(name: str) -> None:
    node = FOLDER / "nodes" / name
    for worker in range(WORKERS):
        (node / str(worker)).mkdir(parents=True)
    (node / "state").write_text("READY")


def delete_node(name: str) -> None:
    node = FOLDER / "nodes" / name
    end_runs(node)
    shutil.rmtree(node)


def ssh(node: Path, options: dict[str, str]) -> None:
    command, chosen = options["command"], options["worker"]
    if "worker.sh status" in command and (FOLDER / "lose").exists() and not count_down("lose"):
        (FOLDER / "lose").unlink()
        end_runs(node)
        (node / "state").write_text("PREEMPTED")
        fail("connection lost")
    if count_down("down"):
        fail("[ssh] exited with return code [255]")
    status = 0
    for worker in range(WORKERS) if chosen == "all" else [int(chosen)]:
        output = None
        if "output-directory" in options:
            output = (Path(options["output-directory"]) / f"{worker}.log").open("w")
        if read("no_answer") == str(worker):
            status = 255
            continue
        home = node / str(worker)
        ended = subprocess.run(
            ["bash", "-c", command],
            cwd=home,
            env=os.environ | {"HOME": str(home), "MAE_JAX_SYSROOT": str(home / "root")},
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
        )
        status = status or ended.returncode
    sys.exit(status)


def main() -> None:
    with (FOLDER / "calls").open("a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    kind, verb, *rest = sys.argv[3:]
    options = dict(
        re.fullmatch(r"--([\w-]+)=?(.*)", one, re.S).groups() for one in rest if one[:2] == "--"
    )  # type: ignore[union-attr]
    names = [one for one in rest if one[:2] != "--"]
    name = names[-1].partition(":")[0]
    node, queue = FOLDER / "nodes" / name, FOLDER / "queues" / name
    path = node / "state" if kind == "tpu-vm" else queue
    if read("unreachable"):
        fail("Could not reach the server")
    if verb == "create":
        if count_down("quota"):
            fail("RESOURCE_EXHAUSTED: Quota limit 'TPUV4PodPerProjectPerZone' has been exceeded")
        if kind == "tpu-vm":
            make_node(name)
        else:
            queue.parent.mkdir(exist_ok=True)
            queue.write_text("WAITING_FOR_RESOURCES")
        return
    if not path.exists():
        fail(f"NOT_FOUND: Resource '{name}' was not found")
    if verb == "describe":
        state = path.read_text()
        if kind == "tpu-vm":
            print(f"{state}\t{WORKERS}")
            return
        print(state)
        if state == "WAITING_FOR_RESOURCES":  # the next query finds it active
            make_node(name)
            queue.write_text("ACTIVE")
    elif verb == "delete":
        if kind == "tpu-vm" or node.exists():
            delete_node(name)
        queue.unlink(missing_ok=True)
    elif verb == "scp":
        for worker in range(WORKERS):
            if read("no_copy") != str(worker):
                shutil.copy(names[0], node / str(worker) / names[1].partition(":")[2])
        if read("no_copy"):
            fail(f"##### Command execution on worker {read('no_copy')} failed with exit status 1.")
    elif verb == "ssh":
        ssh(node, options)
    else:
        fail(f"the fake knows no {kind} {verb}")


if __name__ == "__main__":
    main()
