"""Determines the initial state of a run.

In this order: 1. the newest intact checkpoint in the workdir, 2. `config.resume` (another run's
full state), 3. `config.init_from` (another run's weights), 4. from scratch. A damaged checkpoint in
the workdir is quarantined and the next older one is used. A run that has saved anything never
silently starts over.
"""

import contextlib
import logging
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from mae_jax import convert
from mae_jax.checkpoint import checkpointer, layout, reader, released
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
    """The start of a run.

    Attributes:
      state: initial state.
      provenance: origin and license of the initial weights, or {}.
      summary: where the run starts, in one line.
      rerun_eval: whether an evaluation at this step was interrupted and must be repeated.
      param_report: for weights of another run: which parameters are matched, fresh or unused.
    """

    state: TrainState
    provenance: dict[str, Any]
    summary: str
    rerun_eval: bool = False
    param_report: dict[str, Any] | None = None

    def metadata(self) -> dict[str, Any]:
        """Metadata about the start for later checkpoints."""
        return {"provenance": self.provenance} if self.provenance else {}


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lists the changes in settings and data that affect results, as text.

    Args:
      old: metadata of a checkpoint of the run.
      new: metadata that a checkpoint would get now.
    """
    was, now = old["data"]["source"], new["data"]["source"]
    # The same data may have moved.
    keys = [key for key in was if key != "root" and was[key] != now.get(key)]
    data = [f"data {key}: {was[key]} -> {now.get(key)}" for key in keys]
    return [*diff.changes(old["config"], new["config"]), *data]


def check_same_run(old: dict[str, Any], new: dict[str, Any], allow_change: bool) -> None:
    """Refuses to continue a run with `changes`.

    Args:
      old, new: see `changes`.
      allow_change: accept any change.

    Raises:
      UsageError: lists the changes.
    """
    lines = changes(old, new)
    if lines and not allow_change:
        raise UsageError(
            f"the run to continue has another configuration ({'; '.join(lines)}): give a new "
            "--workdir, or --allow_config_change to continue with the new one"
        )


def check_workdir(task: Task, saver: checkpointer.Checkpointer, allow_change: bool) -> None:
    """Runs `check_same_run` on the newest checkpoint in the workdir with readable metadata.

    Changes no files, so that a refusal leaves no trace.
    """
    for step in reversed(saver.steps()):
        with contextlib.suppress(reader.CorruptCheckpointError):  # handled by `start_state`
            return check_same_run(saver.metadata(step), task.metadata(step), allow_change)


def start_state(
    task: Task,
    config: Any,
    workdir: str,
    saver: checkpointer.Checkpointer,
    abstract: TrainState,
    allow_change: bool,
) -> Start:
    """Returns where to start; see the module's docstring. A read-only `saver` changes no files.

    Raises:
      UsageError: all checkpoints in the workdir are damaged, or a start point does not fit.
    """
    for step in reversed(saver.steps()):
        try:
            return _continued(task, saver, step, abstract, allow_change)
        except reader.CorruptCheckpointError as error:
            saver.quarantine(step, error.reason)
    damaged = [*layout.quarantined(workdir), *map(str, saver.steps())]
    if damaged:
        raise UsageError(
            f"every checkpoint in {workdir}/{layout.FOLDER} is damaged ({', '.join(damaged)}): "
            "give another --workdir, with --config.resume=RUN to continue another run or a copy of "
            "this one, or remove that folder to start over"
        )
    if misnamed := layout.misnamed(workdir):
        raise UsageError(
            f"{workdir}/{layout.FOLDER} has {', '.join(misnamed)}, which no run writes: "
            f"rename a step's folder to its number ({int(misnamed[0])}), or remove it to start over"
        )
    if config.resume:
        return reader.resolve_and_read(
            config.resume,
            lambda path: _resumed(task, config.resume, path, abstract, allow_change),
            find=reader.find_on_all_hosts,
        )
    if not (config.init_from and config.get("init_weights", True)):
        return Start(create_state(task, abstract), {}, "from scratch")
    return _initialized(task, config, abstract)


def _resumed(
    task: Task,
    path: str,
    checkpoint: layout.CheckpointPath,
    abstract: TrainState,
    allow_change: bool,
) -> Start:
    """Continues another run in a new workdir."""
    layout.require_run(path, checkpoint)
    with contextlib.closing(checkpointer.Checkpointer(checkpoint.run, read_only=True)) as other:
        start = _continued(task, other, checkpoint.step, abstract, allow_change)
    return start._replace(summary=f"{start.summary}, of {checkpoint.run} in a new workdir")


def _initialized(task: Task, config: Any, abstract: TrainState) -> Start:
    """Starts a new run from another model's weights, which are read before anything is compiled."""
    path = config.init_from
    reader.read_on_all_hosts(path, lambda: check_init_from(path))

    def read(source: str) -> convert.Weights:
        return reader.read_on_all_hosts(source, lambda: read_initial(config, source))

    if convert.is_file(path):
        initial = read(path)
    else:
        initial = reader.resolve_and_read(
            path, lambda checkpoint: read(checkpoint.folder), find=reader.find_on_all_hosts
        )
    state, report = load_initial(initial, task, create_state(task, abstract), path=path)
    matched, fresh = len(report["matched"]), len(report["fresh"])
    summary = f"weights from {path}: {matched} of {matched + fresh} arrays"
    return Start(state, origin(initial, path), summary, param_report=report)


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
    # `look_again` is the name in checkpoints of earlier versions.
    rerun_eval = old.get("rerun_eval", old.get("look_again", False))
    return Start(state, old.get("provenance", {}), summary, rerun_eval)


def check_init_from(path: str) -> None:
    """Checks that the weights at `path` exist; the UsageError names the key."""
    try:
        if convert.is_file(path):
            require(os.path.exists(released.locate(path)), f"no file {path}")
        else:
            layout.find(path)
    except UsageError as error:
        raise UsageError(
            f"--config.init_from={path} (default: the run of the recipe's pre-training, which must "
            f"be done first; empty: from scratch): {error}"
        ) from error


def read_initial(config: Any, path: str = "") -> convert.Weights:
    """Reads the weights of `config.init_from`, converted to the model's number of channels.

    Args:
      config: the full configuration; its model provides what the file does not state.
      path: more specific location than `init_from`: one step of the run.

    Raises:
      UsageError: the weights are missing, damaged, incomplete, or have other channels.
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
    weights = convert.load(path, hints=hints, decoder=decoder)
    for line in weights.report.lines():
        log.info("%s: %s", path, line)
    weights.report.check(allow_missing=weights.metadata.get("missing", ()))
    if weights.kind == "mae" and not decoder and not weights.predicts_pixels:
        weights = encoder_only(weights)  # such a decoder cannot be converted to other channels
    return with_channels(weights, model.channels, config.init_channels)


def load_initial(
    initial: convert.Weights, task: Task, state: TrainState, *, path: str
) -> tuple[TrainState, dict[str, Any]]:
    """Loads the parameters of another model into the state of a new run.

    Args:
      initial: from `read_initial`.
      task: decides which weights are used and which parameters are reinitialized
        (`Task.load_pretrained`).
      state: a fresh state; parameters without weights keep their values.
      path: location of the weights, for messages.

    Returns:
      The new state, and a report that lists every parameter as matched, fresh or unused.

    Raises:
      UsageError: a parameter is missing, has another shape, or does not exist in the model.
    """
    pretrained = task.load_pretrained(initial.params, initial.metadata)
    optional = (*pretrained.reinitialized, *initial.metadata.get("missing", ()))
    arrays, fresh, missing, wrong = [], [], [], []
    wanted = flatten(state.params)
    for name, old in wanted.items():
        new = pretrained.arrays.get(name)
        if new is None:
            (fresh if name.startswith(optional) else missing).append(name)
            arrays.append(old)
        elif new.shape != old.shape:
            wrong.append(f"{name} is {new.shape}, needed {old.shape}")
        else:
            arrays.append(jax.make_array_from_callback(new.shape, old.sharding, new.__getitem__))
    unknown = sorted(pretrained.arrays.keys() - wanted.keys())
    log.info("%s: matched %d of %d parameters", path, len(arrays) - len(fresh), len(wanted))
    for text, names in (("initialized randomly", fresh), ("unused", pretrained.unused)):
        log.info("%s: %d parameters: %s", text, len(names), _tops(names))
    if missing or wrong or unknown:
        raise UsageError(
            f"--config.init_from={path} does not fit the model: missing {missing}, other shape "
            f"{wrong}, unknown {unknown}; set --config.model to what "
            f"`python -m mae_jax.tools.inspect {path}` shows"
        )
    matched = [name for name in wanted if name not in fresh]
    report = {"from": path, "matched": matched, "fresh": fresh, "unused": pretrained.unused}
    params = jax.tree.unflatten(jax.tree.structure(state.params), arrays)
    return with_params(task, state, params), report


def origin(initial: convert.Weights, path: str) -> dict[str, Any]:
    """Origin of a run's weights and the license they inherit, for its checkpoints."""
    provenance = initial.metadata.get("provenance", {})
    keys = ("began_with", "released", "file")
    first = next((provenance[key] for key in keys if provenance.get(key)), path)
    license = provenance.get("license", UNKNOWN)
    if license != UNKNOWN:
        log.info("%s: license %s, which also applies to weights derived from it", path, license)
    return {"began_with": first, "license": license}


def _tops(names: Iterable[str]) -> str:
    """The first parts of names such as `decoder_blocks_0/attn/...`, without repetition."""
    return ", ".join(sorted({name.split("/")[0] for name in names})) or "none"
