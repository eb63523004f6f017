"""One step, in the arithmetic of accelerators."""

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.distributed import sharding
from mae_jax.tasks import TASKS
from mae_jax.train.state import abstract_state, create_state
from mae_jax.train.step import make_train_step
from tests.helpers import tiny_configs

STEPS = 40


def losses(batches, **changes):
    config = tiny_configs.config(optim__base_lr=3e-2, steps=STEPS, **changes)
    task = TASKS["pretrain"](config, "")
    mesh = sharding.make_mesh()
    abstract = abstract_state(task, mesh)
    step = make_train_step(task, abstract, mesh, seed=config.seed, grad_accum=1)
    state = create_state(task, abstract)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    values = []
    for batch in batches:
        state, metrics = step(state, sharding.to_device(mesh, batch))
        values.append(float(metrics["loss"]))
    return np.array(values)


def test_bfloat16_learns_as_float32_does():
    task = TASKS["pretrain"](tiny_configs.config(), "")
    stream = task.train_batches(0)
    batches = [{k: b[k] for k in ("image", "index")} for b in (next(stream) for _ in range(STEPS))]
    stream.close()
    exact = losses(batches)
    rounded = losses(batches, model__dtype="bfloat16")
    assert exact[-10:].mean() < 0.9 * exact[:5].mean()  # there is something to compare
    noise = np.abs(np.diff(exact)).mean()  # from batch to batch
    assert 0 < np.abs(rounded - exact).mean() < 0.2 * noise
    assert np.abs(rounded - exact).max() < 0.02 * exact.max()
