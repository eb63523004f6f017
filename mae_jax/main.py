"""The command that trains.

    python -m mae_jax.main --config=configs/vit_l.py [--workdir=DIR] [--config.key=value ...]

Exit status: 0 done, 2 bad input (one line says what), 75 stopped by a signal after saving: run the
same command again to continue.
"""

import os
import sys

from absl import flags

from mae_jax import command_line
from mae_jax.console import run_command, setup_logging
from mae_jax.errors import UsageError

FLAGS = flags.FLAGS

command_line.define_config(FLAGS, sys.argv)
flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config name>.")
flags.DEFINE_bool("allow_config_change", False, "Continue a run with another configuration.")
flags.DEFINE_enum("distributed", "auto", ["auto", "on", "off"], "Connect to other processes?")
flags.DEFINE_string("coordinator", None, "host:port of process 0.")
flags.DEFINE_integer("num_processes", None, "Number of processes.")
flags.DEFINE_integer("process_id", None, "Which of the processes this is.")


def main() -> int:
    """Runs the command of `sys.argv`; returns the exit status."""
    config = command_line.parse(sys.argv[1:], FLAGS)
    setup_logging()
    from mae_jax.stopping import STOPPED, Interrupted, stop_on_signals

    try:
        with stop_on_signals() as stop:
            return _train(config, stop)
    except Interrupted:
        print("stopped before the first step: the same command starts again", file=sys.stderr)
        return STOPPED


def _train(config, stop) -> int:
    import jax  # late, so that mistyped flags answer at once

    from mae_jax import distributed, train
    from mae_jax.host_memory import keep_freed_memory
    from mae_jax.stopping import STOPPED
    from mae_jax.tasks import TASKS

    if config.task not in TASKS:
        raise UsageError(f"--config.task={config.task} is not one of {list(TASKS)}")
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/mae_jax/compiled")
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(cache))
    distributed.start(FLAGS.distributed, FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    stop.several = jax.process_count() > 1
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    default = os.path.join("runs", command_line.config_name(FLAGS))
    workdir = os.path.abspath(_writable(FLAGS.workdir or default))
    task = TASKS[config.task](config, workdir)
    done = train.run(
        task, config, workdir, allow_config_change=FLAGS.allow_config_change, stop=stop
    )
    return 0 if done else STOPPED


def _writable(workdir: str) -> str:
    """The folder itself, if it can be written to or made."""
    if "://" in workdir:
        raise UsageError(f"--workdir={workdir} is not a folder: mount the bucket, or use a disk")
    above = os.path.abspath(workdir)
    while not os.path.exists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above) or not os.access(above, os.W_OK):
        raise UsageError(f"--workdir={workdir} cannot be written to")
    return workdir


if __name__ == "__main__":
    sys.exit(run_command(main))
