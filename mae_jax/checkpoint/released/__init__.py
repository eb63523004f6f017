"""Weights that come with mae_jax and are found by name: `mae_jax.load("clothing-96")`.

Each is a .safetensors file in this folder, with a model card (.md) next to it. They are written by
`python -m mae_jax.tools.convert --release`.
"""

import os

_FOLDER = os.path.dirname(os.path.abspath(__file__))
_ENDING = ".safetensors"


def names() -> list[str]:
    """The names of all released weights."""
    return sorted(x.removesuffix(_ENDING) for x in os.listdir(_FOLDER) if x.endswith(_ENDING))


def locate(path: str) -> str:
    """The file of the released weights of this name; any other path, or one that exists, as is."""
    if path in names() and not os.path.exists(path):
        return os.path.join(_FOLDER, path + _ENDING)
    return path
