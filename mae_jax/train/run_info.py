"""What a run records about itself at its start: configuration, environment, summary."""

import logging
import os
from typing import Any

import jax

from mae_jax.ops import trees
from mae_jax.optim.param_groups import Decays, decays
from mae_jax.runtime.environment import describe
from mae_jax.runtime.filesystem import write_json
from mae_jax.train.task import Task

log = logging.getLogger(__name__)


def parameter_counts(params: Any, weight_decay: float, decays: Decays = decays) -> str:
    """The number of parameters, and how many of them have weight decay, as text."""
    decayed = total = 0
    for name, leaf in trees.flatten(params).items():
        total += leaf.size
        decayed += leaf.size * (weight_decay > 0 and decays(name, len(leaf.shape)))
    return f"{total:,}, of which {decayed:,} with weight decay"


def log_and_write(
    workdir: str, config: Any, summary: dict[str, Any], param_report: dict[str, Any] | None = None
) -> None:
    """Process 0 writes config.json and env.json and logs the summary of the run.

    The report on the initial parameters, if any, is written to init_from.json.
    """
    if jax.process_index() != 0:
        return
    env = describe()
    write_json(os.path.join(workdir, "config.json"), config.to_dict())
    write_json(os.path.join(workdir, "env.json"), env)
    if param_report:
        write_json(os.path.join(workdir, "init_from.json"), param_report)
    packages = ", ".join(f"{k} {v}" for k, v in env["versions"].items())
    devices = f"{jax.device_count()} x {env['devices'][0]} in {env['processes']} process(es)"
    for name, value in {
        "workdir": workdir,
        **summary,
        "devices": devices,
        "versions": packages,
    }.items():
        log.info("%-14s %s", name, value)


def consistency_facts(task: Task, *, allow_config_change: bool) -> dict[str, Any]:
    """What `consistency.check_consistency` compares besides the configuration.

    The target is included because the configuration lacks parts of it, such as a tokenizer's hash.
    """
    metadata = task.metadata(0)
    changes = {"--allow_config_change": allow_config_change}
    return {**changes, "--config.target": metadata.get("target"), **metadata["data"]}
