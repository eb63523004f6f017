"""Exact evaluation of a finite split: sums and counts give every example the same weight."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.distributed import sharding

# Metrics of a batch: name -> (sum over valid examples, number of valid examples).
Sums = dict[str, tuple[jax.Array, jax.Array]]
EvalStep = Callable[[Any, dict[str, jax.Array]], Any]


def compile_eval_step(eval_step: EvalStep, mesh: Mesh) -> EvalStep:
    """Jits an evaluation step; every host gets the full result of all devices."""

    def step(variables: Any, batch: dict[str, jax.Array]) -> Any:
        return eval_step(sharding.gather(mesh, variables), batch)

    return jax.jit(step, out_shardings=sharding.replicated(mesh))


def evaluate(
    eval_step: EvalStep, params: Any, batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
) -> dict[str, float]:
    """Means over all valid examples, and their number as `count`.

    Args:
      eval_step: from `compile_eval_step`; must count only rows where `valid` is true.
      params: parameters.
      batches: this process's rows of each padded batch.
      mesh: the device mesh.
    """
    totals: dict[str, tuple[float, float]] = {}
    for batch in batches:
        for name, (total, count) in eval_step(params, sharding.to_device(mesh, batch)).items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + float(total), before[1] + float(count))
    means = {name: total / max(count, 1.0) for name, (total, count) in totals.items()}
    return means | {"count": max((count for _, count in totals.values()), default=0.0)}


def stream(
    row_step: Any, variables: Any, batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the output of a step for the rows of each batch; see `collect`."""
    for batch in batches:
        yield jax.device_get(row_step(variables, sharding.to_device(mesh, batch)))


def collect(
    row_step: Any, variables: Any, batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
) -> dict[str, np.ndarray]:
    """Collects the outputs of a step for all valid examples, in order: name -> [N, ...].

    Args:
      row_step: function (variables, batch) -> name -> [B, ...], including `valid`, compiled by
        `compile_eval_step`.
      variables: first argument of `row_step`.
      batches: this process's rows of each padded batch.
      mesh: the device mesh.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for rows in stream(row_step, variables, batches, mesh):
        for name, values in rows.items():
            parts.setdefault(name, []).append(values[rows["valid"]])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}
