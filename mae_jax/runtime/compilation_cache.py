"""Where compiled programs are kept between starts: a folder that nobody else can write to.

What lies there is run without further questions, so who writes there runs programs as the user.
"""

import logging
import os
import stat
from pathlib import Path

import jax

log = logging.getLogger(__name__)

DEFAULT = "~/.cache/mae_jax/compiled"


def enable(folder: str | None = None) -> str | None:
    """Tells JAX to keep compiled programs; call it before anything is compiled.

    Args:
      folder: $JAX_COMPILATION_CACHE_DIR, the user's own choice: used in any case, with a warning
        where others can write to it (a bucket is not looked at). None or "": `DEFAULT`, made for
        this user alone, and not used where others could have written to it.

    Returns:
      The folder, or None where programs are not kept.
    """
    chosen = bool(folder)
    place = os.path.expanduser(folder or DEFAULT)
    problem = None if "://" in place else _problem(Path(place))
    if problem and not chosen:
        log.warning(
            "compiled programs are not kept: %s. Remove the folder, or name another by "
            "$JAX_COMPILATION_CACHE_DIR",
            problem,
        )
        jax.config.update("jax_compilation_cache_dir", None)
        return None
    if problem:
        log.warning("$JAX_COMPILATION_CACHE_DIR: %s; what lies there is run as it is", problem)
    jax.config.update("jax_compilation_cache_dir", place)
    return place


def _problem(folder: Path) -> str | None:
    """Why a folder, made if there is none, is not for this user alone to write; None if it is."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        above = [parent.stat() for parent in folder.resolve().parents]
    except OSError as error:
        return f"{folder} cannot be made: {error.strerror}"
    if status.st_uid != os.geteuid():
        return f"{folder} belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{folder} can be written to by others (chmod 700 {folder})"
    # In a sticky folder, such as /tmp, others can add but not exchange.
    if any(s.st_mode & stat.S_IWOTH and not s.st_mode & stat.S_ISVTX for s in above):
        return f"a folder above {folder} can be written to by everybody"
    return None
