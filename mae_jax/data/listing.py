"""Lists of image files: found in a folder or read from a list file, and kept in the workdir."""

import collections
import concurrent.futures
import csv
import hashlib
import json
import logging
import os
import socket
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from mae_jax.data.storage import is_away
from mae_jax.errors import DataMissing, UsageError

log = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".npy")
_MAX_LABEL = 2**20  # classes are listed by name, so a mistyped label must not make billions
_THREADS = 16  # listing waits for the disk or the network, not for a core


class Listing(NamedTuple):
    """Image files in a fixed order.

    Attributes:
      paths: relative to the folder or to the list file's directory, with forward slashes.
      sizes: int64 [n] bytes.
      labels: int32 [n], -1 where there is none.
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


def scan_folder(root: str) -> Listing:
    """All images below a folder, sorted by relative path; hidden files and folders are left out.

    Symbolic links are followed; a link back to one of its own parents is not. The folders on the
    first level are the classes, unless some image lies directly in `root`.

    Raises:
      UsageError: there is no image.
    """
    found: list[tuple[str, int]] = []
    others: collections.Counter[str] = collections.Counter()
    status = os.stat(root)
    level = [(root, "", frozenset([(status.st_dev, status.st_ino)]))]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        while level:
            results = list(pool.map(_scan_directory, level))
            level = [folder for folders, _, _ in results for folder in folders]
            for _, files, other in results:
                found.extend(files)
                others.update(other)
    if not found:
        raise DataMissing(
            f"no images under {root}; looked for {' '.join(EXTENSIONS)}{_found(others)}"
        )
    found.sort()
    paths = [path for path, _ in found]
    kinds = collections.Counter(os.path.splitext(path)[1].lower() for path in paths)
    log.info("%s: %s images: %s", root, f"{len(paths):,}", _counts(kinds))
    if others:
        log.info("%s: other files, not used: %s", root, _counts(others))
    tops = [path.split("/", 1)[0] if "/" in path else "" for path in paths]
    classes = sorted(set(tops)) if "" not in tops else None
    number = {name: label for label, name in enumerate(classes or [])}
    labels = [number.get(top, -1) for top in tops]
    return Listing(
        paths,
        np.array([size for _, size in found], np.int64),
        np.array(labels, np.int32),
        classes,
    )


def _scan_directory(item: tuple[str, str, frozenset]):
    """One directory: (sub-directories as further items, [(relative path, size)], other files)."""
    directory, relative, parents = item
    folders, files, others = [], [], collections.Counter()
    try:
        entries = os.scandir(directory)
    except OSError as error:
        # A folder that was just seen and is gone: the storage may be away.
        if is_away(error) or isinstance(error, FileNotFoundError):
            raise
        raise UsageError(f"cannot look into the data folder {directory}: {error}") from error
    with entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = relative + entry.name
            extension = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                status = entry.stat()
                key = (status.st_dev, status.st_ino)
                if key not in parents:
                    folders.append((entry.path, path + "/", parents | {key}))
            elif not entry.is_file():
                others["(broken links)"] += 1
            elif extension in EXTENSIONS:
                files.append((path, entry.stat().st_size))
            else:
                others[extension or "(no extension)"] += 1
    return folders, files, others


def _counts(counter: collections.Counter[str]) -> str:
    commonest = sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:10]
    return " ".join(f"{kind}({count:,})" for kind, count in commonest)


def _found(others: collections.Counter[str]) -> str:
    if not others:
        return "; found no files at all"
    return f"; found {others.total():,} files with other extensions: {_counts(others)}"


def read_list(path: str) -> Listing:
    """A list of files, kept in its own order.

    `.txt`: one path per line; an optional label follows after a TAB (paths may hold spaces).
    `.csv`: a header line with `path` and optionally `label`. Relative paths start at the list's
    directory. Labels are all whole numbers (-1 = none), or names, which are numbered in sorted
    order; when some are missing none are used. Empty lines and, in `.txt`, lines that begin with #
    are skipped.

    Raises:
      UsageError: names the line or the missing files.
    """
    rows = _csv_rows(path) if path.lower().endswith(".csv") else _txt_rows(path)
    if not rows:
        raise UsageError(f"the list {path} names no images")
    base = Path(path).parent

    def size(row: tuple[str, str]) -> int:
        try:
            status = os.stat(base / row[0])
        except OSError as error:
            if is_away(error):
                raise
            return -1
        # Reading a pipe or a device would never end.
        return status.st_size if stat.S_ISREG(status.st_mode) else -1

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(size, rows))
    missing = [name for (name, _), bytes_ in zip(rows, sizes, strict=True) if bytes_ < 0]
    if missing:
        raise (DataMissing if len(missing) == len(rows) else UsageError)(
            f"{len(missing):,} of the {len(rows):,} files in {path} are not there, for example "
            f"{', '.join(missing[:3])} (relative paths start at {base}; a label follows a TAB)"
        )
    labels, classes = _labels(path, [label for _, label in rows])
    log.info("%s: %s images", path, f"{len(rows):,}")
    return Listing([name for name, _ in rows], np.array(sizes, np.int64), labels, classes)


def _txt_rows(path: str) -> list[tuple[str, str]]:
    rows = []
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            name, _, label = line.rstrip("\r\n").partition("\t")
            if name.strip() and not name.startswith("#"):
                rows.append((name, label.strip()))
    return rows


def _csv_rows(path: str) -> list[tuple[str, str]]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines)
        if "path" not in (reader.fieldnames or []):
            raise UsageError(
                f"the list {path} needs a header line with the column `path` (and optionally "
                f"`label`); it has {reader.fieldnames}"
            )
        return [(row["path"], (row.get("label") or "").strip()) for row in reader if row["path"]]


def _labels(path: str, texts: list[str]) -> tuple[np.ndarray, list[str] | None]:
    if not any(texts):
        return np.full(len(texts), -1, np.int32), None
    try:
        numbers = [int(text or -1) for text in texts]
    except ValueError:
        classes = sorted(set(texts) - {""})
        number = {name: label for label, name in enumerate(classes)}
        labels = np.array([number.get(text, -1) for text in texts], np.int32)
    else:
        if wrong := [label for label in numbers if not -1 <= label < _MAX_LABEL]:
            raise UsageError(
                f"the list {path} holds the label {wrong[0]}; use 0, 1, ... below {_MAX_LABEL:,}, "
                "or -1 for none"
            )
        labels = np.array(numbers, np.int32)
        classes = [str(label) for label in range(max(numbers) + 1)]
    unlabelled = int((labels < 0).sum())
    if unlabelled:
        # Training on a missing label would be silent nonsense; whoever needs labels sees None.
        log.warning("%s: %s images have no label: no labels are used", path, f"{unlabelled:,}")
        return labels, None
    return labels, classes


def remembered(listing: Listing, cache: epath.Path | None, *, place: str) -> Listing:
    """The listing of the run's first start, which fixes the data order, checked against today's.

    Args:
      listing: as found now.
      cache: file in the workdir; written at the first start. None = do not remember.
      place: where the listing comes from, for messages.

    Raises:
      UsageError: files are gone, have another size or, in a list, another label.
    """
    if cache is None:
        return listing
    if not cache.exists():
        _write(listing, cache)
        return listing
    kept = _read(cache)
    before, now = _facts(kept), _facts(listing)
    labelled = kept.classes is not None and listing.classes is not None
    changes: dict[str, list[str]] = {"missing": [], "of another size": [], "of another label": []}
    for path, (size, label) in before.items():
        if path not in now:
            changes["missing"].append(path)
        elif now[path][0] != size:
            changes["of another size"].append(path)
        elif labelled and now[path][1] != label:
            changes["of another label"].append(path)
    new = len(now.keys() - before.keys())
    if any(changes.values()):
        kind = DataMissing if 2 * len(changes["missing"]) > len(before) else UsageError
        counts = ", ".join(f"{len(paths):,} {what}" for what, paths in changes.items() if paths)
        examples = [path for paths in changes.values() for path in paths[:3]]
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


def _facts(listing: Listing) -> dict[str, tuple[int, str]]:
    """Size and name of the class of each file; numbers of classes change with the set of them."""
    names = [*(listing.classes or ()), ""]  # the label -1 is the last
    labels = listing.labels if listing.classes is not None else np.full(len(listing.paths), -1)
    rows = zip(listing.paths, listing.sizes.tolist(), labels.tolist(), strict=True)
    return {path: (size, names[label]) for path, size, label in rows}


def _write(listing: Listing, cache: epath.Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    # Hosts may share the workdir: each writes its own file, and the rename is atomic.
    part = cache.with_name(f"{cache.name}.{socket.gethostname()}.{os.getpid()}")
    rows = zip(listing.paths, listing.sizes.tolist(), listing.labels.tolist(), strict=True)
    lines = [json.dumps({"version": 1, "classes": listing.classes}), *map(json.dumps, rows)]
    part.write_text("\n".join(lines) + "\n")
    part.replace(cache)


def _read(cache: epath.Path) -> Listing:
    try:
        header, *rows = map(json.loads, cache.read_text().splitlines())
        paths, sizes, labels = zip(*rows, strict=True)
        return Listing(
            list(paths), np.array(sizes, np.int64), np.array(labels, np.int32), header["classes"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"the listing {cache} is damaged ({error}); delete it if no run depends on its order"
        ) from error
