"""Finds the image files below a folder, and their classes."""

import collections
import concurrent.futures
import errno
import logging
import os
import stat
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from mae_jax.data.sources.listing import THREADS, Listing, number_names
from mae_jax.data.storage import is_away
from mae_jax.runtime import text
from mae_jax.runtime.errors import DataMissing, UsageError

log = logging.getLogger(__name__)

# Every format that `decode` reads, including Pillow's own names.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".avif", ".avifs", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".npy"),
)
# Errors of a directory entry that is gone or a broken link; of one without permission.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
# Folders that operating systems create in others: thumbnails, resource forks, deleted files.
_SYSTEM_FOLDERS = frozenset(
    ("@eadir", "__macosx", "#recycle", "@recycle", "$recycle.bin", "lost+found")
    + ("system volume information",)
)


class _Scanned(NamedTuple):
    """Contents of one directory, or of all directories together.

    Attributes:
      files: (relative path, bytes) of the images.
      folders: directories to scan next, as arguments of `_scan_directory`.
      others: number of files of each other type.
      skipped: number of folders of each name that were not entered, because they are not data.
      unread: (relative path, reason) of entries that could not be read.
      unused: (relative path with a slash, number of each type) of folders with other files.
    """

    files: list[tuple[str, int]]
    folders: list[tuple[str, str, frozenset]]
    others: collections.Counter[str]
    skipped: collections.Counter[str]
    unread: list[tuple[str, str]]
    unused: list[tuple[str, collections.Counter[str]]]

    @classmethod
    def empty(cls) -> "_Scanned":
        return cls([], [], collections.Counter(), collections.Counter(), [], [])

    def add(self, other: "_Scanned") -> None:
        """Adds everything except the folders."""
        self.files.extend(other.files)
        self.others.update(other.others)
        self.skipped.update(other.skipped)
        self.unread.extend(other.unread)
        self.unused.extend(other.unused)


def scan_folder(root: str, *, known: Collection[str] = ()) -> Listing:
    """All images below a folder, sorted by relative path.

    Hidden files and folders, and those of operating systems (`@eaDir`, `__MACOSX`), are skipped.
    Symbolic links are followed, except to one of their own parents. Entries that cannot be read
    (broken or circular links, files removed during the scan) are logged and skipped. The top-level
    folders are the classes, unless some image lies directly in `root`; a single folder around all
    of them is not a class.

    Args:
      root: the folder.
      known: class names; a folder with such a name is a class even if it is the only folder.

    Raises:
      UsageError: there is no image, or a folder cannot be read.
    """
    found = _scan(root)
    if not found.files:
        raise DataMissing(
            f"no images under {root}; looked for {' '.join(EXTENSIONS)}"
            f"{_describe_others(found.others)}"
            f"{'; ' * bool(found.unread)}{_describe_unread(found.unread)}"
        )
    found.files.sort()
    paths = [path for path, _ in found.files]
    kinds = collections.Counter(os.path.splitext(path)[1].lower() for path in paths)
    log.info("%s: %s images: %s", root, f"{len(paths):,}", _counts(kinds))
    if found.others:
        log.info("%s: other files, not used: %s", root, _counts(found.others))
    if found.skipped:
        log.info("%s: system folders, not entered: %s", root, _counts(found.skipped))
    if found.unread:
        log.warning("%s: %s", root, _describe_unread(found.unread))
    wrapper = _wrapper(paths, known)
    _warn_about_lost_classes(root, wrapper, paths, found.unused)
    labels, classes = _folder_labels(root, wrapper, paths)
    return Listing(paths, np.array([size for _, size in found.files], np.int64), labels, classes)


def _scan(root: str) -> _Scanned:
    found = _Scanned.empty()
    try:
        status = os.stat(root)
    except OSError as error:
        if is_away(error) or isinstance(error, FileNotFoundError):
            raise
        raise UsageError(f"cannot read {root}: {error.strerror}") from error
    level = [(root, "", frozenset([(status.st_dev, status.st_ino)]))]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        while level:
            results = list(pool.map(_scan_directory, level))
            level = [folder for result in results for folder in result.folders]
            for result in results:
                found.add(result)
    return found


def _scan_directory(item: tuple[str, str, frozenset]) -> _Scanned:
    """One directory: (its path, the same relative to the root with a slash, its parents)."""
    directory, relative, parents = item
    found = _Scanned.empty()
    try:
        with os.scandir(directory) as scan:
            entries = list(scan)
    except OSError as error:
        if isinstance(error, FileNotFoundError):  # it was just listed: storage may be unavailable
            raise
        found.unread.append((relative.rstrip("/"), _reason(directory, error, root=not relative)))
        return found
    for entry in entries:
        try:
            _add_entry(entry, relative, parents, found)
        except OSError as error:
            found.unread.append((relative + entry.name, _reason(entry.path, error)))
    if found.others:
        found.unused.append((relative, found.others))
    return found


def _add_entry(entry: os.DirEntry, relative: str, parents: frozenset, found: _Scanned) -> None:
    """Adds a directory entry to what was found; raises OSError if it does not exist."""
    path, extension = relative + entry.name, os.path.splitext(entry.name)[1].lower()
    hidden = entry.name.startswith(".")
    if entry.is_dir(follow_symlinks=not hidden):
        if is_system_folder(entry.name):
            found.skipped[entry.name] += 1
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
    """Why an entry is skipped: it is gone, or a broken link.

    Raises:
      UsageError: it exists but cannot be read. Images must not go missing because of that.
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


def is_system_folder(name: str) -> bool:
    """Whether a folder of this name is hidden or belongs to the operating system."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


def _counts(counter: collections.Counter[str]) -> str:
    commonest = sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:10]
    return " ".join(f"{kind}({count:,})" for kind, count in commonest)


def _describe_others(others: collections.Counter[str]) -> str:
    if not others:
        return "; found no files at all"
    return f"; found {others.total():,} files with other extensions: {_counts(others)}"


def _describe_unread(entries: Sequence[tuple[str, str]]) -> str:
    if not entries:
        return ""
    shown = ", ".join(f"{text.quoted(path)} ({why})" for path, why in sorted(entries)[:5])
    more = ", ..." if len(entries) > 5 else ""
    return f"{len(entries):,} could not be read and are left out: {shown}{more}"


def _warn_about_lost_classes(
    root: str,
    wrapper: str,
    paths: Sequence[str],
    unused: Sequence[tuple[str, collections.Counter[str]]],
) -> None:
    """Logs the folders next to the classes that contain files, but no usable image."""
    classes = {path[len(wrapper) :].partition("/")[0] for path in paths}
    lost: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for folder, kinds in unused:
        name, slash, _ = folder.removeprefix(wrapper).partition("/")
        if folder.startswith(wrapper) and slash and name not in classes:
            lost[name].update(kinds)
    for name, kinds in sorted(lost.items()):
        log.warning(
            "%s: none of the files in the folder %r is used: %s (convert other image types, "
            "for example to PNG or JPEG)",
            *(root, name, _counts(kinds)),
        )


def _folder_labels(
    root: str, wrapper: str, paths: Sequence[str]
) -> tuple[np.ndarray, list[str] | None]:
    """Labels by the folders inside `wrapper`; none if images lie next to these folders."""
    if wrapper:
        log.info("%s: the classes are the folders in %s", root, wrapper)
    inside = [path[len(wrapper) :] for path in paths]
    tops = [path.partition("/")[0] if "/" in path else "" for path in inside]
    stray = [path for path, top in zip(paths, tops, strict=True) if not top]
    if stray and len(stray) < len(paths):
        log.warning(
            "%s: no labels are used, as %s next to the %d folders (%s): move images into the "
            "folders of their classes",
            root,
            f"{len(stray):,} images lie" if len(stray) > 1 else "an image lies",
            len(set(tops)) - 1,
            ", ".join(map(text.quoted, stray[:3])),
        )
    return (np.full(len(paths), -1, np.int32), None) if stray else number_names(tops)


def _wrapper(paths: Sequence[str], known: Collection[str]) -> str:
    """The folder, with a slash, that contains only folders, and they contain all images; or "".

    Args:
      paths: sorted.
      known: class names, which are never wrappers.
    """
    around = ""
    while True:
        head, _, _ = paths[0][len(around) :].partition("/")
        inner = f"{around}{head}/"
        whole = paths[-1].startswith(inner) and all("/" in path[len(inner) :] for path in paths)
        if not whole or text.normalized(head) in known:
            return around
        around = inner
