"""Benchmarks steps, the input pipeline and operators; analyzes compiled steps.

Examples:
  python -m mae_jax.tools.bench step --config=configs/vit_b.py \\
      --config.batch_size=8 --against=official
  python -m mae_jax.tools.bench step --config=configs/vit_b.py \\
      --config.batch_size=8 --rows=configs/ablations/wall_clock.py
  python -m mae_jax.tools.bench data --config=configs/folder.py \\
      --config.data.root=DIR --against=pil
  python -m mae_jax.tools.bench compile --config=configs/vit_2b.py --devices=64
  python -m mae_jax.tools.bench ops --image_size=1024 --against=torchvision

`step` times the train step of any recipe on a batch that is already on the
devices. --against=plain alternates it with the paper's algorithm in plain JAX,
--against=torch with a PyTorch step, and --against=official with both. --rows
instead alternates variants of the recipe: the ROWS of a file such as those in
configs/ablations.

`data` times the input pipeline on real data, as a whole and stage by stage.
--against=pil alternates it with a single-threaded Pillow and NumPy loop that
applies the same transforms to the same files; for a fair comparison, also set
--config.data.workers=1.

`compile` compiles the step without running it, and reports its memory, FLOPs
and communication between devices, for N fake CPU devices (--devices=64) or for
a TPU (--topology=v5e:8x8; needs `pip install libtpu`).

`ops` takes no recipe. It times the operators of detection for one image:
ROIAlign of 512 boxes, with its gradient, and non-maximum suppression in five
levels of 2000 boxes. --against=torchvision alternates them with torchvision's
operators on the CPU, run by --torch_python.

All commands print a table, and one JSON object as the last line.
"""

import json
import os
import resource
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl.flags import DEFINE_bool, DEFINE_integer, DEFINE_string, FlagValues

from mae_jax.config import flags
from mae_jax.runtime import filesystem
from mae_jax.runtime.cli import run_command, setup_logging
from mae_jax.runtime.errors import UsageError
from mae_jax.runtime.host import keep_freed_memory
from mae_jax.tools.bench.compile import bench_compile, fake_devices, topology_devices
from mae_jax.tools.bench.input_pipeline import bench_data
from mae_jax.tools.bench.ops import bench_ops
from mae_jax.tools.bench.step import BASELINES, Options, bench_step, make_task
from mae_jax.tools.bench.table import table
from mae_jax.tools.bench.variants import bench_rows
from mae_jax.tools.study import plan


def _step(config: Any, values: FlagValues) -> dict[str, Any]:
    # Leaves room for a PyTorch process on the same GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    if values.rows:
        if values.against or values.find_batch:
            raise UsageError(
                "--rows compares with its own first row, at the batch size of the recipe: leave "
                "out --against and --find_batch"
            )
        rows = plan.load(filesystem.expand(values.rows), "--rows").rows
        return bench_rows(config, rows, values.repeats) | _machine()
    options = Options(**{name: getattr(values, name) for name in Options._fields})
    return bench_step(config, options) | _machine()


def _data(config: Any, values: FlagValues) -> dict[str, Any]:
    return bench_data(config, values.repeats, values.against) | _machine()


def _compile(config: Any, values: FlagValues) -> dict[str, Any]:
    if config.model.dtype == "auto":
        config.model.dtype = "bfloat16"  # as on an accelerator
    jax.config.update("jax_platforms", "cpu")
    fake = not values.topology
    devices = fake_devices(values.devices) if fake else topology_devices(values.topology)
    return bench_compile(config, make_task(config), devices)


def _ops(config: None, values: FlagValues) -> dict[str, Any]:
    names = ("image_size", "channels", "chunk", "repeats", "against", "torch_python")
    return bench_ops(**{name: getattr(values, name) for name in names}) | _machine()


COMMANDS = {
    "step": (_step, BASELINES),
    "data": (_data, ("pil",)),
    "compile": (_compile, ()),
    "ops": (_ops, ("torchvision",)),
}
WITHOUT_RECIPE = ("ops",)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; prints a table and one JSON object last."""
    words = list(sys.argv[1:] if argv is None else argv)
    values = FlagValues()
    flags.define_config(values, words)
    _define_flags(values)
    if flags.HELP.intersection(words):
        print(flags.help_of(__doc__, values))
        return 0
    if not words or words[0] not in COMMANDS:
        raise UsageError(f"no command: pass one of {', '.join(COMMANDS)} first (see --help)")
    if words[0] in WITHOUT_RECIPE:
        config = flags.parse_without_recipe(words[1:], values)
    else:
        config = flags.parse(words[1:], values)
    setup_logging()
    command, baselines = COMMANDS[words[0]]
    if values.against not in ("", *baselines):
        allowed = f"must be one of {', '.join(baselines)}" if baselines else "is not supported"
        raise UsageError(f"--against={values.against} {allowed} for `{words[0]}`")
    if min(values.repeats, values.devices, values.channels, values.chunk) < 1:
        raise UsageError("--repeats, --devices, --channels and --chunk must be at least 1")
    if values.image_size < 32:
        raise UsageError("--image_size must be at least 32")
    result = command(config, values)
    print(table(result))
    print(json.dumps(result))
    return 0


def _define_flags(values: FlagValues) -> None:
    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    against = (
        "Baseline: plain, torch or official for step, pil for data, torchvision for ops; default "
        "none."
    )
    define(DEFINE_string, "against", "", against)
    define(DEFINE_integer, "repeats", 20, "Number of timed steps or batches; default 20.")
    largest = "step: use the largest batch that fits into memory."
    define(DEFINE_bool, "find_batch", False, largest)
    define(DEFINE_string, "rows", "", "step: file of variants to compare.")
    python = "Python interpreter that has torch; default the current one."
    define(DEFINE_string, "torch_python", "", python)
    define(DEFINE_bool, "torch_compile", False, "step: also time torch.compile.")
    devices = "compile: number of fake CPU devices; default 1."
    define(DEFINE_integer, "devices", 1, devices)
    define(DEFINE_integer, "image_size", 1024, "ops: side of the image; default 1024.")
    channels = "ops: channels of the pyramid; default 256."
    define(DEFINE_integer, "channels", 256, channels)
    define(DEFINE_integer, "chunk", 64, "ops: boxes pooled at a time; default 64.")
    define(DEFINE_string, "topology", "", "compile: TPU to compile for, such as v5e:8x8.")


def _machine() -> dict[str, Any]:
    """The devices, and peak memory: of the first device, or on CPU of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
    return {
        "peak_memory_mb": round(stats.get("peak_bytes_in_use", used) / 2**20),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
