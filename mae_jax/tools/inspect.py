"""Shows the contents of a checkpoint or weights file, and checks it for damage.

Examples:
  python -m mae_jax.tools.inspect runs/demo
  python -m mae_jax.tools.inspect --verify runs/demo

Prints the model, the configuration, and the shape, type and statistics of every
array. --verify instead checks every array against the checksum it was saved
with, in all steps of a run, in one step or in a weights folder.

Exit status: 0 sound, 1 damaged (--verify), 2 invalid input.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from mae_jax import convert
from mae_jax.checkpoint import best, checksums, layout, reader, released
from mae_jax.config.diff import flatten
from mae_jax.convert import readers, surgery
from mae_jax.ops import trees
from mae_jax.runtime import filesystem
from mae_jax.runtime.cli import make_parser, run_command, say, setup_logging
from mae_jax.runtime.errors import FAILED, UsageError


def describe(path: str) -> dict[str, Any]:
    """Everything the command prints, as plain values; arrays under our names and in our layout.

    A file that cannot be loaded as a model gives the reason as `why`, and arrays under its names.
    """
    if not convert.is_file(path):
        return reader.resolve_and_read(path, _of_checkpoint)
    where = os.path.abspath(released.locate(path))
    try:
        model = convert.load(path)
    except UsageError as error:
        if not os.path.exists(where):
            raise
        return {
            "checkpoint": where,
            "why": str(error),
            "arrays": _arrays(readers.read(path).arrays),
        }
    return _of_model(where, model)


def _of_checkpoint(found: layout.CheckpointPath) -> dict[str, Any]:
    metadata = reader.load_metadata(found)
    if metadata.get("task") == "tokenizer":
        info = _tokenizer(found, metadata)
    else:
        info = _of_model(found.folder, convert.load(found.folder))
    record = best.read(found.run) if found.run else None
    return info | ({"best": record._asdict()} if record else {})


def _of_model(where: str, model: convert.Weights) -> dict[str, Any]:
    target = {surgery.TARGET + name: x for name, x in model.target.items()}
    return {
        "checkpoint": where,
        "contents": _contents(model),
        "report": model.report._asdict(),
        "metadata": model.metadata,
        "arrays": _arrays(model.params | model.statistics | target),
        "parameters": sum(x.size for x in model.params.values()),
        "sha256": checksums.content_hash(model.params),
    }


def _tokenizer(found: layout.CheckpointPath, metadata: dict[str, Any]) -> dict[str, Any]:
    params = trees.flatten(reader.load_arrays(found)["params"])
    return {
        "checkpoint": found.folder,
        "contents": ["tokenizer: encoder and decoder"],
        "metadata": metadata,
        "arrays": _arrays(params),
        "parameters": sum(x.size for x in params.values()),
        "sha256": checksums.content_hash(params),
    }


def _contents(model: convert.Weights) -> list[str]:
    """The parts of the model, and of its run."""
    contents = ["encoder"]
    contents += ["decoder"] if model.kind == "mae" else []
    if model.kind == "mask_rcnn":
        contents += ["feature pyramid", "region proposals", "box head", "mask head"]
    elif model.fields.get("num_classes"):
        contents.append("head")
    contents += ["averaged weights"] if model.averaged else []
    return contents + (["optimizer state"] if model.run else [])


def _arrays(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "shape": list(x.shape),
            "dtype": str(x.dtype),
            "mean": float(np.mean(x, dtype=np.float64)),
            "std": float(np.std(x, dtype=np.float64)),
        }
        for name, x in arrays.items()
    }


def _print(info: dict[str, Any]) -> None:
    say(info["checkpoint"])
    if "why" in info:
        say(f"  cannot be loaded as a model: {info['why']}")
    else:
        _print_model(info)
    say("arrays")
    for name, array in info["arrays"].items():
        shape = "x".join(map(str, array["shape"]))
        say(f"  {name:<40} {shape:>14} {array['dtype']:<9} "
              f"mean {array['mean']:+.4f} std {array['std']:.4f}")  # fmt: skip
    if "sha256" in info:
        say(f"{info['parameters']:,} parameters, sha256 {info['sha256']}")


def _print_model(info: dict[str, Any]) -> None:
    say(f"  contents: {', '.join(info['contents'])}")
    for line in convert.LoadReport(**info["report"]).lines() if "report" in info else ():
        say(f"  {line}")
    if "best" in info:
        say(f"  best so far: {best.Best(**info['best'])}")
    metadata = dict(info["metadata"])
    config = metadata.pop("config", {})
    for key, value in flatten(metadata).items():
        say(f"  {key:<24} {value}")
    say("configuration")
    for key, value in flatten(config).items():
        say(f"  {key:<24} {value}")


def verify(path: str) -> bool:
    """Prints one line for every checkpoint at `path`; returns whether all are sound.

    Raises:
      UsageError: there is no checkpoint, or `path` is a file, which has no checksums.
    """
    if os.path.isfile(path):
        raise UsageError(
            f"--verify {path}: a weights file has no checksums; pass a run, a step or a weights "
            "folder of mae_jax"
        )
    folder = layout.absolute(path)
    run = os.path.dirname(folder) if os.path.basename(folder) == layout.FOLDER else folder
    aside = layout.quarantined(run)
    for name in aside:
        say(f"{name}: set aside as damaged when the run was started; not checked")
    steps = layout.steps(run)
    if aside and not steps:
        return False
    found = [layout.CheckpointPath(str(layout.folder_of(run, s)), run, s) for s in steps]
    sound = [_verify_one(one) for one in found or [layout.find(folder)]]
    return all(sound)


def _verify_one(found: layout.CheckpointPath) -> bool:
    name = f"step {found.step}" if found.run else found.folder
    try:
        arrays, compared = reader.verify(found)
    except reader.CorruptCheckpointError as error:
        say(f"{name}: damaged: {error.reason}")
        return False
    except layout.NoSuchStep:
        say(f"{name}: deleted by its run in the meantime")
        return True
    state = "all sound" if compared else "all readable, saved without checksums"
    say(f"{name}: {arrays} arrays, {state}")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = make_parser("tools.inspect", __doc__)
    parser.add_argument(
        "path",
        type=filesystem.expand,
        metavar="PATH",
        help="a run (its newest step), RUN:best, one of its steps, or weights (docs/weights.md)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--verify", action="store_true", help="check for damage instead")
    args = parser.parse_args(argv)
    setup_logging()
    if args.verify:
        return 0 if verify(args.path) else FAILED
    info = describe(args.path)
    if args.json:
        print(json.dumps(info))
    else:
        _print(info)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
