"""The benchmarks run and compare like with like."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.bench import step as bench_step
from mae_jax.errors import UsageError
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tools import bench
from tests import tiny


def test_both_orders_have_the_same_loss_and_gradients(tmp_path):
    config = tiny.config(target__normalize=True, model__depth=2, model__decoder_depth=2)
    ours, paper = (kind(config, "") for kind in (Pretrain, bench_step.PaperOrder))
    params, _ = jax.jit(ours.init_variables)()
    images = jax.random.randint(jax.random.key(0), (4, 16, 16, 3), 0, 256).astype(jnp.uint8)
    batch = ours.prepare({"image": images}, jax.random.key(1))
    grad_fns = (jax.jit(jax.value_and_grad(t.loss, has_aux=True)) for t in (ours, paper))
    a, b = (grad_fn(params, {}, batch) for grad_fn in grad_fns)
    np.testing.assert_allclose(a[0][0], b[0][0], rtol=1e-5)
    for x, y in zip(jax.tree.leaves(a[1]), jax.tree.leaves(b[1]), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(float(jnp.abs(y).max()), 1e-3))


def test_bench_step_compares_both_orders(capsys):
    arguments = ["step", *tiny.flags(), "--against=plain", "--repeats=2"]
    assert bench.main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["speed_up"] > 0 and result["peak_memory_mb"] > 0
    for name in ("ours", "plain"):
        assert result[name]["images_per_s"] > 0 and result[name]["compile_s"] > 0


def test_any_task_that_trains_can_be_timed(capsys):
    changes = {**tiny.CHANGES, "init_from": ""}
    flags = [f"--config.{k}={v}" for k, v in changes.items() if "decoder" not in k]
    for what in ("step", "data"):
        arguments = [what, "--config=configs/linprobe/demo.py", *flags, "--repeats=2"]
        assert bench.main(arguments) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["ours"]["images_per_s"] > 0
        with pytest.raises(UsageError, match="--against="):
            bench.main([*arguments, "--against=" + ("plain" if what == "step" else "pil")])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "say what to measure"),
        (["speed"], "say what to measure"),
        (["step", "--config=configs/demo.py", "--against=pil"], "--against is one of"),
        (["data", *tiny.flags(), "--against=pil"], "needs image files"),
    ],
)
def test_bad_command_is_explained(arguments, message):
    with pytest.raises(UsageError, match=message):
        bench.main(arguments)
