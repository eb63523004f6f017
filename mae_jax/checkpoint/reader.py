"""Reads checkpoints with Orbax, and tells what is damaged.

The metadata of a checkpoint have a checksum of every array and of themselves; whatever is read is
compared with them. A checkpoint of an earlier version, which has none, is taken as it is.

Damage has to be proven, since it costs the steps that a run did since the checkpoint before: by a
checksum, a missing file, or an error of decoding the stored data (`damage_sign`). Whatever else
goes wrong while reading says nothing about the checkpoint.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mae_jax.checkpoint import checksums, layout
from mae_jax.checkpoint import damage as damage_sign
from mae_jax.checkpoint.checksums import Record
from mae_jax.checkpoint.layout import ITEMS, CheckpointPath, NoSuchStep, find, folder_of
from mae_jax.config.diff import update_names
from mae_jax.distributed.collectives import all_gather, broadcast_ints
from mae_jax.runtime import backend, filesystem
from mae_jax.runtime.errors import UsageError, one_line

log = logging.getLogger(__name__)
ARRAYS = "arrays"  # key of the metadata
_MARKER = "_CHECKPOINT_METADATA"  # what Orbax writes last
_AT_ONCE = 2**26  # bytes, when a checkpoint is only looked at
_DETAILS = re.compile(r" \[\w+(\[\d+\])?='.*", re.DOTALL)  # of tensorstore, with pages of settings
_T = TypeVar("_T")
Read = Callable[[Callable[[str], bool]], Any]


class CorruptCheckpointError(UsageError):
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
    """The text of an error on one line, without tensorstore's details."""
    return one_line(_DETAILS.sub("", str(error)) or type(error).__name__)


@contextlib.contextmanager
def as_corrupt(found: CheckpointPath) -> Iterator[None]:
    """Tells damage from everything else that goes wrong while a checkpoint is read inside.

    Raises:
      DamagedCheckpoint: it is proven that the stored data are not what was saved.
      NoSuchStep: the checkpoint was deleted meanwhile.
      UsageError: anything else, with its own text.
    """
    try:
        with filesystem.os_errors():
            yield
    except Exception as error:
        judged = _judge(found, error)
        raise judged from (error if judged is not error else error.__cause__)


def _judge(found: CheckpointPath, error: Exception) -> Exception:
    """What an error on reading a checkpoint means."""
    if isinstance(error, UsageError) and not isinstance(error, CorruptCheckpointError):
        return error
    if no_device := backend.unavailable(error):
        return no_device
    *_, first = damage_sign.causes(error)
    try:
        with filesystem.os_errors():
            damaged = _damaged(found.folder, error, first)
            if damaged and layout.gone(found):
                return layout.no_such_step(found)
    except OSError as trouble:
        damaged, first = None, trouble
    return damaged or UsageError(
        f"{found.folder} cannot be read ({type(first).__name__}: {line(first)}): this does not "
        "prove that it is damaged, and it is left as it is"
    )


def _damaged(folder: str, error: Exception, first: BaseException) -> CorruptCheckpointError | None:
    """The damage that an error proves, or that changes in the small files prove."""
    if isinstance(error, CorruptCheckpointError):
        return error
    if damage_sign.proves(error, folder):
        return CorruptCheckpointError(folder, line(first))
    changed = damage_sign.changed_files(folder)
    return CorruptCheckpointError(folder, checksums.some(changed)) if changed else None


def read_one(
    path: str,
    work: Callable[[CheckpointPath], _T],
    *,
    find: Callable[[str], CheckpointPath] = layout.find,
) -> _T:
    """Result of `work` on the one checkpoint that `path` means now (see `find`).

    Whatever is read of a run that trains meanwhile, and deletes its older steps, is of one step. If
    that is deleted before `work` is done, the newest one is read instead, once.

    Raises:
      NoSuchStep: the step that `path` names was deleted, or the newer one as well.
    """
    found = find(path)
    try:
        return work(found)
    except NoSuchStep as error:
        if found == (newer := find(path)):
            raise
        log.info("%s; reading step %d instead", error, newer.step)
        return work(newer)


def read_metadata(found: CheckpointPath) -> tuple[dict[str, Any], Record]:
    """The description of a checkpoint, and the record of its arrays; {} of an earlier version.

    Keys of its configuration have their present names, whatever version wrote them.

    Raises:
      DamagedCheckpoint: it is not what was written, or is of another step.
    """
    folder = epath.Path(found.folder)
    with as_corrupt(found), contextlib.closing(ocp.JsonCheckpointHandler()) as reader:
        wanted = (*ITEMS, _MARKER) if found.run else ITEMS
        missing = [name for name in wanted if not (folder / name).exists()]
        if missing:
            raise CorruptCheckpointError(found.folder, f"it has no {', '.join(missing)}")
        try:
            metadata = checksums.check_digest(reader.restore(folder / "metadata"))
        except checksums.BrokenSeal as error:
            raise CorruptCheckpointError(found.folder, str(error)) from error
        if found.run and metadata.get("step", found.step) != found.step:
            raise CorruptCheckpointError(found.folder, f"it holds step {metadata['step']}")
    update_names(metadata.get("config"))
    return metadata, metadata.pop(ARRAYS, {})


@contextlib.contextmanager
def reading(found: CheckpointPath, tree: Any = None) -> Iterator[tuple[Read, Any]]:
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
    with as_corrupt(found), contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder).tree if tree is None else tree

        def read(wanted: Callable[[str], bool]) -> Any:
            # With `partial_restore` Orbax would read what has a placeholder, too.
            arrays = [np.empty(x.shape, x.dtype) if wanted(n) else ... for n, x in leaves.items()]
            item = jax.tree.unflatten(jax.tree.structure(tree), arrays)
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            return reader.restore(folder, args=ocp.args.PyTreeRestore(item, restore_args=as_numpy))

        leaves = checksums.names(tree)
        yield read, tree


def compare(found: CheckpointPath, saved: Record, now: Record) -> None:
    """Refuses arrays that are not those that were saved.

    Raises:
      DamagedCheckpoint: names the first few.
    """
    other = checksums.differences(saved, now)
    if other:
        raise CorruptCheckpointError(found.folder, checksums.some(other))


def shapes_on_disk(found: CheckpointPath) -> Record:
    """Names, shapes and dtypes of a checkpoint that keeps no record of its arrays."""
    with reading(found) as (_, tree):
        return checksums.shapes(tree)


def load_metadata(found: CheckpointPath | str) -> dict[str, Any]:
    """Description of a checkpoint; of several things read of one, give each the same `Found`."""
    return read_metadata(_found(found))[0]


def parts(found: CheckpointPath | str) -> set[str]:
    """Fields of the state that a checkpoint holds anything of."""
    with reading(_found(found)) as (_, tree):
        return {name for name, part in tree.items() if part}


def load_arrays(
    found: CheckpointPath | str, parts: tuple[str, ...] = ("params",)
) -> dict[str, Any]:
    """Parts of the state of a checkpoint, as NumPy arrays.

    Works on any machine, whatever devices the run had, and reads nothing else.

    Args:
      found: where it is, or a path for `find`.
      parts: fields of `TrainState`; one that the run did not have comes back as {}.

    Raises:
      DamagedCheckpoint: what was read is not what was saved.
    """
    found = _found(found)
    _, record = read_metadata(found)
    with reading(found) as (read, tree):
        there = [part for part in parts if tree.get(part)]
        state = read(lambda name: name.split("/")[0] in there)
        arrays = {part: state[part] for part in there}
    if record:
        saved = {name: entry for name, entry in record.items() if name.split("/")[0] in parts}
        compare(found, saved, checksums.host_record(checksums.names(arrays))[0])
    return dict.fromkeys(parts, {}) | arrays


def _found(found: CheckpointPath | str) -> CheckpointPath:
    return layout.find(found) if isinstance(found, str) else found


def verify(found: CheckpointPath, tree: Any = None) -> Verified:
    """Reads a whole checkpoint, a little at a time; `tree` is that of `reading`.

    Raises:
      DamagedCheckpoint: something cannot be read, or is not what was saved.
    """
    _, saved = read_metadata(found)
    now: Record = {}
    with reading(found, tree) as (read, tree):
        for group in _groups(tree):
            read_now = checksums.names(read(group.__contains__))
            now |= checksums.host_record({name: read_now[name] for name in group})[0]
    if saved:
        compare(found, saved, now)
    return Verified(len(now), bool(saved))


def _groups(tree: Any) -> Iterator[set[str]]:
    """Names of the leaves of a tree, so many at a time as may be in memory at once."""
    group, size = set(), 0
    for name, x in checksums.names(tree).items():
        nbytes = int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize
        if group and size + nbytes > _AT_ONCE:
            yield group
            group, size = set(), 0
        group.add(name)
        size += nbytes
    yield group


def find_one(path: str) -> CheckpointPath:
    """The checkpoint that process 0 finds at `path`, on every process.

    Others may already see a newer step of a run that is still training.

    Raises:
      UsageError: on every process if on one.
    """
    found = read_on_all_hosts(path, lambda: find(path))
    step = broadcast_ints(lambda: [find(path).step])[0]
    folder = str(folder_of(found.run, step)) if found.run else found.folder
    return found._replace(folder=folder, step=step)


def read_on_all_hosts(where: str, work: Callable[[], _T]) -> _T:
    """Result of `work`, which reads what is at `where`, if it succeeds on every process.

    Raises:
      DamagedCheckpoint: on all of them if on one.
      NoSuchStep: the same.
      UsageError: on all of them for any other error; the process that met it raises it unchanged.
    """
    result: Any = None
    error = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    worst = max(all_gather(_rank(error)))
    if error and _rank(error) == worst:
        raise error
    if worst:
        raise _of_another(where)[worst]
    return result


def _rank(error: Exception | None) -> int:
    """How serious: an older step replaces a damaged one, a newer one a deleted one; others end."""
    if error is None:
        return 0
    return {CorruptCheckpointError: 1, NoSuchStep: 2}.get(type(error), 3)


def _of_another(where: str) -> dict[int, UsageError]:
    """What a process raises for another one, by `_rank`."""
    said = "another process could not read it: see what it printed last"
    return {
        1: CorruptCheckpointError(where, said),
        2: NoSuchStep(f"{where} is not there any more: {said}"),
        3: UsageError(f"{where}: {said}"),
    }
