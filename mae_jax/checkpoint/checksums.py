"""Checksums of arrays, so that what comes back from a disk is known to be what went there.

A checksum depends on an array's elements and their order alone: not on devices, processes or the
layout on disk. Every element is mixed with its position and the results are summed modulo 2^32,
twice; so the order of summing is free, and one changed element always changes both sums. Orbax
checks no array data: a flipped bit would come back as a wrong weight without an error.
"""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CHUNK = 2**16  # words; a few of this size stay in a core's cache
THREADS = 4
_WORDS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}
_SEED = np.uint32(0x9E3779B9)

Record = dict[str, list[Any]]  # name -> [shape, dtype, checksum]


class BrokenSeal(ValueError):
    """Metadata are not what was written."""


def names(tree: Any) -> dict[str, Any]:
    """Every leaf of any tree by its name, `opt_state/1/mu/mask_token`; as Orbax names them too."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def checksums(tree: Any) -> tuple[Record, list[str]]:
    """Record of jax arrays, and the names of those that hold NaN or infinity.

    All processes must call it together; all get the same answer.
    """
    arrays = names(tree)
    if jax.default_backend() == "cpu" and all(x.is_fully_addressable for x in arrays.values()):
        return host_record({name: np.asarray(x) for name, x in arrays.items()})  # no compiling
    return device_record(arrays)


def device_record(tree: Any) -> tuple[Record, list[str]]:
    """The same, computed where the arrays are."""
    arrays = names(tree)
    # One small program for each shape: fewer to compile than one of all arrays.
    return _record(arrays, jax.device_get([_device_sums(x) for x in arrays.values()]))


def host_record(arrays: dict[str, np.ndarray]) -> tuple[Record, list[str]]:
    """The same of NumPy arrays by name, with threads and little memory beside them."""
    with ThreadPoolExecutor(THREADS) as pool:
        return _record(arrays, pool.map(_host_sums, arrays.values()))


def differences(saved: Record, found: Record, *, checksums: bool = True) -> list[str]:
    """What differs, a text each; `checksums=False` compares names, shapes and dtypes alone."""
    lines = [f"{name} is missing" for name in saved if name not in found]
    lines += [f"{name} is unknown" for name in found if name not in saved]
    for name in saved.keys() & found.keys():
        (shape, dtype, old), (new_shape, new_dtype, new) = saved[name], found[name]
        if [shape, dtype] != [new_shape, new_dtype]:
            lines.append(f"{name} was {_text(shape, dtype)}, is {_text(new_shape, new_dtype)}")
        elif checksums and old != new:
            lines.append(f"{name} has other values (checksum {old}, now {new})")
    return sorted(lines)


def shapes(tree: Any) -> Record:
    """Record without checksums of anything with shapes and dtypes."""
    return {n: [list(x.shape), str(np.dtype(x.dtype)), ""] for n, x in names(tree).items()}


def some(lines: Iterable[str], most: int = 3) -> str:
    """The first few of `lines`, and how many more there are."""
    lines = list(lines)
    more = f" and {len(lines) - most} more" if len(lines) > most else ""
    return ", ".join(lines[:most]) + more


def add_digest(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata with a checksum of themselves."""
    return metadata | {"sha256": _digest(metadata)}


def check_digest(metadata: Any) -> dict[str, Any]:
    """The metadata without it; those of an earlier version have none.

    Raises:
      BrokenSeal: they are not what was written.
    """
    if not isinstance(metadata, dict) or not metadata:
        raise BrokenSeal("the metadata describe nothing")
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    if metadata.get("sha256", _digest(rest)) != _digest(rest):
        raise BrokenSeal("the metadata have another checksum than when they were written")
    return rest


def _digest(metadata: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _record(arrays: dict[str, Any], sums: Iterable[tuple[Any, ...]]) -> tuple[Record, list[str]]:
    entries, spoilt = {}, []
    for (name, x), (first, second, finite) in zip(arrays.items(), sums, strict=True):
        entries[name] = [list(x.shape), str(x.dtype), f"{int(first):08x}{int(second):08x}"]
        spoilt += [] if finite else [name]
    return entries, spoilt


def _text(shape: list[int], dtype: str) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"


def _mix(x: Any) -> Any:
    """Finaliser of MurmurHash3: one to one, and every bit in changes half of those out."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x


def _mixed(words: Any, index: Any) -> tuple[Any, Any]:
    """What is summed: both values change, for certain, with the word at `index`."""
    key = _mix(index + _SEED)
    once = _mix(words ^ key)
    return once, once * (key | np.uint32(1))


@jax.jit
def _device_sums(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    finite = jnp.isfinite(x).all() if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.bool_(True)
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    # 64 bits become two words along a new last axis.
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
