"""Reads pickles of NumPy arrays, as detectron2's `.pkl` files, without executing code in them.

A pickle is a program. This reader emulates the few callables that build arrays and plain
containers, and refuses everything else.
"""

import collections
import math
import pickle
from typing import IO, Any

import numpy as np

from mae_jax.convert.torch_pickle import check_numbering
from mae_jax.runtime.errors import UsageError, one_line

_TORCH = b"\x8a\x0a"  # a long number of ten bytes
_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


def is_pickle(start: bytes) -> bool:
    """Whether a file that begins with these bytes is a pickle, but not PyTorch's before 1.6."""
    return len(start) > 3 and start[0] == 0x80 and 2 <= start[1] <= 5 and start[2:4] != _TORCH


def read(path: str) -> Any:
    """Returns the containers and arrays in a file.

    Raises:
      UsageError: it is damaged, or refers to anything but arrays and plain containers.
    """
    try:
        with open(path, "rb") as file:
            return _resolve(_Unpickler(file).load())
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    # A damaged pickle can fail in nearly any way.
    except Exception as error:
        raise UsageError(
            f"{path} is damaged, or not a pickle of arrays: {one_line(error)}"
        ) from error


class _Dtype:
    """Replaces `numpy.dtype`."""

    def __init__(self, name: Any, *_: Any):
        if name not in _DTYPES:
            raise UsageError(f"refused: an array of {str(name)[:20]!r}, not of plain numbers")
        self.name, self.order = name, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = "<" if state[1] in ("|", "=") else state[1]

    def numpy(self) -> np.dtype:
        return np.dtype(f"{self.order}{self.name}")


class _Array:
    """Replaces an array until its content is known."""

    def __init__(self, *_: Any):
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)):
        raise UsageError("refused: an array that is not of plain numbers")
    shape, kind = tuple(map(int, shape)), dtype.numpy()
    if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != len(content):
        raise UsageError("an array has another size than its numbers: the file is damaged")
    return np.frombuffer(content, kind).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, content: Any) -> Any:
    return _array(content, dtype, (), "C")[()]


def _encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode`: how protocol 2 stores bytes."""
    if encoding != "latin1":
        raise UsageError(f"refused: text encoded as {str(encoding)[:20]!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """`bytes()`: how protocol 2 stores the content of an empty array."""
    return b""


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows only arrays and plain containers."""

    def __init__(self, file: IO[bytes]):
        check_numbering(file)
        super().__init__(file, encoding="latin1")
        arrays: dict[tuple[str, str], Any] = {
            ("multiarray", "_reconstruct"): _Array,
            ("multiarray", "scalar"): _scalar,
            ("numeric", "_frombuffer"): _array,
        }
        self._known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Dtype,
            ("_codecs", "encode"): _encode,
            ("__builtin__", "bytes"): _no_bytes,
            ("collections", "OrderedDict"): collections.OrderedDict,
        }
        for core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
            self._known |= {(f"{core}.{m}", name): x for (m, name), x in arrays.items()}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            raise UsageError(
                f"refused: the file wants to call {module}.{name}, which is neither an array nor a "
                "plain container"
            ) from None


def _resolve(value: Any) -> Any:
    if isinstance(value, _Array):
        if value.value is None:
            raise UsageError("an array without numbers: the file is damaged")
        return value.value
    if isinstance(value, dict):
        return {key: _resolve(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_resolve(item) for item in value]
    return value
