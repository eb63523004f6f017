"""Meshes, and shardings of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.distributed import sharding
from mae_jax.runtime.errors import UsageError


@pytest.mark.parametrize("data, fsdp, shape", [(-1, 1, (4, 1)), (-1, 2, (2, 2)), (1, -1, (1, 4))])
def test_mesh_fills_up(data, fsdp, shape):
    mesh = sharding.make_mesh(data, fsdp)
    assert mesh.devices.shape == shape
    assert [d.id for d in mesh.devices.flat] == [d.id for d in jax.devices()]


@pytest.mark.parametrize("data, fsdp", [(3, 1), (-1, 3), (0, 4), (-1, -1), (-1, 8)])
def test_mesh_that_does_not_fit_is_refused(data, fsdp):
    with pytest.raises(UsageError, match="does not match 4 devices"):
        sharding.make_mesh(data, fsdp)


def test_large_arrays_are_split_and_small_ones_repeated():
    mesh = sharding.make_mesh(-1, 4)
    tree = {
        "big": jax.ShapeDtypeStruct((100, 512), jnp.float32),
        "odd": jax.ShapeDtypeStruct((301, 403), jnp.float32),
        "small": jax.ShapeDtypeStruct((8, 8), jnp.float32),
        "scalar": jax.ShapeDtypeStruct((), jnp.int32),
    }
    specs = jax.tree.map(lambda s: tuple(s.spec), sharding.state_sharding(mesh, tree))
    assert specs == {"big": (None, "fsdp"), "odd": (), "small": (), "scalar": ()}


def test_rows_keep_their_order_on_the_devices():
    mesh = sharding.make_mesh(2, 2)
    rows = np.arange(8, dtype=np.int32)
    out = sharding.to_device(mesh, {"x": rows})["x"]
    np.testing.assert_array_equal(out, rows)
    assert [s.data.shape for s in out.addressable_shards] == [(2,)] * 4
