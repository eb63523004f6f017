"""User-defined masks and targets, given as `module:attribute` in place of a built-in name."""

import importlib
import os
import re
import sys
from collections.abc import Mapping
from typing import TypeVar

from mae_jax.runtime.errors import UsageError

VARIABLE = "MAE_JAX_EXTENSIONS"  # modules that checkpoints may refer to, separated by commas
NAME = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<attribute>[A-Za-z_]\w*)")
_T = TypeVar("_T")


def find(registry: Mapping[str, _T], name: str, key: str) -> _T:
    """`registry[name]`, or the object that `module:attribute` refers to.

    Args:
      registry: the built-in entries by name.
      name: from the user's configuration, which may import any module.
      key: name of the setting, for error messages.

    Raises:
      UsageError: neither exists; the message says why.
    """
    if name in registry:
        return registry[name]
    match = NAME.fullmatch(name)
    if not match:
        known = ", ".join(registry)
        raise UsageError(f"{key}={name} is not one of {known}; your own is module:attribute")
    try:
        return getattr(importlib.import_module(match["module"]), match["attribute"])
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{key}={name}: {error} (modules are searched in the current folder and PYTHONPATH)"
        ) from error


def find_loaded(registry: Mapping[str, _T], name: str) -> _T:
    """Like `find`, for a name from a checkpoint, which must not decide what is imported.

    The module must already be imported, or be listed by the user in MAE_JAX_EXTENSIONS.

    Raises:
      KeyError: `name` is neither built in nor of the form `module:attribute`.
      UsageError: the module is not loaded.
    """
    match = NAME.fullmatch(name)
    if name in registry or not match:
        return registry[name]
    module = match["module"]
    if module not in sys.modules and module not in os.environ.get(VARIABLE, "").split(","):
        raise UsageError(
            f"the checkpoint uses {name}: if you trust that module, import it first or set "
            f"{VARIABLE}={module}"
        )
    return find(registry, name, VARIABLE)
