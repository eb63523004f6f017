"""Text: lists written by users, and names and durations that are printed."""

import codecs
import io
import os
import unicodedata
from collections.abc import Sequence

from mae_jax.runtime.errors import UsageError

# UTF-32's mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def printable(text: str) -> str:
    """The text on one line, with everything that could control a terminal escaped.

    A newline becomes `\\n`, ESC becomes `\\x1b`, and an invalid UTF-8 byte such as `\\xff`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python represents an invalid byte
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def quoted(name: str) -> str:
    """A name, or its `repr` if the name itself would be misleading."""
    return name if name.isprintable() and name == name.strip() else printable(repr(name))


def normalized(name: str) -> str:
    """The NFC form of a name, in which names that look the same compare equal."""
    return unicodedata.normalize("NFC", name)


def duration(seconds: float) -> str:
    """A duration to the precision a reader needs: 45 s, 12 min, 2 h 10 min, 3 d 4 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min".removesuffix(" 0 min")
    return f"{hours // 24:,} d {hours % 24} h".removesuffix(" 0 h")


def same_names(one: Sequence[str] | None, other: Sequence[str] | None) -> bool:
    """Whether two lists contain the same names, whatever their Unicode normalization."""
    if one is None or other is None:
        return one is other
    return [*map(normalized, one)] == [*map(normalized, other)]


def lines(path: str) -> list[str]:
    """The lines of a text file, stripped, without trailing empty lines; see `read`."""
    return [line.strip() for line in io.StringIO(read(path).rstrip(), newline=None)]


def read(path: str) -> str:
    """The content of a text file: UTF-8, or UTF-16 or UTF-32 with a byte-order mark.

    Bytes that are not UTF-8 become surrogates, as in file names; line ends stay as they are.

    Raises:
      UsageError: the file does not exist, or cannot be read or decoded.
    """
    if not os.path.isfile(path):
        raise UsageError(f"{quoted(path)} cannot be read: there is no such file")
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UsageError(f"{quoted(path)} cannot be read: {error.strerror}") from error
    mark, encoding = next((pair for pair in _MARKS if data.startswith(pair[0])), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(
            encoding, "surrogateescape" if encoding == "utf-8" else "strict"
        )
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{quoted(path)} cannot be read: it is not valid {encoding}; save it as UTF-8"
        ) from error
    if "\0" in text:
        raise UsageError(f"{quoted(path)} cannot be read: it is not UTF-8 text; save it as UTF-8")
    return text
