"""Finds the Python file given by a flag, or reports in one line why it is not usable.

The recipes of configs/ ship with the package: setup.py installs them inside it, so that they do not
collide with the `configs` of another project. Recipes still import them as `configs`.
"""

import ast
import os
import re
import shlex
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
# The folder that contains our configs/: the installed package, or in a clone the folder beside it.
ROOT = _INSTALLED if os.path.isdir(_INSTALLED) else os.path.dirname(_PACKAGE)
_LARGEST = 2**20  # bytes; the longest recipe has about 7,000
_MOST_NAMES = 12


def find(path: str, flag: str = "--config") -> str:
    """Resolves a path, which may also be that of a recipe that ships with mae_jax.

    Nothing is executed, and only regular files are opened: a pipe would block, and a device may
    never end.

    Args:
      path: as the user wrote it.
      flag: the flag that it was given to, for messages.

    Raises:
      UsageError: the file does not exist, or is not a Python program.
    """
    inside = os.path.join(ROOT, path)
    found = inside if path and not os.path.exists(path) and os.path.exists(inside) else path
    try:
        status = os.stat(found)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{flag}={path}: {reason}{_suggestion(path, flag)}") from error
    if stat.S_ISDIR(status.st_mode):
        files = _listed(p.name for p in Path(found).glob("*.py"))
        hint = f": give one of its files ({files})" if files else _suggestion(path, flag)
        raise UsageError(f"{flag}={path} is a folder{hint}")
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{flag}={path} is not a regular file{_suggestion(path, flag)}")
    if status.st_size > _LARGEST:
        raise UsageError(f"{flag}={path} has {status.st_size:,} bytes: too large for a recipe")
    _check_program(found, path, flag)
    return found


def settings(path: str) -> tuple[str, ...]:
    """What may follow the colon of --config=FILE:SETTING; () unless the recipe declares it.

    A recipe declares its settings by calling `common.check_setting(setting, "full", "quick")`.
    Nothing is executed.

    Args:
      path: from `find`.
    """
    for node in ast.walk(ast.parse(Path(path).read_bytes())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("check_setting"):
            constants = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            return tuple(value for value in constants if isinstance(value, str))
    return ()


def shown(path: str) -> str:
    """The shortest path that `find` resolves to `path`, quoted for a shell."""
    inside = os.path.relpath(path, ROOT)
    here = os.path.relpath(path)
    return shlex.quote(min(here if inside.startswith("..") else inside, path, key=len))


def provide_configs(path: str) -> None:
    """Makes `from configs import ...` work in the recipe at `path`.

    It resolves to the recipe's own `configs` folder, if it is in one, and then to the recipes that
    ship with mae_jax; never to a `configs` of the current folder or of another project.
    """
    own = [str(folder) for folder in Path(path).absolute().parents if folder.name == "configs"]
    folders = list(dict.fromkeys([*own[:1], os.path.join(ROOT, "configs")]))
    known = sys.modules.get("configs")
    if known is not None and list(getattr(known, "__path__", ())) == folders:
        return
    # An earlier recipe of this process may have imported modules of the same names.
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


def _suggestion(path: str, flag: str) -> str:
    """A suggestion, and the list of recipes; "" for files other than recipes."""
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
    """Recipes that ship with mae_jax, as paths below configs/ without .py, outermost first."""
    root = Path(ROOT, "configs")
    found = [p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.py")]
    found = [n for n in found if not re.match(r"ablations/|(.*/)?__init__$|common$", n)]
    return sorted(found, key=lambda name: (name.count("/"), name))


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:_MOST_NAMES] + ["..."] * (len(names) > _MOST_NAMES))
