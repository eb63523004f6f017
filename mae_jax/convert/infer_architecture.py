"""Infers the model from array shapes, facts in the file, and hints of the user."""

import math
from typing import Any, NamedTuple

import numpy as np

from mae_jax.convert import official_release, surgery
from mae_jax.convert.hints import Facts, Hints
from mae_jax.convert.param_names import Arrays
from mae_jax.models.pos_embed import sincos_2d
from mae_jax.models.vit import SIZES, Size
from mae_jax.ops.patches import grid_size
from mae_jax.runtime.errors import UsageError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TABLES = ("pos_embed", "decoder_pos_embed")
# Largest deviation from the fixed table: bfloat16 files have eight bits of precision.
_TABLE_TOLERANCE = 4e-3
# A decoder of raw pixels must predict the mean of a patch, a decoder of normalized pixels must not:
# `mean_preference` was 24 and 30 in runs on photos with raw pixels, 0.95 with normalized pixels.
_RAW_PIXELS_PREFERENCE = 4.0
_NO_EMBED_CLASS = (
    "its class token has no position embedding (timm's no_embed_class), unlike in this project: it "
    "cannot be used"
)
_MASK_RATIO = 0.75  # of the paper, and of the official code


class Description(NamedTuple):
    """Metadata as in a checkpoint, and notes on what was assumed."""

    metadata: dict[str, Any]
    notes: list[str]


def describe(
    arrays: Arrays, *, file: str, stated: dict[str, Any], hints: Hints, license: str = ""
) -> Description:
    """Describes arrays (our names and layout) like the metadata of a checkpoint.

    Args:
      arrays: parameters, and `batch_norm/...` of a probe with BatchNorm.
      file: path of the file.
      stated: facts in the file; see `readers.File`.
      hints: facts from the user; must not contradict the file.
      license: of the weights, if the user names one.

    Raises:
      UsageError: it is not a supported model, or a required fact is unknown.
    """
    facts = Facts(stated, hints)
    is_mae = any(map(surgery.of_decoder, arrays))
    model: dict[str, Any] = {"kind": "mae" if is_mae else "vit"} | _encoder(arrays, facts)
    model["image_size"] = _image_size(arrays, model, facts)
    metadata: dict[str, Any] = {"task": "convert", "step": 0, "epochs_seen": None}
    if is_mae:
        model |= _decoder(arrays, facts)
        _check_fixed_tables(arrays, model)
        ratio = facts.assume("mask_ratio", _MASK_RATIO)
        metadata["mask"] = {"kind": "random", "ratio": ratio}
        metadata["target"] = {"kind": "pixel", "normalize": _normalize(arrays, file, facts)}
    else:
        model |= _head(arrays, stated)
        metadata["classes"] = _classes(model["num_classes"], facts)
    size = Size(model["embed_dim"], model["depth"], model["num_heads"])
    model["size"] = next((name for name, known in SIZES.items() if known == size), "custom")
    pixels = _pixels(model["channels"], facts)
    metadata |= {
        "model": model,
        "data": pixels | {"dtype": "uint8", "source": {"kind": "unknown"}},
        "config": {"model": {"dtype": "auto"}, "data": dict(pixels)},
        "provenance": official_release.provenance(
            file, size=model["size"], license=license or stated.get("license", "")
        ),
    }
    return Description(metadata, facts.notes)


def add_hints(metadata: dict[str, Any], hints: Hints) -> dict[str, Any]:
    """Adds the user's class names to the metadata of our own checkpoint, if they have none.

    Raises:
      UsageError: the hints contradict the metadata.
    """
    known = {key: metadata["model"].get(key) for key in hints._fields[:3]}
    known |= {key: metadata["data"][key] for key in ("mean", "std")}
    known |= {"normalize": metadata.get("target", {}).get("normalize")}
    known |= {"classes": metadata.get("classes")}
    facts = Facts(known, hints)
    for key in known:
        facts.get(key)
    if "num_classes" not in metadata["model"]:
        return metadata
    return metadata | {"classes": _classes(metadata["model"]["num_classes"], facts)}


def _encoder(arrays: Arrays, facts: Facts) -> dict[str, Any]:
    """Sizes of the encoder."""
    kernel = arrays.get("patch_embed/proj/kernel")
    if kernel is None:
        raise UsageError(
            "it has no patch embedding (patch_embed.proj.weight, with any prefix): these are not "
            "the weights of a ViT"
        )
    *patch, channels, dim = kernel.shape
    stated = facts.get("patch_size", patch)
    if list(stated) != patch:
        raise UsageError(f"its patches are {patch}, but its config.json says {list(stated)}")
    depth = _depth(arrays, "blocks_")
    heads = facts.assume("num_heads", _heads_of_size(dim, depth), " (from the size)")
    hidden = arrays.get("blocks_0/mlp/fc1/bias")
    return {
        "patch_size": tuple(patch),
        "channels": channels,
        "embed_dim": dim,
        "depth": depth,
        "num_heads": _known_heads(heads, dim, "num_heads"),
        "mlp_ratio": hidden.size / dim if hidden is not None else 4.0,
    }


def _decoder(arrays: Arrays, facts: Facts) -> dict[str, Any]:
    bias = arrays.get("decoder_embed/bias", arrays.get("decoder_norm/bias"))
    if bias is None or "decoder_pred/kernel" not in arrays:
        raise UsageError(
            "its decoder is incomplete (decoder_embed, decoder_norm, decoder_pred): --encoder_only "
            "drops it"
        )
    dim = bias.size
    heads = facts.assume("decoder_num_heads", 16 if dim == 512 else None, " (as all official ones)")
    mask_tokens = "encoder_mask_token" in arrays
    linear = mask_tokens and not any(name.startswith("decoder_blocks_") for name in arrays)
    return ({"encoder_mask_tokens": True} if mask_tokens else {}) | {
        "decoder_embed_dim": dim,
        "decoder_depth": 0 if linear else _depth(arrays, "decoder_blocks_"),
        "decoder_num_heads": _known_heads(heads, dim, "decoder_num_heads"),
    }


def _head(arrays: Arrays, stated: dict[str, Any]) -> dict[str, Any]:
    """The classifier after the encoder; 0 classes mean none."""
    classes = arrays["head/bias"].size if "head/bias" in arrays else 0
    pool = "mean" if "fc_norm/scale" in arrays else "cls"
    if classes and pool == "cls" and stated.get("pool", "token") not in ("token", ""):
        raise UsageError(
            f"the model pools by {stated['pool']!r} after its norm; only the class token, or the "
            "mean before fc_norm, is supported"
        )
    return {
        "num_classes": classes,
        "pool": pool,
        "head_std": 0.02,
        "head_norm": "batch_norm/mean" in arrays,
        "head_norm_group": 0,
        "drop_path": 0.0,
    }


def _depth(arrays: Arrays, prefix: str) -> int:
    numbers = [int(n.split("/")[0].rpartition("_")[2]) for n in arrays if n.startswith(prefix)]
    if not numbers:
        raise UsageError(f"it has no {prefix}0: these are not the weights of a ViT")
    return 1 + max(numbers)


def _heads_of_size(dim: int, depth: int) -> int | None:
    return next((s.num_heads for s in SIZES.values() if s[:2] == (dim, depth)), None)


def _known_heads(heads: int | None, dim: int, name: str) -> int:
    part = "decoder" if name.startswith("decoder") else "encoder"
    if heads is None:
        raise UsageError(
            f"the file does not say how many attention heads its {part} has (width {dim}), and "
            f"this is not a standard size: convert it first, `python -m mae_jax.tools.convert "
            f"--from X --to Y --num_heads N` (and --decoder_num_heads N)"
        )
    if heads < 1 or dim % heads:
        raise UsageError(f"--{name}={heads} does not divide the width {dim}")
    return heads


def _image_size(arrays: Arrays, model: dict[str, Any], facts: Facts) -> tuple[int, int]:
    """(H, W): as stated; else of the matching fixed position table; else assumed to be square."""
    size, patch = facts.get("image_size"), model["patch_size"]
    table = arrays.get("pos_embed")
    if size is not None:
        try:
            rows = int(np.prod(grid_size(tuple(size), patch)))
        except ValueError as error:
            raise UsageError(f"{error} (--image_size)") from error
        if table is not None and table.shape[1] != 1 + rows:
            if table.shape[1] == rows:
                raise UsageError(_NO_EMBED_CLASS)
            raise UsageError(
                f"images of {tuple(size)} in patches of {patch} are {rows} patches, but the "
                f"position table has {table.shape[1] - 1}: give the size it was trained with "
                "(--image_size)"
            )
        return tuple(size)
    if table is None:
        raise UsageError("it has no position table: give --image_size HEIGHT WIDTH")
    patches = table.shape[1] - 1
    grid = _fixed_grid(table)
    if grid is None:
        side = math.isqrt(patches)
        if side * side != patches:
            without = math.isqrt(table.shape[1]) ** 2 == table.shape[1]
            raise UsageError(
                f"{patches} positions are not a square: give --image_size HEIGHT WIDTH"
                + f" (or else {_NO_EMBED_CLASS})" * without
            )
        grid = (side, side)
        facts.notes.append(f"image size: assumed that {patches} positions are a {side}x{side} grid")
    return grid[0] * patch[0], grid[1] * patch[1]


def _fixed_grid(table: np.ndarray) -> tuple[int, int] | None:
    """The grid with this fixed sine-cosine table, or None."""
    patches, dim = table.shape[1] - 1, table.shape[2]
    for rows in range(1, patches + 1):
        grid = (rows, patches // rows)
        if patches % rows == 0 and dim % 4 == 0 and _is_fixed(table, grid):
            return grid
    return None


def _is_fixed(table: np.ndarray, grid: tuple[int, int]) -> bool:
    return bool(np.allclose(table[0], sincos_2d(table.shape[2], grid), atol=_TABLE_TOLERANCE))


def _check_fixed_tables(arrays: Arrays, model: dict[str, Any]) -> None:
    """Refuses position tables that differ from those our autoencoder computes."""
    grid = grid_size(model["image_size"], model["patch_size"])
    for name in TABLES:
        table = arrays.get(name)
        if table is None:
            continue
        if table.shape[1] != 1 + grid[0] * grid[1] or not _is_fixed(table, grid):
            raise UsageError(
                f"{name} is not the fixed sine-cosine table of a {grid[0]}x{grid[1]} grid, which "
                "this project's autoencoder always has; --encoder_only keeps it as it is"
            )


def _normalize(arrays: Arrays, file: str, facts: Facts) -> bool:
    """Whether the target was normalized patches; guessed if not stated."""
    known = facts.get("normalize")
    if known is not None:
        return known
    named = official_release.normalized_target(file)
    preference = mean_preference(arrays["decoder_pred/kernel"])
    by_layer = preference < _RAW_PIXELS_PREFERENCE
    guess = by_layer if named is None else named
    source = "its name" if named is not None else "its prediction layer"
    if guess != by_layer:
        source += ", although its prediction layer suggests otherwise"
    text = "normalized patches" if guess else "raw pixels"
    facts.notes.append(
        f"target: guessed {text} from {source} (preference for the mean of a patch "
        f"{preference:.2f}); set it with --norm_pix_loss true|false"
    )
    return guess


def mean_preference(kernel: np.ndarray) -> float:
    """How much of a prediction layer's weights [D, P] affects the mean of a patch.

    1 means as much as any other pattern of pixels, P means only the mean, 0 means not at all.
    """
    of_mean = kernel.shape[1] * (kernel.mean(axis=1) ** 2).sum()
    return float(kernel.shape[1] * of_mean / (kernel**2).sum())


def _classes(number: int, facts: Facts) -> list[str] | None:
    classes = facts.get("classes")
    if not number or classes is None:
        return None
    if len(classes) != number:
        raise UsageError(f"{len(classes)} class names for a head of {number}")
    return list(classes)


def _pixels(channels: int, facts: Facts) -> dict[str, list[float]]:
    """Mean and standard deviation per channel; ImageNet's by default for three channels."""
    pixels: dict[str, Any] = {}
    for key, usual in IMAGENET.items():
        pixels[key] = facts.assume(key, usual if channels == 3 else None)
        if pixels[key] is None or len(pixels[key]) != channels:
            raise UsageError(f"the model has {channels} channels: give --{key} for each of them")
    return {key: list(values) for key, values in pixels.items()}
