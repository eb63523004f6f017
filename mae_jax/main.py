"""Runs a recipe: pre-training, fine-tuning, linear probing, kNN.

Examples:
  python -m mae_jax.main --config=configs/demo.py
  python -m mae_jax.main --config=configs/vit_l.py --workdir=runs/vit_l \\
      --config.data.source=folder --config.data.root=/data/imagenet

To continue an interrupted run, run the same command again.

Exit status: 0 done; 1 the run failed; 2 invalid input, explained in one line;
70 stopped by the watchdog; 75 stopped after saving, by a signal or because data
could not be read. After 70 or 75, run the same command again to continue.
"""

import contextlib
import os
import sys
from typing import Any

from absl.flags import FLAGS

from mae_jax.config import flags
from mae_jax.runtime import workdir
from mae_jax.runtime.cli import run_command, say, setup_logging
from mae_jax.runtime.errors import STOPPED
from mae_jax.runtime.preemption import Interrupted, StopRequest, stop_on_signals
from mae_jax.runtime.watchdog import Watchdog

flags.define_run(FLAGS, sys.argv)


def main() -> int:
    """Runs the command in `sys.argv`; returns the exit status."""
    if flags.HELP.intersection(sys.argv[1:]):
        print(flags.help_of(__doc__, FLAGS))
        return 0
    config = flags.parse(sys.argv[1:], FLAGS)
    folder = flags.workdir_of(FLAGS)
    setup_logging()
    try:
        with stop_on_signals() as stop:
            return 0 if _train(config, folder, stop) else STOPPED
    except Interrupted:
        print("stopped before the first step: run the same command to start again", file=sys.stderr)
        return STOPPED


def _train(config: Any, folder: str, stop: StopRequest) -> bool:
    """Trains; returns False if the run was stopped."""
    import jax  # late, so that mistyped flags are reported at once

    from mae_jax.distributed import consistency, fail_fast, initialize, sharding
    from mae_jax.runtime import compilation_cache
    from mae_jax.runtime.host import keep_freed_memory
    from mae_jax.tasks import TASKS
    from mae_jax.train import loop, run_info

    compilation_cache.enable(os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    initialize.start(FLAGS.distributed, FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    stop.multiprocess = jax.process_count() > 1
    if not stop.multiprocess:
        stop.reinstall()
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    process = jax.process_index()
    with contextlib.ExitStack() as closing:
        # Processes that differ may hang in a collective, so none before `check_consistency`.
        with consistency.propagate_startup_error():
            sharding.make_mesh(**config.mesh)  # reports an invalid mesh before data is searched
            release = closing.enter_context(workdir.lock(folder, first=process == 0))
            stop.before_leaving.append(release)
            dog = Watchdog(**config.watchdog, workdir=folder, process=process)
            closing.callback(dog.close)
            task = TASKS[config.task](config, folder)
            changes = FLAGS.allow_config_change
            facts = run_info.consistency_facts(task, allow_config_change=changes)
        consistency.check_consistency(config, folder, facts)
        with fail_fast.abort_all_on_error(stop.before_leaving):
            quick = flags.quick_setting(FLAGS)
            done = loop.run(
                task, config, folder, allow_config_change=changes, stop=stop, first_look=quick
            )
        if done and process == 0:
            _print_next(task.next_commands(workdir.shortened(folder)))
        return done


def _print_next(commands: list[str]) -> None:
    if commands:  # after the log, in the same stream
        say("Next, for example:", *(f"  {command}" for command in commands), error=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
