"""Exports of a package that are imported on first use."""

import importlib
import sys
from collections.abc import Callable
from typing import Any


def exports(package: str, **modules: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names live in its modules.

    Importing such a package imports none of them, so that JAX, which takes seconds, is loaded only
    when it is needed.

    Args:
      package: its `__name__`.
      modules: module -> names that it defines, separated by spaces.
    """
    home = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{home[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})  # for completion in notebooks

    return get, names
