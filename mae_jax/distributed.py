"""Several processes of one run: starting together, agreeing, and stopping together."""

import contextlib
import glob
import importlib.util
import os
import signal
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from mae_jax.errors import UsageError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def start(
    mode: str = "auto",
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Connects the processes of a run; must come before jax touches a device.

    Args:
      mode: "auto" connects when a cluster is detected or `coordinator` is given; "on" always; "off"
        never.
      coordinator: host:port of process 0; None lets jax find it.
      num_processes: number of processes, with `coordinator`.
      process_id: which of them this is, with `coordinator`.

    Raises:
      UsageError: the three values are not given together.
    """
    given = [x is not None for x in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise UsageError("give --coordinator, --num_processes and --process_id together")
    if mode == "off" or (mode == "auto" and not all(given) and not _in_cluster()):
        return
    jax.distributed.initialize(coordinator, num_processes, process_id)


def _in_cluster() -> bool:
    """Whether srun or mpirun started several processes, or this is a TPU VM (of a pod, perhaps)."""
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    if any(int(os.environ.get(name) or 1) > 1 for name in counts):
        return True
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def agree(value: bool) -> bool:
    """Process 0's answer, on every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


class StopRequest:
    """Whether somebody asked the run to stop.

    With one process a signal sets a flag. With several, jax's own SIGTERM handler makes all of them
    agree on the step to stop at, wherever the signal arrived; SIGINT is passed on to it.
    """

    def __init__(self) -> None:
        self._asked = False

    def at(self, step: int) -> bool:
        """True when the run should stop after `step`; the same on every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _on_signal(self, number: int, frame: object) -> None:
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        # A second Ctrl-C means now; schedulers may send SIGTERM several times.
        if self._asked and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._asked = True


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns SIGTERM and SIGINT into a request to stop after the step under way."""
    request = StopRequest()
    numbers = STOP_SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
    before = {number: signal.signal(number, request._on_signal) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
