"""Several processes of one run: starting together."""

import glob
import importlib.util
import os
from collections.abc import Mapping

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
    if all(given):  # in an allocation of Slurm, jax would still take its variables for the devices
        jax.distributed.initialize(
            coordinator, num_processes, process_id, cluster_detection_method="deactivate"
        )
    else:
        jax.distributed.initialize(local_device_ids=slurm_devices(os.environ))


def slurm_devices(environment: Mapping[str, str]) -> list[int] | None:
    """Which of the GPUs that this task of a Slurm step sees are its own.

    jax gives every task the GPU of its number on the node. That is wrong for one task per node, and
    for tasks that Slurm has bound to GPUs of their own.

    Args:
      environment: variables of the process; CUDA_VISIBLE_DEVICES and the numbers that srun sets.

    Returns:
      Indices among the visible GPUs; None where jax decides: outside Slurm, and without GPUs.

    Raises:
      UsageError: the GPUs of a node cannot be divided among its tasks.
    """
    visible = len([gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu])
    if "SLURM_LOCALID" not in environment or not visible:
        return None
    tasks = _tasks_here(environment)
    bound = visible < int(environment.get("SLURM_GPUS_ON_NODE") or visible)
    if bound:
        return list(range(visible))
    each, left = divmod(visible, tasks)
    if left:
        raise UsageError(
            f"{visible} GPUs cannot be divided among the {tasks} tasks of a node: ask Slurm for "
            "one task per GPU, or one per node (--ntasks-per-node)"
        )
    first = int(environment["SLURM_LOCALID"]) * each
    return list(range(first, first + each))


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Tasks of the step on this node: from the like of "8(x2),4", by the number of the node."""
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[min(int(environment.get("SLURM_NODEID") or 0), len(counts) - 1)]


def _in_cluster() -> bool:
    """Whether srun or mpirun started several processes, or this is a TPU VM (of a pod, perhaps)."""
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    if any(int(os.environ.get(name) or 1) > 1 for name in counts):
        return True
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None
