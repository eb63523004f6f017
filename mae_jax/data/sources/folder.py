"""The `folder` source: images in a folder or a list file."""

import glob
import logging
import os
import re
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np

from mae_jax.data.options import DataOptions
from mae_jax.data.sources import splits
from mae_jax.data.sources.base import Record
from mae_jax.data.sources.file_list import read_list
from mae_jax.data.sources.listing import (
    Listing,
    cache_path,
    file_size,
    lacks_eval,
    restore_or_save,
)
from mae_jax.data.sources.scan import scan_folder
from mae_jax.data.storage import is_away, patiently
from mae_jax.runtime import text
from mae_jax.runtime.errors import DataMissing, UsageError, require

log = logging.getLogger(__name__)

_LISTS = (".txt", ".csv")
MAX_FILE = 2**33  # bytes; more than the pixels of the largest allowed image


class FolderSource:
    """The files of a listing, with its labels and classes."""

    def __init__(self, listing: Listing, *, base: str, name: str, part: str):
        self.name = name
        self.classes = listing.classes
        self._listing = listing
        self._base = base
        self._part = part

    def __len__(self) -> int:
        return len(self._listing.paths)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        records = []
        for index in indices:
            with open(self.describe(index), "rb", buffering=0) as file:
                if (size := os.fstat(file.fileno()).st_size) > MAX_FILE:
                    raise OSError(f"too large: a file of {size:,} bytes")
                label = int(self._listing.labels[index])
                records.append(Record(file.read(), {"label": label}))
        return records

    def describe(self, index: int) -> str:
        return os.path.join(self._base, self._listing.paths[index])

    def fingerprint(self) -> dict[str, Any]:
        return {
            "kind": "folder",
            "root": self.name,
            "split": self._part,
            "count": len(self),
            "hash": self._listing.digest(),
        }


def make_folder_sources(
    options: DataOptions, *, workdir: str | None, resuming: bool = True, **_: Any
) -> tuple[FolderSource, FolderSource | None]:
    """The training source and, if there is an evaluation split, the evaluation source.

    Args:
      options: `config.data`.
      workdir: where listings are kept between starts; None keeps nothing.
      resuming: False: listings found there may belong to another host that is just starting.

    Raises:
      UsageError: root or a split does not exist, contains no images, or differs from the listing.
    """
    root = options.root
    check_root(root)
    if _is_folder(root):
        discover = not (resuming and lacks_eval(workdir))
        train_at, eval_at = splits.find(
            root, split=options.split, eval_split=options.eval_split, discover=discover
        )
    else:
        train_at, eval_at = root, _eval_list(options)
    train = _source(train_at, part="train", workdir=workdir)
    classes = train.classes or []
    if len(classes) > 1 and all(map(splits.is_split, classes)):
        raise UsageError(
            f"the only classes in {train_at} would be {', '.join(classes)}, which are parts "
            "of a data set: set --config.data.split= and --config.data.eval_split= to the ones to "
            "train and evaluate on (a list file takes all images)"
        )
    if eval_at is None:
        return train, None
    if os.path.realpath(eval_at) == os.path.realpath(train_at):
        log.warning("the held-out images are those trained on: %s", train_at)
    return train, _source(eval_at, part="eval", workdir=workdir, classes=train.classes)


def check_root(root: str) -> None:
    """Raises UsageError unless `root` is a folder or a list file; lists nothing."""
    if not root:
        raise UsageError("--config.data.root is empty: name a folder of images or a list file")
    try:
        if _is_folder(root):
            return
    except DataMissing as error:
        folder = root
        while glob.has_magic(folder):
            folder = os.path.dirname(folder)
        advice = f": give the folder, --config.data.root={folder or '.'}" * (folder != root)
        raise DataMissing(f"{error}{advice}") from error
    if not root.lower().endswith(_LISTS):
        raise UsageError(
            f"--config.data.root={root} is neither a folder nor a list ({', '.join(_LISTS)}): give "
            f"the folder that has the images, --config.data.root={os.path.dirname(root) or '.'}"
        )


def files_source(where: str) -> FolderSource:
    """All images below a folder, in a list file, or matching a path or a glob pattern.

    An existing path is taken literally, even if it contains the characters of a pattern.

    Raises:
      UsageError: there are none.
    """
    if os.path.isdir(where) or (where.lower().endswith(_LISTS) and os.path.exists(where)):
        return _patient_source(where, part="all")
    paths = [where] if os.path.exists(where) else sorted(glob.glob(where, recursive=True))
    paths = [path for path in paths if file_size(path) is not None]
    if not paths:
        raise UsageError(
            f"--images={where!r} is no folder, no list, and no file matches it (quote a pattern)"
        )
    return listed_files(paths, name=where)


def listed_files(paths: Sequence[str], *, name: str = "a list of files") -> FolderSource:
    """These image files, in this order.

    Raises:
      UsageError: there are none, or one (named) does not exist.
    """
    sizes = [(path, file_size(path)) for path in paths]
    missing = [path for path, size in sizes if size is None]
    require(not missing, f"there is no file {', '.join(missing[:3])}")
    require(bool(sizes), "no image files")
    unknown = np.full(len(sizes), -1, np.int32)
    listing = Listing(list(paths), np.array([size for _, size in sizes], np.int64), unknown, None)
    return FolderSource(listing, base="", name=name, part="all")


def evaluation_folder(place: str, classes: list[str] | None, *, number: int) -> FolderSource:
    """All images of a folder that contains a folder for each class, or for some of `classes`.

    Labels are numbered as in `classes`, the names of the folders; if these are not known, in the
    sorted order of the folders, as in torchvision's ImageFolder.

    Args:
      place: the folder.
      classes: class names; None if they are not known.
      number: number of classes.

    Raises:
      UsageError: no such folder, no images, or folders that are not the classes.
    """
    if not _is_folder(place, "--images"):
        raise UsageError(f"{place} is not a folder")
    if classes is None:
        source = _patient_source(place, part="all")
        if source.classes is None or len(source.classes) != number:
            raise UsageError(
                f"{place} has {len(source.classes or ())} class folders, but the model has "
                f"{number} classes, whose names it does not know: wrong folder? (--classes FILE "
                "names them)"
            )
        _log_order(source.classes)
        return source
    source = _patient_source(place, part="eval", classes=classes)
    if source.classes is None:
        raise UsageError(
            f"the folders of {place} are not classes of the model ({len(classes)}: "
            f"{', '.join(classes[:3])}, ...): wrong folder? (if they have other names, --classes "
            "FILE gives these in the model's order)"
        )
    return source


def _log_order(classes: list[str]) -> None:
    """Logs the order of the folders for a model that does not know its class names."""
    natural = sorted(classes, key=_natural)
    if natural == classes:
        log.info("the model does not know the names of its classes: taken in the folders' order")
        return
    first = next(i for i, pair in enumerate(zip(classes, natural, strict=True)) if len({*pair}) > 1)
    log.warning(
        "the model does not know the names of its classes: taken in the plain order of the "
        "folders, as torchvision does it (class %d is %s). timm's order is the natural one (class "
        "%d is %s): if the model was trained with it, the accuracy is wrong. --classes FILE, with "
        "a name a line in the model's order, settles it",
        *(first, classes[first], first, natural[first]),
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key of timm's order: digits as numbers, letters without case."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]


def _is_folder(path: str, flag: str = "--config.data.root") -> bool:
    """Whether a path is a folder.

    Raises:
      UsageError: it does not exist or is out of reach.
    """
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataMissing(f"{flag}={path} does not exist") from error
    except OSError as error:
        if is_away(error):
            raise
        raise UsageError(f"{flag}={path} cannot be read: {error.strerror}") from error


def _eval_list(options: DataOptions) -> str | None:
    if not options.eval_split:
        return None
    path = os.path.join(os.path.dirname(options.root), options.eval_split)
    if not os.path.isfile(path):
        raise DataMissing(f"--config.data.eval_split={options.eval_split}: no list file {path}")
    return path


def _source(
    place: str, *, part: str, workdir: str | None, classes: list[str] | None = None
) -> FolderSource:
    """Lists `place`; for evaluation, numbers its labels by the training `classes`."""
    is_folder = os.path.isdir(place)
    known = set(map(text.normalized, classes or ()))
    found = scan_folder(place, known=known) if is_folder else read_list(place)
    found = restore_or_save(found, cache_path(workdir, part), place=place)
    if part == "eval" and found.classes != classes:
        found = _renumbered(found, classes, place=place)
    base = place if is_folder else os.path.dirname(place)
    return FolderSource(found, base=base, name=place, part=part)


def _patient_source(place: str, **options: Any) -> FolderSource:
    """`_source` for tools, which have no configuration that says how long to wait."""
    return patiently(
        lambda: _source(place, workdir=None, **options),
        what=place,
        limit=DataOptions.storage_wait,
        was_there=False,
    )


def _renumbered(listing: Listing, classes: list[str] | None, *, place: str) -> Listing:
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(classes or ()):
        numbers.setdefault(text.normalized(name), []).append(number)
    theirs = [numbers.get(text.normalized(name), []) for name in listing.classes or ()]
    extra = [name for name, of in zip(listing.classes or (), theirs, strict=True) if len(of) != 1]
    if extra or listing.classes is None:
        # Wrong labels would be worse than none; tasks that need labels check `classes`.
        if extra:
            log.warning(
                "%s has %d classes that the training images do not have, or have twice (%s): its "
                "labels are not used",
                *(place, len(extra), ", ".join(sorted(extra)[:5])),
            )
        return listing._replace(labels=np.full_like(listing.labels, -1), classes=None)
    table = np.array([*(of[0] for of in theirs), -1], np.int32)
    return listing._replace(labels=table[listing.labels], classes=classes)
