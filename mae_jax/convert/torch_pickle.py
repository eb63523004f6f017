"""Reads PyTorch files without PyTorch and without executing code in them.

A `.pth` file is a pickle, and a pickle is a program. This reader emulates the few callables that
build tensors and plain containers, and refuses everything else.
"""

import collections
import io
import math
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import ml_dtypes  # noqa: F401  (np.dtype("bfloat16"))
import numpy as np

from mae_jax.runtime.errors import UsageError, one_line
from mae_jax.runtime.safe_load import check_zip

# torch.<name>Storage -> dtype. Plain strings: a file must not get access to mutable objects.
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# Modules in a pickled model of `dall_e` (its encoder.pkl and decoder.pkl).
_MODULES = (
    ("dall_e.encoder", "Encoder"),
    ("dall_e.encoder", "EncoderBlock"),
    ("dall_e.decoder", "Decoder"),
    ("dall_e.decoder", "DecoderBlock"),
    ("dall_e.utils", "Conv2d"),
    ("torch.nn.modules.activation", "ReLU"),
    ("torch.nn.modules.container", "Sequential"),
    ("torch.nn.modules.linear", "Identity"),
    ("torch.nn.modules.pooling", "MaxPool2d"),
    ("torch.nn.modules.upsampling", "Upsample"),
)
# Keys of training files: twice as large as the weights, and not used here.
_SKIPPED_KEYS = ("optimizer", "optimizer_state_dict", "optimizer_states")
# Files from before PyTorch 1.6 start with pickles of this number, a version, and the machine.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

_LONGEST_NAME = 100  # of a parameter or part of a module
# Size limit of a tensor that repeats its numbers (`expand`), which needs only a small file.
_LARGEST_REPEATED = 2**24
# Limit on the total size of a file's tensors: bytes per byte of the file, plus a constant. Tensors
# may share storage (tied weights), but not a thousand times.
_BYTES_PER_BYTE, _EXTRA_BYTES = 4, 2**27
_MEMO_OPCODES = ("PUT", "BINPUT", "LONG_BINPUT")  # store an object under a number

# Function of the key, dtype and size of a storage that returns its numbers.
Load = Callable[[str, np.dtype, int], np.ndarray]


def read(path: str) -> Any:
    """Returns the object in a file, with tensors as NumPy arrays and `argparse.Namespace` as dict.

    Optimizer state is skipped. A module (of the known ones) becomes its `state_dict`: its
    parameters by name, without other attributes.

    Raises:
      UsageError: not a PyTorch file, a damaged one, or one that tries to execute code.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        with open(path, "rb") as file:
            return _read_legacy(file, os.path.getsize(path))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    # A damaged pickle can fail in nearly any way.
    except Exception as error:
        raise UsageError(f"{path} is damaged, or not a PyTorch file: {one_line(error)}") from error


class _Storage(NamedTuple):
    """Numbers in a file, of which tensors are views."""

    key: str
    dtype: str
    size: int


class _Tensor(NamedTuple):
    """A view of a storage; the numbers are read after the whole pickle."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _callables() -> dict[tuple[str, str], Any]:
    """All that a file may refer to; created per file, so that no file can affect the next."""

    class Namespace:
        """Replaces `argparse.Namespace`: arguments that a training script stored."""

    class Module:
        """Replaces a module; only its parameters are used."""

    def tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise UsageError("refused: a tensor without numbers")
        return _Tensor(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))

    def parameter(data: Any, *_: Any) -> Any:
        return data

    def device(*names: Any) -> str:
        # str() of a nested list could be of any length.
        if not all(isinstance(name, (str, int)) for name in names):
            raise UsageError("refused: a device that is not a name")
        return ":".join(map(str, names))

    return {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("argparse", "Namespace"): Namespace,
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): parameter,
        ("torch", "Size"): tuple,
        ("torch", "device"): device,
        **{("torch", name): dtype for name, dtype in _STORAGES.items()},
        **dict.fromkeys(_MODULES, Module),
    }


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows only `_callables`."""

    def __init__(self, file: IO[bytes]):
        check_numbering(file)
        super().__init__(file, encoding="utf-8")
        self._known = _callables()
        self.namespace = self._known["argparse", "Namespace"]
        self.module = self._known[_MODULES[0]]
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            raise UsageError(
                f"refused: the file wants to call {module}.{name}, which is neither a tensor nor a "
                "plain container. If you trust it, load it with torch and save only its weights"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module" and pid[1] is self.module:  # before PyTorch 1.6, with its source
            return self.module
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or dtype not in _STORAGES.values() or any(view):
            raise UsageError(f"refused: unknown reference {kind!r} in the file")
        return self.storages.setdefault(str(key), _Storage(str(key), dtype, int(size)))


def check_numbering(file: IO[bytes]) -> None:
    """Refuses memo numbers out of sequence, because Python allocates memory for all lower ones.

    Executes nothing, and restores the position in the file.
    """
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in _MEMO_OPCODES and int(argument or 0) > count + 1:
            raise UsageError(f"refused: object number {argument} of {count} in the file")
    file.seek(start)


class _Resolver:
    """Converts unpickled objects to plain containers and arrays; shared objects only once."""

    def __init__(self, load: Load, unpickler: _Unpickler, size: int):
        self._load = load
        self._namespace, self._module = unpickler.namespace, unpickler.module
        self._left = _BYTES_PER_BYTE * size + _EXTRA_BYTES
        self._numbers: dict[str, np.ndarray] = {}
        self._done: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        if id(value) not in self._done:
            self._done[id(value)] = self._resolve(value)
        return self._done[id(value)]

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, _Tensor):
            return self._array(value)
        if isinstance(value, self._module):
            return self._parameters(value)
        if isinstance(value, self._namespace):
            value = vars(value)
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)([self(item) for item in value])
        return value

    def _parameters(self, module: Any) -> dict[str, np.ndarray]:
        found = {name: self(x) for name, x in vars(module)["_parameters"].items()}
        parts = vars(module)["_modules"].items()
        for name, part in parts:
            if id(part) in self._done:
                raise UsageError("refused: a module that is part of several")
            _check_name(name)
            found |= {f"{name}.{key}": x for key, x in self(part).items()}
        # Deep or repeated nesting would create unlimited names.
        for name in found:
            _check_name(name)
        return found

    def _array(self, tensor: _Tensor) -> np.ndarray:
        storage, offset, shape, strides = tensor
        if storage.key not in self._numbers:
            dtype = np.dtype(storage.dtype)
            self._numbers[storage.key] = self._load(storage.key, dtype, storage.size)
        values = self._numbers[storage.key]
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        size = math.prod(shape)
        if min((offset, *shape, *strides)) < 0 or size and last >= values.size:
            raise UsageError("a tensor lies outside its storage: the file is damaged")
        if size > max(values.size, _LARGEST_REPEATED):
            raise UsageError(f"refused: a tensor of {size} entries made of {values.size} numbers")
        if not size:
            return np.empty(shape, values.dtype)
        self._left -= size * values.itemsize
        if self._left < 0:
            raise UsageError("refused: its tensors are many times larger than the file")
        steps = [s * values.itemsize for s in strides]
        return np.lib.stride_tricks.as_strided(values[offset:], shape, steps).copy()


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        raise UsageError("refused: a module with missing or too long names")


def _read_zip(path: str) -> Any:
    with zipfile.ZipFile(path) as archive:
        size_of_file = os.path.getsize(path)
        check_zip(archive, size_of_file, compressed=False)
        names = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        if len(names) != 1:
            raise UsageError("no data.pkl: not a PyTorch file (TorchScript is not supported)")
        folder = names[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise UsageError("written on a big-endian machine, which is not supported")

        def load(key: str, dtype: np.dtype, size: int) -> np.ndarray:
            return np.frombuffer(archive.read(f"{folder}data/{key}"), dtype, size)

        unpickler = _Unpickler(io.BytesIO(archive.read(names[0])))
        found = _without_optimizer(unpickler.load())
        return _Resolver(load, unpickler, size_of_file)(found)


def _read_legacy(file: IO[bytes], size_of_file: int) -> Any:
    magic, version, machine = (_Unpickler(file).load() for _ in range(3))
    if magic != _LEGACY_MAGIC or version != _LEGACY_VERSION or not machine["little_endian"]:
        raise UsageError("not a PyTorch file")
    unpickler = _Unpickler(file)
    found = _without_optimizer(unpickler.load())
    contents: dict[str, np.ndarray] = {}
    for key in _Unpickler(file).load():  # the numbers follow the pickle, in this order
        _, name, size = unpickler.storages[key]
        dtype = np.dtype(name)
        if int.from_bytes(file.read(8), "little") != size:
            raise UsageError("the size of a storage differs from its tensors: the file is damaged")
        if size * dtype.itemsize > size_of_file - file.tell():
            raise UsageError("it ends within its numbers: the file is cut short")
        contents[key] = np.frombuffer(file.read(size * dtype.itemsize), dtype, size)
    resolve = _Resolver(lambda key, *_: contents[key], unpickler, size_of_file)
    return resolve(found)


def _without_optimizer(found: Any) -> Any:
    if not isinstance(found, dict):
        return found
    return {key: value for key, value in found.items() if key not in _SKIPPED_KEYS}
