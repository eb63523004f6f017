"""Listings: image files in a fixed order, which a run keeps in its workdir between starts."""

import concurrent.futures
import hashlib
import json
import logging
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from mae_jax.data.storage import is_away
from mae_jax.runtime import filesystem, text
from mae_jax.runtime.errors import DataMissing, UsageError

log = logging.getLogger(__name__)
THREADS = 16  # listing waits for the disk or the network, not for a core


class Listing(NamedTuple):
    """Image files in a fixed order.

    Attributes:
      paths: relative to the folder or to the list file's directory, with forward slashes.
      sizes: int64 [n] bytes.
      labels: int32 [n], -1 for none.
      classes: names of the labels, or None.
    """

    paths: list[str]
    sizes: np.ndarray
    labels: np.ndarray
    classes: list[str] | None

    def digest(self) -> str:
        """SHA-256 over paths, sizes and labels."""
        rows = zip(self.paths, self.sizes.tolist(), self.labels.tolist(), strict=True)
        return hashlib.sha256(
            "\n".join(f"{path}\t{size}\t{label}" for path, size, label in rows).encode(
                "utf-8", "surrogateescape"
            )
        ).hexdigest()


def number_names(names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Labels of class names, and the names in the order of the labels; "" is -1.

    Names that look the same are one class. Classes are sorted as they are spelled on disk.
    """
    spellings, numbers = sorted(set(names) - {""}), dict[str, int]()
    labels = {name: numbers.setdefault(text.normalized(name), len(numbers)) for name in spellings}
    return np.array([labels.get(name, -1) for name in names], np.int32), list(numbers)


def file_size(path: str | Path) -> int | None:
    """Bytes of a file; None if it does not exist or is out of reach.

    Raises:
      OSError: the storage fails.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        if is_away(error):
            raise
        return None
    # Reading a pipe or a device would never end.
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def file_sizes(paths: Iterable[str | Path]) -> list[int | None]:
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(file_size, paths))


def cache_path(workdir: str | None, part: str) -> epath.Path | None:
    """Where a run keeps the listing of its `train` or `eval` images; None without a workdir."""
    return epath.Path(workdir) / "data" / f"listing_{part}.jsonl" if workdir else None


def lacks_eval(workdir: str | None) -> bool:
    """Whether a run has started without evaluation images, so that it does not get any later."""
    kept = [path.exists() for part in ("train", "eval") if (path := cache_path(workdir, part))]
    return kept == [True, False]


def restore_or_save(listing: Listing, cache: epath.Path | None, *, place: str) -> Listing:
    """The listing of the run's first start, which fixes the data order, checked against this one.

    Args:
      listing: as found now.
      cache: file in the workdir, written at the first start; None returns `listing`.
      place: where the listing comes from, for messages.

    Raises:
      UsageError: files are gone, or their sizes or classes have changed.
    """
    if cache is None:
        return listing
    kept = _read(cache)
    if kept is None:
        _write(listing, cache)
        return listing
    before, now = _sizes_and_classes(kept), _sizes_and_classes(listing)
    if os.path.isdir(place):
        now |= _still_there(place, {path: before[path] for path in before.keys() - now.keys()})
    # The name of a single class carries no information.
    labeled = len(kept.classes or ()) > 1 and listing.classes is not None
    changes: dict[str, list[str]] = {"missing": [], "of another size": [], "of another label": []}
    for path, (size, label) in before.items():
        if path not in now:
            changes["missing"].append(path)
        elif now[path][0] != size:
            changes["of another size"].append(path)
        elif labeled and now[path][1] != label:
            changes["of another label"].append(path)
    new = len(now.keys() - before.keys())
    if any(changes.values()):
        kind = DataMissing if 2 * len(changes["missing"]) > len(before) else UsageError
        counts = ", ".join(f"{len(paths):,} {what}" for what, paths in changes.items() if paths)
        examples = [text.quoted(path) for paths in changes.values() for path in paths[:3]]
        raise kind(
            f"the images under {place} are not those this run started with: {counts}, for example "
            f"{', '.join(examples[:5])}{f' ({new:,} others are new: renamed?)' if new else ''}; "
            f"restore them, or use a new --workdir (to accept the change, and with it another "
            f"data order, delete {cache})"
        )
    if new:
        log.warning(
            "%s: %s files are new since this run started and are not used (listing kept in %s)",
            *(place, f"{new:,}", cache),
        )
    return kept


def _sizes_and_classes(listing: Listing) -> dict[str, tuple[int, str]]:
    """Size and class name of each file; class numbers change when a class is added."""
    names = [*map(text.normalized, listing.classes or ()), ""]  # the label -1 is the last
    labels = listing.labels if listing.classes is not None else np.full(len(listing.paths), -1)
    rows = zip(listing.paths, listing.sizes.tolist(), labels.tolist(), strict=True)
    return {path: (size, names[label]) for path, size, label in rows}


def _still_there(place: str, kept: dict[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """Files of the kept listing that a scan now skips but that still exist, with current sizes."""
    sizes = file_sizes(os.path.join(place, path) for path in kept)
    pairs = zip(kept.items(), sizes, strict=True)
    return {path: (size, label) for (path, (_, label)), size in pairs if size is not None}


def _write(listing: Listing, cache: epath.Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    # Hosts may share the workdir: each writes its own file, and the rename is atomic.
    part = cache.with_name(f"{cache.name}.{socket.gethostname()}.{os.getpid()}")
    rows = zip(listing.paths, listing.sizes.tolist(), listing.labels.tolist(), strict=True)
    lines = [json.dumps({"version": 1, "classes": listing.classes}), *map(json.dumps, rows)]
    part.write_text("\n".join(lines) + "\n")
    part.replace(cache)


def _read(cache: epath.Path) -> Listing | None:
    """The kept listing; None if there is none, or another process just removed it."""
    try:
        with filesystem.os_errors():
            text = cache.read_text()
    except FileNotFoundError:
        return None
    try:
        header, *rows = map(json.loads, text.splitlines())
        paths, sizes, labels = zip(*rows, strict=True)
        return Listing(
            list(paths), np.array(sizes, np.int64), np.array(labels, np.int32), header["classes"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"the listing {cache} is damaged ({error}); delete it if no run depends on its order"
        ) from error
