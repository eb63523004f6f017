"""Runs several real processes of one run on this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def xla_flags(devices: int) -> str:
    """XLA_FLAGS for that many CPU devices, and for programs that compile fast and run slowly."""
    return (
        f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0 "
        # The fusion emitters take several times as long to compile as the older ones.
        "--xla_cpu_use_fusion_emitters=false "
        "--xla_cpu_parallel_codegen_split_count=1"  # other tests use the other cores
    )


def free_address() -> str:
    """host:port where process 0 can listen."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def run_two(
    code: str, arguments: Sequence[Sequence[str]], *, devices: int = 1, timeout: float = 240
) -> list[tuple[int, str, str]]:
    """Runs two Python processes; returns (status, stdout, stderr) of each.

    Args:
      code: of both; `sys.argv` is [_, address of process 0, index of the process, *arguments].
      arguments: of each process.
      devices: number of devices of each process.
      timeout: seconds for both.
    """
    address = free_address()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(index), *more],
            env=os.environ | {"PYTHONPATH": REPO, "XLA_FLAGS": xla_flags(devices)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index, more in enumerate(arguments)
    ]
    outputs = [process.communicate(timeout=timeout) for process in started]
    return [(p.returncode, *texts) for p, texts in zip(started, outputs, strict=True)]
