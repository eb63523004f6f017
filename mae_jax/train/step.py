"""One optimizer step of any task, as one compiled function."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mae_jax.distributed import sharding
from mae_jax.ops import rng
from mae_jax.ops.trees import combine, partition
from mae_jax.train.state import TrainState
from mae_jax.train.task import Batch, Task


def make_train_step(task: Task, abstract: TrainState, mesh: Mesh, *, seed: int, grad_accum: int):
    """Returns a compiled function (state, batch) -> (state, metrics) that donates the state.

    With `grad_accum` > 1 the batch is processed in that many micro-batches, with the same update
    (but BatchNorm computes its statistics per micro-batch).
    Only the trained parameters are differentiated; there is no backward pass below them.
    An update is skipped if the loss, the gradient or the learning rate is not finite: the metric
    `skipped` is 1, and the state is unchanged except for step counters.
    A batch with an `index` below 0 was not read (see `data.tolerant`): the metric `absent` is 1,
    and the state is unchanged, step counters included. All processes get the same metrics.
    """

    def loss(trained: Any, frozen: Any, model_state: Any, batch: Batch):
        params = sharding.gather(mesh, combine(trained, frozen))
        value, (aux, new) = task.loss(params, sharding.gather(mesh, model_state), batch)
        return value, ({"loss": value, **aux}, new)

    grad_fn = jax.grad(loss, has_aux=True)

    def gradients(trained: Any, frozen: Any, model_state: Any, batch: Batch):
        """(gradients, metrics) of a whole batch, and the new model state."""
        if grad_accum == 1:
            grads, (values, model_state) = grad_fn(trained, frozen, model_state, batch)
            return (grads, values), model_state
        parts = jax.tree.map(lambda x: _micro_batches(x, grad_accum, mesh), batch)

        def add(carry: Any, part: Batch) -> tuple[Any, None]:
            total, model_state = carry
            grads, (values, model_state) = grad_fn(trained, frozen, model_state, part)
            return (jax.tree.map(jnp.add, total, (grads, values)), model_state), None

        first = jax.tree.map(lambda x: x[0], parts)
        grads, (values, _) = jax.eval_shape(grad_fn, trained, frozen, model_state, first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, values))
        (total, model_state), _ = jax.lax.scan(add, (zeros, model_state), parts)
        return jax.tree.map(lambda x: x / grad_accum, total), model_state

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Batch]:
        present = jnp.all(batch["index"] >= 0)
        batch = task.prepare(batch, rng.stream_key(seed, "train", state.step), state.step)
        trained, frozen = partition(state.params, task.trainable)
        (grads, values), model_state = gradients(trained, frozen, state.model_state, batch)
        # Reduce-scatter: each device updates its shard of the parameters.
        grads = jax.lax.with_sharding_constraint(grads, sharding.state_sharding(mesh, grads))
        updates, opt_state = task.tx.update(grads, state.opt_state, trained)
        values |= {"lr": task.schedule(state.step), "grad_norm": optax.tree.norm(grads)}
        # If these are finite, so are the moments (a sum bounds each of its squares) and the update.
        # Checking the update directly would keep all of it in memory: 8% more for ViT-B.
        finite = jnp.isfinite(values["loss"] + values["grad_norm"] + values["lr"])
        values |= {"skipped": 1.0 - (finite | ~present), "absent": 1.0 - present}
        updated, ema = optax.apply_updates(trained, updates), state.ema
        if task.ema_decay:
            ema = optax.incremental_update(updated, ema, 1 - task.ema_decay)
        old = trained, state.opt_state, state.model_state, state.ema
        trained, opt_state, model_state, ema = jax.tree.map(
            lambda old, new: _new_if(present, finite, old, new),
            old,
            (updated, opt_state, model_state, ema),
        )
        params = combine(trained, frozen)
        return TrainState(state.step + present, params, opt_state, model_state, ema), values

    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))


def _new_if(present: jax.Array, finite: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    """`new` if both are true; counters, which set the learning rate, ignore `finite`."""
    counter = not jnp.issubdtype(new.dtype, jnp.floating)
    return jnp.where(present if counter else present & finite, new, old)


def _micro_batches(x: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...], each device keeps its rows."""
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    spec = PartitionSpec(None, *sharding.BATCH)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
