"""Checks before an expensive run that all machines are ready for it.

Examples:
  python -m mae_jax.tools.preflight --config=configs/demo.py
  srun python -m mae_jax.tools.preflight --config=configs/vit_l.py --workdir=DIR

Takes the flags of mae_jax.main. Start it on every machine, the way the run will
be started. It compares the processes, writes to the workdir and cleans up,
measures an all-reduce, restores the checkpoint or reads the weights that the
run would start from, reads data, and runs four training steps with the recipe's
batch. It leaves no files, and the run reuses the compiled programs.

Process 0 prints every row; others print only rows that need attention.

Exit status: 0 no check failed (possibly warnings, !), 1 a check failed (✗),
2 invalid input.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags

from mae_jax.config import flags as command_line
from mae_jax.runtime.cli import run_command, say, setup_logging


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    values = flags.FlagValues()
    command_line.define_run(values, ["preflight", *words])
    if command_line.HELP.intersection(words):
        print(command_line.help_of(__doc__, values))
        return 0
    config = command_line.parse(words, values)
    folder = command_line.workdir_of(values)
    setup_logging()

    import jax  # late, so that mistyped flags answer at once

    from mae_jax.distributed import fail_fast, initialize
    from mae_jax.runtime import compilation_cache
    from mae_jax.tools.preflight import run

    compilation_cache.enable(os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    initialize.start(
        values.distributed, values.coordinator, values.num_processes, values.process_id
    )
    process = jax.process_index()

    def tell(row: run.Row) -> None:
        if process and row.mark == run.OK:
            return
        before = f"process {process}: " if jax.process_count() > 1 else ""
        say(*(before + line for line in row.lines()))

    try:
        with fail_fast.abort_all_on_error():
            changes = values.allow_config_change
            return 0 if run.run(config, folder, tell, allow_config_change=changes) else 1
    except fail_fast.EXPECTED as error:
        say(f"{run.FAILED} {error}")
        return 1


if __name__ == "__main__":
    sys.exit(run_command(main))
