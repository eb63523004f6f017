"""One optimiser step of any task, as one compiled function."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mae_jax import rng, sharding
from mae_jax.state import TrainState
from mae_jax.task import Batch, Task


def make_train_step(task: Task, abstract: TrainState, mesh: Mesh, *, seed: int, grad_accum: int):
    """Compiled function (state, batch) -> (state, metrics); donates the state.

    With `grad_accum` > 1 the batch is worked through in that many parts, for the same update.
    """
    grad_fn = jax.value_and_grad(task.loss, has_aux=True)

    def gradients(params: Any, batch: Batch) -> tuple[Any, Batch]:
        if grad_accum == 1:
            (loss, aux), grads = grad_fn(params, batch)
            return grads, {"loss": loss, **aux}
        parts = jax.tree.map(lambda x: _micro_batches(x, grad_accum, mesh), batch)

        def add(total: Any, part: Batch) -> tuple[Any, None]:
            (loss, aux), grads = grad_fn(params, part)
            return jax.tree.map(jnp.add, total, (grads, {"loss": loss, **aux})), None

        (loss, aux), grads = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, {"loss": loss, **aux}))
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda x: x / grad_accum, total)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Batch]:
        batch = task.prepare(batch, rng.stream_key(seed, "train", state.step))
        grads, values = gradients(state.params, batch)
        updates, opt_state = task.tx.update(grads, state.opt_state, state.params)
        values |= {"lr": task.schedule(state.step), "grad_norm": optax.tree.norm(grads)}
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), values

    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))


def _micro_batches(x: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...], each device keeping its own rows."""
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    spec = PartitionSpec(None, *sharding.BATCH)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
