"""Reads PyTorch's files without PyTorch, and without running what they contain.

A `.pth` file is a pickle, and a pickle is a program. This reader knows the few callables that build
tensors and plain containers, stands in for them itself, and refuses everything else.
"""

import collections
import pickle
import zipfile
from collections.abc import Callable
from typing import IO, Any

import ml_dtypes
import numpy as np

from mae_jax.errors import UsageError

# torch.<name>Storage and torch.<dtype>.
_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Beginning of a file of before PyTorch 1.6: a pickle of this number, of a version, of the machine.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

Storages = Callable[[str, np.dtype, int], np.ndarray]


def read(path: str) -> Any:
    """The object in a file, with NumPy arrays for tensors and dicts for `argparse.Namespace`.

    Raises:
      UsageError: not a file of PyTorch, a damaged one, or one that wants to run something.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        with open(path, "rb") as file:
            return _read_legacy(file)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    # A damaged pickle can fail in nearly any way.
    except Exception as error:
        raise UsageError(
            f"{path} is damaged, or not a file of PyTorch: {' '.join(str(error).split())[:300]}"
        ) from error


class _Namespace:
    """Stands for `argparse.Namespace`: settings that a training script left in its file."""


class _Storage:
    """Numbers of a file that tensors are views of; read when first needed."""

    def __init__(self, load: Storages, key: str, dtype: np.dtype, size: int):
        self._load, self._args = load, (key, dtype, size)
        self._array: np.ndarray | None = None

    def array(self) -> np.ndarray:
        if self._array is None:
            self._array = self._load(*self._args)
        return self._array


class _Tensor:
    """A view of a storage, read at the end: in old files the numbers follow the pickle."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple, strides: tuple):
        self._storage, self._offset = storage, offset
        self._shape, self._strides = shape, strides

    def array(self) -> np.ndarray:
        values = self._storage.array()
        last = self._offset + sum(
            (n - 1) * s for n, s in zip(self._shape, self._strides, strict=True)
        )
        empty = 0 in self._shape
        if min((self._offset, *self._shape, *self._strides)) < 0 or (
            last >= values.size and not empty
        ):
            raise UsageError("a tensor lies outside its storage: the file is damaged")
        if empty:
            return np.empty(self._shape, values.dtype)
        strides = [s * values.itemsize for s in self._strides]
        view = np.lib.stride_tricks.as_strided(values[self._offset :], self._shape, strides)
        return view.copy()


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


# The whole of what a file may name.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("argparse", "Namespace"): _Namespace,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda *names: ":".join(map(str, names)),
    ("torch.serialization", "_get_layout"): str,
    **{("torch", name): np.dtype(dtype) for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Finds nothing but `_ALLOWED`."""

    def __init__(self, file: IO[bytes], load: Storages):
        super().__init__(file, encoding="utf-8")
        self._load = load
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise UsageError(
                f"refused: the file wants to call {module}.{name}, which is neither a tensor nor a "
                "plain container. If you trust it, load it with torch and save its weights alone"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(v for v in view):
            raise UsageError(f"refused: unknown reference {kind!r} in the file")
        key = str(key)
        if key not in self.storages:
            self.storages[key] = _Storage(self._load, key, dtype, int(size))
        return self.storages[key]


def _read_zip(path: str) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        if len(names) != 1:
            raise UsageError("no data.pkl in it: not a file of PyTorch (TorchScript is not read)")
        folder = names[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise UsageError("written on a big-endian machine, which is not supported")

        def load(key: str, dtype: np.dtype, size: int) -> np.ndarray:
            return np.frombuffer(archive.read(f"{folder}data/{key}"), dtype, size)

        with archive.open(names[0]) as file:
            return _resolve(_Unpickler(file, load).load())


def _read_legacy(file: IO[bytes]) -> Any:
    contents: dict[str, np.ndarray] = {}
    magic, version, machine = (_Unpickler(file, _nothing).load() for _ in range(3))
    if magic != _LEGACY_MAGIC or version != _LEGACY_VERSION or not machine["little_endian"]:
        raise UsageError("not a file of PyTorch")
    unpickler = _Unpickler(file, lambda key, dtype, size: contents[key])
    found = unpickler.load()
    for key in _Unpickler(file, _nothing).load():
        _, dtype, size = unpickler.storages[key]._args
        if int.from_bytes(file.read(8), "little") != size:
            raise UsageError("a storage has another size than its tensors: the file is damaged")
        contents[key] = np.frombuffer(file.read(size * dtype.itemsize), dtype, size)
    return _resolve(found)


def _nothing(key: str, dtype: np.dtype, size: int) -> np.ndarray:
    raise UsageError("refused: a tensor where none belongs")


def _resolve(value: Any) -> Any:
    """The same containers with arrays in place of the tensors, while the file is open."""
    if isinstance(value, _Tensor):
        return value.array()
    if isinstance(value, _Namespace):
        return {key: _resolve(item) for key, item in vars(value).items()}
    if isinstance(value, dict):
        return {key: _resolve(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_resolve(item) for item in value)
    return value
