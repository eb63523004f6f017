"""The benchmarks run and compare like with like."""

import json

import pytest

from mae_jax.errors import UsageError
from mae_jax.tools import bench
from tests import tiny


def test_bench_step_compares_both_orders(capsys):
    arguments = ["step", *tiny.flags(), "--against=plain", "--repeats=2"]
    assert bench.main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["speed_up_over_plain"] > 0 and result["peak_memory_mb"] > 0
    for name in ("ours", "plain"):
        numbers = result[name]
        assert numbers["fastest_ms"] <= numbers["step_ms"] <= numbers["slowest_ms"]
        assert numbers["images_per_s"] > 0 and numbers["compile_s"] > 0
        assert numbers["memory_mb"] > 0 and "mfu" not in numbers  # nobody knows a CPU's peak


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
        (["step", *tiny.flags(), "--against=torch"], "--torch_python="),
        (["step", *tiny.flags(), "--against=torch", "--torch_python=/bin/false"], "ended with"),
        (["data", *tiny.flags(), "--against=pil"], "needs image files"),
    ],
)
def test_bad_command_is_explained(arguments, message):
    with pytest.raises(UsageError, match=message):
        bench.main(arguments)
