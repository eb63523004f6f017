"""Reads checkpoints with Orbax and detects damage.

The metadata of a checkpoint contain a checksum of every array and of themselves. Whatever is read
is compared with them. A checkpoint of an earlier version without checksums is accepted as it is.

A damaged checkpoint costs the steps since the previous one, so damage must be proven: by a
checksum, a missing file, or an error while decoding the stored data (`damage`). Any other error
while reading says nothing about the checkpoint.
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

from mae_jax.checkpoint import checksums, damage, layout
from mae_jax.checkpoint.checksums import Record
from mae_jax.checkpoint.layout import ITEMS, CheckpointPath, NoSuchStep, find, folder_of
from mae_jax.config.diff import update_names
from mae_jax.distributed.collectives import all_gather, broadcast_ints
from mae_jax.runtime import backend, filesystem
from mae_jax.runtime.errors import UsageError, one_line

log = logging.getLogger(__name__)
ARRAYS = "arrays"  # key of the metadata
_MARKER = "_CHECKPOINT_METADATA"  # what Orbax writes last
_GROUP_BYTES = 2**26  # read at once by `verify`
_DETAILS = re.compile(r" \[\w+(\[\d+\])?='.*", re.DOTALL)  # pages of tensorstore's settings
_T = TypeVar("_T")
Read = Callable[[Callable[[str], bool]], Any]


class CorruptCheckpointError(UsageError):
    """The data on disk differ from what was saved.

    Attributes:
      reason: one line.
    """

    def __init__(self, folder: str, reason: str):
        super().__init__(
            f"{folder} is damaged: {reason}; give another step (RUN/checkpoints/<step>; "
            "python -m mae_jax.tools.inspect --verify RUN checks all) or other weights"
        )
        self.reason = reason


class Verified(NamedTuple):
    """Result of verifying a whole checkpoint.

    Attributes:
      arrays: number of arrays; all of them could be read.
      compared: whether they were compared with checksums; False if they were saved without any.
    """

    arrays: int
    compared: bool


def error_text(error: BaseException) -> str:
    """The text of an error on one line, without tensorstore's details."""
    return one_line(_DETAILS.sub("", str(error)) or type(error).__name__)


@contextlib.contextmanager
def as_corrupt(path: CheckpointPath) -> Iterator[None]:
    """Context that classifies errors while reading a checkpoint.

    Raises:
      CorruptCheckpointError: the stored data provably differ from what was saved.
      NoSuchStep: the checkpoint was deleted while it was read.
      UsageError: any other error, with its own message.
    """
    try:
        with filesystem.os_errors():
            yield
    except Exception as error:
        classified = _classify(path, error)
        raise classified from (error if classified is not error else error.__cause__)


def _classify(path: CheckpointPath, error: Exception) -> Exception:
    """The error to raise for an error while reading a checkpoint."""
    if isinstance(error, UsageError) and not isinstance(error, CorruptCheckpointError):
        return error
    if no_device := backend.unavailable(error):
        return no_device
    *_, first = damage.causes(error)
    try:
        with filesystem.os_errors():
            corruption = _corruption(path.folder, error, first)
            if corruption and layout.is_missing(path):
                return layout.no_such_step(path)
    except OSError as os_error:
        corruption, first = None, os_error
    return corruption or UsageError(
        f"{path.folder} cannot be read ({type(first).__name__}: {error_text(first)}): this does "
        "not prove that it is damaged, so it is left unchanged"
    )


def _corruption(
    folder: str, error: Exception, first: BaseException
) -> CorruptCheckpointError | None:
    """The damage proven by an error or by changes in the small files, or None."""
    if isinstance(error, CorruptCheckpointError):
        return error
    if damage.is_proof(error, folder):
        return CorruptCheckpointError(folder, error_text(first))
    changed = damage.changed_files(folder)
    return CorruptCheckpointError(folder, checksums.abbreviate(changed)) if changed else None


def resolve_and_read(
    path: str,
    work: Callable[[CheckpointPath], _T],
    *,
    find: Callable[[str], CheckpointPath] = layout.find,
) -> _T:
    """Resolves `path` once (see `find`) and returns the result of `work` on that checkpoint.

    So everything is read from one step, even if the run is still training and deletes old steps. If
    the step is deleted before `work` is done, `work` runs once more on the newest step.

    Raises:
      NoSuchStep: the step that `path` names was deleted, or the newer one as well.
    """
    checkpoint = find(path)
    try:
        return work(checkpoint)
    except NoSuchStep as error:
        if checkpoint == (newer := find(path)):
            raise
        log.info("%s; reading step %d instead", error, newer.step)
        return work(newer)


def read_metadata(path: CheckpointPath) -> tuple[dict[str, Any], Record]:
    """The metadata of a checkpoint, and the record of its arrays ({} in earlier versions).

    Configuration keys have their current names, whatever version wrote them.

    Raises:
      CorruptCheckpointError: the metadata differ from what was written, or belong to another step.
    """
    folder = epath.Path(path.folder)
    with as_corrupt(path), contextlib.closing(ocp.JsonCheckpointHandler()) as handler:
        wanted = (*ITEMS, _MARKER) if path.run else ITEMS
        missing = [name for name in wanted if not (folder / name).exists()]
        if missing:
            raise CorruptCheckpointError(path.folder, f"it has no {', '.join(missing)}")
        try:
            metadata = checksums.check_digest(handler.restore(folder / "metadata"))
        except checksums.DigestError as error:
            raise CorruptCheckpointError(path.folder, str(error)) from error
        if path.run and metadata.get("step", path.step) != path.step:
            raise CorruptCheckpointError(path.folder, f"it contains step {metadata['step']}")
    update_names(metadata.get("config"))
    return metadata, metadata.pop(ARRAYS, {})


@contextlib.contextmanager
def reading(path: CheckpointPath, tree: Any = None) -> Iterator[tuple[Read, Any]]:
    """Yields (read, tree): a function that reads parts of the state, and the state's structure.

    `read` takes a predicate of names (see `checksums.flatten`). It returns the tree with NumPy
    arrays, whatever devices the run had, and `...` for everything else.

    Args:
      path: the checkpoint.
      tree: shapes and dtypes of the state, if known. Reading them from the checkpoint leaks a
        megabyte (tensorstore 0.1.86, `Spec.to_json`), which adds up over the saves of a long run.
    """
    folder = epath.Path(path.folder) / "state"
    with as_corrupt(path), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        tree = handler.metadata(folder).tree if tree is None else tree

        def read(wanted: Callable[[str], bool]) -> Any:
            # With `partial_restore` Orbax would also read the placeholders.
            arrays = [np.empty(x.shape, x.dtype) if wanted(n) else ... for n, x in leaves.items()]
            item = jax.tree.unflatten(jax.tree.structure(tree), arrays)
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            return handler.restore(folder, args=ocp.args.PyTreeRestore(item, restore_args=as_numpy))

        leaves = checksums.flatten(tree)
        yield read, tree


def compare(path: CheckpointPath, saved: Record, actual: Record) -> None:
    """Checks that arrays match the saved ones.

    Raises:
      CorruptCheckpointError: they do not; names the first few.
    """
    mismatches = checksums.differences(saved, actual)
    if mismatches:
        raise CorruptCheckpointError(path.folder, checksums.abbreviate(mismatches))


def shapes_on_disk(path: CheckpointPath) -> Record:
    """Names, shapes and dtypes of the arrays of a checkpoint without a record."""
    with reading(path) as (_, tree):
        return checksums.shapes(tree)


def load_metadata(path: CheckpointPath | str) -> dict[str, Any]:
    """The metadata of a checkpoint, given by its location or by a path for `find`."""
    return read_metadata(_resolve(path))[0]


def parts(path: CheckpointPath | str) -> set[str]:
    """The non-empty fields of a checkpoint's state."""
    with reading(_resolve(path)) as (_, tree):
        return {name for name, part in tree.items() if part}


def load_arrays(path: CheckpointPath | str, parts: tuple[str, ...] = ("params",)) -> dict[str, Any]:
    """Reads parts of a checkpoint's state as NumPy arrays.

    Works on any machine, whatever devices the run had, and reads only these parts.

    Args:
      path: location of the checkpoint, or a path for `find`.
      parts: fields of `TrainState`; the result has {} for fields that the run did not have.

    Raises:
      CorruptCheckpointError: the data differ from what was saved.
    """
    path = _resolve(path)
    _, record = read_metadata(path)
    with reading(path) as (read, tree):
        present = [part for part in parts if tree.get(part)]
        state = read(lambda name: name.split("/")[0] in present)
        arrays = {part: state[part] for part in present}
    if record:
        saved = {name: entry for name, entry in record.items() if name.split("/")[0] in parts}
        compare(path, saved, checksums.host_record(checksums.flatten(arrays))[0])
    return dict.fromkeys(parts, {}) | arrays


def _resolve(path: CheckpointPath | str) -> CheckpointPath:
    return layout.find(path) if isinstance(path, str) else path


def verify(path: CheckpointPath, tree: Any = None) -> Verified:
    """Reads and checks a whole checkpoint, in small groups; see `reading` for `tree`.

    Raises:
      CorruptCheckpointError: something cannot be read or differs from what was saved.
    """
    _, saved = read_metadata(path)
    actual: Record = {}
    with reading(path, tree) as (read, tree):
        for group in _groups(tree):
            arrays = checksums.flatten(read(group.__contains__))
            actual |= checksums.host_record({name: arrays[name] for name in group})[0]
    if saved:
        compare(path, saved, actual)
    return Verified(len(actual), bool(saved))


def _groups(tree: Any) -> Iterator[set[str]]:
    """Names of a tree's leaves, in groups of at most `_GROUP_BYTES`, or of one larger leaf."""
    group, size = set(), 0
    for name, x in checksums.flatten(tree).items():
        nbytes = int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize
        if group and size + nbytes > _GROUP_BYTES:
            yield group
            group, size = set(), 0
        group.add(name)
        size += nbytes
    yield group


def find_on_all_hosts(path: str) -> CheckpointPath:
    """Resolves `path` to the checkpoint that process 0 finds, on every process.

    Other processes may already see a newer step of a run that is still training.

    Raises:
      UsageError: on every process if any process fails.
    """
    checkpoint = read_on_all_hosts(path, lambda: find(path))
    step = broadcast_ints(lambda: [find(path).step])[0]
    folder = str(folder_of(checkpoint.run, step)) if checkpoint.run else checkpoint.folder
    return checkpoint._replace(folder=folder, step=step)


def read_on_all_hosts(where: str, work: Callable[[], _T]) -> _T:
    """Returns the result of `work`, which reads `where`, if it succeeds on every process.

    If it fails on some processes, all raise an error of the same type.

    Raises:
      CorruptCheckpointError, NoSuchStep: as raised by `work`.
      UsageError: for any other error; the failing process raises the original error.
    """
    result: Any = None
    error = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    worst = max(all_gather(_severity(error)))
    if error and _severity(error) == worst:
        raise error
    if worst:
        raise _remote_error(where)[worst]
    return result


def _severity(error: Exception | None) -> int:
    """A run recovers from 1 with an older step, from 2 with a newer one; 3 ends it."""
    if error is None:
        return 0
    return {CorruptCheckpointError: 1, NoSuchStep: 2}.get(type(error), 3)


def _remote_error(where: str) -> dict[int, UsageError]:
    """The error to raise when another process failed, by `_severity`."""
    reason = "another process could not read it: see its log above"
    return {
        1: CorruptCheckpointError(where, reason),
        2: NoSuchStep(f"{where} no longer exists: {reason}"),
        3: UsageError(f"{where}: {reason}"),
    }
