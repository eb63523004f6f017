"""Which parameters the optimiser treats differently, decided by their path."""

from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
    """A parameter's path as text: `blocks_0/attn/qkv/kernel`."""
    return "/".join(str(getattr(key, "key", key)) for key in path)


def decays(name: str, ndim: int) -> bool:
    """Whether weight decay applies: not to biases or norms (official `add_weight_decay`).

    The class and mask tokens, stored with three axes, are decayed, as there.
    """
    return ndim > 1 and not name.endswith("/bias")


def weight_decay_mask(params: Any) -> Any:
    """Tree of bools shaped like `params`: True where weight decay applies."""
    return jax.tree_util.tree_map_with_path(
        lambda path, p: decays(path_name(path), len(p.shape)), params
    )
