"""Flags shared by commands that take a recipe: `--config=FILE[:ARG] --config.key=value ...`."""

import os
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

from mae_jax.errors import UsageError

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def define_config(values: flags.FlagValues, argv: list[str]) -> None:
    """Defines --config and a flag for each key that `argv` overrides."""
    config_flags.DEFINE_config_file(
        "config", None, "Recipe: a file of configs/.", flag_values=values, sys_argv=argv
    )


def parse(argv: list[str], values: flags.FlagValues) -> Any:
    """Parses the command line (without the program's name) and returns the recipe.

    A recipe is looked for where the path says, then in this repository.

    Raises:
      UsageError: anything mistyped or missing.
    """
    if REPO not in sys.path:
        sys.path.insert(0, REPO)  # recipes import each other as `configs.<name>`
    try:
        rest = values(["", *_find_config(argv)])
        config = values.config
        _ = config and config.task  # only this tells that the file could not be loaded
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}: flags begin with --")
    if config is None:
        raise UsageError("no recipe: give --config=configs/demo.py or another file of configs/")
    return config


def config_name(values: flags.FlagValues) -> str:
    """Name of the recipe: its path below configs/ without .py, and its argument."""
    path, _, argument = config_flags.get_config_filename(values["config"]).partition(":")
    parts = os.path.splitext(os.path.abspath(path))[0].split(os.sep)
    below = len(parts) - parts[::-1].index("configs") if "configs" in parts else len(parts) - 1
    return "_".join(filter(None, [os.path.join(*parts[below:]), argument]))


def _find_config(argv: list[str]) -> list[str]:
    """The same words, with the recipe's path made one that exists where that is possible."""
    found = []
    for before, word in zip(["", *argv], argv, strict=False):
        name, equals, value = word.rpartition("=") if "=" in word else (before, "", word)
        path, colon, argument = value.partition(":")
        inside = os.path.join(REPO, path)
        if name.lstrip("-") == "config" and not os.path.exists(path) and os.path.exists(inside):
            word = (f"{name}=" if equals else "") + inside + colon + argument
        found.append(word)
    return found
