r"""How fast the train step and the input pipeline are on this machine.

    python -m mae_jax.tools.bench step --config=configs/vit_b.py --config.batch_size=8 \
        --against=plain
    python -m mae_jax.tools.bench data --config=configs/folder.py --config.data.root=DIR \
        --against=pil

`step` runs the real train step of any recipe on a batch that lies on the devices; `--against=plain`
alternates pre-training with the paper's order of steps (embed all patches, unshuffle, predict all)
on the same layers.
`data` reads real batches, and times each stage by itself; `--against=pil` alternates it with a
Pillow + NumPy loop in one thread that does the same transforms to the same files: compare it with
--config.data.workers=1.
"""

import json
import resource
import sys
from collections.abc import Sequence

import jax
from absl import flags

from mae_jax import command_line
from mae_jax.bench import report
from mae_jax.bench.data import bench_data
from mae_jax.bench.step import bench_step
from mae_jax.console import run_command, setup_logging
from mae_jax.errors import UsageError

BENCHES = {"step": (bench_step, ("", "plain")), "data": (bench_data, ("", "pil"))}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; prints a table for people and one JSON object last."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in BENCHES:
        raise UsageError(f"say what to measure: one of {list(BENCHES)}\n{__doc__}")
    values = flags.FlagValues()
    command_line.define_config(values, words)
    flags.DEFINE_string("against", "", "Baseline to alternate with.", flag_values=values)
    flags.DEFINE_integer("repeats", 20, "Timed steps or batches.", flag_values=values)
    config = command_line.parse(words[1:], values)
    setup_logging()
    bench, baselines = BENCHES[words[0]]
    if values.against not in baselines or values.repeats < 1:
        raise UsageError(f"--against is one of {baselines[1:]}, --repeats at least 1")
    result = bench(config, values.repeats, values.against)
    result["peak_memory_mb"] = peak_memory_mb()
    result["device"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(report.table(result))
    print(json.dumps(result))
    return 0


def peak_memory_mb() -> int:
    """Peak of the first device's memory; on CPU, of the process's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return round(stats["peak_bytes_in_use"] / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


if __name__ == "__main__":
    sys.exit(run_command(main))
