"""The `tfds` source: any prepared TFDS image data set; nothing is downloaded or prepared here."""

import errno
import hashlib
import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from mae_jax.data.options import DataOptions
from mae_jax.data.sources.base import Record
from mae_jax.data.sources.tfrecord import Part, TFRecordReader
from mae_jax.data.transforms.image_headers import ImageError
from mae_jax.runtime.errors import DataMissing, UsageError, one_line

log = logging.getLogger(__name__)

EVAL_SPLITS = ("validation", "test")


class TfdsSource:
    """One split of a prepared data set with an `image` and optionally a `label` feature."""

    def __init__(self, builder: Any, split: str, *, workdir: str | None, part: str):
        """Opens the files.

        Raises:
          UsageError: no such split, no image feature, unknown file format, missing or short files.
        """
        from mae_jax.runtime.tensorflow_cpu import tf

        self._example = tf.train.Example
        self._image_key, self._label_key, self.classes = _features(builder)
        self.name = f"{builder.info.full_name}/{split}"
        self._split = split
        instructions = _instructions(builder, split)
        self._reader = _reader(builder, instructions, workdir=workdir, part=part)
        files = "\n".join(
            f"{epath.Path(item.filename).name} {item.skip} {item.take} {item.examples_in_shard}"
            for item in instructions
        )
        self._digest = hashlib.sha256(files.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        records = []
        for index in indices:
            features = self._example.FromString(self._reader[int(index)]).features.feature
            (image,) = features[self._image_key].bytes_list.value
            records.append(Record(image, {"label": self._label(features)}))
        return records

    def _label(self, features: Any) -> int:
        if self._label_key is None:
            return -1
        (label,) = features[self._label_key].int64_list.value
        if not -1 <= label < len(self.classes or ()):  # -1: test splits without labels
            raise ImageError(f"the label {label} is none of {len(self.classes or ())} classes")
        return label

    def describe(self, index: int) -> str:
        return f"{self.name}#{index}"

    def fingerprint(self) -> dict[str, Any]:
        return {
            "kind": "tfds",
            "name": self.name.rsplit("/", 1)[0],
            "split": self._split,
            "count": len(self),
            "hash": self._digest,
        }


class ArrayRecords:
    """The records of ArrayRecord files, by number."""

    def __init__(self, instructions: list[Any]):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._open = lambda: ArrayRecordDataSource(instructions)
        self._files = self._open()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> bytes:
        """Raises OSError if the library, which has only one type of error, cannot read."""
        try:
            return self._files[number]
        except RuntimeError as error:
            # A reader that failed once always fails; a new one opens its files at the next read.
            self._files = self._open()
            raise OSError(errno.EIO, one_line(error)) from error


def make_tfds_sources(
    options: DataOptions, *, workdir: str | None, **_: Any
) -> tuple[TfdsSource, TfdsSource | None]:
    """The training source and, if the set has a split for it, the evaluation source.

    Raises:
      UsageError: the set is not prepared (the message says how to), or as in `TfdsSource`.
    """
    if not options.name:
        raise UsageError("--config.data.name is empty: name a TFDS data set, such as imagenet2012")
    builder = _builder(options)
    base = re.split(r"[\[+]", options.split)[0]
    eval_split = options.eval_split or next(
        (name for name in EVAL_SPLITS if name in builder.info.splits and name != base), None
    )
    train = TfdsSource(builder, options.split, workdir=workdir, part="train")
    if not eval_split:
        return train, None
    return train, TfdsSource(builder, eval_split, workdir=workdir, part="eval")


def _builder(options: DataOptions) -> Any:
    """A builder made from the prepared files only: no code of the set, no network."""
    from tensorflow_datasets.core import constants, read_only_builder, registered

    try:
        return read_only_builder.builder_from_files(options.name, data_dir=options.root or None)
    except (registered.DatasetNotFoundError, FileNotFoundError) as error:
        place = options.root or str(constants.DATA_DIR)
        raise DataMissing(_how_to_prepare(options.name, place)) from error
    except ValueError as error:  # the message of TFDS has many lines
        raise UsageError(
            f"--config.data.name={options.name!r} cannot be the name of a TFDS data set, which is "
            "name, name/config or name/config:version"
        ) from error


def _how_to_prepare(name: str, place: str) -> str:
    # The `tfds build` command line needs apache_beam (TFDS 4.9.10); this does not.
    command = (
        f"python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', "
        f"data_dir='{place}', file_format='array_record').download_and_prepare()\""
    )
    text = f"the TFDS data set {name} is not prepared in {place} (--config.data.root). "
    if name.split("/")[0].split(":")[0] != "imagenet2012":
        return text + f"Prepare it with: {command}"
    return (
        f"{text}With ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of image-net.org in TARS "
        f"run: launch/prepare_imagenet.sh --tars=TARS --out={place} --format=tfds . Or train from "
        f"class folders, which it makes by --format=folders, with --config.data.source=folder "
        f"--config.data.root=DIR"
    )


def _features(builder: Any) -> tuple[str, str | None, list[str] | None]:
    """Names of the image and the label feature, and the class names."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    if "image" in images:
        images = ["image"]
    if len(images) != 1:
        raise UsageError(
            f"the TFDS data set {builder.info.full_name} has no feature `image` "
            f"(its features: {', '.join(features)})"
        )
    label = features.get("label")
    if isinstance(label, tfds.features.ClassLabel):
        return images[0], "label", list(label.names)
    return images[0], None, None


def _instructions(builder: Any, split: str) -> list[Any]:
    """TFDS's list of (file, skip, take) for a split expression."""
    splits = builder.info.splits
    try:
        instructions = list(splits[split].file_instructions)
    except (KeyError, ValueError, AssertionError) as error:
        raise UsageError(
            f"the TFDS data set {builder.info.full_name} has no split {split!r}; it has "
            f"{', '.join(splits)} (set --config.data.split= or --config.data.eval_split=)"
        ) from error
    if not instructions:
        raise UsageError(f"the split {split!r} of {builder.info.full_name} is empty")
    missing = [item.filename for item in instructions if not epath.Path(item.filename).exists()]
    if missing:
        raise DataMissing(
            f"{len(missing)} of {len(instructions)} files of {builder.info.full_name}/{split} are "
            f"missing, for example {missing[0]}: prepare or copy the data set again"
        )
    return instructions


def _reader(builder: Any, instructions: list[Any], *, workdir: str | None, part: str) -> Any:
    """An object with `len` and `[number] -> bytes`."""
    from tensorflow_datasets.core.file_adapters import FileFormat

    kind = builder.info.file_format
    if kind == FileFormat.ARRAY_RECORD:
        return ArrayRecords(instructions)
    if kind == FileFormat.TFRECORD:
        parts = [
            Part(str(item.filename), item.skip, item.take, item.examples_in_shard)
            for item in instructions
        ]
        cache = epath.Path(workdir) / "data" / f"records_{part}.npz" if workdir else None
        return TFRecordReader(parts, cache=cache)
    raise UsageError(
        f"the TFDS data set {builder.info.full_name} is stored as {kind}: only TFRecord and "
        f"ArrayRecord can be read at random"
    )
