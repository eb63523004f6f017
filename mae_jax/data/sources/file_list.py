"""Lists of image files: found in a folder or read from a list file, and kept in the workdir."""

import collections
import concurrent.futures
import csv
import errno
import hashlib
import io
import json
import logging
import os
import re
import socket
import stat
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from mae_jax.data.storage import is_away
from mae_jax.runtime import filesystem, text
from mae_jax.runtime.errors import DataMissing, UsageError

log = logging.getLogger(__name__)

# Of everything that `decode` reads, Pillow's own names for it among them.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".avif", ".avifs", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".npy"),
)
_MAX_LABEL = 2**20  # classes are listed by name, so a mistyped label must not make billions
# A whole number, or what pandas makes of one where others are missing; `007` and `1_0` are names.
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0)?")
_LONGEST = 12  # characters of a number that is not looked at further
# An entry of a directory that is gone, or leads nowhere; one that may not be looked at.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
# Folders that systems make inside others: thumbnails, resource forks, deleted files.
_SERVICE = frozenset(
    ("@eadir", "__macosx", "#recycle", "@recycle", "$recycle.bin", "lost+found")
    + ("system volume information",)
)
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


class _Scanned(NamedTuple):
    """What one directory holds, or all of them together.

    Attributes:
      files: (relative path, bytes) of the images.
      folders: directories to scan next, as arguments of `_scan_directory`.
      others: how many files of each other kind there are.
      passed: how many folders of each name were not entered, as they are no data.
      unread: (relative path, reason) of what could not be looked at.
      unused: (relative path with a slash, how many of each kind) of folders with other files.
    """

    files: list[tuple[str, int]]
    folders: list[tuple[str, str, frozenset]]
    others: collections.Counter[str]
    passed: collections.Counter[str]
    unread: list[tuple[str, str]]
    unused: list[tuple[str, collections.Counter[str]]]

    @classmethod
    def nothing(cls) -> "_Scanned":
        return cls([], [], collections.Counter(), collections.Counter(), [], [])

    def add(self, other: "_Scanned") -> None:
        """Takes over everything but the folders."""
        self.files.extend(other.files)
        self.others.update(other.others)
        self.passed.update(other.passed)
        self.unread.extend(other.unread)
        self.unused.extend(other.unused)


def scan_folder(root: str, *, known: Collection[str] = ()) -> Listing:
    """All images below a folder, sorted by relative path.

    Hidden files and folders, and those that systems keep for themselves (`@eaDir`, `__MACOSX`),
    are left out. Symbolic links are followed, but not back to one of their own parents. What
    cannot be looked at (links to nowhere or in circles, files removed meanwhile) is named and left
    out. The folders on the first level are the classes, unless some image lies directly in `root`;
    a single folder around all of them is no class.

    Args:
      root: the folder.
      known: names of classes; a folder of such a name is one, even where it is the only one.

    Raises:
      UsageError: there is no image, or a folder cannot be read.
    """
    found = _scan(root)
    if not found.files:
        raise DataMissing(
            f"no images under {root}; looked for {' '.join(EXTENSIONS)}{_found(found.others)}"
            f"{'; ' * bool(found.unread)}{_unread(found.unread)}"
        )
    found.files.sort()
    paths = [path for path, _ in found.files]
    kinds = collections.Counter(os.path.splitext(path)[1].lower() for path in paths)
    log.info("%s: %s images: %s", root, f"{len(paths):,}", _counts(kinds))
    if found.others:
        log.info("%s: other files, not used: %s", root, _counts(found.others))
    if found.passed:
        log.info("%s: folders that hold no data, not entered: %s", root, _counts(found.passed))
    if found.unread:
        log.warning("%s: %s", root, _unread(found.unread))
    wrapper = _wrapper(paths, known)
    _warn_of_lost_classes(root, wrapper, paths, found.unused)
    labels, classes = _folder_labels(root, wrapper, paths)
    return Listing(paths, np.array([size for _, size in found.files], np.int64), labels, classes)


def _scan(root: str) -> _Scanned:
    found = _Scanned.nothing()
    try:
        status = os.stat(root)
    except OSError as error:
        if is_away(error) or isinstance(error, FileNotFoundError):
            raise
        raise UsageError(f"cannot read {root}: {error.strerror}") from error
    level = [(root, "", frozenset([(status.st_dev, status.st_ino)]))]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        while level:
            results = list(pool.map(_scan_directory, level))
            level = [folder for result in results for folder in result.folders]
            for result in results:
                found.add(result)
    return found


def _scan_directory(item: tuple[str, str, frozenset]) -> _Scanned:
    """One directory: (its path, the same relative to the root with a slash, its parents)."""
    directory, relative, parents = item
    found = _Scanned.nothing()
    try:
        with os.scandir(directory) as scan:
            entries = list(scan)
    except OSError as error:
        if isinstance(error, FileNotFoundError):  # it was just seen: the storage may be away
            raise
        found.unread.append((relative.rstrip("/"), _reason(directory, error, root=not relative)))
        return found
    for entry in entries:
        try:
            _take(entry, relative, parents, found)
        except OSError as error:
            found.unread.append((relative + entry.name, _reason(entry.path, error)))
    if found.others:
        found.unused.append((relative, found.others))
    return found


def _take(entry: os.DirEntry, relative: str, parents: frozenset, found: _Scanned) -> None:
    """Adds an entry of a directory to what was found; raises OSError where it is not there."""
    path, extension = relative + entry.name, os.path.splitext(entry.name)[1].lower()
    hidden = entry.name.startswith(".")
    if entry.is_dir(follow_symlinks=not hidden):
        if is_service(entry.name):
            found.passed[entry.name] += 1
            return
        status = entry.stat()
        key = (status.st_dev, status.st_ino)
        if key in parents:
            found.unread.append((path, "a link to a folder above it"))
        else:
            found.folders.append((entry.path, path + "/", parents | {key}))
    elif hidden or extension not in EXTENSIONS:
        found.others["(hidden)" if hidden else extension or "(no extension)"] += 1
    elif stat.S_ISREG((status := entry.stat()).st_mode):
        found.files.append((path, status.st_size))
    else:
        found.others["(not a file)"] += 1


def _reason(path: str, error: OSError, *, root: bool = False) -> str:
    """Why something in a folder is left out: it is gone, or a link that leads nowhere.

    Raises:
      UsageError: it is there but cannot be read. Images must not go missing because of that.
    """
    if is_away(error):
        raise error
    reason = error.strerror or str(error)
    link = os.path.islink(path) and error.errno in _FORBIDDEN
    if not root and (error.errno in _ABSENT or link):
        return reason
    raise UsageError(
        f"cannot read {path}: {reason} (make it readable, or move it out of the data folder)"
    ) from error


def is_service(name: str) -> bool:
    """Whether a folder of this name is hidden, or belongs to a system and holds no data."""
    return name.startswith(".") or name.casefold() in _SERVICE


def _counts(counter: collections.Counter[str]) -> str:
    commonest = sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:10]
    return " ".join(f"{kind}({count:,})" for kind, count in commonest)


def _found(others: collections.Counter[str]) -> str:
    if not others:
        return "; found no files at all"
    return f"; found {others.total():,} files with other extensions: {_counts(others)}"


def _unread(entries: Sequence[tuple[str, str]]) -> str:
    if not entries:
        return ""
    shown = ", ".join(f"{text.quoted(path)} ({why})" for path, why in sorted(entries)[:5])
    more = ", ..." if len(entries) > 5 else ""
    return f"{len(entries):,} could not be read and are left out: {shown}{more}"


def _warn_of_lost_classes(
    root: str,
    wrapper: str,
    paths: Sequence[str],
    unused: Sequence[tuple[str, collections.Counter[str]]],
) -> None:
    """Names the folders beside the classes that hold files, but not one usable image."""
    classes = {path[len(wrapper) :].partition("/")[0] for path in paths}
    lost: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for folder, kinds in unused:
        name, slash, _ = folder.removeprefix(wrapper).partition("/")
        if folder.startswith(wrapper) and slash and name not in classes:
            lost[name].update(kinds)
    for name, kinds in sorted(lost.items()):
        log.warning(
            "%s: none of the files in the folder %r is used: %s (convert images of other kinds, "
            "for example to PNG or JPEG)",
            *(root, name, _counts(kinds)),
        )


def _folder_labels(
    root: str, wrapper: str, paths: Sequence[str]
) -> tuple[np.ndarray, list[str] | None]:
    """Labels by the folders inside `wrapper`; none where images lie beside these."""
    if wrapper:
        log.info("%s: the classes are the folders in %s", root, wrapper)
    inside = [path[len(wrapper) :] for path in paths]
    tops = [path.partition("/")[0] if "/" in path else "" for path in inside]
    stray = [path for path, top in zip(paths, tops, strict=True) if not top]
    if stray and len(stray) < len(paths):
        log.warning(
            "%s: no labels are used, as %s beside the %d folders (%s): move images into the "
            "folders of their classes",
            root,
            f"{len(stray):,} images lie" if len(stray) > 1 else "an image lies",
            len(set(tops)) - 1,
            ", ".join(map(text.quoted, stray[:3])),
        )
    return (np.full(len(paths), -1, np.int32), None) if stray else _numbered(tops)


def _wrapper(paths: Sequence[str], known: Collection[str]) -> str:
    """The folder, with its slash, that holds nothing but other folders, and these everything.

    Args:
      paths: sorted.
      known: names of classes, which wrap nothing.
    """
    around = ""
    while True:
        head, _, _ = paths[0][len(around) :].partition("/")
        inner = f"{around}{head}/"
        whole = paths[-1].startswith(inner) and all("/" in path[len(inner) :] for path in paths)
        if not whole or text.normalized(head) in known:
            return around
        around = inner


def _numbered(names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Labels of names and what they stand for; "" is -1.

    Names that look the same are the same; their order is that of their spelling on the disk.
    """
    spellings, numbers = sorted(set(names) - {""}), dict[str, int]()
    labels = {name: numbers.setdefault(text.normalized(name), len(numbers)) for name in spellings}
    return np.array([labels.get(name, -1) for name in names], np.int32), list(numbers)


def read_list(path: str) -> Listing:
    """A list of files, kept in its own order.

    `.txt`: one path per line; an optional label follows after a TAB (paths may hold spaces).
    `.csv`: a header line with `path` and optionally `label`, in any case. Relative paths start at
    the list's directory. Labels are all whole numbers (-1 = none), or names, which are numbered in
    sorted order; when some are missing none are used. Empty lines and lines that begin with # are
    skipped. UTF-8, or UTF-16 with a byte-order mark.

    Raises:
      UsageError: names the line or the missing files.
    """
    base = Path(path).parent
    rows = _csv_rows(path, base) if path.lower().endswith(".csv") else _txt_rows(path)
    if not rows:
        raise UsageError(f"the list {path} names no images")
    sizes = _sizes(base / name for name, _ in rows)
    missing = [name for (name, _), size in zip(rows, sizes, strict=True) if size is None]
    if missing:
        raise (DataMissing if len(missing) == len(rows) else UsageError)(
            f"{len(missing):,} of the {len(rows):,} files in {path} are not there, for example "
            f"{', '.join(map(text.quoted, missing[:3]))} (relative paths start at {base}; "
            "a label follows a TAB)"
        )
    labels, classes = _labels(path, [label for _, label in rows])
    log.info("%s: %s images", path, f"{len(rows):,}")
    return Listing([name for name, _ in rows], np.array(sizes, np.int64), labels, classes)


def file_size(path: str | Path) -> int | None:
    """Bytes of a file; None where there is none, or it is out of reach.

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


def _sizes(paths: Iterable[str | Path]) -> list[int | None]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(file_size, paths))


def _txt_rows(path: str) -> list[tuple[str, str]]:
    rows = []
    for line in io.StringIO(text.read(path), newline=None):
        name, _, label = line.rstrip("\n").partition("\t")
        if name.strip() and not name.lstrip().startswith("#"):
            rows.append((name, label.strip()))
    return rows


def _csv_rows(path: str, base: Path) -> list[tuple[str, str]]:
    content = io.StringIO(text.read(path), newline="")
    try:
        lines = [line for line in csv.reader(content, skipinitialspace=True) if any(line)]
    except csv.Error as error:
        raise UsageError(f"the list {path} is not a CSV file: {error}") from error
    names, lines = _header(path, lines)
    columns = [names.index("path"), names.index("label") if "label" in names else len(names)]
    rows = []
    for line in lines:
        cells = [*line, *[""] * (len(names) + 1 - len(line))]
        name, label = (cells[column] for column in columns)
        comment = line[0].startswith("#") and not (base / name).exists()
        if name and not comment:
            rows.append((name, label.strip()))
    return rows


def _header(path: str, lines: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The names of the columns, and the lines below; comments may stand above."""
    names: list[str] = []
    below = iter(lines)
    for line in below:
        names = [cell.lstrip("#").strip().lower() for cell in line]
        if "path" in names or not line[0].startswith("#"):
            break
        names = []
    if names.count("path") != 1 or names.count("label") > 1:
        raise UsageError(
            f"the list {path} needs a header line with one column `path` (and optionally one "
            f"`label`); it has {', '.join(map(repr, names)) or 'none'}"
        )
    if len(names) > 1 and "label" not in names:
        others = ", ".join(repr(name) for name in names if name != "path")
        log.warning("%s: no labels are used, as no column is called label (but %s)", path, others)
    return names, list(below)


def _labels(path: str, texts: list[str]) -> tuple[np.ndarray, list[str] | None]:
    if not any(texts):
        return np.full(len(texts), -1, np.int32), None
    if named := next((label for label in texts if label and not _NUMBER.fullmatch(label)), ""):
        log.info("%s: labels are names: %s is not a number", path, text.quoted(named))
        labels, classes = _numbered(texts)
    else:
        labels, classes = _numbers(path, texts)
    unlabelled = int((labels < 0).sum())
    if unlabelled:
        # Training on a missing label would be silent nonsense; whoever needs labels sees None.
        log.warning("%s: %s images have no label: no labels are used", path, f"{unlabelled:,}")
        return labels, None
    return labels, classes


def _numbers(path: str, texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """Labels that are numbers; their classes are all numbers up to the largest."""
    for label in texts:
        if label and (len(label) > _LONGEST or not -1 <= _number(label) < _MAX_LABEL):
            raise UsageError(
                f"the list {path} holds the label {label}; use 0, 1, ... below {_MAX_LABEL:,}, "
                "or -1 for none"
            )
    labels = np.array([_number(label or "-1") for label in texts], np.int32)
    classes, used = int(labels.max()) + 1, len(np.unique(labels[labels >= 0]))
    if 2 * used < classes:
        log.warning(
            "%s: the labels reach %s, but only %s of these %s classes have an image: if they are "
            "names, let one of them be a word",
            *(path, f"{classes - 1:,}", f"{used:,}", f"{classes:,}"),
        )
    return labels, [str(label) for label in range(classes)]


def _number(label: str) -> int:
    match = _NUMBER.fullmatch(label)
    assert match is not None
    return int(match[1])


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
    kept = _read(cache)
    if kept is None:
        _write(listing, cache)
        return listing
    before, now = _facts(kept), _facts(listing)
    if os.path.isdir(place):
        now |= _still_there(place, {path: before[path] for path in before.keys() - now.keys()})
    # One class says nothing, so that it does not matter what it is called.
    labelled = len(kept.classes or ()) > 1 and listing.classes is not None
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


def _facts(listing: Listing) -> dict[str, tuple[int, str]]:
    """Size and name of the class of each file; numbers of classes change with the set of them."""
    names = [*map(text.normalized, listing.classes or ()), ""]  # the label -1 is the last
    labels = listing.labels if listing.classes is not None else np.full(len(listing.paths), -1)
    rows = zip(listing.paths, listing.sizes.tolist(), labels.tolist(), strict=True)
    return {path: (size, names[label]) for path, size, label in rows}


def _still_there(place: str, kept: dict[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """The same of files that a scan leaves out by now, as far as they exist, with today's size."""
    sizes = _sizes(os.path.join(place, path) for path in kept)
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
    """The kept listing; None where there is none, or another process just removed it."""
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
