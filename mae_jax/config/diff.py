"""Flattening of configs, and differences between two configs."""

from typing import Any

import ml_collections

from mae_jax.config.schema import ADDED, FORMER_NAMES, KEYS, current_name
from mae_jax.runtime.errors import UsageError

_MAPPINGS = (dict, ml_collections.ConfigDict)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"model": {"size": "L"}} -> {"model.size": "L"}; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, _MAPPINGS):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def update_names(config: Any) -> list[str]:
    """Renames keys of earlier versions in place; the value of an old name overrides the new one.

    Args:
      config: a dict or ConfigDict of keys and groups; anything else is left unchanged.

    Returns:
      The old names that were present.
    """
    found: list[str] = []
    if not isinstance(config, _MAPPINGS):
        return found
    for old, new in FORMER_NAMES.items():
        (old_group, old_name), (group, name) = _split(old), _split(new)
        inside: Any = config.get(old_group) if old_group else config
        if isinstance(inside, _MAPPINGS) and old_name in inside:
            place: Any = config[group] if group else config
            place[name] = inside[old_name]
            del inside[old_name]
            found.append(old)
    return found


def _split(key: str) -> tuple[str, str]:
    group, _, name = key.rpartition(".")
    return group, name


def changes(old: Any, new: Any) -> list[str]:
    """Lines "key: old -> new" for every difference that affects results."""
    old, new = _comparable(old), _comparable(new)
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not _harmless(key, old, new):
            lines.append(f"{key}: {old.get(key)} -> {new.get(key)}")
    return lines


def _comparable(config: Any) -> dict[str, Any]:
    """A flat config of any version, with the key names and all keys of this version."""
    flat = flatten(config)
    return ADDED | {current_name(key): value for key, value in flat.items()}


def _harmless(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    row = KEYS.get(key)
    if row is None:
        return False
    if row.only_with:
        other, value = row.only_with
        if value not in (old.get(other), new.get(other)):
            return True
    if key == "grad_accum" and new.get("head.batch_norm"):
        return False  # BatchNorm sees micro-batches, not the whole batch
    return row.resume == "harmless"


def pair(value: Any, name: str) -> tuple[int, int]:
    """(height, width) from a pair, or from a single number for a square.

    Raises:
      UsageError: the value is neither.
    """
    items = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(items) not in (1, 2) or not all(isinstance(x, int) and x > 0 for x in items):
        raise UsageError(f"{name}={value} must be a positive integer or (height, width)")
    return items[0], items[-1]
