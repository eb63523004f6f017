"""Several processes of one run: starting together."""

import glob
import importlib.util
import os

import jax

from mae_jax.errors import UsageError


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
