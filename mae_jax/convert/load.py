"""Weights in: a checkpoint of ours, or a file or folder of another project."""

import dataclasses
from typing import Any

from mae_jax.checkpoint import layout, reader
from mae_jax.config.diff import update_names
from mae_jax.convert import param_names, readers, surgery
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
    """Reads weights and what model they are. What does not fit is in `report`, not yet refused.

    Args:
      path: a run, one of its steps or a folder of weights of ours; a file of PyTorch, safetensors
        or NumPy (.npz), whatever it is called; a folder of Hugging Face or timm.
      hints: what the user knows where the file does not say.
      decoder: False leaves out the decoder of a foreign file before it is looked at, with all that
        would have to be known of it.
      ema: the averaged weights of a run, or of a file of PyTorch, that kept them.
      license: of the weights, if the user names one.

    Raises:
      UsageError: there is nothing, or it is damaged or another kind of model.
    """
    if readers.is_file(path):
        found = readers.read(path, ema=ema)
        if found.metadata is None:
            return _foreign(path, found, hints, decoder, license)
        update_names(found.metadata.get("config"))
        try:
            model = _own_file(found)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
    else:
        model = reader.resolve_and_read(path, lambda found: _checkpoint(path, found, ema))
    metadata = add_hints(model.metadata, hints)
    if license:
        origin = metadata.get("provenance", {})
        metadata = metadata | {"provenance": origin | {"license": license}}
    return dataclasses.replace(model, metadata=metadata)


def load_with_average(path: str) -> tuple[Weights, Weights | None]:
    """What `load` reads, and the same with the averaged weights of a run that kept them.

    Raises:
      UsageError: as `load`.
    """

    def both(found: layout.CheckpointPath) -> tuple[Weights, Weights | None]:
        model = load(found.folder)
        return model, load(found.folder, ema=True) if model.averaged else None

    return (load(path), None) if readers.is_file(path) else reader.resolve_and_read(path, both)


def _checkpoint(path: str, found: layout.CheckpointPath, ema: bool) -> Weights:
    metadata, parts = reader.load_metadata(found), reader.parts(found)
    if metadata.get("task") == "tokenizer":
        raise UsageError(
            f"{path} holds a tokenizer and no autoencoder: it is for --config.target.tokenizer"
        )
    if ema and "ema" not in parts:
        raise UsageError(f"--ema: {path} kept no averaged weights (--config.optim.ema)")
    wanted = ("params", "model_state", "ema") if ema else ("params", "model_state")
    arrays = reader.load_arrays(found, wanted)
    params = flatten(combine(arrays["params"], arrays["ema"]) if ema else arrays["params"])
    check_metadata(metadata, num_arrays=len(params))
    statistics = flatten(arrays["model_state"].get("batch_stats", {}))
    target = flatten(arrays["model_state"].get("target", {}))
    check_target(metadata, target)
    report = make_report(params, metadata, kind="checkpoint")
    averaged = "ema" in parts
    return Weights(params, statistics, metadata, report, target, run=found.run, averaged=averaged)


def _own_file(found: readers.File) -> Weights:
    """A file that carries our metadata; only its names may be the official code's."""
    metadata: Any = found.metadata
    check_metadata(metadata, num_arrays=len(found.arrays))
    target, others = _split_target(found.arrays)
    check_target(metadata, target)
    ours = param_names.Read(others, [], []) if found.kind == "npz" else param_names.to_ours(others)
    arrays = ours.arrays
    if metadata["model"]["kind"] == "mae":
        arrays = _without_tables(arrays)
    params, statistics = _split(arrays)
    kind = f"{found.kind} of mae_jax"
    report = make_report(
        params, metadata, kind=kind, unused=ours.unused, notes=_parts(ours.incomplete)
    )
    return Weights(params, statistics, metadata, report, target)


def _foreign(path: str, found: readers.File, hints: Hints, decoder: bool, license: str) -> Weights:
    try:
        arrays, unused, incomplete = param_names.to_ours(found.arrays)
        check_tokens(arrays, unused, found.arrays)
        notes = found.notes + _parts(incomplete)
        if not decoder:
            kept = {n: x for n, x in arrays.items() if not surgery.of_decoder(n)}
            if len(kept) < len(arrays):
                notes.append(f"left out: the decoder, {len(arrays) - len(kept)} arrays")
            arrays = kept
        elif any(name.endswith("encoder_to_decoder.weight") for name in found.arrays):
            raise UsageError(
                "a pre-training file of MAE-pytorch: its positions are another table and it has no "
                "class token, so that its decoder cannot be used; --encoder_only takes the encoder"
            )
        check_stated(found.stated)
        described = describe(arrays, file=path, stated=found.stated, hints=hints, license=license)
        check_metadata(described.metadata, num_arrays=len(arrays))
    except (UsageError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error
    metadata = described.metadata
    params, statistics = _split(arrays)
    report = make_report(
        params, metadata, kind=found.kind, unused=unused, notes=notes + described.notes, tables=True
    )
    if metadata["model"]["kind"] == "mae":
        params = _without_tables(params)
    return Weights(params, statistics, metadata, report, averaged=found.averaged)


def _without_tables(arrays: Arrays) -> Arrays:
    """The fixed position tables are constants of our autoencoder."""
    return {name: x for name, x in arrays.items() if name not in TABLES}


def _split(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """(parameters, statistics of BatchNorm)."""
    statistics = {n: x for n, x in arrays.items() if n.startswith(surgery.STATISTICS)}
    return {n: x for n, x in arrays.items() if n not in statistics}, statistics


def _split_target(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """(arrays of the target without the prefix of their names, all others)."""
    prefix = surgery.TARGET
    target = {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}
    return target, {n: x for n, x in arrays.items() if not n.startswith(prefix)}


def _parts(incomplete: list[str]) -> list[str]:
    return [f"only parts of {name} are there" for name in incomplete]
