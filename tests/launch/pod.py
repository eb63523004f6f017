"""A user with gcloud and the launch scripts, for tests with TPU pods."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NODE = ("mine", "--zone=z")

# Replaces launch/local.sh. Line n of the file `plan` is the behavior of the n-th start on a worker:
# its exit status, or "stay" until SIGTERM.
STUB = r"""#!/usr/bin/env bash
trap 'echo saving; exit 75' TERM
number=${HOME##*/}
echo . >>"$FAKE_GCLOUD/starts.$number"
starts=$(wc -l <"$FAKE_GCLOUD/starts.$number")
plan=$(sed -n "${starts}p" "$FAKE_GCLOUD/plan")
echo "start $starts on $number: $* [${COLOUR:-}]"
while [[ $plan == stay ]]; do sleep 0.05; done
echo "last words of $number"
exit "$plan"
"""


class Pod:
    def __init__(self, folder: Path):
        self.folder = folder / "cloud"
        self.repo = folder / "a repo"
        self.node = self.folder / "nodes" / "mine"
        self.folder.mkdir()
        shutil.copytree(ROOT / "launch", self.repo / "launch")
        (self.repo / "launch" / "local.sh").write_text(STUB)
        binaries = folder / "bin"
        binaries.mkdir()
        fake = Path(__file__).with_name("fake_gcloud.py")
        # -S -E halves the startup time.
        (binaries / "gcloud").write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {fake} "$@"\n')
        (binaries / "sudo").write_text("#!/bin/sh\nexit 1\n")  # instead of this machine's
        for name in ("gcloud", "sudo"):
            (binaries / name).chmod(0o755)
        self.env = os.environ | {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "FAKE_GCLOUD": str(self.folder),
            "MAE_JAX_PYTHON": sys.executable,
            "TMPDIR": str(folder),
        }

    def tell(self, **files: object) -> None:
        for name, text in files.items():
            (self.folder / name).write_text(str(text))

    def plan(self, *lines: object) -> None:
        self.tell(plan="".join(f"{line}\n" for line in lines))

    def start(self, script: str, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [f"{self.repo}/launch/{script}", *args],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, *args: str) -> tuple[int, str]:
        process = self.start(script, *args)
        out, _ = process.communicate(timeout=30)
        return process.returncode, out

    def pod(self, action: str, *args: str) -> tuple[int, str]:
        """`tpu_pod.sh ACTION mine --zone=z ARGS`: exit status, and what it printed."""
        return self.run("tpu_pod.sh", action, *NODE, *args)

    def ready(self) -> None:
        """A node that is already created and set up, which saves seconds."""
        for worker in "01":
            shutil.copytree(self.repo, self.node / worker / "mae_jax")
        (self.node / "state").write_text("READY")

    def calls(self) -> list[str]:
        """The calls of gcloud, without "compute tpus", such as "tpu-vm create"."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [" ".join(json.loads(line)[2:4]) for line in lines]

    def starts(self, worker: int) -> int:
        path = self.folder / f"starts.{worker}"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def close(self) -> None:
        # The fake can end all processes that the workers have started.
        self.env["HOME"] = os.environ["HOME"]
        if self.node.exists():
            (self.folder / "unreachable").unlink(missing_ok=True)
            self.run("tpu_pod.sh", "delete", *NODE)


def wait_until(condition: Callable[[], object], *, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
