"""Connects the processes of a run; they listen only on the network interfaces they need."""

import glob
import importlib.util
import ipaddress
import logging
import os
import socket
from collections.abc import Mapping
from typing import Any

import jax

from mae_jax.distributed.kv_store import KVStore
from mae_jax.runtime import host, workdir_lock
from mae_jax.runtime.errors import UsageError, one_line

log = logging.getLogger(__name__)

BIND = "JAX_COORDINATOR_BIND_ADDRESS"  # read by jax if no address is given


def start(
    mode: str = "auto",
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Connects the processes of a run; call it before jax initializes its devices.

    Args:
      mode: "auto" connects if a cluster is detected or `coordinator` is given; "on" always; "off"
        never.
      coordinator: host:port of process 0; None lets jax detect it.
      num_processes: number of processes; required with `coordinator`.
      process_id: index of this process; required with `coordinator`.

    Raises:
      UsageError: the arguments are inconsistent, or jax finds no cluster.
    """
    if mode == "off":
        return
    present = [x is not None for x in (coordinator, num_processes, process_id)]
    if any(present) and not all(present):
        raise UsageError("--coordinator, --num_processes, and --process_id must be used together")
    if coordinator is not None and num_processes is not None and process_id is not None:
        _start_given(coordinator, num_processes, process_id)
    elif evidence := "--distributed=on" if mode == "on" else _detect_cluster():
        _start_in_cluster(evidence)
    else:
        return
    host.processes = _count_on_host()


def _count_on_host() -> int:
    """Number of processes of the run on this host."""
    here = workdir_lock.machine()
    return KVStore("hosts").gather(here).count(here)


def _start_given(coordinator: str, num_processes: int, process_id: int) -> None:
    name, _, port = coordinator.rpartition(":")
    if not name or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"--coordinator={coordinator} must be HOST:PORT of process 0")
    if num_processes < 1:
        raise UsageError(f"--num_processes={num_processes} must be at least 1")
    if not 0 <= process_id < num_processes:
        raise UsageError(f"--process_id={process_id} must be 0 to {num_processes - 1}")
    if is_loopback(name):
        _keep_to_loopback()
    bind = None
    if process_id == 0 and BIND not in os.environ:
        bind = bind_address(name, port)
    jax.distributed.initialize(
        *(coordinator, num_processes, process_id),
        # Otherwise jax would use Slurm's variables for the devices in an allocation of Slurm.
        cluster_detection_method="deactivate",
        coordinator_bind_address=bind,
    )


def _start_in_cluster(evidence: str) -> None:
    log.info("%s: connecting to other processes (--distributed=off if there are none)", evidence)
    try:
        jax.distributed.initialize(local_device_ids=slurm_devices(os.environ))
    except jax.errors.JaxRuntimeError:  # there is a cluster, but connecting failed
        raise
    except (ValueError, RuntimeError) as error:  # jax detects no cluster
        raise UsageError(
            f"{evidence}, but jax finds no cluster ({one_line(error)}): use --distributed=off "
            "to train in this process only, or --coordinator, --num_processes, and --process_id"
        ) from error


def is_loopback(name: str) -> bool:
    """Whether a host name or address is a loopback address."""
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name == "localhost"


def bind_address(name: str, port: str) -> str | None:
    """The address at which process 0 listens: only the one to which the others connect.

    Args:
      name: name or address of this host, as used by the others.
      port: port to listen on.

    Returns:
      host:port; None, meaning every network interface, if no interface of this machine has that
      address, or if the name resolves locally to a loopback address, as it does on Debian.
    """
    if is_loopback(name) or any(map(_is_ours, _addresses(name))):
        return f"{name}:{port}"
    log.warning(
        "port %s listens on every network interface: %s is not a network address of this machine; "
        "set %s=HOST:PORT, or restrict access to the hosts of the run (docs/security.md)",
        *(port, name, BIND),
    )
    return None


def _addresses(name: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(address[0]) for *_, address in found if not is_loopback(str(address[0]))]


def _is_ours(address: str) -> bool:
    """Whether an address belongs to this machine, so that it can listen there."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _keep_to_loopback() -> None:
    """Makes NCCL (GPUs) and gloo (CPU) use the loopback interface too.

    By default, both listen on the address of the host name. jax has no setting for gloo.
    """
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    settings: Any = jax.config
    if settings.jax_cpu_collectives_implementation == "gloo":
        from jax._src import xla_bridge

        xla_bridge.register_backend_factory("cpu", _make_cpu, priority=0, fail_quietly=False)


def _make_cpu() -> object:
    from jax._src import distributed, xla_bridge
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    client = distributed.global_state.client
    gloo = _jax.make_gloo_tcp_collectives(distributed_client=client, hostname="localhost")
    return xla_bridge.make_cpu_client(gloo)


def slurm_devices(environment: Mapping[str, str]) -> list[int] | None:
    """The visible GPUs that this task of a Slurm step should use.

    jax assigns each task the GPU with the task's local index. That is wrong for one task per node,
    and if Slurm has bound GPUs to tasks.

    Args:
      environment: environment variables; uses CUDA_VISIBLE_DEVICES and those set by srun.

    Returns:
      Indices among the visible GPUs; None lets jax decide (outside Slurm, or without GPUs).

    Raises:
      UsageError: the GPUs of a node cannot be divided evenly among its tasks.
    """
    visible = len([gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu])
    if "SLURM_LOCALID" not in environment or not visible:
        return None
    tasks = _tasks_on_node(environment)
    bound = visible < int(environment.get("SLURM_GPUS_ON_NODE") or visible)
    if bound:
        return list(range(visible))
    each, left = divmod(visible, tasks)
    if left:
        raise UsageError(
            f"{visible} GPUs cannot be divided evenly among the {tasks} tasks of a node: request "
            "one task per GPU or one per node (--ntasks-per-node)"
        )
    first = int(environment["SLURM_LOCALID"]) * each
    return list(range(first, first + each))


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """Number of tasks of the step on this node, from a list such as "8(x2),4"."""
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[min(int(environment.get("SLURM_NODEID") or 0), len(counts) - 1)]


def _detect_cluster() -> str:
    """Evidence of other processes; "" if there is none.

    It is a variable of srun or mpirun, or the chips of a TPU VM, which may be part of a pod.
    """
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        value = os.environ.get(name, "")
        if value.isdecimal() and int(value) > 1:
            return f"{name}={value}"
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return "TPU chips" if chips and importlib.util.find_spec("libtpu") is not None else ""
