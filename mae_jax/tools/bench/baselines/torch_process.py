"""Runs a PyTorch baseline in a process, as a step that can be timed like ours."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from mae_jax.runtime.errors import UsageError


def serve(make_step: Callable[[], Any]) -> None:
    """The program of such a process.

    Prints one JSON line when the step is ready, one per step, which a line on stdin requests, and
    one at the end of stdin.

    Args:
      make_step: returns a step with `version` and `peak_memory_mb()`; calling it returns seconds.
    """
    start = time.perf_counter()
    step = make_step()
    step()
    ready = {"compile_s": time.perf_counter() - start, "version": step.version}
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": step()}), flush=True)
    print(json.dumps({"memory_mb": step.peak_memory_mb()}), flush=True)


class TorchProcess:
    """A process that runs a program of `mae_jax.tools.bench.baselines`, one step per call.

    Args:
      program: torch_mae or torchvision_ops.
      sizes: its argument, as JSON.
      python: Python interpreter that has torch; "" for the current one.

    Attributes:
      compile_s: seconds until the first step finished.
      memory_mb: peak memory, known after `close`.

    Raises:
      UsageError: torch is not installed, or the baseline failed.
    """

    def __init__(self, program: str, sizes: dict[str, Any], python: str):
        if not python and importlib.util.find_spec("torch") is None:
            raise UsageError(
                "the PyTorch baseline needs torch: pass a Python interpreter that has it as "
                "--torch_python=, or change --against="
            )
        self.memory_mb = 0
        self._process = subprocess.Popen(
            [
                python or sys.executable,
                "-m",
                f"mae_jax.tools.bench.baselines.{program}",
                json.dumps(sizes),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Otherwise idle OpenMP threads would spin while our step is timed.
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"},
        )
        self.compile_s = self._answer()["compile_s"]

    def __call__(self) -> float:
        """Seconds of one step, measured in that process."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None and self._process.stdin is not None:
            self._process.stdin.close()
            self.memory_mb = self._answer()["memory_mb"]
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise UsageError(
                f"the PyTorch baseline exited with status {self._process.wait()}, see above"
            )
        return json.loads(line)
