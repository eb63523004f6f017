"""Weights in: a checkpoint of ours, or a file or folder of another project."""

import json
import os
from typing import Any

import numpy as np

from mae_jax import checkpoint
from mae_jax.convert import files, names, surgery
from mae_jax.convert.describe import TABLES, Hints, check_hints, describe
from mae_jax.convert.model import Model, make_report
from mae_jax.convert.names import Arrays
from mae_jax.errors import UsageError
from mae_jax.params import merge, named

INIT_REPORT = "init_from.json"  # of a run that began with other weights
_STATISTICS = "batch_norm/"
_DECODER = ("decoder_", "mask_token")
NO_HINTS = Hints()


def load(
    path: str,
    *,
    hints: Hints = NO_HINTS,
    encoder_only: bool = False,
    ema: bool = False,
    license: str = "",
) -> Model:
    """Reads weights and what model they are. What does not fit is in `report`, not yet refused.

    Args:
      path: a run, one of its steps or a folder of weights of ours; a .pth, .safetensors or .npz
        file; a folder of Hugging Face or timm.
      hints: what the user knows where the file does not say.
      encoder_only: leave out the decoder, or the head.
      ema: the averaged weights of a run that kept them.
      license: of the weights, if the user names one.

    Raises:
      UsageError: there is nothing, or it is damaged or another kind of model.
    """
    if files.is_file(path):
        if ema:
            raise UsageError(f"--ema: {path} keeps no averaged weights beside the others")
        found = files.read(path)
        if found.metadata is None:
            return _foreign(path, found, hints, encoder_only, license)
        model = _own_file(found)
    else:
        model = _checkpoint(path, ema)
    check_hints(model.metadata, hints)
    if license:
        model.metadata["provenance"] = model.metadata.get("provenance", {}) | {"license": license}
    return surgery.encoder_only(model) if encoder_only else model


def _checkpoint(path: str, ema: bool) -> Model:
    found = checkpoint.find(path)
    metadata = _origin(found.run) | checkpoint.load_metadata(path)
    arrays = checkpoint.load_arrays(path, ("params", "model_state", "ema"))
    if ema and not arrays["ema"]:
        raise UsageError(f"--ema: {path} kept no averaged weights (--config.optim.ema)")
    params = named(merge(arrays["params"], arrays["ema"]) if ema else arrays["params"])
    statistics = named(arrays["model_state"].get("batch_stats", {}))
    return Model(params, statistics, metadata, make_report(params, metadata, kind="checkpoint"))


def _origin(run: str) -> dict[str, Any]:
    """What a run's weights began with, and what licence they have therefore; {} from scratch."""
    report = os.path.join(run, INIT_REPORT)
    if not run or not os.path.exists(report):
        return {}
    with open(report, encoding="utf-8") as file:
        origin = json.load(file).get("provenance", {})  # runs of earlier versions have none
    first = origin.get("began_with") or origin.get("released") or origin.get("file")
    if not first:
        return {}
    return {"provenance": {"began_with": first, "license": origin["license"]}}


def _own_file(found: files.File) -> Model:
    """A file that carries our metadata; only its names may be the official code's."""
    metadata: Any = found.metadata
    ours = found.kind == "npz"
    arrays, unused, incomplete = (found.arrays, [], []) if ours else names.to_ours(found.arrays)
    if metadata["model"]["kind"] == "mae":
        arrays = {name: x for name, x in arrays.items() if name not in TABLES}
    params, statistics = _split(arrays)
    report = make_report(
        params, metadata, kind=f"{found.kind} of mae_jax", unused=unused, notes=_parts(incomplete)
    )
    return Model(params, statistics, metadata, report)


def _foreign(path: str, found: files.File, hints: Hints, encoder_only: bool, license: str) -> Model:
    try:
        arrays, unused, incomplete = names.to_ours(found.arrays)
        if encoder_only:  # before it is looked at: a decoder may have tables that we do not
            arrays = {n: x for n, x in arrays.items() if not n.startswith((*_DECODER, "head/"))}
        described = describe(arrays, file=path, stated=found.stated, hints=hints, license=license)
    except (UsageError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error
    params, statistics = _split(described.params)
    report = make_report(
        params,
        described.metadata,
        kind=found.kind,
        unused=unused,
        notes=found.notes + _parts(incomplete) + described.notes,
    )
    return Model(params, statistics, described.metadata, report)


def _split(arrays: Arrays) -> tuple[Arrays, dict[str, np.ndarray]]:
    """(parameters, statistics of BatchNorm)."""
    statistics = {n: x for n, x in arrays.items() if n.startswith(_STATISTICS)}
    return {n: x for n, x in arrays.items() if n not in statistics}, statistics


def _parts(incomplete: list[str]) -> list[str]:
    return [f"only parts of {name} are there" for name in incomplete]
