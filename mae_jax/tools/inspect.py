"""What is in a checkpoint or a file of weights: `python -m mae_jax.tools.inspect PATH`."""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from mae_jax import checkpoint, convert
from mae_jax.config import flatten
from mae_jax.console import run_command
from mae_jax.convert.files import is_file
from mae_jax.params import named


def content_hash(params: Any) -> str:
    """SHA-256 of all parameters: names, shapes, dtypes and values. Independent of file layout."""
    digest = hashlib.sha256()
    arrays = named(params)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def describe(path: str) -> dict[str, Any]:
    """Everything the command prints, as plain values; arrays under our names and in our layout."""
    model = convert.load(path)
    return {
        "checkpoint": os.path.abspath(path) if is_file(path) else checkpoint.find(path).folder,
        "contents": _contents(path, model),
        "report": model.report._asdict(),
        "metadata": model.metadata,
        "arrays": {
            name: {
                "shape": list(x.shape),
                "dtype": str(x.dtype),
                "mean": float(np.mean(x)),
                "std": float(np.std(x)),
            }
            for name, x in (model.params | model.statistics).items()
        },
        "parameters": sum(x.size for x in model.params.values()),
        "sha256": content_hash(model.params),
    }


def _contents(path: str, model: convert.Model) -> list[str]:
    """Which parts of a model and of a run there are."""
    contents = ["encoder"]
    contents += ["decoder"] if model.kind == "mae" else []
    contents += ["head"] if model.fields.get("num_classes") else []
    state = set() if is_file(path) else checkpoint.parts(path)
    words = {"opt_state": "optimizer state", "ema": "averaged weights"}
    return contents + [word for part, word in words.items() if part in state]


def _print(info: dict[str, Any]) -> None:
    print(info["checkpoint"])
    print(f"  holds: {', '.join(info['contents'])}")
    for line in convert.Report(**info["report"]).lines():
        print(f"  {line}")
    metadata = dict(info["metadata"])
    config = metadata.pop("config", {})
    for key, value in flatten(metadata).items():
        print(f"  {key:<24} {value}")
    print("configuration")
    for key, value in flatten(config).items():
        print(f"  {key:<24} {value}")
    print("arrays")
    for name, array in info["arrays"].items():
        shape = "x".join(map(str, array["shape"]))
        print(f"  {name:<40} {shape:>14} {array['dtype']:<9} "
              f"mean {array['mean']:+.4f} std {array['std']:.4f}")  # fmt: skip
    print(f"{info['parameters']:,} parameters, sha256 {info['sha256']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="mae_jax.tools.inspect", description=__doc__)
    parser.add_argument(
        "path",
        help="a run's folder (its newest step), one step's folder, or weights (docs/weights.md)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    args = parser.parse_args(argv)
    info = describe(args.path)
    if args.json:
        print(json.dumps(info))
    else:
        _print(info)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
