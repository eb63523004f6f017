"""Exports weights in the formats of other programs."""

import importlib
import importlib.util
import json
import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mae_jax.checkpoint import checkpointer
from mae_jax.convert import detectron2, hugging_face, model_card, param_names, surgery, timm
from mae_jax.convert.param_names import Arrays
from mae_jax.convert.readers import METADATA, SUFFIXES
from mae_jax.convert.weights import Weights
from mae_jax.models import targets
from mae_jax.models.pos_embed import sincos_2d
from mae_jax.ops.patches import grid_size
from mae_jax.ops.trees import unflatten
from mae_jax.runtime import disk, filesystem
from mae_jax.runtime.errors import UsageError

_DETECTORS = ("mae", "npz", "detectron2")  # formats of detectors
_PIXELS_ONLY = ("hf", "official")  # formats with a decoder, but without other targets
_ENDINGS = {
    "official": (".safetensors", ".pth"),
    "npz": (".npz",),
    "detectron2": (".pth", ".pkl"),
}  # others are folders


def save(model: Weights, path: str, *, format: str = "") -> str:
    """Writes a model; returns a description of what was written.

    Args:
      model: complete, or with `metadata["missing"]`.
      path: file or folder; must not exist.
      format: a key of `FORMATS`; "" infers it from the path.

    Raises:
      UsageError: the path exists, or the format does not support the model.
    """
    if os.path.exists(path):
        raise UsageError(f"{path} exists: remove it, or write elsewhere (--to)")
    format = format or _format_of(path)
    if format not in FORMATS:
        raise UsageError(f"--format={format} is not one of {', '.join(FORMATS)}")
    _check_kind(model, format)
    missing = model.metadata.get("missing")
    if missing and format not in ("mae", "npz", "official"):
        raise UsageError(f"--format={format} needs all parameters; missing: {missing}")
    if format in _PIXELS_ONLY and model.kind == "mae" and not model.predicts_pixels:
        raise UsageError(
            f"--format={format} does not support a target of "
            f"{targets.describe(model.metadata['target'])}: use --format=mae or npz, or drop the "
            "decoder with --encoder_only"
        )
    ending = os.path.splitext(path)[1]
    ending = ending if ending in SUFFIXES else ""  # a folder name may contain a dot
    endings = _ENDINGS.get(format, ("",))
    if ending not in endings:
        what = f"a file ending in {' or '.join(endings)}" if endings[0] else "a folder"
        raise UsageError(f"--to={path}: --format={format} writes {what}")
    with disk.writing(path) as unfinished:
        return FORMATS[format](model, unfinished)


def _check_kind(model: Weights, format: str) -> None:
    """Refuses formats that have no place for this kind of model."""
    if model.kind == "mask_rcnn" and format not in _DETECTORS:
        raise UsageError(f"--format={format} is not for detectors: {', '.join(_DETECTORS)} are")
    if model.kind != "mask_rcnn" and format == "detectron2":
        raise UsageError("--format=detectron2 is for detectors: use timm or hf_vit for an encoder")


def with_tables(model: Weights) -> Arrays:
    """All parameters, including the position tables that are constants in our model."""
    params = dict(model.params)
    if model.kind == "mae":
        fields = model.fields
        grid = grid_size(fields["image_size"], fields["patch_size"])
        for name, width in (("pos_embed", "embed_dim"), ("decoder_pos_embed", "decoder_embed_dim")):
            params[name] = sincos_2d(fields[width], grid)[None].astype(np.float32)
    return params


def _format_of(path: str) -> str:
    if path.endswith((".safetensors", ".pth")):
        return "official"
    return "npz" if path.endswith(".npz") else "mae"


def _ours(model: Weights, path: str) -> str:
    """A folder of weights written by Orbax, which every command of this project accepts."""
    state = model.variables()
    params = state.pop("params")
    state |= {"target": unflatten(model.target)} if model.target else {}
    checkpointer.save_weights(path, params, state, model.metadata)
    return f"a folder of weights of mae_jax, {len(model.params)} arrays"


def _npz(model: Weights, path: str) -> str:
    text = np.array(json.dumps(model.metadata))
    target = {surgery.TARGET + name: x for name, x in model.target.items()}
    arrays = model.params | model.statistics | target
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays, **{METADATA: text})
    return f"{len(arrays)} arrays under the names of mae_jax"


def _official(model: Weights, path: str) -> str:
    arrays = param_names.to_official(with_tables(model) | model.statistics)
    text = json.dumps(model.metadata)
    if path.endswith(".pth"):
        _save_pth(arrays, text, path)
    else:
        _save_safetensors(arrays, path, {METADATA: text})
    return f"{len(arrays)} arrays under the official names"


def _save_safetensors(arrays: Arrays, path: str, metadata: dict[str, str]) -> None:
    """Saves with the usual file mode; the library makes files readable only by the owner."""
    save_file(arrays, path, metadata={"format": "pt"} | metadata)
    with open(f"{path}.new", "wb") as file:
        mode = os.fstat(file.fileno()).st_mode
    os.remove(f"{path}.new")
    os.chmod(path, mode)


def _save_pth(arrays: Arrays, metadata: str, path: str) -> None:
    if importlib.util.find_spec("torch") is None:
        raise UsageError(
            "writing a .pth file needs torch, which is not installed (pip install torch); a "
            ".safetensors file with the same names does not need it"
        )
    torch = importlib.import_module("torch")

    tensors = {name: torch.from_numpy(x.copy()) for name, x in arrays.items()}
    with open(path, "wb") as file:  # its errors are clearer than those of torch
        torch.save({"model": tensors, METADATA: metadata}, file)


def _hugging_face_mae(model: Weights, path: str) -> str:
    config = hugging_face.mae_config(model)
    arrays = param_names.to_hugging_face(with_tables(model))
    return _folder(model, path, arrays, config, model_card.HUGGING_FACE_MAE)


def _hugging_face_vit(model: Weights, path: str) -> str:
    model = _as_vit(model)
    config = hugging_face.vit_config(model)
    head = model.fields["num_classes"] > 0
    arrays = param_names.to_hugging_face(model.params, prefix="vit." if head else "")
    return _folder(
        model,
        path,
        arrays,
        config,
        model_card.HUGGING_FACE_CLASSIFIER if head else model_card.HUGGING_FACE_VIT,
    )


def _timm(model: Weights, path: str) -> str:
    model = _as_vit(model)
    arrays = param_names.to_official(model.params)
    usage = model_card.TIMM_CLASSIFIER if model.fields["num_classes"] else model_card.TIMM
    return _folder(model, path, arrays, timm.config(model), usage)


def _as_vit(model: Weights) -> Weights:
    """A classifier, or the encoder of an autoencoder."""
    return surgery.fold_batch_norm(model) if model.kind == "vit" else surgery.encoder_only(model)


def _folder(model: Weights, path: str, arrays: Arrays, config: dict[str, Any], usage: str) -> str:
    os.makedirs(path)
    _save_safetensors(arrays, os.path.join(path, "model.safetensors"), {})
    filesystem.write_json(os.path.join(path, "config.json"), config)
    if "model_type" in config:
        filesystem.write_json(
            os.path.join(path, "preprocessor_config.json"), hugging_face.preprocessor_config(model)
        )
    filesystem.write(os.path.join(path, "README.md"), model_card.text(model, usage).encode())
    return f"a folder with {len(arrays)} arrays ({config.get('architectures', ['timm'])[0]})"


def _detectron2(model: Weights, path: str) -> str:
    arrays = detectron2.to_detectron2(model.params | model.statistics)
    text = json.dumps(model.metadata)
    if path.endswith(".pth"):
        _save_pth(arrays, text, path)
    else:
        content = {"model": arrays, "__author__": "mae_jax", METADATA: text}
        with open(path, "wb") as file:
            pickle.dump(content, file, protocol=4)
    return f"{len(arrays)} arrays under the names of detectron2"


FORMATS: dict[str, Callable[[Weights, str], str]] = {
    "mae": _ours,
    "hf": _hugging_face_mae,
    "hf_vit": _hugging_face_vit,
    "timm": _timm,
    "official": _official,
    "npz": _npz,
    "detectron2": _detectron2,
}
