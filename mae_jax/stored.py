"""Reads checkpoints with Orbax, and tells what is damaged.

The metadata of a checkpoint have a checksum of every array and of themselves; whatever is read is
compared with them. A checkpoint of an earlier version, which has none, is taken as it is.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mae_jax import files, integrity
from mae_jax.errors import UsageError
from mae_jax.integrity import Record
from mae_jax.step_folders import ITEMS, Found, find

ARRAYS = "arrays"  # key of the metadata
_MARKER = "_CHECKPOINT_METADATA"  # what Orbax writes last
_AT_ONCE = 2**26  # bytes, when a checkpoint is only looked at
# Answers of a disk or a device that say nothing about the checkpoint.
_NOT_DAMAGE = (
    *("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED"),
    *("bad_alloc", "start new thread"),
)
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)

Read = Callable[[Callable[[str], bool]], Any]


class DamagedCheckpoint(UsageError):
    """What is on disk is not what was saved.

    Attributes:
      reason: one line.
    """

    def __init__(self, folder: str, reason: str):
        super().__init__(
            f"{folder} is damaged: {reason}; give another step (RUN/checkpoints/<step>: "
            "python -m mae_jax.tools.inspect --verify RUN looks at all) or other weights"
        )
        self.reason = reason


class Verified(NamedTuple):
    """What a look at a whole checkpoint found.

    Attributes:
      arrays: how many there are; all could be read.
      compared: they have the checksums they were saved with; False: they were saved with none.
    """

    arrays: int
    compared: bool


def line(error: BaseException) -> str:
    """What an error says, on one line of bearable length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def damage(folder: str) -> Iterator[None]:
    """Turns what goes wrong inside into `DamagedCheckpoint`, or UsageError where it says nothing.

    Which exceptions a damaged file leads to, nobody knows: Orbax raises many kinds.
    """
    try:
        with files.os_errors():
            yield
    except UsageError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        trouble = isinstance(error, MemoryError) or (number and number not in _DAMAGE)
        if trouble or any(text in str(error) for text in _NOT_DAMAGE):
            raise UsageError(f"{folder} cannot be read: {line(error)}") from error
        raise DamagedCheckpoint(folder, line(error)) from error


def read_metadata(found: Found) -> tuple[dict[str, Any], Record]:
    """The description of a checkpoint, and the record of its arrays; {} of an earlier version.

    Raises:
      DamagedCheckpoint: it cannot be read, is not what was written, or is of another step.
    """
    folder = epath.Path(found.folder)
    with damage(found.folder), contextlib.closing(ocp.JsonCheckpointHandler()) as reader:
        wanted = (*ITEMS, _MARKER) if found.run else ITEMS
        missing = [name for name in wanted if not (folder / name).exists()]
        if missing:
            raise DamagedCheckpoint(found.folder, f"it has no {', '.join(missing)}")
        metadata = integrity.unsealed(dict(reader.restore(folder / "metadata")))
        if found.run and metadata.get("step", found.step) != found.step:
            raise DamagedCheckpoint(found.folder, f"it holds step {metadata['step']}")
    return metadata, metadata.pop(ARRAYS, {})


@contextlib.contextmanager
def reading(found: Found, tree: Any = None) -> Iterator[tuple[Read, Any]]:
    """(function, tree): the tree of what a checkpoint holds; the function reads some of it.

    The function takes which names (`integrity.names`) are wanted, and returns the tree with NumPy
    arrays, whatever devices the run had, and `...` for everything else.

    Args:
      found: where it is.
      tree: shapes and dtypes of what it holds, where that is known. To ask the checkpoint costs a
        megabyte that never comes back (tensorstore 0.1.86, `Spec.to_json`): once is nothing, but
        after every save of a long run it adds up.
    """
    folder = epath.Path(found.folder) / "state"
    with damage(found.folder), contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder).tree if tree is None else tree

        def read(wanted: Callable[[str], bool]) -> Any:
            # With `partial_restore` Orbax would read what has a placeholder, too.
            arrays = [np.empty(x.shape, x.dtype) if wanted(n) else ... for n, x in leaves.items()]
            item = jax.tree.unflatten(jax.tree.structure(tree), arrays)
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            return reader.restore(folder, args=ocp.args.PyTreeRestore(item, restore_args=as_numpy))

        leaves = integrity.names(tree)
        yield read, tree


def compare(found: Found, saved: Record, now: Record) -> None:
    """Refuses arrays that are not those that were saved.

    Raises:
      DamagedCheckpoint: names the first few.
    """
    other = integrity.differences(saved, now)
    if other:
        raise DamagedCheckpoint(found.folder, integrity.some(other))


def shapes_on_disk(found: Found) -> Record:
    """Names, shapes and dtypes of a checkpoint that keeps no record of its arrays."""
    with reading(found) as (_, tree):
        return integrity.shapes(tree)


def load_metadata(path: str) -> dict[str, Any]:
    """Description of the checkpoint at `path` (see `find`)."""
    return read_metadata(find(path))[0]


def parts(path: str) -> set[str]:
    """Fields of the state that the checkpoint at `path` (see `find`) holds anything of."""
    with reading(find(path)) as (_, tree):
        return {name for name, part in tree.items() if part}


def load_arrays(path: str, parts: tuple[str, ...] = ("params",)) -> dict[str, Any]:
    """Parts of the state, as NumPy arrays, of the checkpoint at `path` (see `find`).

    Works on any machine, whatever devices the run had, and reads nothing else.

    Args:
      path: a run's folder or one step's.
      parts: fields of `TrainState`; one that the run did not have comes back as {}.

    Raises:
      DamagedCheckpoint: what was read is not what was saved.
    """
    found = find(path)
    _, record = read_metadata(found)
    with reading(found) as (read, tree):
        there = [part for part in parts if tree.get(part)]
        state = read(lambda name: name.split("/")[0] in there)
        arrays = {part: state[part] for part in there}
    if record:
        saved = {name: entry for name, entry in record.items() if name.split("/")[0] in parts}
        compare(found, saved, integrity.host_record(integrity.names(arrays))[0])
    return dict.fromkeys(parts, {}) | arrays


def verify(found: Found, tree: Any = None) -> Verified:
    """Reads a whole checkpoint, a little at a time; `tree` is that of `reading`.

    Raises:
      DamagedCheckpoint: something cannot be read, or is not what was saved.
    """
    _, saved = read_metadata(found)
    now: Record = {}
    with reading(found, tree) as (read, tree):
        for group in _groups(tree):
            read_now = integrity.names(read(group.__contains__))
            now |= integrity.host_record({name: read_now[name] for name in group})[0]
    if saved:
        compare(found, saved, now)
    return Verified(len(now), bool(saved))


def _groups(tree: Any) -> Iterator[set[str]]:
    """Names of the leaves of a tree, so many at a time as may be in memory at once."""
    group, size = set(), 0
    for name, x in integrity.names(tree).items():
        nbytes = int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize
        if group and size + nbytes > _AT_ONCE:
            yield group
            group, size = set(), 0
        group.add(name)
        size += nbytes
    yield group
