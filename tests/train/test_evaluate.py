"""Means over a padded split count every example once."""

import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.distributed import sharding
from mae_jax.train import evaluate


def test_padding_does_not_count():
    values = np.arange(10, dtype=np.float32)
    mesh = sharding.make_mesh()

    def batches():
        for start in range(0, 12, 4):
            rows = np.arange(start, start + 4)
            valid = rows < 10
            yield {"x": np.where(valid, values[np.minimum(rows, 9)], 1e6), "valid": valid}

    def step(params, batch):
        valid = batch["valid"].astype(jnp.float32)
        return {"x": ((params * batch["x"] * valid).sum(), valid.sum())}

    compiled = evaluate.compile_eval_step(step, mesh)
    out = evaluate.evaluate(compiled, jnp.float32(2.0), batches(), mesh)
    assert out == {"x": pytest.approx(9.0), "count": 10.0}
