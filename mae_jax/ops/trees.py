"""Parameter trees by name: `blocks_0/attn/qkv/kernel`."""

from collections.abc import Callable
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict


def path_name(path: tuple[Any, ...]) -> str:
    """A parameter's path as text: `blocks_0/attn/qkv/kernel`."""
    return "/".join(str(getattr(key, "key", key)) for key in path)


def flatten(params: Any) -> dict[str, Any]:
    """Every leaf of a tree by its name, in the tree's order."""
    return {path_name(path): x for path, x in jax.tree_util.tree_flatten_with_path(params)[0]}


def unflatten(arrays: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts of arrays by name; undoes `named`."""
    return unflatten_dict({tuple(name.split("/")): x for name, x in arrays.items()})


def map_with_names(params: Any, function: Callable[[str, Any], Any]) -> Any:
    """Tree shaped like `params` of `function(name, parameter)`."""
    return jax.tree_util.tree_map_with_path(lambda path, x: function(path_name(path), x), params)


def partition(params: Any, trainable: Callable[[str], bool]) -> tuple[Any, Any]:
    """(what is trained, what is frozen) of a parameter tree; `merge` is the inverse."""
    flat = flatten_dict(params)
    trained = {key: x for key, x in flat.items() if trainable(path_name(key))}
    frozen = {key: x for key, x in flat.items() if key not in trained}
    return unflatten_dict(trained), unflatten_dict(frozen)


def combine(first: Any, second: Any) -> Any:
    """One tree of two; where both have a leaf, the second's."""
    return unflatten_dict(flatten_dict(first) | flatten_dict(second))
