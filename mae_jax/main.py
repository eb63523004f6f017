"""The command that trains.

    python -m mae_jax.main --config=configs/vit_l.py [--workdir=DIR] [--config.key=value ...]

Exit status: 0 done, 2 bad input (one line says what), 75 stopped by a signal after saving: run the
same command again to continue.
"""

import os
import sys

from absl import flags

from mae_jax import command_line, workdir
from mae_jax.console import run_command, setup_logging

STOPPED = 75
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
    default = os.path.join("runs", command_line.config_name(FLAGS))
    folder = workdir.resolve(default if FLAGS.workdir is None else FLAGS.workdir)
    setup_logging()
    import jax  # late, so that mistyped flags answer at once

    from mae_jax import distributed, sharding, train
    from mae_jax.host_memory import keep_freed_memory
    from mae_jax.tasks import TASKS

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/mae_jax/compiled")
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(cache))
    distributed.start(FLAGS.distributed, FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    sharding.make_mesh(**config.mesh)  # refused before the data are looked for
    first = jax.process_index() == 0
    with workdir.only_run(folder, first=first, tell=distributed.agree):
        task = TASKS[config.task](config, folder)
        done = train.run(task, config, folder, allow_config_change=FLAGS.allow_config_change)
    return 0 if done else STOPPED


if __name__ == "__main__":
    sys.exit(run_command(main))
