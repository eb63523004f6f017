"""The folder that caches compiled programs between starts. Only the user may write to it.

Cached programs are executed without verification, so anyone who can write there can run code as the
user.
"""

import logging
import os
import stat
from pathlib import Path

import jax

log = logging.getLogger(__name__)

DEFAULT = "~/.cache/mae_jax/compiled"


def enable(folder: str | None = None) -> str | None:
    """Enables JAX's compilation cache; call it before anything is compiled.

    Args:
      folder: $JAX_COMPILATION_CACHE_DIR. It is used even if others can write to it, with a warning
        (buckets are not checked). None or "": `DEFAULT`, created with access for this user only,
        and not used if others could have written to it.

    Returns:
      The folder, or None if the cache is off.
    """
    chosen = bool(folder)
    path = os.path.expanduser(folder or DEFAULT)
    problem = None if "://" in path else _problem(Path(path))
    if problem and not chosen:
        log.warning(
            "compiled programs are not cached: %s. Remove the folder, or set "
            "$JAX_COMPILATION_CACHE_DIR to another one",
            problem,
        )
        jax.config.update("jax_compilation_cache_dir", None)
        return None
    if problem:
        log.warning("$JAX_COMPILATION_CACHE_DIR: %s; its programs are run unverified", problem)
    jax.config.update("jax_compilation_cache_dir", path)
    return path


def advice() -> str:
    """How often something has to be compiled, to follow "compiling ...; "."""
    cached = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    often = "the first time only (cached)" if cached else "at every start (no cache)"
    return f"this takes a while, {often}"


def _problem(folder: Path) -> str | None:
    """Creates the folder; returns why others could write to it, or None if they cannot."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        above = [parent.stat() for parent in folder.resolve().parents]
    except OSError as error:
        return f"{folder} cannot be created: {error.strerror}"
    if status.st_uid != os.geteuid():
        return f"{folder} belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{folder} can be written to by others (chmod 700 {folder})"
    # In a sticky folder, such as /tmp, others can add files but not replace ours.
    if any(s.st_mode & stat.S_IWOTH and not s.st_mode & stat.S_ISVTX for s in above):
        return f"a folder above {folder} is writable by everyone"
    return None
