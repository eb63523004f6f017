"""Loads weights from one of our checkpoints, or from a file or folder of another project."""

import dataclasses
from typing import Any

import numpy as np

from mae_jax.checkpoint import layout, reader
from mae_jax.config.diff import update_names
from mae_jax.convert import detectron2, infer_detector, param_names, readers, surgery
from mae_jax.convert.hints import Hints
from mae_jax.convert.infer_architecture import TABLES, add_hints, describe
from mae_jax.convert.param_names import Arrays
from mae_jax.convert.validate import check_metadata, check_stated, check_target, check_tokens
from mae_jax.convert.weights import Weights, make_report
from mae_jax.ops.trees import combine, flatten
from mae_jax.runtime.errors import UsageError

NO_HINTS = Hints()


def load(
    path: str,
    *,
    hints: Hints = NO_HINTS,
    decoder: bool = True,
    ema: bool = False,
    license: str = "",
) -> Weights:
    """Reads weights and the description of their model. Mismatches are listed in `report`.

    Args:
      path: a run, one of its steps or a folder of our weights; a PyTorch, safetensors or NumPy
        (.npz) file of any name; a Hugging Face or timm folder; the name of released weights.
      hints: what the user knows, for what the file does not state.
      decoder: False drops the decoder of a foreign file first, so that nothing needs to be known
        about it.
      ema: load the averaged weights, if a run or PyTorch file has them.
      license: of the weights, if the user names one.

    Raises:
      UsageError: the weights do not exist, are damaged, or belong to another type of model.
    """
    if readers.is_file(path):
        file = readers.read(path, ema=ema)
        if file.metadata is None:
            return _foreign(path, file, hints, decoder, license)
        update_names(file.metadata.get("config"))
        read = _detector if infer_detector.is_detector(file.arrays) else _own_file
        try:
            model = read(file)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
    else:
        model = reader.resolve_and_read(path, lambda checkpoint: _checkpoint(path, checkpoint, ema))
    metadata = add_hints(model.metadata, hints)
    if license:
        origin = metadata.get("provenance", {})
        metadata = metadata | {"provenance": origin | {"license": license}}
    params = {name: x.astype(np.float32, copy=False) for name, x in model.params.items()}
    return dataclasses.replace(model, params=params, metadata=metadata)


def load_with_average(path: str) -> tuple[Weights, Weights | None]:
    """Loads weights and, if the run has them, the averaged weights of the same step.

    Raises:
      UsageError: see `load`.
    """

    def both(checkpoint: layout.CheckpointPath) -> tuple[Weights, Weights | None]:
        model = load(checkpoint.folder)
        return model, load(checkpoint.folder, ema=True) if model.averaged else None

    return (load(path), None) if readers.is_file(path) else reader.resolve_and_read(path, both)


def _checkpoint(path: str, checkpoint: layout.CheckpointPath, ema: bool) -> Weights:
    metadata, parts = reader.load_metadata(checkpoint), reader.parts(checkpoint)
    if metadata.get("task") == "tokenizer":
        raise UsageError(
            f"{path} is a tokenizer, not an autoencoder: use it as --config.target.tokenizer"
        )
    if ema and "ema" not in parts:
        raise UsageError(f"--ema: {path} has no averaged weights (--config.optim.ema)")
    wanted = ("params", "model_state", "ema") if ema else ("params", "model_state")
    arrays = reader.load_arrays(checkpoint, wanted)
    params = flatten(combine(arrays["params"], arrays["ema"]) if ema else arrays["params"])
    check_metadata(metadata, num_arrays=len(params))
    statistics = flatten(arrays["model_state"].get("batch_stats", {}))
    target = flatten(arrays["model_state"].get("target", {}))
    check_target(metadata, target)
    report = make_report(params, metadata, kind="checkpoint")
    averaged = "ema" in parts
    return Weights(
        params, statistics, metadata, report, target, run=checkpoint.run, averaged=averaged
    )


def _own_file(file: readers.File) -> Weights:
    """Weights of a file with our metadata, under our parameter names or the official ones."""
    metadata: Any = file.metadata
    check_metadata(metadata, num_arrays=len(file.arrays))
    target, others = _split_target(file.arrays)
    check_target(metadata, target)
    ours = param_names.Read(others, [], []) if file.kind == "npz" else param_names.to_ours(others)
    arrays = ours.arrays
    if metadata["model"]["kind"] == "mae":
        arrays = _without_tables(arrays)
    detector = metadata["model"]["kind"] == "mask_rcnn"
    params, statistics = (infer_detector.split_statistics if detector else _split)(arrays)
    kind = f"{file.kind} of mae_jax"
    report = make_report(
        params, metadata, kind=kind, unused=ours.unused, notes=_parts(ours.incomplete)
    )
    return Weights(params, statistics, metadata, report, target)


def _foreign(path: str, file: readers.File, hints: Hints, decoder: bool, license: str) -> Weights:
    if infer_detector.is_detector(file.arrays):
        try:
            return _detector(file, hints)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
    try:
        arrays, unused, incomplete = param_names.to_ours(file.arrays)
        check_tokens(arrays, unused, file.arrays)
        notes = file.notes + _parts(incomplete)
        if not decoder:
            kept = {n: x for n, x in arrays.items() if not surgery.of_decoder(n)}
            if len(kept) < len(arrays):
                notes.append(f"dropped the decoder, {len(arrays) - len(kept)} arrays")
            arrays = kept
        elif any(name.endswith("encoder_to_decoder.weight") for name in file.arrays):
            raise UsageError(
                "a pre-training file of MAE-pytorch: its position table differs and it has no "
                "class token, so its decoder cannot be used; add --encoder_only"
            )
        check_stated(file.stated)
        described = describe(arrays, file=path, stated=file.stated, hints=hints, license=license)
        check_metadata(described.metadata, num_arrays=len(arrays))
    except (UsageError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error
    metadata = described.metadata
    params, statistics = _split(arrays)
    report = make_report(
        params, metadata, kind=file.kind, unused=unused, notes=notes + described.notes, tables=True
    )
    if metadata["model"]["kind"] == "mae":
        params = _without_tables(params)
    return Weights(params, statistics, metadata, report, averaged=file.averaged)


def _detector(file: readers.File, hints: Hints = NO_HINTS) -> Weights:
    """Weights of a detector under detectron2's names, with or without our metadata."""
    try:
        arrays, unused = detectron2.to_ours(file.arrays)
    except ValueError as error:
        raise UsageError(str(error)) from error
    metadata: Any = file.metadata or infer_detector.describe_detector(arrays, hints.classes)
    check_metadata(metadata, num_arrays=len(arrays))
    params, statistics = infer_detector.split_statistics(arrays)
    report = make_report(params, metadata, kind="detectron2", unused=unused, notes=file.notes)
    return Weights(params, statistics, metadata, report)


def _without_tables(arrays: Arrays) -> Arrays:
    """Drops the fixed position tables, which are constants of our autoencoder."""
    return {name: x for name, x in arrays.items() if name not in TABLES}


def _split(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """Returns (parameters, BatchNorm statistics)."""
    statistics = {n: x for n, x in arrays.items() if n.startswith(surgery.STATISTICS)}
    return {n: x for n, x in arrays.items() if n not in statistics}, statistics


def _split_target(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """Returns (arrays of the target without the prefix of their names, all others)."""
    prefix = surgery.TARGET
    target = {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}
    return target, {n: x for n, x in arrays.items() if not n.startswith(prefix)}


def _parts(incomplete: list[str]) -> list[str]:
    return [f"{name} is incomplete" for name in incomplete]
