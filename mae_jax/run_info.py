"""What a run writes down about itself: configuration, environment, and the facts at its start."""

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
from typing import Any

import jax

from mae_jax import files
from mae_jax.optim.param_groups import decays
from mae_jax.params import named

log = logging.getLogger(__name__)

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections")


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def environment() -> dict[str, Any]:
    """Versions, devices, command and source revision."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "command": sys.argv,
        "git_revision": git_revision(),
    }


def git_revision() -> str:
    """Commit of this source tree, "+changes" when edited; "unknown" outside a checkout."""
    folder = os.path.dirname(os.path.abspath(__file__))
    command = ["git", "-C", folder, "describe", "--always", "--dirty=+changes", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def parameter_counts(params: Any, weight_decay: float, exempt: tuple[str, ...] = ()) -> str:
    """How many parameter values there are, and how many of them are decayed."""
    decayed = total = 0
    for name, leaf in named(params).items():
        total += leaf.size
        decayed += leaf.size * (weight_decay > 0 and decays(name, len(leaf.shape), exempt))
    return f"{total:,}, of which {decayed:,} with weight decay"


def announce(
    workdir: str, config: Any, facts: dict[str, Any], account: dict[str, Any] | None = None
) -> None:
    """Process 0 writes config.json and env.json and prints the facts of the run.

    An account of the parameters that it began with becomes init_from.json.
    """
    if jax.process_index() != 0:
        return
    env = environment()
    write_json(os.path.join(workdir, "config.json"), config.to_dict())
    write_json(os.path.join(workdir, "env.json"), env)
    if account:
        write_json(os.path.join(workdir, "init_from.json"), account)
    packages = ", ".join(f"{k} {v}" for k, v in env["versions"].items())
    kinds = f"{jax.device_count()} x {env['devices'][0]} in {env['processes']} process(es)"
    for name, value in {
        "workdir": workdir,
        **facts,
        "devices": kinds,
        "versions": packages,
    }.items():
        log.info("%-14s %s", name, value)


def write_json(path: str, value: Any) -> None:
    """Writes JSON so that a reader never sees half a file."""
    text = json.dumps(value, indent=2, default=list) + "\n"
    files.write(path, text.encode())
