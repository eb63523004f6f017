"""One process and its folder: errors, files, locks, signals, watchdog. Imports no JAX."""

from mae_jax.runtime.errors import RunError, UsageError, require

__all__ = ["RunError", "UsageError", "require"]
