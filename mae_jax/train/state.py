"""The state of a run: what a step updates and a checkpoint stores."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.struct import PyTreeNode
from jax.sharding import Mesh

from mae_jax.distributed.sharding import state_sharding
from mae_jax.ops.trees import flatten, partition

if TYPE_CHECKING:
    from mae_jax.train.task import Task


class TrainState(PyTreeNode):
    """The state of a run.

    Attributes:
      step: completed steps, int32 scalar.
      params: all parameters, float32.
      opt_state: optimizer state of the trained parameters.
      model_state: non-trainable arrays (BatchNorm statistics, arrays of a target), or {}.
      ema: exponential average of the trained parameters, or {}.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    model_state: Any
    ema: Any


def abstract_state(task: "Task", mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state; computes nothing."""
    shapes = jax.eval_shape(lambda: _build(task))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        state_sharding(mesh, shapes),
    )


def create_state(task: "Task", abstract: TrainState) -> TrainState:
    """Creates a new state with its shardings: no device ever has all of a sharded state."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    state = jax.jit(lambda: _build(task), out_shardings=shardings)()
    known = task.initial_model_state()
    leaves = [
        _place(known[name], x.sharding) if name in known else x
        for name, x in flatten(state.model_state).items()
    ]
    model_state = jax.tree.unflatten(jax.tree.structure(state.model_state), leaves)
    return state.replace(model_state=model_state)


def _place(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)


def with_params(task: "Task", state: TrainState, params: Any) -> TrainState:
    """Replaces the parameters of an initial state."""
    trained, _ = partition(params, task.trainable)
    copy = jax.tree.map(jnp.copy, trained) if task.ema_decay else {}  # the state is donated
    return state.replace(params=params, ema=copy)


def _build(task: "Task") -> TrainState:
    params, model_state = task.init_variables()
    trained, _ = partition(params, task.trainable)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=task.tx.init(trained),
        model_state=model_state,
        ema=trained if task.ema_decay else {},
    )
