"""Extracts image features, without masking, into one file.

Examples:
  python -m mae_jax.tools.extract --checkpoint runs/demo --images DIR \\
      --out features.npz
  python -m mae_jax.tools.extract --checkpoint mae_pretrain_vit_base.pth \\
      --images tfds:imagenet2012/validation --pool cls --out features.parquet

The checkpoint is a run, one of its steps, or any weights (docs/weights.md).
Images go through the model's evaluation transform; their order is kept. The
default feature is the mean of the patch tokens after the final norm, because
these are what the decoder reads; pre-training does not train the class token
(--pool cls). Try both.

FILE.npz contains `features` [N, D] ([N, L, D] with --pool patches), `path`,
`label` (-1: none), `class` (its name; "": none) and `valid` (false, with NaN
features, if an image could not be read). FILE.parquet has the same columns. To
continue after an interruption, run the same command again; until it finishes,
its rows are kept in FILE.partial/.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from mae_jax import inference
from mae_jax.checkpoint import checksums
from mae_jax.config.diff import update_names
from mae_jax.data import Source, eval_batches, image_source, storage
from mae_jax.distributed import sharding
from mae_jax.runtime import disk, filesystem, text
from mae_jax.runtime.cli import make_parser, run_command, say, setup_logging
from mae_jax.runtime.errors import STOPPED, RunError, UsageError, require
from mae_jax.runtime.preemption import stop_on_signals
from mae_jax.train import evaluate as evaluation

SUFFIXES = (".npz", ".parquet")
_GROUP_BYTES = 2**26  # of features in a row group of Parquet


class Stopped(Exception):
    """Stopped by a signal."""


class Partial:
    """Rows extracted so far: a folder of append-only binary columns.

    Args:
      folder: created if missing; continued if it has the same settings.
      settings: everything that determines the rows, as plain values.
      shape, dtype: of one feature.

    Raises:
      UsageError: the folder was started with different settings.
    """

    def __init__(
        self, folder: str, settings: dict[str, Any], *, shape: tuple[int, ...], dtype: np.dtype
    ):
        self.folder = folder
        self._columns = {
            "features": (shape, dtype),
            "label": ((), np.dtype(np.int32)),
            "valid": ((), np.dtype(np.bool_)),
        }
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, "settings.json")
        settings = json.loads(json.dumps(settings))
        if os.path.exists(path):
            try:
                with open(path, encoding="utf-8") as file:
                    old = json.load(file)
                update_names({"data": old.get("pixels")})
            except ValueError as error:
                raise UsageError(f"{path} is damaged: remove {folder}") from error
            changed = [f"{k}: {old.get(k)} -> {v}" for k, v in settings.items() if old.get(k) != v]
            require(
                not changed,
                f"{folder} was started with other settings ({'; '.join(changed)}): remove it, or "
                "choose another --out",
            )
        else:
            filesystem.write(path, json.dumps(settings).encode())

    def truncate(self, batch_size: int) -> int:
        """Drops rows of an incomplete last batch; returns the number of complete batches."""
        sizes = [self._size(name) // self._row_bytes(name) for name in self._columns]
        batches = min(sizes) // batch_size
        for name in self._columns:
            with open(self._path(name), "ab") as file:
                file.truncate(batches * batch_size * self._row_bytes(name))
        return batches

    def append(self, rows: dict[str, np.ndarray]) -> None:
        """Adds some rows of every column."""
        for name, (_, dtype) in self._columns.items():
            with open(self._path(name), "ab") as file:
                file.write(np.ascontiguousarray(rows[name], dtype).tobytes())

    def read(self, name: str, rows: int) -> np.ndarray:
        """The first `rows` rows of a column, memory-mapped."""
        shape, dtype = self._columns[name]
        return np.memmap(self._path(name), dtype, "r", shape=(rows, *shape))

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, f"{name}.bin")

    def _size(self, name: str) -> int:
        return os.path.getsize(self._path(name)) if os.path.exists(self._path(name)) else 0

    def _row_bytes(self, name: str) -> int:
        shape, dtype = self._columns[name]
        return int(np.prod(shape)) * dtype.itemsize


def extract(
    model: inference.Pretrained,
    source: Source,
    out: str,
    *,
    pool: str = "mean",
    layer: int = -1,
    dtype: str = "float32",
    batch_size: int = 64,
) -> list[str]:
    """Writes the features of all images of a source, with at most one batch in memory.

    Args:
      model: the model.
      source: the images.
      out: .npz or .parquet; must not exist.
      pool, layer: see `Pretrained.features`.
      dtype: of the features, float32 or float16.
      batch_size: global batch size; rounded up to a multiple of the number of devices.

    Returns:
      The images that could not be read.

    Raises:
      UsageError: `out` exists, has another suffix, or was started with other settings.
      RunError: the disk is full or fails.
      Stopped: by SIGINT or SIGTERM, after a batch; finished rows are kept.
      StorageUnavailable: the images could not be read; finished rows are kept.
    """
    require(out.endswith(SUFFIXES), f"--out={out} must end in {' or '.join(SUFFIXES)}")
    require(not os.path.exists(out), f"{out} exists: remove it, or choose another --out")
    if out.endswith(".parquet"):
        _check_names(source)
    function = model.feature_function(pool=pool, layer=layer)
    pixels = jax.ShapeDtypeStruct((1, *model.image_size, model.channels), np.uint8)
    shape = jax.eval_shape(function, model.encoder_variables, pixels).shape[1:]
    settings = {
        "weights": checksums.content_hash(model.params),
        "model": model.metadata["model"],
        "pixels": model.metadata["config"]["data"],
        "images": source.fingerprint(),
        "pool": pool,
        "layer": layer,
        "dtype": dtype,
        "arithmetic": jax.default_backend(),
    }
    batch_size = -(-batch_size // jax.device_count()) * jax.device_count()
    with _disk_errors(out, f"{out}.partial"):
        partial = Partial(f"{out}.partial", settings, shape=shape, dtype=np.dtype(dtype))
        first_batch = partial.truncate(batch_size)
    total = len(source)
    initial = min(first_batch * batch_size, total)
    progress = tqdm.tqdm(total=total, initial=initial, unit="image")
    with stop_on_signals() as stop, storage.ends_when(stop.noticed), progress as bar:
        stop.answer = "saving this batch before exiting; press again to exit immediately"
        stop.mark_savable()
        for rows in _rows(model, function, source, batch_size, first_batch):
            real = rows.pop("index") >= 0  # the last batch is padded
            rows = {name: x[real] for name, x in rows.items()}
            rows["features"][~rows["valid"]] = np.nan
            with _disk_errors(out, partial.folder):
                partial.append(rows)
            bar.update(int(real.sum()))
            if stop.poll():
                raise Stopped
    write = _write_npz if out.endswith(".npz") else _write_parquet
    with _disk_errors(out, partial.folder), filesystem.replacing(out) as unfinished:
        write(unfinished, partial, source)
    bad = [source.describe(int(i)) for i in np.flatnonzero(~partial.read("valid", total))]
    shutil.rmtree(partial.folder)
    return bad


@contextlib.contextmanager
def _disk_errors(out: str, folder: str) -> Iterator[None]:
    """Reports disk errors on one line; keeps the folder only if it contains finished rows."""
    try:
        with disk.translate_errors(out):
            yield
    except RunError as error:
        if any(name.endswith(".bin") and size for name, size in _sizes(folder)):
            raise RunError(
                f"{error}; finished rows are kept in {folder}: run the same command to continue"
            ) from error
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _sizes(folder: str) -> list[tuple[str, int]]:
    with os.scandir(folder) as entries:
        return [(entry.name, entry.stat().st_size) for entry in entries]


def _rows(
    model: inference.Pretrained, function: Any, source: Source, batch_size: int, first_batch: int
) -> Iterator[dict[str, np.ndarray]]:
    """Features, labels, validity and index of the rows of each batch, from `first_batch` on."""
    mesh = sharding.make_mesh()

    def step(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        other = {name: batch[name] for name in ("label", "valid", "index")}
        return {"features": function(variables, batch["image"]), **other}

    batches = eval_batches(
        source,
        # Unreadable images are listed at the end; no number of them stops the command.
        data_config={**model.metadata["config"]["data"], "max_bad_fraction": 1.0},
        image_size=model.image_size,
        channels=model.channels,
        batch_size=batch_size,
        start_step=first_batch,
    )
    variables = jax.device_put(model.encoder_variables, sharding.replicated(mesh))
    compiled = evaluation.compile_eval_step(step, mesh)
    for rows in evaluation.stream(compiled, variables, batches, mesh):
        yield {name: np.array(x) for name, x in rows.items()}


def _check_names(source: Source) -> None:
    """Rejects names that Parquet cannot store, before any work is done."""
    for name in (*(source.describe(i) for i in range(len(source))), *(source.classes or ())):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"Parquet stores only UTF-8 names, and {text.quoted(name)} is not UTF-8: rename "
                "it, or choose an --out that ends in .npz"
            ) from error


def _class_names(source: Source, labels: np.ndarray) -> list[str]:
    names = [*(source.classes or ()), ""]  # label -1 indexes the last
    return [names[label] if source.classes else "" for label in labels.tolist()]


def _write_npz(path: str, partial: Partial, source: Source) -> None:
    rows = len(source)
    names = [source.describe(i) for i in range(rows)]
    columns = {name: partial.read(name, rows) for name in ("features", "label", "valid")}
    with open(path, "wb") as file:
        named = {"path": names, "class": _class_names(source, columns["label"])}
        arrays = {name: np.array(texts, np.str_) for name, texts in named.items()}
        np.savez(file, allow_pickle=False, **arrays, **columns)


def _write_parquet(path: str, partial: Partial, source: Source) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    total = len(source)
    features = partial.read("features", total)
    width = int(np.prod(features.shape[1:]))
    kind = pa.list_(pa.from_numpy_dtype(features.dtype), width)
    schema = pa.schema(
        [
            ("path", pa.string()),
            ("label", pa.int32()),
            ("class", pa.string()),
            ("valid", pa.bool_()),
            ("features", kind),
        ],
        metadata={"shape": json.dumps(features.shape[1:])},
    )
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        step = max(1, _GROUP_BYTES // (width * features.dtype.itemsize))
        for start in range(0, total, step):
            rows = slice(start, min(start + step, total))
            flat = pa.array(features[rows].reshape(-1))
            labels = partial.read("label", total)[rows]
            columns = [
                pa.array([source.describe(i) for i in range(rows.start, rows.stop)]),
                pa.array(labels),
                pa.array(_class_names(source, labels), pa.string()),
                pa.array(partial.read("valid", total)[rows]),
                pa.FixedSizeListArray.from_arrays(flat, width),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("tools.extract", __doc__)
    add = parser.add_argument
    path: dict[str, Any] = {"type": filesystem.expand, "required": True}
    add("--checkpoint", **path, metavar="PATH", help="a run, RUN:best, a step, or weights")
    add("--images", **path, help="folder, list file, glob pattern or tfds:NAME/SPLIT")
    add("--out", **path, metavar="FILE", help=".npz or .parquet file to write")
    pool = "mean of the patch tokens, class token, or all patch tokens (default: %(default)s)"
    add("--pool", default="mean", choices=inference.POOLS, help=pool)
    layer = "transformer block, counted from 0 or, if negative, from the end (default: the last)"
    add("--layer", type=int, default=-1, metavar="N", help=layer)
    size = "images per batch, across all devices (default: %(default)s)"
    add("--batch_size", type=int, default=64, metavar="N", help=size)
    dtype = "type of the stored features (default: %(default)s)"
    add("--dtype", default="float32", choices=("float32", "float16"), help=dtype)
    root = "TFDS data directory, for --images tfds:NAME/SPLIT"
    add("--root", type=filesystem.expand, default="", metavar="DIR", help=root)
    add("--ema", action="store_true", help="use the averaged (EMA) weights of the checkpoint")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = _parser().parse_args(argv)
    setup_logging()
    require(args.batch_size > 0, f"--batch_size={args.batch_size} must be positive")
    try:
        bad = extract(
            inference.load(args.checkpoint, ema=args.ema),
            image_source(args.images, root=args.root),
            args.out,
            pool=args.pool,
            layer=args.layer,
            dtype=args.dtype,
            batch_size=args.batch_size,
        )
    except Stopped:
        say("stopped: run the same command to continue", error=True)
        return STOPPED
    say(*(f"could not be read: {name}" for name in bad), error=True)
    say(f"wrote {args.out}" + (f"; {len(bad)} images could not be read" if bad else ""))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
