"""Trains what a recipe describes: pre-training, fine-tuning, probing, kNN.

Examples:
  python -m mae_jax.main --config=configs/demo.py
  python -m mae_jax.main --config=configs/vit_l.py --workdir=runs/vit_l \\
      --config.data.source=folder --config.data.root=/data/imagenet

To continue an interrupted run, run the same command again.

Exit status: 0 done, 1 the run failed, 2 invalid input (one line says what),
70 ended by the watchdog, 75 stopped after saving, by a signal or because its
data could not be read. After 70 and 75, run the same command to continue.
"""

import contextlib
import os
import sys
from typing import Any

from absl import flags

from mae_jax.config import flags as command_line
from mae_jax.runtime import workdir
from mae_jax.runtime.cli import run_command, setup_logging
from mae_jax.runtime.errors import STOPPED
from mae_jax.runtime.preemption import Interrupted, StopRequest, stop_on_signals
from mae_jax.runtime.watchdog import Watchdog

FLAGS = flags.FLAGS

command_line.define_run(FLAGS, sys.argv)


def main() -> int:
    """Runs the command of `sys.argv`; returns the exit status."""
    if command_line.HELP.intersection(sys.argv[1:]):
        print(command_line.help_of(__doc__, FLAGS))
        return 0
    config = command_line.parse(sys.argv[1:], FLAGS)
    folder = command_line.workdir_of(FLAGS)
    setup_logging()
    try:
        with stop_on_signals() as stop:
            return 0 if _train(config, folder, stop) else STOPPED
    except Interrupted:
        print("stopped before the first step: the same command starts again", file=sys.stderr)
        return STOPPED


def _train(config: Any, folder: str, stop: StopRequest) -> bool:
    """Trains; False when stopped."""
    import jax  # late, so that mistyped flags answer at once

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
        # Processes that are not alike may hang in a collective: none before they are compared.
        with consistency.propagate_startup_error():
            sharding.make_mesh(**config.mesh)  # refused before the data are looked for
            release = closing.enter_context(workdir.lock(folder, first=process == 0))
            stop.before_leaving.append(release)
            dog = Watchdog(**config.watchdog, workdir=folder, process=process)
            closing.callback(dog.close)
            task = TASKS[config.task](config, folder)
            changes = FLAGS.allow_config_change
            facts = run_info.consistency_facts(task, allow_config_change=changes)
        consistency.check_consistency(config, folder, facts)
        with fail_fast.abort_all_on_error(stop.before_leaving):
            return loop.run(task, config, folder, allow_config_change=changes, stop=stop)


if __name__ == "__main__":
    sys.exit(run_command(main))
