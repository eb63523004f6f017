"""The command: `python -m mae_jax.main --config=configs/vit_l.py [--workdir=DIR] [--config.key=value]`.

Exit status: 0 done, 2 bad input (one line says what), 75 stopped by a signal after saving: run the
same command again to continue.
"""

import os
import sys

from absl import flags
from ml_collections import config_flags

from mae_jax.console import run_command, setup_logging
from mae_jax.errors import UsageError

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STOPPED = 75

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe: a file of configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config name>.")
ALLOW_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Continue a run although its configuration changed."
)
DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", ["auto", "on", "off"], "Whether to connect to other processes."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of the processes this is.")


def main() -> int:
    """Runs the command of `sys.argv`; returns the exit status."""
    sys.path.insert(0, REPO)  # recipes import each other as `configs.<name>`
    _parse(sys.argv)
    setup_logging()
    return _run()


def _parse(argv: list[str]) -> None:
    """Parses flags; `--config=configs/x.py` is also looked for in this repository."""
    try:
        rest = flags.FLAGS([_find_config(word) for word in argv])
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}: flags begin with --")
    if CONFIG.value is None:
        raise UsageError("no recipe: give --config=configs/demo.py or another file of configs/")


def _find_config(word: str) -> str:
    name, _, value = word.partition("=")
    path, colon, argument = value.partition(":")
    inside = os.path.join(REPO, path)
    if name.lstrip("-") == "config" and not os.path.exists(path) and os.path.exists(inside):
        return f"{name}={inside}{colon}{argument}"
    return word


def _default_workdir() -> str:
    """`runs/<config name>`, the name being the recipe's path below configs/ and its argument."""
    path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = os.path.splitext(os.path.abspath(path).split("/configs/")[-1])[0]
    return os.path.join("runs", os.path.basename(name) if os.path.isabs(name) else name) + (
        f"_{argument}" if argument else ""
    )


def _run() -> int:
    """Connects processes, builds the task, trains."""
    import jax  # late, so that --help and mistyped flags answer at once

    from mae_jax import distributed, train
    from mae_jax.tasks import TASKS

    config = CONFIG.value
    if config.task not in TASKS:
        raise UsageError(f"--config.task={config.task} is not one of {list(TASKS)}")
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/mae_jax/compiled")
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(cache))
    distributed.start(DISTRIBUTED.value, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    workdir = os.path.abspath(WORKDIR.value or _default_workdir())
    os.makedirs(workdir, exist_ok=True)
    task = TASKS[config.task](config, workdir)
    done = train.run(task, config, workdir, allow_config_change=ALLOW_CHANGE.value)
    return 0 if done else STOPPED


if __name__ == "__main__":
    sys.exit(run_command(main))
