"""Looks, before an expensive run, whether this machine and the others can do it.

    python -m mae_jax.tools.preflight --config=FILE [--workdir=DIR] [--config.key=value ...]

The flags are those of mae_jax.main, those for several processes too: start it as the run will be
started, on every machine (`srun python -m ...`). It compares the processes, writes into and removes
from the workdir, measures an all-reduce, reads data and makes four steps of training with the
recipe's batch; nothing stays. Checkpoints or weights to begin with are not looked at. What it
compiles the run need not compile again.

Each process prints its own rows where something is to be done; process 0 prints all.

Exit status: 0 nothing failed (there may be warnings, !), 1 something did (✗), 2 bad input.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags

from mae_jax import command_line, workdir
from mae_jax.console import run_command, setup_logging


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    values = flags.FlagValues()
    command_line.define_config(values, ["preflight", *words])
    help_of = {"workdir": "Folder of the run.", "coordinator": "host:port of process 0."}
    for name, text in help_of.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    for name in ("num_processes", "process_id"):
        flags.DEFINE_integer(name, None, "With --coordinator.", flag_values=values)
    flags.DEFINE_bool("allow_config_change", False, "Not looked at here.", flag_values=values)
    choices = ["auto", "on", "off"]
    flags.DEFINE_enum("distributed", "auto", choices, "Connect to others?", flag_values=values)
    if {"--help", "-h", "--helpfull"} & set(words):
        print(__doc__)
        return 0
    config = command_line.parse(words, values)
    default = os.path.join("runs", command_line.config_name(values))
    folder = workdir.resolve(default if values.workdir is None else values.workdir)
    setup_logging()

    import jax  # late, so that mistyped flags answer at once

    from mae_jax import compile_cache, distributed, preflight

    compile_cache.enable(os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    distributed.start(
        values.distributed, values.coordinator, values.num_processes, values.process_id
    )
    process = jax.process_index()

    def tell(row: preflight.Row) -> None:
        if process and row.mark == preflight.OK:
            return
        before = f"process {process}: " if jax.process_count() > 1 else ""
        print(f"{before}{row.mark} {row.name:<11} {row.seen}", flush=True)
        if row.advice:
            print(f"{before}  {'':<11} -> {row.advice}", flush=True)

    try:
        return 0 if preflight.look(config, folder, tell) else 1
    except preflight.EXPECTED as error:
        # At once: the others may wait for this process in something compiled, and jax, which would
        # wait for them at an orderly end, ends them when it is gone.
        print(f"process {process}: {preflight.FAILED} {error}", flush=True)
        if jax.process_count() > 1:
            os._exit(1)
        return 1


if __name__ == "__main__":
    sys.exit(run_command(main))
