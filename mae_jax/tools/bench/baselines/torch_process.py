"""Runs the PyTorch baseline in a process, as a step that can be timed like ours."""

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np

from mae_jax.runtime.errors import UsageError


class TorchProcess:
    """A process that runs `mae_jax.tools.bench.baselines.torch_mae`, one step per call.

    Args:
      task: the pre-training task, whose sizes the baseline uses.
      config: its configuration.
      python: Python interpreter that has torch; "" for the current one.
      compiled: use `torch.compile`.

    Attributes:
      compile_s: seconds until the first step finished.
      memory_mb: peak memory, known after `close`.

    Raises:
      UsageError: torch is not installed, or the baseline failed.
    """

    def __init__(self, task: Any, config: Any, python: str, compiled: bool):
        if not python and importlib.util.find_spec("torch") is None:
            raise UsageError(
                "the PyTorch baseline needs torch: pass a Python interpreter that has it as "
                "--torch_python=, or use --against=plain"
            )
        sizes = task.fields | {
            "batch_size": config.batch_size,
            "ratio": config.mask.ratio,
            "normalize": config.target.normalize,
            "dtype": np.dtype(task.model.dtype).name,
            "compile": compiled,
        }
        self.memory_mb = 0
        self._process = subprocess.Popen(
            [
                python or sys.executable,
                "-m",
                "mae_jax.tools.bench.baselines.torch_mae",
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
