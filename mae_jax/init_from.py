"""Starts a run from the weights of another model, with an account of every parameter."""

import logging
import os
from collections.abc import Iterable
from typing import Any

import jax

from mae_jax import checkpoint, convert
from mae_jax.config import require
from mae_jax.convert.released import UNKNOWN
from mae_jax.convert.surgery import encoder_only, with_channels
from mae_jax.errors import UsageError
from mae_jax.models.vit import SIZES
from mae_jax.params import named
from mae_jax.state import TrainState, with_params
from mae_jax.task import Task

log = logging.getLogger(__name__)


def check_there(path: str) -> None:
    """Raises UsageError, which names the key, unless there is something at `path` to read."""
    try:
        if convert.is_file(path):
            require(os.path.exists(path), f"no file {path}")
        else:
            checkpoint.find(path)
    except UsageError as error:
        raise UsageError(
            f"--config.init_from={path} (by default, the run of the recipe's own pre-training, "
            f"which comes first; empty: from scratch): {error}"
        ) from error


def read_initial(config: Any) -> convert.Model:
    """The weights that `config.init_from` names, for as many channels as the model has.

    Args:
      config: the whole configuration; its model tells what a file does not say.

    Raises:
      UsageError: there are none, or they are damaged, not whole, or of other channels.
    """
    path, model = config.init_from, config.model
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
    initial: convert.Model, task: Task, state: TrainState, *, path: str
) -> tuple[TrainState, dict[str, Any]]:
    """(a new run's `state` with the parameters of another model, an account of every parameter).

    The account names each as matched, fresh or unused.

    Args:
      initial: from `read_initial`.
      task: says what of them it can use, and what starts anew (`Task.adopt`).
      state: a fresh state; what the weights do not give stays as it is.
      path: where the weights are, for messages.

    Raises:
      UsageError: a parameter is missing, has another shape, or would be left behind.
    """
    adopted = task.adopt(initial.params, initial.metadata)
    may_begin = (*adopted.fresh, *initial.metadata.get("missing", ()))
    arrays, fresh, missing, wrong = [], [], [], []
    wanted = named(state.params)
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


def origin(initial: convert.Model, path: str) -> dict[str, Any]:
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
