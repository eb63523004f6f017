"""Checks before an expensive run that all machines and the recipe work.

Examples:
  python -m mae_jax.tools.preflight --config=configs/demo.py
  srun python -m mae_jax.tools.preflight --config=configs/vit_l.py --workdir=DIR

It takes the flags of mae_jax.main. Launch it like the run itself, on every
machine. It compares the processes, writes to the workdir and cleans up,
measures an all-reduce, restores the checkpoint or loads the weights that the
run would start from, reads data, and takes four training steps with the
recipe's batch size. The workdir is left unchanged, and the run reuses the
programs compiled here.

Process 0 prints every row; other processes print only warnings and failures.

Exit status: 0 no check failed (warnings are marked !), 1 a check failed (✗),
2 invalid input.
"""

import os
import sys
from collections.abc import Sequence

from absl.flags import FlagValues

from mae_jax.config import flags
from mae_jax.runtime.cli import run_command, say, setup_logging
from mae_jax.runtime.errors import FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    values = FlagValues()
    flags.define_run(values, ["preflight", *words])
    if flags.HELP.intersection(words):
        print(flags.help_of(__doc__, values))
        return 0
    config = flags.parse(words, values)
    folder = flags.workdir_of(values)
    setup_logging()

    import jax  # late, so that mistyped flags fail immediately

    from mae_jax.distributed import fail_fast, initialize
    from mae_jax.runtime import compilation_cache
    from mae_jax.tools.preflight import run

    compilation_cache.enable(os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    initialize.start(
        values.distributed, values.coordinator, values.num_processes, values.process_id
    )
    process = jax.process_index()

    def show(row: run.Row) -> None:
        if process and row.mark == run.OK:
            return
        prefix = f"process {process}: " if jax.process_count() > 1 else ""
        say(*(prefix + line for line in row.lines()))

    try:
        with fail_fast.abort_all_on_error():
            changes = values.allow_config_change
            passed = run.run(config, folder, show, allow_config_change=changes)
            return 0 if passed else FAILED
    except fail_fast.EXPECTED as error:
        say(f"{run.FAILED} {error}")
        return FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
