"""Images in a folder, or in a list file, as a source."""

import glob
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from mae_jax.data import listing as listings
from mae_jax.data.options import DataOptions
from mae_jax.data.source import Record
from mae_jax.data.storage import patiently
from mae_jax.errors import DataMissing, UsageError

log = logging.getLogger(__name__)

EVAL_FOLDERS = ("val", "validation")
_LISTS = (".txt", ".csv")
MAX_FILE = 2**33  # bytes: more than the pixels of any image that is decoded (decode.MAX_VALUES)


class FolderSource:
    """The files of a listing. Labels follow the listing's classes."""

    def __init__(self, listing: listings.Listing, *, base: str, name: str, part: str):
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
                records.append(Record(file.read(), int(self._listing.labels[index])))
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
    options: DataOptions, *, workdir: str | None
) -> tuple[FolderSource, FolderSource | None]:
    """The training source and, where there is an evaluation split, the evaluation source.

    Raises:
      UsageError: root or a split does not exist, holds no images, or changed since the run began.
    """
    root = options.root
    if not root:
        raise UsageError("--config.data.root is empty: name a folder of images or a list file")
    if not os.path.exists(root):
        raise DataMissing(f"--config.data.root={root} does not exist")
    if os.path.isdir(root):
        train_at, eval_at = _folders(options)
    elif root.lower().endswith(_LISTS):
        train_at, eval_at = root, _eval_list(options)
    else:
        raise UsageError(f"--config.data.root={root} is neither a folder nor a {'/'.join(_LISTS)}")
    train = _source(train_at, part="train", workdir=workdir)
    if eval_at is None:
        return train, None
    return train, _source(eval_at, part="eval", workdir=workdir, classes=train.classes)


def files_source(where: str) -> FolderSource:
    """All images below a folder, of a list file, or that a glob pattern names.

    Raises:
      UsageError: there are none.
    """
    if os.path.isdir(where) or (where.lower().endswith(_LISTS) and os.path.exists(where)):
        return _patient_source(where, part="all")
    paths = sorted(p for p in glob.glob(where, recursive=True) if os.path.isfile(p))
    if not paths:
        raise UsageError(f"--images={where!r} is no folder, no list, and no file matches it")
    sizes = np.array([os.path.getsize(path) for path in paths], np.int64)
    listing = listings.Listing(paths, sizes, np.full(len(paths), -1, np.int32), None)
    return FolderSource(listing, base="", name=where, part="all")


def evaluation_folder(place: str, classes: list[str] | None, *, number: int) -> FolderSource:
    """All images of a folder that has a folder for each class, or for some of `classes`.

    Labels are numbered as in `classes`, whose names the folders must bear; where the names are not
    known, in the order of the names of the folders, as torchvision's ImageFolder does.

    Args:
      place: the folder.
      classes: names of the classes; None: not known.
      number: of classes.

    Raises:
      UsageError: no such folder, no images, or folders that are not the classes.
    """
    if not os.path.isdir(place):
        raise UsageError(f"{place} is not a folder")
    if classes is None:
        source = _patient_source(place, part="all")
        if source.classes is None or len(source.classes) != number:
            raise UsageError(
                f"{place} has {len(source.classes or ())} folders of classes where the model has "
                f"{number} classes, whose names it does not know: wrong folder?"
            )
        log.info("the model does not know the names of its classes: taken in the folders' order")
        return source
    source = _patient_source(place, part="eval", classes=classes)
    if source.classes is None:
        raise UsageError(
            f"the folders of {place} are not classes of the model ({len(classes)}: "
            f"{', '.join(classes[:3])}, ...): wrong folder?"
        )
    return source


def _folders(options: DataOptions) -> tuple[str, str | None]:
    root, split = options.root, options.split
    train_at = os.path.join(root, split)
    if options.eval_split:
        eval_at = os.path.join(root, options.eval_split)
        if not os.path.isdir(eval_at):
            raise DataMissing(f"--config.data.eval_split={options.eval_split}: no folder {eval_at}")
    else:
        places = [os.path.join(root, name) for name in EVAL_FOLDERS if name != split]
        eval_at = next(filter(os.path.isdir, places), None)
    if os.path.isdir(train_at):
        log.info("training images: the folder %s", train_at)
    elif split not in ("", "train"):
        raise DataMissing(f"--config.data.split={split}: no folder {train_at}")
    elif eval_at is not None:
        # Falling back to the root would train on the evaluation images.
        raise UsageError(
            f"{root} holds {os.path.basename(eval_at)} but no folder {split or 'train'}: name the "
            f"folder of training images by --config.data.split="
        )
    else:
        train_at = root
        log.info("training images: the folder %s itself (it holds no folder 'train')", root)
    return train_at, eval_at


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
    found = listings.scan_folder(place) if is_folder else listings.read_list(place)
    cache = epath.Path(workdir) / "data" / f"listing_{part}.jsonl" if workdir else None
    found = listings.remembered(found, cache, place=place)
    if part == "eval" and found.classes != classes:
        found = _renumbered(found, classes, place=place)
    base = place if is_folder else os.path.dirname(place)
    return FolderSource(found, base=base, name=place, part=part)


def _patient_source(place: str, **options: Any) -> FolderSource:
    """`_source` for tools, which have no run whose configuration says how long to wait."""
    return patiently(
        lambda: _source(place, workdir=None, **options),
        what=place,
        limit=DataOptions.storage_wait,
        was_there=False,
    )


def _renumbered(
    listing: listings.Listing, classes: list[str] | None, *, place: str
) -> listings.Listing:
    extra = sorted(set(listing.classes or []) - set(classes or []))
    if extra or listing.classes is None:
        # Wrong labels would be worse than none: whoever needs them sees `classes` is None.
        if extra:
            log.warning(
                "%s has %d classes that the training images do not have (%s): its labels are "
                "not used",
                *(place, len(extra), ", ".join(extra[:5])),
            )
        return listing._replace(labels=np.full_like(listing.labels, -1), classes=None)
    table = np.array([(classes or []).index(name) for name in listing.classes] + [-1], np.int32)
    return listing._replace(labels=table[listing.labels], classes=classes)
