"""Paths as people write them."""

import os

from mae_jax.errors import UsageError


def expand(path: str) -> str:
    """A path with `~` and `~user` replaced by the home folder; anything else stays as it is.

    Shells leave `~` alone in `--flag=~/x`, and so does Python. An existing file wins.

    Raises:
      UsageError: there is no such user.
    """
    if not path.startswith("~") or os.path.lexists(path):
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UsageError(f"{path}: there is no such user; write ./{path} otherwise")
    return expanded
