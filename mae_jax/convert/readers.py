"""Reads files and folders of weights: arrays under their own names, and metadata."""

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

from mae_jax.checkpoint import released
from mae_jax.convert import numpy_pickle, torch_pickle
from mae_jax.runtime import text
from mae_jax.runtime.errors import UsageError
from mae_jax.runtime.safe_load import check_npy, check_zip

METADATA = "mae_jax"  # key of checkpoint metadata in our own files
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz", ".pkl")
# Keys under which training programs store weights, and averages of them, in a PyTorch file.
_INSIDE = ("model", "state_dict", "module", "model_state_dict", "student")
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "teacher")
_NESTED = 4  # levels of nested dicts to search
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in a folder
_INDICES = tuple(f"{name}.index.json" for name in _WEIGHTS)  # in a folder with sharded weights
_OFFICIAL_EPS = 1e-6
_DAMAGED_NPZ = (
    *(ValueError, OSError, EOFError, TypeError, MemoryError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


class File(NamedTuple):
    """A file or folder of weights.

    Attributes:
      kind: "pth", "pkl", "safetensors", "npz", "Hugging Face" or "timm".
      arrays: by the file's names.
      metadata: as in our checkpoints, if the file has them.
      stated: what the file states about the model, any of: image_size, patch_size, num_heads,
        decoder_num_heads, normalize, mask_ratio, mean, std, classes, license.
      notes: remarks for the user.
      averaged: whether there are also averaged weights.
    """

    kind: str
    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any] | None
    stated: dict[str, Any]
    notes: list[str]
    averaged: bool = False


def is_file(path: str) -> bool:
    """Whether `read` can read `path`: a file, or a folder that is not one of our checkpoints."""
    path = released.locate(path)
    if not os.path.isdir(path):
        return os.path.exists(path) or path.endswith(SUFFIXES)
    return any(os.path.isfile(os.path.join(path, name)) for name in (*_WEIGHTS, *_INDICES))


def read(path: str, *, ema: bool = False) -> File:
    """Reads the arrays and the description in a file, or in a Hugging Face or timm folder.

    Args:
      path: or the name of released weights. The type of a file is determined by its content; its
        name counts only if the content is damaged.
      ema: read the averaged weights that a training program stored.

    Raises:
      UsageError: it does not exist, is damaged, has another type of model, or has no averages.
    """
    path = released.locate(path)
    if not os.path.exists(path):
        raise UsageError(f"no file or folder {path}")
    if not os.path.isdir(path) and not os.path.isfile(path):
        raise UsageError(f"{path} is not a regular file")
    kind = "folder" if os.path.isdir(path) else _kind(path)
    if kind in ("pth", "pkl"):
        return _read_pickle(path, kind, ema=ema)
    if ema:
        raise UsageError(f"--ema: {path} has no averaged weights")
    if kind == "folder":
        return _read_folder(path)
    if kind == "index":
        return _read_index(path)
    arrays, metadata = (_npz if kind == "npz" else _safetensors)(path)
    return File(kind, arrays, metadata, {}, [])


def _kind(path: str) -> str:
    """The kind of a file by its first bytes; see `File`, or "index" of Hugging Face."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(b"PK") and zipfile.is_zipfile(path):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith("data.pkl") for name in names):
                return "pth"
            if any(name.endswith(".npy") for name in names):
                return "npz"
    if start[8:] == b"{":  # after the length of this header
        return "safetensors"
    if start.lstrip().startswith(b"{"):
        return "index"
    if numpy_pickle.is_pickle(start):
        return "pkl"
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
    metadata = arrays.pop(METADATA, None)
    return arrays, None if metadata is None else _own_metadata(path, str(metadata))


def _safetensors(path: str) -> tuple[dict[str, np.ndarray], Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = (file.metadata() or {}).get(METADATA)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (
        SafetensorError,
        OSError,
        TypeError,
        AttributeError,
    ) as error:  # or a dtype NumPy lacks
        raise UsageError(f"{path} cannot be read: {error}") from error
    return arrays, _own_metadata(path, metadata) if metadata else None


def _own_metadata(path: str, content: Any) -> dict[str, Any]:
    """Parses the metadata in one of our own files."""
    try:
        metadata = json.loads(content)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: its metadata cannot be read: {error}") from error
    if not isinstance(metadata, dict):
        raise UsageError(f"{path}: its metadata do not describe a model")
    return metadata


def _read_pickle(path: str, kind: str, *, ema: bool = False) -> File:
    content = (torch_pickle if kind == "pth" else numpy_pickle).read(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path} has no weights, but a {type(content).__name__}")
    averages = {key: _weights(content.get(key)) for key in _AVERAGES}
    key, average = next(((k, x) for k, x in averages.items() if x), ("", {}))
    arrays = _weights(content)
    keys = f"it has {', '.join(map(str, list(content)[:10]))}"
    if not arrays and not average:
        raise UsageError(f"{path} has no weights under any of {_INSIDE + _AVERAGES} ({keys})")
    if ema and not average:
        raise UsageError(f"--ema: {path} has no averaged weights ({keys})")
    notes = []
    if ema or not arrays:
        notes.append(f"averaged weights: {key}" + " (the file has no others)" * (not arrays))
    elif average:
        notes.append(f"the file also has averaged weights ({key}): convert --ema reads them")
    arguments = content.get("args")
    stated = _training_arguments(arguments) if isinstance(arguments, dict) else {}
    own = content.get(METADATA)
    metadata = _own_metadata(path, own) if own else None
    averaged = bool(arrays and average)
    return File(kind, average if ema or not arrays else arrays, metadata, stated, notes, averaged)


def _weights(content: Any, nested: int = _NESTED) -> dict[str, np.ndarray]:
    """The arrays of a dict, or of the nested dict under one of the usual keys; {} for none."""
    if not isinstance(content, dict) or not nested:
        return {}
    inside = (_weights(content.get(key), nested - 1) for key in _INSIDE)
    found = next(filter(None, inside), content)
    return {k: x for k, x in found.items() if isinstance(k, str) and isinstance(x, np.ndarray)}


def _training_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Facts from the arguments (argparse) that the official scripts store in a file."""
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
        return File("timm", arrays, None, _parse_config(path, _timm, config), [])
    if config.get("model_type") not in ("vit", "vit_mae"):
        raise UsageError(
            f"{path}/config.json describes a model of type {config.get('model_type')!r}: only vit "
            "and vit_mae can be read"
        )
    stated, notes = _parse_config(path, _hugging_face, config)
    return File("Hugging Face", arrays, None, stated, notes)


def _parse_config(path: str, read_config: Callable[..., Any], config: dict[str, Any]) -> Any:
    try:
        return read_config(path, config)
    # Any key may have any type.
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise UsageError(f"{path}/config.json is not as its library writes it: {error}") from error


def _folder_arrays(path: str) -> dict[str, np.ndarray]:
    present = [n for n in (*_INDICES, *_WEIGHTS) if os.path.exists(os.path.join(path, n))]
    if not present:
        raise UsageError(f"{path} has none of {', '.join(_WEIGHTS)}")
    first = os.path.join(path, present[0])
    return _index_arrays(first) if present[0] in _INDICES else read(first).arrays


def _read_index(path: str) -> File:
    """An index of weight files; read like its folder if that has a config.json."""
    arrays, folder = _index_arrays(path), os.path.dirname(path)
    if os.path.exists(os.path.join(folder, "config.json")):
        return _read_folder(folder or ".", arrays)
    return File("safetensors", arrays, None, {}, [])


def _index_arrays(path: str) -> dict[str, np.ndarray]:
    """Arrays of all files listed in an index; they must be in the same folder."""
    places = _json(path).get("weight_map")
    names: list[Any] = list(places.values()) if isinstance(places, dict) else [None]
    for name in names:
        if not isinstance(name, str) or re.fullmatch(r"[^/\\:]+\.(safetensors|bin)", name) is None:
            raise UsageError(
                f"{path} is refused: it names {name!r}, which is no file of weights in its folder"
            )
    arrays: dict[str, np.ndarray] = {}
    for name in sorted(set(names)):
        arrays |= read(os.path.join(os.path.dirname(path), name)).arrays
    return arrays


def _timm(path: str, config: dict[str, Any]) -> dict[str, Any]:
    """Facts from a timm folder's config.json."""
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
    """Facts and notes from a Hugging Face folder's JSON files and README.md."""
    act = config.get("hidden_act", "gelu")
    if act != "gelu":
        raise UsageError(f"{path} uses hidden_act={act!r}; only 'gelu' (exact) is supported")
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
    """The license in the header of a model card (README.md), or ""."""
    card = os.path.join(path, "README.md")
    lines = text.lines(card) if os.path.isfile(card) else []
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
        raise UsageError(f"{path} cannot be read: it is not a JSON object")
    return content
