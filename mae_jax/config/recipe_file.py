"""Finds the Python file that a flag names, and says in one line why it cannot be one.

The recipes of configs/ ship with the package: setup.py installs them inside it, so that they do not
collide with the `configs` of another project. Within a recipe they are `configs` all the same.
"""

import ast
import os
import re
import stat
import sys
import types
from collections.abc import Iterable
from pathlib import Path

import mae_jax
from mae_jax.config.rules import closest
from mae_jax.runtime.errors import UsageError

_PACKAGE = os.path.dirname(os.path.abspath(mae_jax.__file__))
_INSTALLED = os.path.join(_PACKAGE, "_recipes")
# The folder that holds our configs/: inside the installed package, or else beside it, in a clone.
ROOT = _INSTALLED if os.path.isdir(_INSTALLED) else os.path.dirname(_PACKAGE)
_LARGEST = 2**20  # bytes; the longest recipe has 7,000
_MOST_NAMES = 12


def find(path: str, flag: str = "--config") -> str:
    """The path of a program: where it says, or else among the recipes that ship with mae_jax.

    Nothing is run, and nothing but a regular file is opened: a pipe would block, and a device may
    never end.

    Args:
      path: as the user wrote it.
      flag: that it was given for, for messages.

    Raises:
      UsageError: there is no such file, or it is not a Python program.
    """
    inside = os.path.join(ROOT, path)
    found = inside if path and not os.path.exists(path) and os.path.exists(inside) else path
    try:
        status = os.stat(found)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{flag}={path}: {reason}{_meant(path, flag)}") from error
    if stat.S_ISDIR(status.st_mode):
        files = _listed(p.name for p in Path(found).glob("*.py"))
        hint = f": give one of its files ({files})" if files else _meant(path, flag)
        raise UsageError(f"{flag}={path} is a folder{hint}")
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{flag}={path} is not a regular file{_meant(path, flag)}")
    if status.st_size > _LARGEST:
        raise UsageError(f"{flag}={path} has {status.st_size:,} bytes: that is not a recipe")
    _check_program(found, path, flag)
    return found


def provide_configs(path: str) -> None:
    """Makes `from configs import ...` work in the recipe at `path`.

    It finds what is in the `configs` folder that the recipe is in, if it is in one, and otherwise
    what ships with mae_jax; no other `configs`, of the current folder or of another project.
    """
    own = [str(folder) for folder in Path(path).absolute().parents if folder.name == "configs"]
    folders = list(dict.fromkeys([*own[:1], os.path.join(ROOT, "configs")]))
    known = sys.modules.get("configs")
    if known is not None and list(getattr(known, "__path__", ())) == folders:
        return
    # Another recipe of this process may have brought modules of the same names.
    for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
        del sys.modules[name]
    sys.modules["configs"] = package = types.ModuleType("configs")
    package.__path__ = folders


def _check_program(found: str, path: str, flag: str) -> None:
    try:
        ast.parse(Path(found).read_bytes(), found)
    except OSError as error:
        raise UsageError(f"{flag}={path} cannot be read: {error.strerror}") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f"{error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else " "
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UsageError(
            f"{flag}={path} is not a Python program: {found}:{line}{type(error).__name__}: {text}"
        ) from error


def _meant(path: str, flag: str) -> str:
    """What there is to choose from, and what was perhaps meant; "" for another kind of program."""
    if flag != "--config":
        return ""
    recipes = names()
    name = re.sub(r"^(\./)?configs/|\.py$", "", path)
    same = [recipe for recipe in recipes if name in (recipe, recipe.rpartition("/")[2])]
    hint = f"; did you mean {same[0]}?" if name and same else closest(name, recipes)
    hint = re.sub(r"mean (.*)\?$", r"mean --config=configs/\1.py?", hint)
    folders = sorted({f"{recipe.partition('/')[0]}/" for recipe in recipes if "/" in recipe})
    plain = [recipe for recipe in recipes if "/" not in recipe]
    return f"{hint}{'' if hint else '.'} Recipes in configs/: {', '.join(plain + folders)}"


def names() -> list[str]:
    """Recipes that ship with mae_jax, as paths below configs/ without .py: the shortest first."""
    root = Path(ROOT, "configs")
    found = [p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.py")]
    found = [n for n in found if not re.match(r"ablations/|(.*/)?__init__$|common$", n)]
    return sorted(found, key=lambda name: (name.count("/"), name))


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:_MOST_NAMES] + ["..."] * (len(names) > _MOST_NAMES))
