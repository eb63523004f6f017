"""Questions asked of a configuration: is it whole, and is it still the one a run began with."""

from typing import Any

import ml_collections

from mae_jax.config.schema import HARMLESS, LATER, ONLY_WITH
from mae_jax.runtime.errors import UsageError


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"model": {"size": "L"}} -> {"model.size": "L"}; tuples as lists, as JSON has them."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (dict, ml_collections.ConfigDict)):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def changes(old: Any, new: Any) -> list[str]:
    """Lines "key: old -> new" of all that differs and would change what the run computes."""
    old, new = LATER | flatten(old), LATER | flatten(new)
    lines = []
    for key in sorted(old.keys() | new.keys()):
        harmless = any(key == h or key.startswith(h + ".") for h in HARMLESS)
        if key == "grad_accum" and new.get("head.batch_norm"):
            harmless = False  # BatchNorm sees the parts of a batch, not the whole
        other, value = ONLY_WITH.get(key, (key, None))
        if key in ONLY_WITH and value not in (old.get(other), new.get(other)):
            harmless = True
        if not harmless and old.get(key) != new.get(key):
            lines.append(f"{key}: {old.get(key)} -> {new.get(key)}")
    return lines


def pair(value: Any, name: str) -> tuple[int, int]:
    """(height, width) from a pair, or from one number for a square.

    Raises:
      UsageError: anything else.
    """
    items = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(items) not in (1, 2) or not all(isinstance(x, int) and x > 0 for x in items):
        raise UsageError(f"{name}={value} must be one positive whole number or (height, width)")
    return items[0], items[-1]
