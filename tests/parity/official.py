"""Reference numbers of the official code, under our names and in our shapes."""

import os
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from mae_jax.models.mae import MaskedAutoencoder
from mae_jax.models.vit import VisionTransformer

FOLDER = os.path.dirname(os.path.abspath(__file__))
SKIPPED = ("pos_embed", "decoder_pos_embed")  # constants of ours

TINY = {
    "image_size": (32, 32),
    "patch_size": (4, 4),
    "channels": 3,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 3,
    "decoder_embed_dim": 32,
    "decoder_depth": 2,
    "decoder_num_heads": 2,
}


def path(name: str) -> str:
    """Path of a reference file."""
    return os.path.join(FOLDER, name)


def arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of a reference .npz."""
    with np.load(path(name)) as file:
        return dict(file)


def tiny_model(**changes: Any) -> MaskedAutoencoder:
    """The model of the `mae_tiny` references."""
    return MaskedAutoencoder(**TINY | changes)


def convert(name: str, value: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Our path and layout of an official parameter."""
    keys = []
    for key in name.split("."):
        if key.isdigit():
            keys[-1] += f"_{key}"
        else:
            keys.append(key)
    if keys[-1] == "weight":
        if value.ndim == 1:
            keys[-1] = "scale"
        else:
            keys[-1] = "kernel"
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return tuple(keys), value


def to_tree(flat: dict[str, np.ndarray], skipped: tuple[str, ...] = SKIPPED) -> dict[str, Any]:
    """Official names and arrays as our parameter tree."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        if name in skipped:
            continue
        keys, value = convert(name, value)
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value
    return tree


def tiny_params() -> dict[str, Any]:
    """Parameters of the `mae_tiny` references."""
    return to_tree(load_file(path("mae_tiny.safetensors")))


def tiny_vit(pool: str, **changes: Any) -> VisionTransformer:
    """The classifier of the `vit_tiny` references."""
    fields = {key: value for key, value in TINY.items() if not key.startswith("decoder")}
    return VisionTransformer(**fields | {"num_classes": 10, "pool": pool} | changes)


def vit_params(pool: str) -> dict[str, Any]:
    """Parameters of the `vit_tiny` references, position table included."""
    return to_tree(load_file(path(f"vit_tiny_gp{int(pool == 'mean')}.safetensors")), skipped=())


def subset(data: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Entries whose key begins with `prefix`, without it."""
    return {key[len(prefix) :]: value for key, value in data.items() if key.startswith(prefix)}
