"""Checksums of arrays and metadata.

Orbax does not check array data: a flipped bit on disk would become a wrong weight without an error.
So a checkpoint stores a checksum of every array. It depends only on the array's elements and their
order, not on devices, processes or the layout on disk. Every element is mixed with its position,
and the results are summed modulo 2^32, twice. Sums can be computed in any order, so sharded arrays
are checked where they are, and a single changed element always changes both sums.

`content_hash` (SHA-256) identifies weights on the host, independently of checkpoints.
"""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CHUNK = 2**16  # words; a few chunks of this size fit in a core's cache
THREADS = 4
_WORDS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}
_SEED = np.uint32(0x9E3779B9)

Record = dict[str, list[Any]]  # name -> [shape, dtype, checksum]


class DigestError(ValueError):
    """Metadata differ from what was written."""


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of any tree by name, such as `opt_state/1/mu/mask_token`, as Orbax names them."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def checksums(tree: Any) -> tuple[Record, list[str]]:
    """Returns the record of JAX arrays, and the names of arrays that contain NaN or infinity.

    All processes must call it together and get the same result.
    """
    arrays = flatten(tree)
    if jax.default_backend() == "cpu" and all(x.is_fully_addressable for x in arrays.values()):
        return host_record({name: np.asarray(x) for name, x in arrays.items()})  # no compilation
    return device_record(arrays)


def device_record(tree: Any) -> tuple[Record, list[str]]:
    """`checksums` computed on the devices that hold the arrays."""
    arrays = flatten(tree)
    # One small program per shape compiles faster than one program for all arrays.
    return _record(arrays, jax.device_get([_device_sums(x) for x in arrays.values()]))


def host_record(arrays: dict[str, np.ndarray]) -> tuple[Record, list[str]]:
    """`checksums` of NumPy arrays by name, multithreaded and with little extra memory."""
    with ThreadPoolExecutor(THREADS) as pool:
        return _record(arrays, pool.map(_host_sums, arrays.values()))


def content_hash(params: Any) -> str:
    """SHA-256 of a tree of arrays: names, shapes, dtypes and values, whatever file they are from.

    The value identifies tokenizers in checkpoints and weights in feature files: never change it.
    """
    digest = hashlib.sha256()
    for name, x in sorted(flatten(params).items()):
        array = np.ascontiguousarray(x)
        digest.update(f"{name} {array.dtype} {x.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def differences(saved: Record, actual: Record, *, checksums: bool = True) -> list[str]:
    """Lists differences as text; `checksums=False` compares only names, shapes and dtypes."""
    lines = [f"{name} is missing" for name in saved if name not in actual]
    lines += [f"{name} is unknown" for name in actual if name not in saved]
    for name in saved.keys() & actual.keys():
        (shape, dtype, old), (new_shape, new_dtype, new) = saved[name], actual[name]
        if [shape, dtype] != [new_shape, new_dtype]:
            lines.append(f"{name} was {_format(shape, dtype)}, is {_format(new_shape, new_dtype)}")
        elif checksums and old != new:
            lines.append(f"{name} has other values (checksum {old}, now {new})")
    return sorted(lines)


def shapes(tree: Any) -> Record:
    """Record without checksums of a tree whose leaves have a shape and a dtype."""
    return {n: [list(x.shape), str(np.dtype(x.dtype)), ""] for n, x in flatten(tree).items()}


def abbreviate(lines: Iterable[str], limit: int = 3) -> str:
    """Joins the first few of `lines` and counts the rest."""
    lines = list(lines)
    more = f" and {len(lines) - limit} more" if len(lines) > limit else ""
    return ", ".join(lines[:limit]) + more


def add_digest(metadata: dict[str, Any]) -> dict[str, Any]:
    """Returns the metadata with their own SHA-256 added."""
    return metadata | {"sha256": _digest(metadata)}


def check_digest(metadata: Any) -> dict[str, Any]:
    """Verifies and removes the digest. Metadata of earlier versions have none and are accepted.

    Raises:
      DigestError: the metadata differ from what was written.
    """
    if not isinstance(metadata, dict) or not metadata:
        raise DigestError("the metadata are empty")
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    if metadata.get("sha256", _digest(rest)) != _digest(rest):
        raise DigestError("the metadata do not match their checksum")
    return rest


def _digest(metadata: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _record(arrays: dict[str, Any], sums: Iterable[tuple[Any, ...]]) -> tuple[Record, list[str]]:
    entries, nonfinite = {}, []
    for (name, x), (first, second, finite) in zip(arrays.items(), sums, strict=True):
        entries[name] = [list(x.shape), str(x.dtype), f"{int(first):08x}{int(second):08x}"]
        nonfinite += [] if finite else [name]
    return entries, nonfinite


def _format(shape: list[int], dtype: str) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"


def _mix(x: Any) -> Any:
    """Finalizer of MurmurHash3: a bijection; each input bit changes half of the output bits."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x


def _mixed(words: Any, index: Any) -> tuple[Any, Any]:
    """The two values to sum; both always change when the word at `index` changes."""
    key = _mix(index + _SEED)
    once = _mix(words ^ key)
    return once, once * (key | np.uint32(1))


@jax.jit
def _device_sums(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    finite = jnp.isfinite(x).all() if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.bool_(True)
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    # A 64-bit element becomes two words along a new last axis.
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index += iota * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    first, second = (jnp.sum(v, dtype=jnp.uint32) for v in _mixed(words, index))
    return first, second, finite


def _host_sums(x: np.ndarray) -> tuple[int, int, bool]:
    words = np.ascontiguousarray(x).reshape(-1).view(_WORDS[x.dtype.itemsize])
    first = second = 0
    for start in range(0, words.size, CHUNK):
        part = words[start : start + CHUNK].astype(np.uint32)
        index = np.arange(start, start + part.size, dtype=np.uint64).astype(np.uint32)
        once, twice = _mixed(part, index)
        first += int(once.sum(dtype=np.uint64))
        second += int(twice.sum(dtype=np.uint64))
    finite = not jnp.issubdtype(x.dtype, jnp.inexact) or bool(np.isfinite(x).all())
    return first % 2**32, second % 2**32, finite
