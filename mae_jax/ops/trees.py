"""Parameter trees by name: `blocks_0/attn/qkv/kernel`."""

from collections.abc import Callable
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict


def path_name(path: tuple[Any, ...]) -> str:
    """Name of a parameter from its path in the tree: `blocks_0/attn/qkv/kernel`."""
    return "/".join(str(getattr(key, "key", key)) for key in path)


def flatten(params: Any) -> dict[str, Any]:
    """All leaves of a tree by name, in the order of the tree."""
    return {path_name(path): x for path, x in jax.tree_util.tree_flatten_with_path(params)[0]}


def unflatten(arrays: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts from arrays by name; the inverse of `flatten`."""
    return unflatten_dict({tuple(name.split("/")): x for name, x in arrays.items()})


def map_with_names(params: Any, function: Callable[[str, Any], Any]) -> Any:
    """Maps `function(name, parameter)` over a tree."""
    return jax.tree_util.tree_map_with_path(lambda path, x: function(path_name(path), x), params)


def partition(params: Any, trainable: Callable[[str], bool]) -> tuple[Any, Any]:
    """Splits a parameter tree into (trained, frozen); `combine` is the inverse."""
    flat = flatten_dict(params)
    trained = {key: x for key, x in flat.items() if trainable(path_name(key))}
    frozen = {key: x for key, x in flat.items() if key not in trained}
    return unflatten_dict(trained), unflatten_dict(frozen)


def combine(first: Any, second: Any) -> Any:
    """Merges two trees; where both have a leaf, takes the one of `second`."""
    return unflatten_dict(flatten_dict(first) | flatten_dict(second))
