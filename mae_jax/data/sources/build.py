"""Selects and builds the sources that `config.data` describes."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epath

from mae_jax.data.options import DataOptions
from mae_jax.data.sampler import fitting_holdout, holdout_split
from mae_jax.data.sources.base import Record, Source, Subset
from mae_jax.data.sources.cache import Budget, Cached
from mae_jax.data.sources.coco import make_coco_sources
from mae_jax.data.sources.folder import files_source, make_folder_sources
from mae_jax.data.sources.shapes import make_shapes_sources
from mae_jax.data.sources.tfds import make_tfds_sources
from mae_jax.data.storage import patiently
from mae_jax.data.transforms import decode, resize
from mae_jax.data.transforms.decode import pixels
from mae_jax.runtime import filesystem, host
from mae_jax.runtime.errors import UsageError, require
from mae_jax.runtime.host import available_memory

log = logging.getLogger(__name__)
# Packages that do part of the work faster than Pillow, and whether they are installed.
FAST = {"simplejpeg": decode.SIMPLEJPEG, "cykooz-resizer": resize.SIMD}
# `config.data.source` -> function that takes the checked `DataOptions` and, as keywords,
# image_size, channels, workdir, resuming and objects of `make_sources` (**_ takes unused ones), and
# returns the training source and the evaluation source; the latter may be None.
SOURCES: dict[str, Callable[..., tuple[Source, Source | None]]] = {
    "shapes": make_shapes_sources,
    "folder": make_folder_sources,
    "coco": make_coco_sources,
    "tfds": make_tfds_sources,
}
WITH_OBJECTS = ("coco", "shapes")  # those with boxes and masks
KEPT = ("listing_*.jsonl", "records_*.npz")  # in <workdir>/data


class Sources(NamedTuple):
    """Examples of a run.

    Attributes:
      train: to train on.
      eval: to evaluate on; None without a split or holdout for it.
    """

    train: Source
    eval: Source | None

    @property
    def holdout(self) -> int:
        """Number of training images set aside as `eval`; 0 if `eval` is a separate split."""
        of_one_set = "held out" in self.train.fingerprint().get("part", "")  # see `Subset`
        return len(self.eval) if of_one_set and self.eval is not None else 0


def make_sources(
    data_config: Any,
    *,
    image_size: tuple[int, int],
    channels: int,
    workdir: str | None,
    resuming: bool = True,
    was_there: bool = False,
    objects: bool = False,
) -> Sources:
    """Finds the data; reads no image yet. Waits if the storage is unavailable.

    Args:
      data_config: `config.data` (see `DataOptions`).
      image_size: (H, W) of the model.
      channels: C of the model.
      workdir: where listings and record indices are kept between starts; None keeps nothing.
      resuming: False discards files that an earlier start kept there without reaching a checkpoint.
      was_there: the data are known to exist: if they are missing the storage is unavailable.
      objects: whether the task needs boxes and masks: the sources are `DetectionSource`s.

    Raises:
      UsageError: the data do not exist, have no objects, or are not those this run started with.
      StorageUnavailable: the storage did not come back within `data.storage_wait`.
    """
    if workdir and not resuming:
        for name in KEPT:
            for path in epath.Path(workdir).glob(f"data/{name}"):
                path.unlink(missing_ok=True)  # the other processes of a run do the same
    options = DataOptions.from_config(data_config)
    options = dataclasses.replace(options, root=filesystem.expand(options.root))
    context = {"image_size": image_size, "channels": channels}
    context |= {"workdir": workdir, "resuming": resuming, "objects": objects}
    require(
        not objects or options.source in WITH_OBJECTS,
        f"--config.data.source={options.source} has no boxes and masks: use "
        f"{' or '.join(WITH_OBJECTS)}",
    )
    train, evaluation = patiently(
        lambda: SOURCES[options.source](options, **context),
        what="the images",
        limit=options.storage_wait,
        was_there=was_there,
    )
    if evaluation is None and options.holdout:
        holdout = fitting_holdout(len(train), options.holdout)
        kept, held_out = holdout_split(len(train), holdout)
        train, evaluation = (
            Subset(train, kept, part=f"all but {holdout} held out"),
            Subset(train, held_out, part=f"{holdout} held out"),
        )
    if evaluation is None:
        (train,) = with_cache([train], options, channels=channels)
    else:
        train, evaluation = with_cache([train, evaluation], options, channels=channels)
    if slow := [name for name, there in FAST.items() if not there]:
        log.info("Pillow does the work of %s, which is not installed: slower", " and ".join(slow))
    log.info("train: %s, %s examples", train.name, f"{len(train):,}")
    if evaluation is None:
        log.info("eval: none (set --config.data.eval_split= or --config.data.holdout=)")
    else:
        log.info("eval: %s, %s examples", evaluation.name, f"{len(evaluation):,}")
    return Sources(train, evaluation)


def with_cache(sources: list[Source], data_config: Any, *, channels: int) -> list[Source]:
    """The same sources, cached in memory by `data.cache` and `data.cache_gb`."""
    options = DataOptions.from_config(data_config)
    if options.cache == "none":
        return sources
    limit = host.share(int(options.cache_gb * 2**30) or available_memory() // 2)
    log.info("cache: %s images, up to %.1f GB", options.cache, limit / 2**30)

    def decoded(record: Record) -> Record:
        return record._replace(data=pixels(record.data, options, channels=channels))

    budget = Budget(limit)
    change = decoded if options.cache == "decoded" else lambda record: record
    return [Cached(source, budget, change=change) for source in sources]


def image_source(where: str, *, root: str = "") -> Source:
    """The images named on a command line, labeled or not, sorted by name.

    Args:
      where: a folder, including its subfolders; a list file (.txt, .csv); a file or a quoted glob
        pattern (existing paths are not patterns); or `tfds:NAME/SPLIT` of a prepared TFDS set, such
        as tfds:imagenet2012/validation.
      root: data_dir of TFDS.

    Raises:
      UsageError: it does not exist or contains no images.
    """
    if where.startswith("tfds:"):
        name, _, split = where.removeprefix("tfds:").rpartition("/")
        if not name or not split:
            raise UsageError(
                f"--images={where} is not tfds:NAME/SPLIT (tfds:imagenet2012/validation)"
            )
        options = DataOptions(source="tfds", name=name, split=split, root=root)
        return make_tfds_sources(options, workdir=None)[0]
    return files_source(filesystem.expand(where))
