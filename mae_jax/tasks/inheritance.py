"""Takes sizes and pixel statistics from the weights that a run starts with or continues.

A recipe leaves a value to them by `init_from`, (0, 0), 0 or (): see docs/configuration.md.
"""

import contextlib
from typing import Any

from mae_jax import convert
from mae_jax.checkpoint import layout, reader
from mae_jax.config.schema import INHERIT
from mae_jax.models.vit import SIZES
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.batch_size import BY_MEMORY
from mae_jax.train.initial_state import check_init_from

_WIDTHS = ("embed_dim", "depth", "num_heads")


def inherit(config: Any, workdir: str) -> None:
    """Fills in, in place, what the configuration leaves to `init_from`.

    A run that continues takes it from its own checkpoint, so `init_from` may be gone by then. It
    also keeps the batch that was chosen by memory.

    Args:
      config: the whole configuration.
      workdir: folder of the run, or "".

    Raises:
      UsageError: something is left to `init_from`, and there is none or it cannot be read.
    """
    left, by_memory = _left_open(config), config.batch_size == BY_MEMORY
    if not left and not by_memory:
        return
    continued = _continued(config, workdir)
    if by_memory and continued:
        config.batch_size = continued["config"]["batch_size"]
    if left:
        _inherit_model(config, continued or _initial(config, left))


def _inherit_model(config: Any, metadata: dict[str, Any]) -> None:
    """Fills in what is left to the model that `metadata` describes."""
    model, data = config.model, config.data
    theirs, pixels = metadata["model"], metadata["data"]
    if model.size == INHERIT:
        # Weights of any other shape have a name of no meaning here: the numbers below decide.
        model.size = theirs["size"] if theirs["size"] in SIZES else "B"
        model.mlp_ratio = float(theirs["mlp_ratio"])
        for key in _WIDTHS:
            model[key] = model[key] or theirs[key]
    for key in ("image_size", "patch_size"):
        if tuple(model[key]) == (0, 0):
            model[key] = tuple(theirs[key])
    if "detector" in config and tuple(config.detector.pretrain_size) == (0, 0):
        config.detector.pretrain_size = tuple(theirs["image_size"])
    model.channels = model.channels or theirs["channels"]
    for key in ("mean", "std"):
        data[key] = tuple(data[key]) or tuple(pixels[key])
    if data.dtype == INHERIT:
        data.dtype = pixels.get("dtype", "uint8")


def _left_open(config: Any) -> list[str]:
    """Names of the keys whose values are left to `init_from`."""
    model, data = config.model, config.data
    values = {
        "model.size": model.size == INHERIT,
        "model.image_size": tuple(model.image_size) == (0, 0),
        "model.patch_size": tuple(model.patch_size) == (0, 0),
        "detector.pretrain_size": "detector" in config
        and tuple(config.detector.pretrain_size) == (0, 0),
        "model.channels": model.channels == 0,
        "data.mean": len(data.mean) == 0,
        "data.std": len(data.std) == 0,
        "data.dtype": data.dtype == INHERIT,
    }
    return [key for key, is_open in values.items() if is_open]


def _continued(config: Any, workdir: str) -> dict[str, Any]:
    """Metadata of the newest checkpoint of the run that is continued, or {}."""
    for step in reversed(layout.steps(workdir) if workdir else []):
        with contextlib.suppress(reader.CorruptCheckpointError):
            return reader.load_metadata(f"{workdir}/{layout.FOLDER}/{step}")
    return reader.load_metadata(config.resume) if config.resume else {}


def _initial(config: Any, left: list[str]) -> dict[str, Any]:
    """Metadata of the weights that the run starts with."""
    path = config.init_from
    if not path:
        raise UsageError(
            f"--config.init_from is empty, but this recipe takes {', '.join(left)} from it: give "
            "a run or other weights, or set these keys"
        )
    check_init_from(path)
    return convert.load(path).metadata if convert.is_file(path) else reader.load_metadata(path)
