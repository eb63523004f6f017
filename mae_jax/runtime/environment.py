"""The environment of a run: package versions, devices, git revision."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections")


def versions() -> dict[str, str]:
    """Versions of the packages that affect results."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def describe() -> dict[str, Any]:
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
    """Commit of this source tree, "+changes" if modified; "unknown" outside a checkout."""
    folder = os.path.dirname(os.path.abspath(__file__))
    command = ["git", "-C", folder, "describe", "--always", "--dirty=+changes", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
