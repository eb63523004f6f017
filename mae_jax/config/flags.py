"""Flags of commands that take a recipe, `--config=FILE[:ARG] --config.key=value ...`.

Also the flags of a run, which training and preflight share.
"""

import functools
import logging
import os
import re
import textwrap
import traceback
from collections.abc import Iterable
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from mae_jax.config import recipe_file
from mae_jax.config.diff import flatten, update_names
from mae_jax.config.rules import Place
from mae_jax.config.schema import FORMER_NAMES, KEYS
from mae_jax.config.validate import check_name, check_values, shorten
from mae_jax.runtime import filesystem, workdir
from mae_jax.runtime.errors import UsageError, all_of

log = logging.getLogger(__name__)
QUICK = "quick"  # setting of a recipe, for a first look
HELP = {"-h", "-help", "--help", "--helpshort", "--helpfull"}


def define_config(values: flags.FlagValues, argv: list[str]) -> None:
    """Defines --config and a flag for each key that `argv` overrides."""
    # Flag files are read later, with everything else; a missing one must not fail here.
    words = [word for word in argv if not word.startswith(("-flagfile", "--flagfile"))]
    words, _ = _renamed(words)
    config_flags.DEFINE_config_file(
        "config", None, "Recipe: a file in configs/.", flag_values=values, sys_argv=words
    )
    values["config"].parser = _RecipeParser(values["config"].parser)


def define_run(values: flags.FlagValues, argv: list[str]) -> None:
    """Defines --config and the other flags of a run."""
    define_config(values, argv)
    folder = "Folder of the run; default runs/<config name>."
    flags.DEFINE_string("workdir", None, folder, flag_values=values)
    change = "Continue a run with a different configuration."
    flags.DEFINE_bool("allow_config_change", False, change, flag_values=values)
    modes = ["auto", "on", "off"]
    connect = "Connect to other processes: auto (in a cluster, or with --coordinator), on or off."
    flags.DEFINE_enum("distributed", "auto", modes, connect, flag_values=values)
    flags.DEFINE_string("coordinator", None, "host:port of process 0.", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "Number of processes.", flag_values=values)
    which = "Index of this process."
    flags.DEFINE_integer("process_id", None, which, flag_values=values)


def help_of(program: str | None, values: flags.FlagValues) -> str:
    """The --help of a command that takes a recipe: its docstring, flags, recipes and keys."""
    modules = values.flags_by_module_dict().items()
    ours = [f for module, found in modules if not module.startswith("absl.") for f in found]
    lines = table((f"--{flag.name}", flag.help) for flag in ours)
    return "\n".join([program or "", "Flags:", *sorted(lines), "", recipes_and_keys()])


def recipes_and_keys() -> str:
    """The recipes that ship with mae_jax, and where the keys of a recipe are documented."""
    folders: dict[str, list[str]] = {}
    for name in recipe_file.names():
        folder, _, base = name.rpartition("/")
        folders.setdefault(f"configs/{folder}".rstrip("/") + "/", []).append(base)
    rows = [(folder, ", ".join(names)) for folder, names in folders.items()]
    rows.append(("configs/ablations/", "tables of the paper, run by mae_jax.tools.study"))
    return "\n".join(
        [
            "Recipes, for example --config=configs/demo.py (a file in your folder wins):",
            *table(rows),
            "",
            "Every key of a recipe is a flag: --config.mask.ratio=0.8. All keys are listed in",
            "docs/configuration.md and by python -m mae_jax.config.schema.",
        ]
    )


def table(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Two columns, name and meaning, at most 80 characters wide; one string per row."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows) + 4
    wrap = textwrap.TextWrapper(80, break_on_hyphens=False, subsequent_indent=" " * width)
    return ["\n".join(wrap.wrap(f"  {name}".ljust(width) + text)) for name, text in rows]


def workdir_of(values: flags.FlagValues) -> str:
    """The resolved workdir of parsed flags (see `workdir.resolve`)."""
    default = os.path.join("runs", config_name(values))
    return workdir.resolve(default if values.workdir is None else values.workdir)


def quick_setting(values: flags.FlagValues) -> str:
    """The flag of the recipe's `quick` setting; "" if it has none or this is it."""
    path, _, setting = config_flags.get_config_filename(values["config"]).partition(":")
    if setting == QUICK or QUICK not in recipe_file.settings(path):
        return ""
    return f"--config={recipe_file.shown(path)}:{QUICK}"


def parse(argv: list[str], values: flags.FlagValues) -> Any:
    """Parses the command line (without the program's name) and returns the config.

    The recipe's path is tried as given, then among the recipes that ship with mae_jax.

    Raises:
      UsageError: anything is mistyped, missing, or out of range.
    """
    argv, old_names = _renamed(argv)
    _warn_renamed(old_names)
    overridden = _overridden(argv)
    all_of(*(functools.partial(check_name, key) for key in overridden))
    words = _find_config(argv)
    try:
        rest = values(["", *words])
        config = values.config
        _ = getattr(config, "task", None)  # raises if the file could not be loaded
    # A recipe is an arbitrary program, which may fail in any way.
    except Exception as error:
        raise UsageError(_describe_failure(error, overridden)) from error
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}: flags begin with --")
    if config is None:
        raise UsageError("no recipe: use --config=configs/demo.py or another file in configs/")
    if not isinstance(config, ml_collections.ConfigDict):
        raise UsageError("get_config() of the recipe must return an ml_collections.ConfigDict")
    check_values(config)
    paths = {k: x for k, x in flatten(config).items() if isinstance(KEYS[k].rule, Place)}
    config.update_from_flattened_dict({k: filesystem.expand(x) for k, x in paths.items()})
    return config


def parse_without_recipe(argv: list[str], values: flags.FlagValues) -> None:
    """Parses the command line (without the program's name) of a command that takes no recipe.

    Raises:
      UsageError: a flag is mistyped, or there is a recipe.
    """
    if any(re.match(r"--?(no)?config\b", word) for word in argv):
        raise UsageError("this command takes no recipe: leave out --config")
    try:
        rest = values(["", *argv])
    except flags.Error as error:
        raise UsageError(_describe_failure(error, [])) from error
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}: flags begin with --")


def _overridden(argv: list[str]) -> list[str]:
    """Keys that the command line overrides.

    Raises:
      UsageError: a key comes before --config.
    """
    found, recipe = [], False
    for word in argv:
        if key := re.match(r"--?(?:no)?config\.([^=]*)", word):
            found.append(key[1])
        elif re.match(r"--?config(=|$)", word):
            recipe = True
            if found:
                raise UsageError(f"--config must come before --config.{shorten(found[0])}")
    return found if recipe else []


def _describe_failure(error: Exception, overridden: list[str]) -> str:
    """One line for whatever reading the flags and the recipe raised."""
    text = str(error).strip()
    bad = re.match(r"flag --config\.([\w.]+)=(.*?): ", text, re.DOTALL)
    if bad and bad[1] in KEYS:
        return f"--config.{bad[1]}={shorten(repr(bad[2]))} must be {KEYS[bad[1]].rule.allowed()}"
    # The names are valid, so the recipe lacks one: a group (KeyError) or a key (AttributeError).
    if isinstance(error, (KeyError, AttributeError)):
        lacking = [k for k in overridden if set(k.split(".")) & set(re.findall(r"\w+", text)[:1])]
        if lacking:
            return f"the recipe has no key --config.{lacking[0]}"
    if isinstance(error, AttributeError) and "no attribute 'get_config'" in text:
        return f"--config={getattr(error.obj, '__file__', '')} has no get_config() function"
    if "Traceback (most recent call last)" in text:  # ml_collections includes it in the message
        text = text.splitlines()[-1]
    elif not isinstance(error, (flags.Error, OSError)):
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"the recipe fails ({place.filename}:{place.lineno}): {type(error).__name__}: {text}"
        # A recipe may set keys by their old names, but not read them.
        words = set(re.findall(r"\w+", text))
        renamed = [k for k in FORMER_NAMES.items() if k[0].split(".")[-1] in words]
        text += "".join(f" ({old} is now called {new})" for old, new in renamed)
    return " ".join(text.split())


def config_name(values: flags.FlagValues) -> str:
    """Name of the recipe: its path below configs/ without .py, and its argument."""
    path, _, argument = config_flags.get_config_filename(values["config"]).partition(":")
    parts = os.path.splitext(os.path.abspath(path))[0].split(os.sep)
    below = len(parts) - parts[::-1].index("configs") if "configs" in parts else len(parts) - 1
    return "_".join(filter(None, [os.path.join(*parts[below:]), argument]))


def _find_config(argv: list[str]) -> list[str]:
    """The same words, with the resolved path of the recipe, which can then import `configs`.

    Raises:
      UsageError: the recipe does not exist, or is not a Python program.
    """
    found = []
    for before, word in zip(["", *argv], argv, strict=False):
        name, equals, value = word.rpartition("=") if "=" in word else (before, "", word)
        path, colon, argument = value.partition(":")
        if name.lstrip("-") == "config" and path:
            path = recipe_file.find(filesystem.expand(path))
            recipe_file.provide_configs(path)
            word = (f"{name}=" if equals else "") + path + colon + argument
        found.append(word)
    return found


class _RecipeParser(flags.ArgumentParser):
    """Loads a recipe, and renames keys of earlier versions before flags override any."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser

    def parse(self, path: str) -> Any:
        config = self._parser.parse(path)
        if isinstance(config, ml_collections.ConfigDict):
            # Values of the wrong type are rejected later, by the key's rule.
            with config.unlocked(), config.ignore_type():
                _warn_renamed(update_names(config))
        return config


def _renamed(argv: list[str]) -> tuple[list[str], list[str]]:
    """The same words with keys of earlier versions renamed, and the old names that were found."""
    words, found = [], []
    for word in argv:
        flag = re.match(r"(--?(?:no)?config\.)([^=]*)(.*)", word, re.DOTALL)
        if flag and flag[2] in FORMER_NAMES:
            found.append(flag[2])
            word = flag[1] + FORMER_NAMES[flag[2]] + flag[3]
        words.append(word)
    return words, found


def _warn_renamed(old_names: Iterable[str]) -> None:
    for name in old_names:
        _warn_renamed_once(name)


@functools.cache  # a study reads its recipes many times
def _warn_renamed_once(old: str) -> None:
    log.warning("%s is now called %s; the old name still works", old, FORMER_NAMES[old])
