"""Starts a run from the weights of another one, with an account of every parameter."""

import logging
import os
from collections.abc import Iterable

import jax

from mae_jax import checkpoint
from mae_jax.errors import UsageError
from mae_jax.params import named
from mae_jax.run_info import write_json
from mae_jax.state import TrainState, with_params
from mae_jax.task import Task

log = logging.getLogger(__name__)


def load_initial(path: str, task: Task, state: TrainState, workdir: str) -> TrainState:
    """A new run's `state` with the parameters of the checkpoint at `path`.

    Args:
      path: a run's folder or one step's (see `checkpoint.find`).
      task: says what of them it can use, and what starts anew (`Task.adopt`).
      state: a fresh state; what the checkpoint does not give stays as it is.
      workdir: gets init_from.json, which names every parameter as matched, fresh or unused.

    Raises:
      UsageError: a parameter is missing, has another shape, or would be left behind.
    """
    given = named(checkpoint.load_arrays(path)["params"])
    adopted = task.adopt(given, checkpoint.load_metadata(path))
    arrays, fresh, missing, wrong = [], [], [], []
    wanted = named(state.params)
    for name, old in wanted.items():
        new = adopted.arrays.get(name)
        if new is None:
            (fresh if name.startswith(adopted.fresh) else missing).append(name)
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
    if jax.process_index() == 0:
        matched = [name for name in wanted if name not in fresh]
        report = {"from": path, "matched": matched, "fresh": fresh, "unused": adopted.unused}
        write_json(os.path.join(workdir, "init_from.json"), report)
    return with_params(task, state, jax.tree.unflatten(jax.tree.structure(state.params), arrays))


def _tops(names: Iterable[str]) -> str:
    """`decoder_blocks_0/attn/...` and the like, by their first part."""
    return ", ".join(sorted({name.split("/")[0] for name in names})) or "none"
