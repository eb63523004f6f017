"""Whether what a file says of a model is possible at all.

Files are not trusted (docs/security.md): a model of a billion blocks, or a table for images
of a million pixels in width, would fill the memory before shapes could be compared.
"""

import math
import re
from typing import Any

import numpy as np

from mae_jax.convert.param_names import Arrays
from mae_jax.models import targets
from mae_jax.models.mae import MaskedAutoencoder
from mae_jax.models.vit import VisionTransformer
from mae_jax.ops.patches import grid_size
from mae_jax.runtime.errors import UsageError

MODELS: dict[Any, Any] = {"mae": MaskedAutoencoder, "vit": VisionTransformer}
_LARGEST = 2**20  # of a width, a side in pixels, a number of blocks or patches
# Names of further tokens: timm's, DINOv2's, DeiT's.
_MORE_TOKENS = re.compile(r"(^|\.)(reg_token|register_tokens?|dist_token|distillation_token)$")
_ENCODER = ("channels", "embed_dim", "depth", "num_heads")
_DECODER = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")


def check_stated(stated: dict[str, Any]) -> None:
    """Checks the types of what a foreign file says (`files.File.stated`).

    Raises:
      UsageError: names what is of another type.
    """
    for key, value in stated.items():
        if key in ("image_size", "patch_size"):
            good = _is_pair(value)
        elif key in ("num_heads", "decoder_num_heads"):
            good = _is_count(value)
        elif key in ("mean", "std"):
            good = _are_numbers(value)
        elif key == "classes":
            good = isinstance(value, list) and all(isinstance(name, str) for name in value)
        else:
            kinds = {"normalize": bool, "mask_ratio": (int, float)}
            good = isinstance(value, kinds.get(key, str))
        _require(good, f"{key} is {value!r}")


def check_tokens(arrays: Arrays, unused: list[str], file: Arrays) -> None:
    """Refuses encoders whose sequence is not a class token and the patches.

    Without this they would be taken for models of images of another size.

    Args:
      arrays: by our names.
      unused: names of the file that have no place here.
      file: its arrays, by its own names.

    Raises:
      UsageError: names the tokens that are too many, or that the class token is missing.
    """
    more = [name for name in unused if _MORE_TOKENS.search(name)]
    if more:
        shapes = ", ".join(f"{name} {file[name].shape}" for name in more)
        raise UsageError(
            f"it has tokens besides the class token and the patches ({shapes}: registers, or of "
            "distillation), which the models here do not have: it cannot be used"
        )
    table = arrays.get("pos_embed")
    if table is None:
        return
    rows = table.shape[1]
    if "cls_token" not in arrays and not _is_square(rows - 1):
        raise UsageError(
            f"it has no class token, which the models here always have, and {rows} positions for "
            "its patches only: it cannot be used"
        )


def _is_square(number: int) -> bool:
    return number >= 0 and math.isqrt(number) ** 2 == number


def check_metadata(metadata: dict[str, Any], *, num_arrays: int) -> None:
    """Checks what is said of a model before one is built from it.

    Args:
      metadata: as of a checkpoint, of unknown origin.
      num_arrays: that come with them.

    Raises:
      UsageError: names what is missing or impossible.
    """
    model, data = metadata.get("model"), metadata.get("data")
    if not isinstance(model, dict) or not isinstance(data, dict):
        raise _impossible("`model` or `data` is missing")
    kind = model.get("kind")
    _require(isinstance(kind, str) and kind in MODELS, f"kind is {kind!r}")
    counts = _ENCODER + (_DECODER if kind == "mae" else ())
    mask_tokens = model.get("encoder_mask_tokens", False)
    _require(isinstance(mask_tokens, bool), f"encoder_mask_tokens is {mask_tokens!r}")
    for key in counts:
        low = 0 if key == "decoder_depth" and mask_tokens else 1  # 0 blocks: a linear head
        _require(_is_count(model.get(key), low), f"{key} is {model.get(key)!r}")
    for part in ("", "decoder_") if kind == "mae" else ("",):
        dim, heads = model[f"{part}embed_dim"], model[f"{part}num_heads"]
        _require(dim % heads == 0, f"{heads} heads of {part}width {dim}")
    for key in ("image_size", "patch_size"):
        _require(_is_pair(model.get(key)), f"{key} is {model.get(key)!r}")
    for key in ("mean", "std"):
        _require(_are_numbers(data.get(key)), f"{key} is {data.get(key)!r}")
    pred = model.get("pred_dim", 0)
    _require(pred == 0 or _is_count(pred), f"pred_dim is {pred!r}")
    ratio = model.get("mlp_ratio")
    _require(isinstance(ratio, (int, float)) and 0 < ratio < 1000, f"mlp_ratio is {ratio!r}")
    unknown = model.keys() - MODELS[kind].__dataclass_fields__.keys() - {"kind", "size"}
    _require(not unknown, f"the model has {sorted(unknown)}, which this version does not know")
    try:
        patches = math.prod(grid_size(tuple(model["image_size"]), tuple(model["patch_size"])))
    except ValueError as error:
        raise _impossible(str(error)) from error
    _require(patches <= _LARGEST, f"it has {patches:,} patches")
    depth = model["depth"] + model.get("decoder_depth", 0)
    _require(depth <= num_arrays, f"{depth:,} blocks in {num_arrays:,} arrays")


def check_target(metadata: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Checks that a decoder predicts what its target has, and that this comes with its arrays.

    Args:
      metadata: that `check_metadata` has seen.
      arrays: of the target, by name.

    Raises:
      UsageError: it does not.
    """
    model, data = metadata["model"], metadata["data"]
    decoder = model["kind"] == "mae"
    if not decoder and "target" not in metadata:
        return
    sizes = {name: tuple(model[name]) for name in ("image_size", "patch_size")}
    pixels = {name: tuple(data[name]) for name in ("mean", "std")}
    spec = targets.PatchSpec(**sizes, channels=model["channels"], **pixels)
    width = model.get("pred_dim", 0) or spec.patch_dim
    try:
        targets.describe(metadata["target"])  # an encoder alone has nothing more of it
        right = targets.restore(metadata["target"], spec, arrays).width if decoder else width
    except ValueError as error:
        raise _impossible(str(error)) from error
    except (KeyError, TypeError) as error:
        raise _impossible(f"its target ({type(error).__name__}: {error})") from error
    _require(right == width, f"{width} numbers are predicted for a patch that has {right}")


def _require(good: bool, what: str) -> None:
    if not good:
        raise _impossible(what)


def _impossible(what: str) -> UsageError:
    return UsageError(f"what the file says of the model is impossible: {what[:200]}")


def _is_count(value: Any, low: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= _LARGEST


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_count, value))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(x, (int, float)) for x in value)
