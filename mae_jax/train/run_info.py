"""What a run writes down about itself: configuration, environment, and the facts at its start."""

import logging
import os
from typing import Any

import jax

from mae_jax.ops import trees
from mae_jax.optim.param_groups import decays
from mae_jax.runtime.environment import describe
from mae_jax.runtime.filesystem import write_json
from mae_jax.train.task import Task

log = logging.getLogger(__name__)


def parameter_counts(params: Any, weight_decay: float, exempt: tuple[str, ...] = ()) -> str:
    """How many parameter values there are, and how many of them are decayed."""
    decayed = total = 0
    for name, leaf in trees.flatten(params).items():
        total += leaf.size
        decayed += leaf.size * (weight_decay > 0 and decays(name, len(leaf.shape), exempt))
    return f"{total:,}, of which {decayed:,} with weight decay"


def log_and_write(
    workdir: str, config: Any, facts: dict[str, Any], param_report: dict[str, Any] | None = None
) -> None:
    """Process 0 writes config.json and env.json and prints the facts of the run.

    A report on the parameters that the run began with becomes init_from.json.
    """
    if jax.process_index() != 0:
        return
    env = describe()
    write_json(os.path.join(workdir, "config.json"), config.to_dict())
    write_json(os.path.join(workdir, "env.json"), env)
    if param_report:
        write_json(os.path.join(workdir, "init_from.json"), param_report)
    packages = ", ".join(f"{k} {v}" for k, v in env["versions"].items())
    kinds = f"{jax.device_count()} x {env['devices'][0]} in {env['processes']} process(es)"
    for name, value in {
        "workdir": workdir,
        **facts,
        "devices": kinds,
        "versions": packages,
    }.items():
        log.info("%-14s %s", name, value)


def consistency_facts(task: Task, *, allow_config_change: bool) -> dict[str, Any]:
    """What `check` compares of a run besides its configuration.

    The target is more than the configuration says: a tokenizer's hash is part of it.
    """
    said = task.metadata(0)
    changes = {"--allow_config_change": allow_config_change}
    return {**changes, "--config.target": said.get("target"), **said["data"]}
