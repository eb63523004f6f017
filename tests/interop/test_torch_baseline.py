"""The PyTorch step that the benchmark races is the same model."""

import json
import sys

import jax
import pytest

from mae_jax.tools.bench import __main__ as bench
from mae_jax.tools.bench.step import make_task
from tests.helpers import tiny_configs

pytestmark = pytest.mark.interop


def test_it_has_our_parameters_and_learns():
    pytest.importorskip("torch")
    from mae_jax.tools.bench.baselines import torch_mae

    task = make_task(tiny_configs.config())
    more = {"ratio": 0.75, "normalize": True, "batch_size": 8, "dtype": "float32", "compile": False}
    model = torch_mae.build_mae(task.fields | more)
    ours, _ = jax.eval_shape(task.init_variables)
    theirs = sum(p.numel() for p in model.parameters())
    assert theirs == sum(x.size for x in jax.tree.leaves(ours))
    step = torch_mae.TorchStep(task.fields | more)
    before = step.loss(step.images).item()
    assert 0.8 < before < 3  # normalised targets have a deviation of 1
    for _ in range(200):
        step()
    assert step.loss(step.images).item() < before


def test_the_two_can_be_raced(capsys):
    pytest.importorskip("torch")
    flags = ["--against=official", f"--torch_python={sys.executable}", "--repeats=2"]
    assert bench.main(["step", *tiny_configs.flags(), *flags]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["speed_up_over_plain"] > 0 and result["speed_up_over_torch"] > 0
    assert result["torch"]["memory_mb"] > 0
