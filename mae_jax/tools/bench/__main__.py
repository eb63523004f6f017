"""Measures the train step and the input pipeline, and what a step compiles to.

Examples:
  python -m mae_jax.tools.bench step --config=configs/vit_b.py \\
      --config.batch_size=8 --against=official
  python -m mae_jax.tools.bench step --config=configs/vit_b.py \\
      --config.batch_size=8 --rows=configs/ablations/wall_clock.py
  python -m mae_jax.tools.bench data --config=configs/folder.py \\
      --config.data.root=DIR --against=pil
  python -m mae_jax.tools.bench compile --config=configs/vit_2b.py --devices=64

`step` runs the real train step of any recipe on a batch that is already on the
devices. --against=plain alternates it with the paper's order of steps in plain
JAX, --against=torch with a PyTorch step, and --against=official with both.
--rows alternates variants of the recipe instead: the ROWS of a file like those
in configs/ablations.
`data` reads real batches, and times each stage separately. --against=pil
alternates it with a Pillow and NumPy loop in one thread that applies the same
transforms to the same files: compare it with --config.data.workers=1.
`compile` runs nothing. It reports memory, arithmetic and messages of the step
of any recipe for N fake devices (--devices=64, compiled for CPU) or for a TPU
(--topology=v5e:8x8; needs `pip install libtpu`).
"""

import json
import os
import resource
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from mae_jax.config import flags as command_line
from mae_jax.runtime import filesystem
from mae_jax.runtime.cli import run_command, setup_logging
from mae_jax.runtime.errors import UsageError
from mae_jax.runtime.host import keep_freed_memory
from mae_jax.tools.bench.compile import bench_compile, fake_devices, topology_devices
from mae_jax.tools.bench.input_pipeline import bench_data
from mae_jax.tools.bench.step import BASELINES, Options, bench_step, make_task
from mae_jax.tools.bench.table import table
from mae_jax.tools.bench.variants import bench_rows
from mae_jax.tools.study import plan


def _step(config: Any, values: flags.FlagValues) -> dict[str, Any]:
    # A PyTorch process wants its share of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    if values.rows:
        if values.against or values.find_batch:
            raise UsageError(
                "--rows compares with its own first row: not with --against=, and at "
                "the batch size of the recipe, without --find_batch"
            )
        return (
            bench_rows(
                config, plan.load(filesystem.expand(values.rows), "--rows").rows, values.repeats
            )
            | _machine()
        )
    options = Options(**{name: getattr(values, name) for name in Options._fields})
    return bench_step(config, options) | _machine()


def _data(config: Any, values: flags.FlagValues) -> dict[str, Any]:
    return bench_data(config, values.repeats, values.against) | _machine()


def _compile(config: Any, values: flags.FlagValues) -> dict[str, Any]:
    if config.model.dtype == "auto":
        config.model.dtype = "bfloat16"  # it is accelerators that one compiles for
    jax.config.update("jax_platforms", "cpu")
    fake = not values.topology
    devices = fake_devices(values.devices) if fake else topology_devices(values.topology)
    return bench_compile(config, make_task(config), devices)


COMMANDS = {"step": (_step, BASELINES), "data": (_data, ("pil",)), "compile": (_compile, ())}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; prints a table and one JSON object last."""
    words = list(sys.argv[1:] if argv is None else argv)
    values = flags.FlagValues()
    command_line.define_config(values, words)
    _define_flags(values)
    if command_line.HELP.intersection(words):
        print(command_line.help_of(__doc__, values))
        return 0
    if not words or words[0] not in COMMANDS:
        raise UsageError(f"say what to measure: one of {list(COMMANDS)}\n{__doc__}")
    config = command_line.parse(words[1:], values)
    setup_logging()
    command, baselines = COMMANDS[words[0]]
    if values.against not in ("", *baselines) or values.repeats < 1 or values.devices < 1:
        raise UsageError(
            f"--against is one of {baselines} for `{words[0]}`, --repeats and --devices at least 1"
        )
    result = command(config, values)
    print(table(result))
    print(json.dumps(result))
    return 0


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("against", "", "Baseline to alternate with.", flag_values=values)
    flags.DEFINE_integer("repeats", 20, "Timed steps or batches.", flag_values=values)
    flags.DEFINE_bool("find_batch", False, "Take the largest batch that fits.", flag_values=values)
    flags.DEFINE_string("rows", "", "File of variants to alternate.", flag_values=values)
    flags.DEFINE_string("torch_python", "", "Interpreter that has torch.", flag_values=values)
    flags.DEFINE_bool("torch_compile", False, "Race torch.compile too.", flag_values=values)
    flags.DEFINE_integer("devices", 1, "Fake devices to compile for.", flag_values=values)
    flags.DEFINE_string("topology", "", "TPU to compile for: v5e:8x8.", flag_values=values)


def _machine() -> dict[str, Any]:
    """What it ran on, and the peak of its memory: the first device's, on CPU the process's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
    return {
        "peak_memory_mb": round(stats.get("peak_bytes_in_use", used) / 2**20),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
