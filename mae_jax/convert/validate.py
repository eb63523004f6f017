"""Checks that a file's description of a model is plausible.

Files are not trusted (docs/security.md): a model with a billion blocks, or a position table for
images a million pixels wide, would exhaust memory before shapes could be compared.
"""

import math
import re
from typing import Any

import numpy as np

from mae_jax.convert.param_names import Arrays
from mae_jax.models import factory, targets
from mae_jax.models.mae import MaskedAutoencoder
from mae_jax.models.mask_rcnn import Settings
from mae_jax.models.vit import VisionTransformer
from mae_jax.ops.patches import grid_size
from mae_jax.runtime.errors import UsageError

# Names of the fields of each kind of model.
MODELS: dict[Any, Any] = {
    "mae": MaskedAutoencoder.__dataclass_fields__.keys(),
    "vit": VisionTransformer.__dataclass_fields__.keys(),
    "mask_rcnn": set(factory.DETECTOR_FIELDS),
}
_LARGEST = 2**20  # width, side in pixels, number of blocks or patches
# Names of additional tokens in timm, DINOv2 and DeiT.
_MORE_TOKENS = re.compile(r"(^|\.)(reg_token|register_tokens?|dist_token|distillation_token)$")
_ENCODER = ("channels", "embed_dim", "depth", "num_heads")
_DETECTOR = ("window", "width", "hidden_dim", "num_classes")
_DECODER = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")
_COUNTS = {"mae": _DECODER, "mask_rcnn": _DETECTOR}  # besides the encoder's


def check_stated(stated: dict[str, Any]) -> None:
    """Checks the types of the facts in a foreign file (`readers.File.stated`).

    Raises:
      UsageError: names the fact with a wrong type.
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
            types = {"normalize": bool, "mask_ratio": (int, float)}
            good = isinstance(value, types.get(key, str))
        _require(good, f"{key} is {value!r}")


def check_tokens(arrays: Arrays, unused: list[str], file: Arrays) -> None:
    """Refuses encoders whose sequence is not a class token followed by the patches.

    Otherwise they would be mistaken for models with another image size.

    Args:
      arrays: by our names.
      unused: names in the file that our models do not have.
      file: arrays by the names in the file.

    Raises:
      UsageError: there are additional tokens, or no class token.
    """
    more = [name for name in unused if _MORE_TOKENS.search(name)]
    if more:
        shapes = ", ".join(f"{name} {file[name].shape}" for name in more)
        raise UsageError(
            f"it has tokens besides the class token and the patches ({shapes}; registers or a "
            "distillation token), which this project's models do not have: it cannot be used"
        )
    table = arrays.get("pos_embed")
    if table is None:
        return
    rows = table.shape[1]
    if "cls_token" not in arrays and not _is_square(rows - 1):
        raise UsageError(
            f"it has no class token, which this project's models always have, and {rows} positions "
            "only for its patches: it cannot be used"
        )


def _is_square(number: int) -> bool:
    return number >= 0 and math.isqrt(number) ** 2 == number


def check_metadata(metadata: dict[str, Any], *, num_arrays: int) -> None:
    """Checks the description of a model before it is built.

    Args:
      metadata: as in a checkpoint, of unknown origin.
      num_arrays: number of arrays in the file.

    Raises:
      UsageError: names what is missing or impossible.
    """
    model, data = metadata.get("model"), metadata.get("data")
    if not isinstance(model, dict) or not isinstance(data, dict):
        raise _impossible("`model` or `data` is missing")
    kind = model.get("kind")
    _require(isinstance(kind, str) and kind in MODELS, f"kind is {kind!r}")
    counts = _ENCODER + _COUNTS.get(str(kind), ())
    mask_tokens = model.get("encoder_mask_tokens", False)
    _require(isinstance(mask_tokens, bool), f"encoder_mask_tokens is {mask_tokens!r}")
    for key in counts:
        low = 0 if key == "decoder_depth" and mask_tokens else 1  # 0 blocks: a linear head
        _require(_is_count(model.get(key), low), f"{key} is {model.get(key)!r}")
    for part in ("", "decoder_") if kind == "mae" else ("",):
        dim, heads = model[f"{part}embed_dim"], model[f"{part}num_heads"]
        _require(dim % heads == 0, f"{heads} heads for {part}width {dim}")
    for key in ("image_size", "patch_size"):
        _require(_is_pair(model.get(key)), f"{key} is {model.get(key)!r}")
    for key in ("mean", "std"):
        _require(_are_numbers(data.get(key)), f"{key} is {data.get(key)!r}")
    if kind == "mask_rcnn":
        _check_detector(model)
    pred = model.get("pred_dim", 0)
    _require(pred == 0 or _is_count(pred), f"pred_dim is {pred!r}")
    ratio = model.get("mlp_ratio")
    _require(isinstance(ratio, (int, float)) and 0 < ratio < 1000, f"mlp_ratio is {ratio!r}")
    unknown = model.keys() - MODELS[kind] - {"kind", "size"}
    _require(not unknown, f"the model has {sorted(unknown)}, which this version does not know")
    try:
        patches = math.prod(grid_size(tuple(model["image_size"]), tuple(model["patch_size"])))
    except ValueError as error:
        raise _impossible(str(error)) from error
    _require(patches <= _LARGEST, f"it has {patches:,} patches")
    depth = model["depth"] + model.get("decoder_depth", 0)
    _require(depth <= num_arrays, f"{depth:,} blocks in {num_arrays:,} arrays")


def _check_detector(model: dict[str, Any]) -> None:
    """Checks the fields that only detectors have."""
    _require(_is_pair(model.get("table_grid")), f"table_grid is {model.get('table_grid')!r}")
    backbone, settings = model.get("backbone"), model.get("settings")
    _require(backbone in factory.BACKBONES, f"backbone is {backbone!r}")
    known = Settings()._asdict()
    good = isinstance(settings, dict) and all(
        key in known and isinstance(value, (int, float)) and 0 <= value <= _LARGEST
        for key, value in settings.items()
    )
    _require(good, f"settings are {settings!r}")


def check_target(metadata: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Checks that the target has its arrays and the same width as the decoder's prediction.

    Args:
      metadata: checked by `check_metadata`.
      arrays: arrays of the target, by name.

    Raises:
      UsageError: the target is invalid.
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
        targets.describe(metadata["target"])  # all that an encoder without decoder has
        expected = targets.restore(metadata["target"], spec, arrays).width if decoder else width
    except ValueError as error:
        raise _impossible(str(error)) from error
    except (KeyError, TypeError) as error:
        raise _impossible(f"its target ({type(error).__name__}: {error})") from error
    _require(expected == width, f"it predicts {width} numbers for a patch that has {expected}")


def _require(good: bool, what: str) -> None:
    if not good:
        raise _impossible(what)


def _impossible(what: str) -> UsageError:
    return UsageError(f"the description of the model is impossible: {what[:200]}")


def _is_count(value: Any, low: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= _LARGEST


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_count, value))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(x, (int, float)) for x in value)
