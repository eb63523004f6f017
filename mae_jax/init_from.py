"""Starts a run from the weights of another one, with an account of every parameter."""

import logging
from typing import Any

import jax

from mae_jax import checkpoint
from mae_jax.errors import UsageError
from mae_jax.optim.param_groups import path_name

log = logging.getLogger(__name__)


def load_initial_params(path: str, abstract: Any) -> Any:
    """Parameters of the checkpoint at `path`, laid out as `abstract`.

    Args:
      path: a run's folder or one step's (see `checkpoint.find`).
      abstract: tree of shapes with shardings that the model needs.

    Raises:
      UsageError: a parameter is missing or has another shape.
    """
    flat = jax.tree_util.tree_flatten_with_path
    given = {path_name(p): x for p, x in flat(checkpoint.load_params(path))[0]}
    wanted, tree = flat(abstract)
    arrays, missing, wrong = [], [], []
    for key, spec in wanted:
        name = path_name(key)
        if name not in given:
            missing.append(name)
        elif given[name].shape != spec.shape:
            wrong.append(f"{name} is {given[name].shape}, needed {spec.shape}")
        else:
            arrays.append((given[name], spec))
    unused = sorted(given.keys() - {path_name(key) for key, _ in wanted})
    log.info(
        "%s: matched %d of %d parameters, unused %d %s",
        path, len(arrays), len(wanted), len(unused), unused,
    )  # fmt: skip
    if missing or wrong:
        raise UsageError(
            f"--config.init_from={path} does not fit the model: missing {missing}, other shape "
            f"{wrong}; set --config.model to what `python -m mae_jax.tools.inspect {path}` shows"
        )
    placed = [jax.make_array_from_callback(x.shape, s.sharding, x.__getitem__) for x, s in arrays]
    return jax.tree.unflatten(tree, placed)
