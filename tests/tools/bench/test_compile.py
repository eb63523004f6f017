"""Analysis of compiled steps: memory, and what the devices send each other."""

import collections
import functools
import json
import types

import jax
import pytest

from mae_jax.distributed import sharding
from mae_jax.runtime.errors import UsageError
from mae_jax.tools.bench import __main__ as bench
from mae_jax.tools.bench.compile import collectives
from mae_jax.tools.bench.step import make_task, synthetic_batch
from mae_jax.train.compile_step import abstract_batch, compile_step, planned_bytes
from mae_jax.train.state import abstract_state
from tests.helpers import tiny_configs

# Wide enough for the parameters to be split.
WIDE = {
    "batch_size": 8,
    "model__embed_dim": 128,
    "model__depth": 2,
    "model__decoder_embed_dim": 128,
    "model__decoder_depth": 2,
}


@functools.cache
def compiled(data, fsdp):
    config = tiny_configs.config(**WIDE, mesh__data=data, mesh__fsdp=fsdp)
    task = make_task(config)
    mesh = sharding.make_mesh(**config.mesh)
    step = compile_step(config, task, mesh)
    return step, abstract_state(task, mesh), collectives(step.as_text())


def shape_text(x):
    return f"f32[{','.join(map(str, x.shape))}]"


def assert_sums_are_gradients(sent, params):
    gradients = 4 * sum(x.size for x in params)
    total = sum(size for _, size in sent["all-reduce"])
    assert gradients <= total <= gradients + 4096  # and some sums of metrics


def test_fsdp_gathers_parameters_and_sums_gradients_and_nothing_else():
    step, state, sent = compiled(1, 4)
    params = jax.tree.leaves(state.params)
    split = [x for x in params if not x.sharding.is_fully_replicated]
    assert len(split) >= 16
    gathered = collections.Counter(shapes for shapes, _ in sent["all-gather"])
    assert gathered == collections.Counter(shape_text(x) for x in split)  # once each, no other
    assert set(sent) == {"all-gather", "all-reduce"}
    assert_sums_are_gradients(sent, params)
    shards = [x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(state)]
    state_bytes = sum(4 * int(jax.numpy.prod(jax.numpy.array(s))) for s in shards)
    arguments = step.memory_analysis().argument_size_in_bytes
    assert state_bytes <= arguments < 1.1 * state_bytes  # nothing repeated that should be split


def test_data_parallel_only_sums_gradients():
    _, state, sent = compiled(4, 1)
    assert set(sent) == {"all-reduce"}
    assert_sums_are_gradients(sent, jax.tree.leaves(state.params))


def test_splitting_saves_memory():
    split, whole = (planned_bytes(compiled(*mesh)[0]) for mesh in ((1, 4), (4, 1)))
    assert split < whole


def test_outputs_that_reuse_an_argument_count_once():
    plan = types.SimpleNamespace(
        argument_size_in_bytes=1000,
        temp_size_in_bytes=300,
        output_size_in_bytes=820,
        alias_size_in_bytes=800,
    )
    step = types.SimpleNamespace(memory_analysis=lambda: plan)
    assert planned_bytes(step) == 1000 + 300 + 20


def test_the_batch_has_the_type_of_the_data():
    for dtype in ("uint8", "float32"):
        task = make_task(tiny_configs.config(data__dtype=dtype))
        shapes = abstract_batch(task, 16, sharding.make_mesh())
        for name, array in synthetic_batch(task, 16).items():
            assert (array.shape, array.dtype) == (shapes[name].shape, shapes[name].dtype)
        assert shapes["image"].dtype == dtype


def test_collectives_are_read_from_the_text():
    text = """
    %all-reduce-scatter.3 (input.4: bf16[128,2]) -> bf16[16,2] {
      %input.4 = bf16[128,2]{1,0} parameter(0)
      %inner = bf16[128,2]{1,0} all-reduce(%input.4), replica_groups={}
    }

      %a = f32[4,2]{1,0} all-reduce(%x), replica_groups={}
      %b = (bf16[8]{0}, bf16[32]{0}) all-gather-start(%y), dimensions={0}
      %c = bf16[32]{0} all-gather-done(%b)
      %d = bf16[16,2]{1,0:T(8,128)} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.3
      %e = f32[4] add(%all-reduce.1, %c)
    """
    assert collectives(text) == {
        "all-reduce": [("f32[4,2]", 32)],
        "all-gather": [("bf16[32]", 64)],
        "reduce-scatter": [("bf16[16,2]", 64)],
    }


def test_command_compiles_for_devices_that_do_not_exist(capfd):
    # JAX has already started in this process, with the four devices of the tests.
    flags = tiny_configs.flags(batch_size=8, mesh__fsdp=2)
    assert bench.main(["compile", *flags, "--devices=4"]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert result["devices"] == "4 x cpu" and result["mesh"] == {"data": 2, "fsdp": 2}
    assert result["memory_mb"] >= result["temporaries_mb"] > 0
    assert result["collectives"]["all-reduce"]["count"] >= 1
    assert result["gflops_of_the_official_algorithm"] > 0


@pytest.mark.parametrize(
    "flags, message",
    [(["--config.batch_size=6"], "not divisible by 4 devices"), (["--topology=v0:1"], "v5e:4x4")],
)
def test_bad_input_is_explained(flags, message):
    with pytest.raises(UsageError, match=message):
        bench.main(["compile", *tiny_configs.flags(batch_size=8), "--devices=4", *flags])
