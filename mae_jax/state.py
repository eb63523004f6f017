"""What a run carries from step to step, and all that a checkpoint needs to continue it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode
from jax.sharding import Mesh

from mae_jax.sharding import state_sharding


class TrainState(PyTreeNode):
    """Completed steps (int32 scalar), parameters (float32) and optimiser state."""

    step: jax.Array
    params: Any
    opt_state: Any


def abstract_state(
    init_params: Callable[[], Any], tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without computing it."""
    shapes = jax.eval_shape(lambda: _build(init_params(), tx))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        state_sharding(mesh, shapes),
    )


def create_state(
    init_params: Callable[[], Any], tx: optax.GradientTransformation, abstract: TrainState
) -> TrainState:
    """A new state, created where it belongs: no device ever holds the whole of a sharded one."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(lambda: _build(init_params(), tx), out_shardings=shardings)()


def _build(params: Any, tx: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
