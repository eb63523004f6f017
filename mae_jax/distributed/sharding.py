"""The device mesh, and how arrays are sharded over it.

The mesh has two axes: the batch is split over both; parameters and optimizer state are split over
`fsdp` and replicated over `data`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mae_jax.runtime.errors import UsageError

BATCH = PartitionSpec(("data", "fsdp"))
# Splitting smaller arrays costs more communication than it saves memory.
MIN_SHARDED_SIZE = 2**14


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices, or of the given ones; -1 for an axis means all that remain.

    Devices stay in the order of their processes, so that processes own consecutive blocks of rows
    of a batch, and every example gets the same mask on any mesh.

    Raises:
      UsageError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [data, fsdp]
    if shape.count(-1) == 1:
        known = -data * fsdp
        shape[shape.index(-1)] = len(devices) // known if known > 0 else 0
    if min(shape) < 1 or shape[0] * shape[1] != len(devices):
        raise UsageError(
            f"mesh.data={data} x mesh.fsdp={fsdp} does not match {len(devices)} devices; "
            "set --config.mesh.data=-1 to use all that remain"
        )
    return Mesh(np.array(devices).reshape(shape), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis split over all devices."""
    return NamedSharding(mesh, BATCH)


def state_sharding(mesh: Mesh, abstract: Any) -> Any:
    """Sharding of every array of a state: its largest divisible axis is split over `fsdp`."""
    fsdp = mesh.shape["fsdp"]

    def rule(x: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [i for i, n in enumerate(x.shape) if n % fsdp == 0]
        if fsdp == 1 or not axes or x.size < MIN_SHARDED_SIZE:
            return replicated(mesh)
        largest = max(axes, key=lambda i: x.shape[i])
        before = [None] * largest
        return NamedSharding(mesh, PartitionSpec(*before, "fsdp"))

    return jax.tree.map(rule, abstract)


def gather(mesh: Mesh, params: Any) -> Any:
    """Gathers the full parameters on every device; for use inside a compiled function.

    Without this, the compiler may move activations instead of parameters, and it does.
    """
    return jax.lax.with_sharding_constraint(params, replicated(mesh))


def local_mesh(mesh: Mesh) -> Mesh:
    """A mesh of only this process's devices, in the order of `mesh`."""
    mine = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    return Mesh(np.array(mine).reshape(-1, 1), mesh.axis_names, axis_types=mesh.axis_types)


def to_device(mesh: Mesh, local_batch: dict[str, Any]) -> dict[str, jax.Array]:
    """Turns this process's rows of a batch into arrays of the global batch, split over all devices.

    Values that are jax.Arrays are returned unchanged: batches may be built on the devices.
    """
    sharding = batch_sharding(mesh)
    return {
        k: v if isinstance(v, jax.Array) else jax.make_array_from_process_local_data(sharding, v)
        for k, v in local_batch.items()
    }


def join(mesh: Mesh, local: jax.Array) -> jax.Array:
    """Turns rows split over this process's devices into the global batch, without copying."""
    shape = (local.shape[0] * mesh.size // len(local.sharding.device_set), *local.shape[1:])
    parts = [shard.data for shard in local.addressable_shards]
    return jax.make_array_from_single_device_arrays(shape, batch_sharding(mesh), parts)
