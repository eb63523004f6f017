"""Loads tokenizers: from a run of task `tokenizer`, a run that used one, or files of DALL-E."""

import os
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from mae_jax.checkpoint import checksums, layout, reader
from mae_jax.convert import readers
from mae_jax.convert.param_names import Arrays
from mae_jax.models.dvae import SIZES, DiscreteVAE, check_sizes, part_shapes
from mae_jax.ops.trees import flatten
from mae_jax.runtime.errors import UsageError

_FOLDER = ("encoder.pkl", "decoder.pkl")  # of DALL-E
_DALL_E_INIT_DIM = 128


class Tokenizer(NamedTuple):
    """A tokenizer's weights.

    Attributes:
      sizes: arguments of `DiscreteVAE`, see `SIZES`.
      arrays: by our names, `encoder/...` and optionally `decoder/...`; only their shapes if a
        checkpoint will provide the values.
      sha256: `checksums.content_hash` of the arrays.
    """

    sizes: dict[str, int]
    arrays: dict[str, Any]
    sha256: str

    def metadata(self) -> dict[str, Any]:
        """Metadata for a checkpoint that contains the arrays; `from_metadata` is the inverse."""
        return {**self.sizes, "parts": _parts(self.arrays), "sha256": self.sha256}


def load(path: str) -> Tokenizer:
    """Reads a tokenizer.

    Args:
      path: a run of task `tokenizer` or of pre-training on tokens, which stores its tokenizer; one
        of its steps, or our weights of it; DALL-E's `encoder.pkl`, a folder with it (and
        `decoder.pkl`), or a state_dict of them (.pth, .safetensors).

    Raises:
      UsageError: the tokenizer does not exist, is damaged or incomplete, or is something else.
    """
    try:
        if os.path.isfile(path):
            return _from_dall_e([path])
        if os.path.isfile(os.path.join(path, _FOLDER[0])):
            inside = [os.path.join(path, name) for name in _FOLDER]
            return _from_dall_e([file for file in inside if os.path.isfile(file)])
        return reader.resolve_and_read(path, _from_checkpoint)
    except UsageError as error:
        raise UsageError(f"--config.target.tokenizer={path}: {error}") from error


def _from_checkpoint(checkpoint: layout.CheckpointPath) -> Tokenizer:
    metadata = reader.load_metadata(checkpoint)
    sizes, own = sizes_from_metadata(metadata), metadata["task"] == "tokenizer"
    part = "params" if own else "model_state"
    arrays = reader.load_arrays(checkpoint, (part,))[part]
    return _checked(sizes, flatten(arrays if own else arrays["target"]))


def sizes_from_metadata(metadata: dict[str, Any]) -> dict[str, int]:
    """Reads `Tokenizer.sizes` from the metadata of a checkpoint.

    Raises:
      UsageError: the checkpoint has no tokenizer, or one with impossible sizes.
    """
    if metadata["task"] == "tokenizer":
        stated = metadata["model"]
    elif metadata.get("target", {}).get("kind") == "tokens":
        stated = metadata["target"]["tokenizer"]
    else:
        raise UsageError(
            f"a run of task {metadata['task']} where a tokenizer is needed: train one with "
            "--config=configs/tokenizer.py, or take DALL-E's encoder.pkl"
        )
    return _check_sizes({key: stated.get(key) for key in SIZES})


def from_metadata(metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer described by `Tokenizer.metadata`, with shapes instead of arrays."""
    sizes = _check_sizes({key: metadata[key] for key in SIZES})
    return Tokenizer(sizes, _shapes(sizes, metadata["parts"]), metadata["sha256"])


def _from_dall_e(paths: list[str]) -> Tokenizer:
    arrays: Arrays = {}
    for path in paths:
        arrays |= _our_names(path, readers.read(path).arrays)
    return _checked(_check_sizes(_sizes(arrays)), arrays)


def _our_names(path: str, arrays: Arrays) -> Arrays:
    """blocks.group_1.block_1.res_path.conv_1.w -> encoder/group_1/block_1/conv_1/kernel."""
    first = arrays.get("blocks.input.w")
    if first is None or first.ndim != 4:
        raise UsageError(f"{path} is not an encoder or decoder of DALL-E: no blocks.input.w in it")
    part = "decoder" if first.shape[2:] == (1, 1) else "encoder"
    ours: Arrays = {}
    for name, x in arrays.items():
        found = re.fullmatch(r"blocks\.([a-z_.0-9]{1,100})\.(w|b)", name)
        if not found or x.ndim != (4 if found[2] == "w" else 1):
            raise UsageError(f"{path}: {name[:100]} {x.shape} is not part of DALL-E")
        layer = found[1].replace("output.conv", "output").replace(".res_path", "")
        leaf = "kernel" if found[2] == "w" else "bias"
        layout = (2, 3, 1, 0) if x.ndim == 4 else (0,)
        ours[f"{part}/{layer.replace('.', '/')}/{leaf}"] = x.transpose(layout).astype(np.float32)
    return ours


def _sizes(arrays: Arrays) -> dict[str, Any]:
    """Infers the sizes from the names and shapes of a file's arrays."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in arrays:
            raise UsageError(f"it has no {name}: DALL-E's encoder.pkl is needed")
        return arrays[name].shape

    def largest(pattern: str) -> int:
        numbers = (re.search(pattern, name) for name in arrays)
        return max((int(found[1]) for found in numbers if found), default=0)

    first, last = shape("encoder/input/kernel"), shape("encoder/output/kernel")
    decoder = "decoder/input/kernel" in arrays
    return {
        "channels": first[2],
        "vocab_size": last[3],
        "hidden_dim": first[3],
        "groups": largest(r"/group_(\d{1,4})/"),
        "blocks_per_group": largest(r"/block_(\d{1,4})/"),
        "init_dim": shape("decoder/input/kernel")[3] if decoder else _DALL_E_INIT_DIM,
    }


def _check_sizes(sizes: dict[str, Any]) -> dict[str, int]:
    try:
        return check_sizes(sizes)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _checked(sizes: dict[str, int], arrays: Arrays) -> Tokenizer:
    """Checks that a tokenizer has exactly the arrays it needs."""
    wanted = _shapes(sizes, _parts(arrays))
    problems = [f"missing {name}" for name in wanted if name not in arrays]
    for name, x in arrays.items():
        if name not in wanted:
            problems.append(f"unknown {name}")
        elif x.shape != wanted[name].shape:
            problems.append(f"{name} is {x.shape}, needed {wanted[name].shape}")
    if problems or "encoder" not in _parts(arrays):
        raise UsageError(f"incomplete tokenizer: {'; '.join(problems[:5]) or 'no encoder'}")
    return Tokenizer(sizes, arrays, checksums.content_hash(arrays))


def _parts(arrays: dict[str, Any]) -> list[str]:
    found = {name.split("/")[0] for name in arrays}
    return [part for part in ("encoder", "decoder") if part in found]


def _shapes(sizes: dict[str, Any], parts: list[str]) -> dict[str, jax.ShapeDtypeStruct]:
    return part_shapes(DiscreteVAE((1, 1), **sizes), tuple(parts))
