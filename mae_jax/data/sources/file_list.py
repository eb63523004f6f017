"""Reads list files: `.txt` or `.csv`, one image per line, with or without labels."""

import csv
import io
import logging
import re
from pathlib import Path

import numpy as np

from mae_jax.data.sources.listing import Listing, file_sizes, number_names
from mae_jax.runtime import text
from mae_jax.runtime.errors import DataMissing, UsageError

log = logging.getLogger(__name__)

_MAX_LABEL = 2**20  # every class gets a name, so a mistyped label must not create billions
# An integer, or `3.0` as pandas writes it in a column with gaps; `007` and `1_0` are names.
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0)?")
_LONGEST = 12  # characters of a number; longer ones are refused without parsing


def read_list(path: str) -> Listing:
    """A list of files, kept in its own order.

    `.txt`: one path per line, optionally followed by a TAB and a label (paths may contain spaces).
    `.csv`: a header line with `path` and optionally `label`, in any case. Relative paths start at
    the list's directory. Labels are either all integers (-1 = none) or names, which are numbered
    in sorted order; if some are missing none are used. Empty lines and lines that begin with # are
    skipped. UTF-8, or UTF-16 with a byte-order mark.

    Raises:
      UsageError: names the line or the missing files.
    """
    base = Path(path).parent
    rows = _csv_rows(path, base) if path.lower().endswith(".csv") else _txt_rows(path)
    if not rows:
        raise UsageError(f"the list {path} names no images")
    sizes = file_sizes(base / name for name, _ in rows)
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
    """Column names, and the lines below; comments may precede the header."""
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
        labels, classes = number_names(texts)
    else:
        labels, classes = _numbers(path, texts)
    unlabeled = int((labels < 0).sum())
    if unlabeled:
        # Training on missing labels would be silent nonsense; tasks that need them check `classes`.
        log.warning("%s: %s images have no label: no labels are used", path, f"{unlabeled:,}")
        return labels, None
    return labels, classes


def _numbers(path: str, texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """Labels that are numbers; the classes are all numbers up to the largest."""
    for label in texts:
        if label and (len(label) > _LONGEST or not -1 <= _number(label) < _MAX_LABEL):
            raise UsageError(
                f"the list {path} contains the label {label}; use 0, 1, ... below {_MAX_LABEL:,}, "
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
