"""Where a run begins.

In this order: 1. the newest sound checkpoint in the workdir, 2. `config.resume` (another run's
whole state), 3. `config.init_from` (another run's weights), 4. from scratch. What is damaged in the
workdir is set aside, and the next older checkpoint used; a run that has saved something never
begins again by itself.
"""

import contextlib
import logging
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from mae_jax import convert
from mae_jax.checkpoint import checkpointer, layout, reader
from mae_jax.config import diff
from mae_jax.convert.official_release import UNKNOWN
from mae_jax.convert.surgery import encoder_only, with_channels
from mae_jax.models.vit import SIZES
from mae_jax.ops.trees import flatten
from mae_jax.runtime.errors import UsageError, require
from mae_jax.train.state import TrainState, create_state, with_params
from mae_jax.train.task import Task

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """Where a run begins.

    Attributes:
      state: to begin with.
      provenance: what the weights began with, or {}.
      summary: where that is, in one line.
      rerun_eval: whether an evaluation at this step was cut short.
      param_report: of every parameter, where they are another run's: matched, fresh or unused.
    """

    state: TrainState
    provenance: dict[str, Any]
    summary: str
    rerun_eval: bool = False
    param_report: dict[str, Any] | None = None

    def metadata(self) -> dict[str, Any]:
        """What the metadata of later checkpoints say of it."""
        return {"provenance": self.provenance} if self.provenance else {}


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Settings and data that compute something else now, one text each.

    Args:
      old: metadata of a checkpoint of the run.
      new: those that a checkpoint would get now.
    """
    was, now = old["data"]["source"], new["data"]["source"]
    # The same data may lie elsewhere now.
    keys = [key for key in was if key != "root" and was[key] != now.get(key)]
    data = [f"data {key}: {was[key]} -> {now.get(key)}" for key in keys]
    return [*diff.changes(old["config"], new["config"]), *data]


def check_same_run(old: dict[str, Any], new: dict[str, Any], allow_change: bool) -> None:
    """Refuses to continue a run with `changes`.

    Args:
      old, new: as those of `changes`.
      allow_change: refuse nothing.

    Raises:
      UsageError: lists what changed.
    """
    lines = changes(old, new)
    if lines and not allow_change:
        raise UsageError(
            f"the run to continue had another configuration ({'; '.join(lines)}): give a new "
            "--workdir, or --allow_config_change to continue with the new one"
        )


def check_workdir(task: Task, saver: checkpointer.Checkpointer, allow_change: bool) -> None:
    """`check_same_run` of the newest checkpoint in the workdir that says what it is.

    Changes nothing, so that a refusal leaves no trace.
    """
    for step in reversed(saver.steps()):
        with contextlib.suppress(reader.CorruptCheckpointError):  # for `start_state` to deal with
            return check_same_run(saver.metadata(step), task.metadata(step), allow_change)


def start_state(
    task: Task,
    config: Any,
    workdir: str,
    saver: checkpointer.Checkpointer,
    abstract: TrainState,
    allow_change: bool,
) -> Start:
    """Where to begin; see the module's docstring. With a read-only `saver` no file changes.

    Raises:
      UsageError: all checkpoints of the workdir are damaged, or a start point does not fit.
    """
    for step in reversed(saver.steps()):
        try:
            return _continued(task, saver, step, abstract, allow_change)
        except reader.CorruptCheckpointError as error:
            saver.quarantine(step, error.reason)
    aside = [*layout.quarantined(workdir), *map(str, saver.steps())]
    if aside:
        raise UsageError(
            f"every checkpoint in {workdir}/{layout.FOLDER} is damaged ({', '.join(aside)}): "
            "give another --workdir, with --config.resume=RUN to continue another run or a copy of "
            "this one, or remove that folder to begin anew"
        )
    if misnamed := layout.misnamed(workdir):
        raise UsageError(
            f"{workdir}/{layout.FOLDER} has {', '.join(misnamed)}, which no run writes: name "
            f"a step's folder by its number ({int(misnamed[0])}), or move it away to start over"
        )
    if config.resume:
        return reader.resolve_and_read(
            config.resume,
            lambda found: _resumed(task, config.resume, found, abstract, allow_change),
            find=reader.find_on_all_hosts,
        )
    if not config.init_from:
        return Start(create_state(task, abstract), {}, "from scratch")
    return _initialized(task, config, abstract)


def _resumed(
    task: Task, path: str, found: layout.CheckpointPath, abstract: TrainState, allow_change: bool
) -> Start:
    """Another run's state in a new workdir."""
    layout.require_run(path, found)
    with contextlib.closing(checkpointer.Checkpointer(found.run, read_only=True)) as other:
        start = _continued(task, other, found.step, abstract, allow_change)
    return start._replace(summary=f"{start.summary}, of {found.run} in a new workdir")


def _initialized(task: Task, config: Any, abstract: TrainState) -> Start:
    """Starts a new run from another model's weights, which are read before anything is compiled."""
    path = config.init_from
    reader.read_on_all_hosts(path, lambda: check_init_from(path))

    def read(place: str) -> convert.Weights:
        return reader.read_on_all_hosts(place, lambda: read_initial(config, place))

    if convert.is_file(path):
        initial = read(path)
    else:
        find = reader.find_on_all_hosts
        initial = reader.resolve_and_read(path, lambda found: read(found.folder), find=find)
    state, account = load_initial(initial, task, create_state(task, abstract), path=path)
    matched, fresh = len(account["matched"]), len(account["fresh"])
    summary = f"weights from {path}: {matched} of {matched + fresh} arrays"
    return Start(state, origin(initial, path), summary, param_report=account)


def _continued(
    task: Task,
    saver: checkpointer.Checkpointer,
    step: int,
    abstract: TrainState,
    allow_change: bool,
) -> Start:
    old, new = saver.metadata(step), task.metadata(step)
    check_same_run(old, new, allow_change)
    state = saver.restore(step, abstract)
    changed = f", changed: {'; '.join(changes(old, new))}" if changes(old, new) else ""
    summary = f"continuing after step {step} of {task.num_steps}{changed}"
    # Under its earlier name too: runs that were stopped by an earlier version.
    rerun_eval = old.get("rerun_eval", old.get("look_again", False))
    return Start(state, old.get("provenance", {}), summary, rerun_eval)


def check_init_from(path: str) -> None:
    """Raises UsageError, which names the key, unless there is something at `path` to read."""
    try:
        if convert.is_file(path):
            require(os.path.exists(path), f"no file {path}")
        else:
            layout.find(path)
    except UsageError as error:
        raise UsageError(
            f"--config.init_from={path} (by default, the run of the recipe's own pre-training, "
            f"which comes first; empty: from scratch): {error}"
        ) from error


def read_initial(config: Any, path: str = "") -> convert.Weights:
    """The weights that `config.init_from` names, for as many channels as the model has.

    Args:
      config: the whole configuration; its model tells what a file does not say.
      path: where they are, if that is more exact than `init_from`: one step of a run.

    Raises:
      UsageError: there are none, or they are damaged, not whole, or of other channels.
    """
    path, model = path or config.init_from, config.model
    decoder = "decoder_depth" in model
    size = SIZES.get(model.size)
    hints = convert.Hints(
        num_heads=model.num_heads or (size and size.num_heads),
        decoder_num_heads=model.decoder_num_heads if decoder else None,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        fallback=True,
    )
    found = convert.load(path, hints=hints, decoder=decoder)
    for line in found.report.lines():
        log.info("%s: %s", path, line)
    found.report.check(allow_missing=found.metadata.get("missing", ()))
    if found.kind == "mae" and not decoder and not found.predicts_pixels:
        found = encoder_only(found)  # its decoder could not follow a change of channels
    return with_channels(found, model.channels, config.init_channels)


def load_initial(
    initial: convert.Weights, task: Task, state: TrainState, *, path: str
) -> tuple[TrainState, dict[str, Any]]:
    """(a new run's `state` with the parameters of another model, an account of every parameter).

    The account names each as matched, fresh or unused.

    Args:
      initial: from `read_initial`.
      task: says what of them it can use, and what starts anew (`Task.load_pretrained`).
      state: a fresh state; what the weights do not give stays as it is.
      path: where the weights are, for messages.

    Raises:
      UsageError: a parameter is missing, has another shape, or would be left behind.
    """
    adopted = task.load_pretrained(initial.params, initial.metadata)
    may_begin = (*adopted.reinitialized, *initial.metadata.get("missing", ()))
    arrays, fresh, missing, wrong = [], [], [], []
    wanted = flatten(state.params)
    for name, old in wanted.items():
        new = adopted.arrays.get(name)
        if new is None:
            (fresh if name.startswith(may_begin) else missing).append(name)
            arrays.append(old)
        elif new.shape != old.shape:
            wrong.append(f"{name} is {new.shape}, needed {old.shape}")
        else:
            arrays.append(jax.make_array_from_callback(new.shape, old.sharding, new.__getitem__))
    left = sorted(adopted.arrays.keys() - wanted.keys())
    log.info("%s: matched %d of %d parameters", path, len(arrays) - len(fresh), len(wanted))
    for text, names in (("started anew", fresh), ("unused", adopted.unused)):
        log.info("%s: %d parameters: %s", text, len(names), _tops(names))
    if missing or wrong or left:
        raise UsageError(
            f"--config.init_from={path} does not fit the model: missing {missing}, other shape "
            f"{wrong}, without a place {left}; set --config.model to what "
            f"`python -m mae_jax.tools.inspect {path}` shows"
        )
    matched = [name for name in wanted if name not in fresh]
    account = {"from": path, "matched": matched, "fresh": fresh, "unused": adopted.unused}
    params = jax.tree.unflatten(jax.tree.structure(state.params), arrays)
    return with_params(task, state, params), account


def origin(initial: convert.Weights, path: str) -> dict[str, Any]:
    """Where a run's weights began and what licence they have therefore, for its checkpoints."""
    was = initial.metadata.get("provenance", {})
    first = was.get("began_with") or was.get("released") or was.get("file") or path
    license = was.get("license", UNKNOWN)
    if license != UNKNOWN:
        log.info("%s: these weights are %s, and so is what is made of them", path, license)
    return {"began_with": first, "license": license}


def _tops(names: Iterable[str]) -> str:
    """`decoder_blocks_0/attn/...` and the like, by their first part."""
    return ", ".join(sorted({name.split("/")[0] for name in names})) or "none"
