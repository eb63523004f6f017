"""What is in a file or folder of weights, under its own names, and what it says of itself."""

import contextlib
import json
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from mae_jax.convert import torch_pickle
from mae_jax.runtime.errors import UsageError
from mae_jax.runtime.safe_load import check_npy, check_zip
from mae_jax.runtime.text import lines as lines_of

METADATA = "mae_jax"  # under this name our own files carry the metadata of a checkpoint
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
# Where training programs keep weights in a file of PyTorch, and averages of them beside.
_INSIDE = ("model", "state_dict", "module", "model_state_dict", "student")
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "teacher")
_NESTED = 4  # dicts in each other that are looked into
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of a folder
_INDICES = tuple(f"{name}.index.json" for name in _WEIGHTS)  # of one whose weights are many files
_OFFICIAL_EPS = 1e-6
_DAMAGED_NPZ = (
    *(ValueError, OSError, EOFError, TypeError, MemoryError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


class File(NamedTuple):
    """A file or folder of weights.

    Attributes:
      kind: "pth", "safetensors", "npz", "Hugging Face" or "timm".
      arrays: by the file's names.
      metadata: of a checkpoint of ours, if the file carries them.
      stated: what the file says of the model, as far as it does: image_size, patch_size, num_heads,
        decoder_num_heads, normalize, mask_ratio, mean, std, classes, license.
      notes: what a person should know.
      averaged: whether there are averaged weights too.
    """

    kind: str
    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any] | None
    stated: dict[str, Any]
    notes: list[str]
    averaged: bool = False


def is_file(path: str) -> bool:
    """Whether `path` is a file or folder that `read` is for (and not a checkpoint of ours)."""
    if not os.path.isdir(path):
        return os.path.exists(path) or path.endswith(SUFFIXES)
    return any(os.path.isfile(os.path.join(path, name)) for name in (*_WEIGHTS, *_INDICES))


def read(path: str, *, ema: bool = False) -> File:
    """Reads the arrays and the description of a file, or of a Hugging Face or timm folder.

    Args:
      path: what a file is its content tells; its name counts only where that is damaged.
      ema: the averaged weights that a training program kept beside the others.

    Raises:
      UsageError: it does not exist, is damaged, or holds another kind of model or no averages.
    """
    if not os.path.exists(path):
        raise UsageError(f"no file or folder {path}")
    if not os.path.isdir(path) and not os.path.isfile(path):
        raise UsageError(f"{path} is not a regular file")
    kind = "folder" if os.path.isdir(path) else _kind(path)
    if kind == "pth":
        return _read_pth(path, ema=ema)
    if ema:
        raise UsageError(f"--ema: {path} keeps no averaged weights beside the others")
    if kind == "folder":
        return _read_folder(path)
    if kind == "index":
        return _read_index(path)
    arrays, metadata = (_npz if kind == "npz" else _safetensors)(path)
    return File(kind, arrays, metadata, {}, [])


def _kind(path: str) -> str:
    """ "npz", "safetensors", "index" (of Hugging Face) or "pth", by the first bytes of a file."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(b"PK") and zipfile.is_zipfile(path):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith("data.pkl") for name in names):
                return "pth"
            if any(name.endswith(".npy") for name in names):
                return "npz"
    if start[8:] == b"{":  # behind the length of this header
        return "safetensors"
    if start.lstrip().startswith(b"{"):
        return "index"
    endings = (".npz", ".safetensors")
    return next((ending[1:] for ending in endings if path.endswith(ending)), "pth")


def _npz(path: str) -> tuple[dict[str, np.ndarray], Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(archive, os.path.getsize(path), compressed=True)
            for entry in archive.infolist():
                with archive.open(entry) as member:
                    check_npy(member, entry.file_size)
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except _DAMAGED_NPZ as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    text = arrays.pop(METADATA, None)
    return arrays, None if text is None else _own_metadata(path, str(text))


def _safetensors(path: str) -> tuple[dict[str, np.ndarray], Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(METADATA)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # types NumPy has not
        raise UsageError(f"{path} cannot be read: {error}") from error
    return arrays, _own_metadata(path, text) if text else None


def _own_metadata(path: str, text: Any) -> dict[str, Any]:
    """What one of our own files says of itself."""
    try:
        metadata = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: what it says of itself cannot be read: {error}") from error
    if not isinstance(metadata, dict):
        raise UsageError(f"{path}: what it says of itself is no description of a model")
    return metadata


def _read_pth(path: str, *, ema: bool = False) -> File:
    content = torch_pickle.read(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no weights but a {type(content).__name__}")
    averages = {key: _weights(content.get(key)) for key in _AVERAGES}
    key, average = next(((k, x) for k, x in averages.items() if x), ("", {}))
    arrays = _weights(content)
    there = f"it has {', '.join(map(str, list(content)[:10]))}"
    if not arrays and not average:
        raise UsageError(f"{path} holds no weights under any of {_INSIDE + _AVERAGES} ({there})")
    if ema and not average:
        raise UsageError(f"--ema: {path} keeps no averaged weights beside the others ({there})")
    notes = []
    if ema or not arrays:
        notes.append(f"averaged weights: {key}" + " (the file has no others)" * (not arrays))
    elif average:
        notes.append(f"the file has averaged weights too ({key}): convert --ema takes them")
    arguments = content.get("args")
    stated = _training_arguments(arguments) if isinstance(arguments, dict) else {}
    text = content.get(METADATA)
    metadata = _own_metadata(path, text) if text else None
    averaged = bool(arrays and average)
    return File("pth", average if ema or not arrays else arrays, metadata, stated, notes, averaged)


def _weights(content: Any, nested: int = _NESTED) -> dict[str, np.ndarray]:
    """The arrays of a dict, or of the dict in it that programs put weights into; {} for none."""
    if not isinstance(content, dict) or not nested:
        return {}
    inside = (_weights(content.get(key), nested - 1) for key in _INSIDE)
    found = next(filter(None, inside), content)
    return {k: x for k, x in found.items() if isinstance(k, str) and isinstance(x, np.ndarray)}


def _training_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """What the official training scripts leave in a file (argparse)."""
    stated: dict[str, Any] = {}
    if isinstance(arguments.get("input_size"), int):
        stated["image_size"] = (arguments["input_size"],) * 2
    if isinstance(arguments.get("norm_pix_loss"), bool):
        stated["normalize"] = arguments["norm_pix_loss"]
    if isinstance(arguments.get("mask_ratio"), float):
        stated["mask_ratio"] = arguments["mask_ratio"]
    return stated


def _read_folder(path: str, arrays: dict[str, np.ndarray] | None = None) -> File:
    config = _json(os.path.join(path, "config.json"))
    arrays = _folder_arrays(path) if arrays is None else arrays
    if "architecture" in config:
        return File("timm", arrays, None, _described(path, _timm, config), [])
    if config.get("model_type") not in ("vit", "vit_mae"):
        raise UsageError(
            f"{path}/config.json describes a model of type {config.get('model_type')!r}: only vit "
            "and vit_mae can be read"
        )
    stated, notes = _described(path, _hugging_face, config)
    return File("Hugging Face", arrays, None, stated, notes)


def _described(path: str, read_config: Callable[..., Any], config: dict[str, Any]) -> Any:
    try:
        return read_config(path, config)
    # Any key may be of any type.
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise UsageError(f"{path}/config.json is not as its library writes it: {error}") from error


def _folder_arrays(path: str) -> dict[str, np.ndarray]:
    there = [n for n in (*_INDICES, *_WEIGHTS) if os.path.exists(os.path.join(path, n))]
    if not there:
        raise UsageError(f"{path} has none of {', '.join(_WEIGHTS)}")
    first = os.path.join(path, there[0])
    return _index_arrays(first) if there[0] in _INDICES else read(first).arrays


def _read_index(path: str) -> File:
    """A file that lists others; with the configuration beside it, as if its folder were given."""
    arrays, folder = _index_arrays(path), os.path.dirname(path)
    if os.path.exists(os.path.join(folder, "config.json")):
        return _read_folder(folder or ".", arrays)
    return File("safetensors", arrays, None, {}, [])


def _index_arrays(path: str) -> dict[str, np.ndarray]:
    """Arrays of all files that an index lists; they must lie beside it."""
    places = _json(path).get("weight_map")
    names: list[Any] = list(places.values()) if isinstance(places, dict) else [None]
    for name in names:
        if not isinstance(name, str) or re.fullmatch(r"[^/\\:]+\.(safetensors|bin)", name) is None:
            raise UsageError(
                f"{path} is refused: it names {name!r}, which is no file of weights beside it"
            )
    arrays: dict[str, np.ndarray] = {}
    for name in sorted(set(names)):
        arrays |= read(os.path.join(os.path.dirname(path), name)).arrays
    return arrays


def _timm(path: str, config: dict[str, Any]) -> dict[str, Any]:
    """What a timm folder's config.json says."""
    details, arguments = config.get("pretrained_cfg", {}), config.get("model_args", {})
    stated: dict[str, Any] = {}
    if "img_size" in arguments:
        stated["image_size"] = _pair(arguments["img_size"])
    elif "input_size" in details:
        stated["image_size"] = tuple(details["input_size"][1:])
    for key, value in (
        ("num_heads", arguments.get("num_heads")),
        ("mean", details.get("mean")),
        ("std", details.get("std")),
        ("classes", details.get("label_names")),
        ("license", details.get("license") or _card_license(path)),
        ("pool", config.get("global_pool")),
    ):
        if value:
            stated[key] = value
    return stated


def _hugging_face(path: str, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a Hugging Face folder's config.json, preprocessor_config.json and README.md say."""
    act = config.get("hidden_act", "gelu")
    if act != "gelu":
        raise UsageError(
            f"{path} computes with hidden_act={act!r}; only 'gelu' (exact) is possible"
        )
    notes = []
    eps = config.get("layer_norm_eps", 1e-12)
    if eps != _OFFICIAL_EPS:
        notes.append(
            f"config.json has layer_norm_eps {eps:g}; here it is {_OFFICIAL_EPS:g} (official)"
        )
    heads = config.get("num_attention_heads", 12)
    stated = {
        "image_size": _pair(config.get("image_size", 224)),
        "patch_size": _pair(config.get("patch_size", 16)),
        "num_heads": heads,
    }
    if config["model_type"] == "vit_mae":
        stated["decoder_num_heads"] = config.get("decoder_num_attention_heads", 16)
        stated["normalize"] = config.get("norm_pix_loss", False)
        stated["mask_ratio"] = config.get("mask_ratio", 0.75)
    labels = config.get("id2label") or {}
    names = [labels[key] for key in sorted(labels, key=int)]
    if not all(re.fullmatch(r"LABEL_\d+", name) for name in names):  # the library's own names
        stated["classes"] = names
    details = os.path.join(path, "preprocessor_config.json")
    if os.path.exists(details):
        pixels = _json(details)
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
            if isinstance(pixels.get(theirs), list):
                stated[ours] = pixels[theirs]
    if card := _card_license(path):
        stated["license"] = card
    return stated, notes


def _card_license(path: str) -> str:
    """The licence that the head of a model card (README.md) names, or ""."""
    card = os.path.join(path, "README.md")
    lines = lines_of(card) if os.path.isfile(card) else []
    if lines[:1] == ["---"]:
        head = lines[1 : lines.index("---", 1)] if "---" in lines[1:] else []
        for line in head:
            if line.startswith("license:"):
                return line.partition(":")[2].strip()
    return ""


def _pair(value: Any) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values[0], values[-1]


def _json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} cannot be read: it holds no names with values")
    return content
