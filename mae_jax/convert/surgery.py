"""Explicit changes of weights to fit another model, each requested by name."""

import copy
import dataclasses
import os
import re
from typing import Any, NamedTuple

import numpy as np

from mae_jax.convert.param_names import Arrays
from mae_jax.convert.weights import Weights, make_report
from mae_jax.models import targets
from mae_jax.models.pos_embed import resize_table, sincos_2d
from mae_jax.models.vit import BN_EPS, VisionTransformer
from mae_jax.ops.interpolate import bicubic_matrix
from mae_jax.ops.patches import grid_size
from mae_jax.runtime.errors import UsageError

POLICIES = ("error", "mean", "repeat", "select:I,J,...")
STATISTICS = "batch_norm/"
TARGET = "target/"


def of_decoder(name: str) -> bool:
    """Whether a parameter is used only in pre-training: of the decoder, or a mask token."""
    return name.startswith(("decoder_", "mask_token", "encoder_mask_token"))


def encoder_only(model: Weights) -> Weights:
    """The encoder without the decoder or the head: a classifier of 0 classes."""
    params = {
        name: x
        for name, x in model.params.items()
        if not of_decoder(name) and not name.startswith("head/")
    }
    metadata = copy.deepcopy(model.metadata)
    old = metadata["model"]
    if model.kind == "mae":
        grid = grid_size(tuple(old["image_size"]), tuple(old["patch_size"]))
        params["pos_embed"] = sincos_2d(old["embed_dim"], grid)[None].astype(np.float32)
        kept = {"size", *VisionTransformer.__dataclass_fields__}
        metadata["model"] = {k: v for k, v in old.items() if k in kept} | {
            "kind": "vit",
            "pool": "cls",
            "head_std": 0.02,
            "head_norm_group": 0,
            "drop_path": 0.0,
        }
    metadata["model"] |= {"num_classes": 0, "head_norm": False}
    metadata["classes"] = None
    return dataclasses.replace(_changed(model, params, metadata, statistics={}), target={})


def for_release(model: Weights) -> Weights:
    """The model as it is published: float16, without absolute paths in the metadata."""
    params = {name: x.astype(np.float16) for name, x in model.params.items()}
    metadata = _without_folders(model.metadata)
    return dataclasses.replace(model, params=params, metadata=metadata)


def _without_folders(value: Any) -> Any:
    """A copy in which absolute paths are replaced with their last part."""
    if isinstance(value, dict):
        return {key: _without_folders(x) for key, x in value.items()}
    absolute = isinstance(value, str) and os.path.isabs(value)
    return os.path.basename(value) if absolute else value


def with_fc_norm(model: Weights) -> Weights:
    """The encoder with its final norm after the mean of the patches (global pooling).

    This changes the function of the encoder (the norm is applied to the mean, not to the tokens);
    it is a starting point for fine-tuning.

    Raises:
      UsageError: the model has a decoder or a head, which depend on the original norm.
    """
    if model.kind != "vit" or model.fields["num_classes"]:
        raise UsageError("--fc_norm works only without decoder and head: add --encoder_only")
    params = {
        name.replace("norm/", "fc_norm/", 1) if name.startswith("norm/") else name: x
        for name, x in model.params.items()
    }
    metadata = copy.deepcopy(model.metadata)
    metadata["model"]["pool"] = "mean"
    return _changed(model, params, metadata)


class _Channels(NamedTuple):
    """Linear maps between old and new channels, in units of the images.

    Attributes:
      sees: [old, new]: how each old channel is computed from the new ones; a row of zeros ignores
        them.
      makes: [new, old]: how each new channel is computed from the old ones.
    """

    sees: np.ndarray
    makes: np.ndarray


def with_channels(model: Weights, channels: int, policy: str) -> Weights:
    """Adapts the model to images with another number of channels.

    Args:
      model: any model.
      channels: new number of channels.
      policy: "mean": every old channel sees the mean of the new ones (for gray images, the same as
        three equal channels); "repeat": the new channels repeat the old ones in turn, and each old
        channel sees the mean of its copies; "select:0,2": only these channels, unchanged. The
        predicted pixels follow. "error" refuses any change.

    Raises:
      UsageError: the policy is "error", unknown, or selects a missing channel; or the decoder does
        not predict pixels and would have to be retrained.
    """
    old = model.metadata["model"]["channels"]
    if old == channels and not policy.startswith("select"):
        return model
    change = _channels(old, channels, policy)
    if model.kind == "mae" and not model.predicts_pixels:
        raise UsageError(
            f"the decoder predicts {targets.describe(model.metadata['target'])} of {old} channels: "
            "only the encoder can be adapted to other channels (--encoder_only)"
        )
    metadata = copy.deepcopy(model.metadata)
    mean, std = (np.asarray(metadata["data"][key], np.float64) for key in ("mean", "std"))
    new_mean, new_std = change.makes @ mean, change.makes @ std
    params = dict(model.params)
    # An old channel c saw (p - mean[c]) / std[c]; now p = sees[c] @ (x * new_std + new_mean).
    kernel = params["patch_embed/proj/kernel"].astype(np.float64)
    scale = change.sees * new_std / std[:, None]
    shift = change.sees.any(axis=1) * (change.sees @ new_mean - mean) / std
    bias = params["patch_embed/proj/bias"] + np.einsum("hwcd,c->d", kernel, shift)
    params["patch_embed/proj/kernel"] = np.einsum("hwcd,cn->hwnd", kernel, scale)
    params["patch_embed/proj/bias"] = bias
    if model.kind == "mae":
        scale, shift = change.makes, np.zeros(channels)
        if not metadata["target"]["normalize"]:  # pixels in units of mean and std
            scale = change.makes * std / new_std[:, None]
            shift = (change.makes @ mean - new_mean) / new_std
        for name, offset in (("decoder_pred/kernel", 0.0), ("decoder_pred/bias", shift)):
            x = params[name]
            pixels = x.reshape(*x.shape[:-1], -1, old)  # channel fastest
            params[name] = (pixels @ scale.T + offset).reshape(*x.shape[:-1], -1)
    metadata["model"]["channels"] = channels
    pixels = {"mean": new_mean.tolist(), "std": new_std.tolist()}
    metadata["data"] |= pixels
    metadata["config"]["data"] |= pixels
    params = {name: np.asarray(x, np.float32) for name, x in params.items()}
    return _changed(model, params, metadata)


def _channels(old: int, new: int, policy: str) -> _Channels:
    if new < 1:
        raise UsageError(f"channels={new} must be positive")
    if policy == "mean":
        return _Channels(np.full((old, new), 1 / new), np.full((new, old), 1 / old))
    selected = re.fullmatch(r"select:(\d+(?:,\d+)*)", policy)
    if policy == "error":
        raise UsageError(
            f"the weights are for {old} channels, but the model has {new}: choose a conversion "
            "with --config.init_channels (--channel_policy of convert): mean, repeat or "
            "select:I,J,..."
        )
    if policy == "repeat":
        which = [j % old for j in range(new)]
        if new < old:
            raise UsageError(f"repeat: {new} channels cannot repeat {old}; use mean or select")
    elif selected:
        which = [int(i) for i in selected[1].split(",")]
        if len(which) != new or max(which) >= old:
            raise UsageError(
                f"{policy} does not name {new} of the {old} channels (numbered from 0)"
            )
    else:
        raise UsageError(f"channel policy {policy!r} is not one of {', '.join(POLICIES)}")
    makes = np.eye(old)[which]
    return _Channels(makes.T / np.maximum(makes.sum(axis=0), 1)[:, None], makes)


def with_image_size(model: Weights, size: tuple[int, int]) -> Weights:
    """Adapts the model to another image size with the same patch size.

    A classifier's position table is resized (bicubic, as in official fine-tuning). An autoencoder
    uses the fixed tables of the new grid.

    Raises:
      UsageError: the size is not a whole number of patches.
    """
    old = model.metadata["model"]
    patch = tuple(old["patch_size"])
    try:
        grid, new = grid_size(tuple(old["image_size"]), patch), grid_size(size, patch)
    except ValueError as error:
        raise UsageError(str(error)) from error
    params = dict(model.params)
    if "pos_embed" in params:
        params["pos_embed"] = resize_table(params["pos_embed"], grid, new)
    metadata = copy.deepcopy(model.metadata)
    metadata["model"]["image_size"] = tuple(size)
    return _changed(model, params, metadata)


def with_patch_size(model: Weights, patch: tuple[int, int]) -> Weights:
    """Adapts the encoder to larger patches of larger images; the grid and its positions stay.

    Uses FlexiViT's resampling (arXiv 2212.08013, section 3.4): bicubically enlarged patches give
    the same tokens as the original ones. 14 to 16 converts a ViT-H/14 for ViTDet.

    Raises:
      UsageError: there is a decoder, which predicts patches of the old size; or the new patches are
        smaller, which loses information.
    """
    old = model.metadata["model"]
    was = tuple(old["patch_size"])
    if model.kind == "mae":
        raise UsageError(
            "--resample_patch: the decoder predicts patches of the old size; add --encoder_only"
        )
    if patch[0] < was[0] or patch[1] < was[1]:
        raise UsageError(f"--resample_patch={patch} is smaller than the model's {was}")
    kernel = resample_kernel(model.params["patch_embed/proj/kernel"], patch)
    metadata = copy.deepcopy(model.metadata)
    grid = grid_size(tuple(old["image_size"]), was)
    metadata["model"] |= {
        "patch_size": tuple(patch),
        "image_size": (grid[0] * patch[0], grid[1] * patch[1]),
    }
    return _changed(model, model.params | {"patch_embed/proj/kernel": kernel}, metadata)


def resample_kernel(kernel: np.ndarray, patch: tuple[int, int]) -> np.ndarray:
    """A patch embedding for larger patches: tokens of enlarged images hardly change (FlexiViT,
    2212.08013).

    Args:
      kernel: [ph, pw, C, D].
      patch: new (ph, pw).
    """
    # token = sum of kernel * patch; if B enlarges patches, the new kernel is pinv(B^T) kernel.
    sides = zip(kernel.shape[:2], patch, strict=True)
    rows, columns = (np.linalg.pinv(bicubic_matrix(a, b).T) for a, b in sides)
    wide = kernel.astype(np.float64)
    return np.einsum("Hh,Ww,hwcd->HWcd", rows, columns, wide).astype(np.float32)


def fold_batch_norm(model: Weights) -> Weights:
    """Folds the BatchNorm of a linear probe into its linear layer; the function is the same."""
    if not model.statistics:
        return model
    mean, var = (
        model.statistics[f"batch_norm/{key}"].astype(np.float64) for key in ("mean", "var")
    )
    kernel, bias = (model.params[f"head/{leaf}"].astype(np.float64) for leaf in ("kernel", "bias"))
    kernel = kernel / np.sqrt(var + BN_EPS)[:, None]
    head = {"head/kernel": kernel, "head/bias": bias - mean @ kernel}
    params = model.params | {name: x.astype(np.float32) for name, x in head.items()}
    metadata = copy.deepcopy(model.metadata)
    metadata["model"] |= {"head_norm": False}
    return _changed(model, params, metadata, statistics={})


def _changed(
    model: Weights, params: Arrays, metadata: dict[str, Any], *, statistics: Arrays | None = None
) -> Weights:
    """The changed model with a new report, which keeps the facts about the file."""
    old = model.report
    report = make_report(params, metadata, kind=old.kind, unused=old.unused, notes=old.notes)
    kept = model.statistics if statistics is None else statistics
    return dataclasses.replace(
        model, params=params, statistics=kept, metadata=metadata, report=report
    )
