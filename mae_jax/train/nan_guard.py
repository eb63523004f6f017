"""Counts updates that were skipped because they were not finite."""

import os
from collections.abc import Callable
from typing import Any

import jax

from mae_jax.runtime import filesystem

REMEDIES = (
    "a lower --config.optim.base_lr, --config.optim.grad_clip=1.0 or --config.model.dtype=float32, "
    "each with --allow_config_change"
)


class NanGuard:
    """Counts skipped updates; too many in a row end the run.

    Args:
      max_skips: number of consecutive skips that ends the run.
      workdir: folder of the run.
      describe_batch: function of the step (from 1) that returns human-readable names of the
        examples of its batch.

    Attributes:
      streak: updates skipped in a row so far.
      total: updates skipped since this start of the run.
    """

    def __init__(self, max_skips: int, workdir: str, describe_batch: Callable[[int], list[str]]):
        self.streak, self.total = 0, 0
        self._max_skips, self._workdir = max_skips, workdir
        self._describe_batch = describe_batch
        self._bad: list[dict[str, Any]] = []
        self._last_finite = "no step of this start had a finite loss"

    def check(
        self, step: int, values: dict[str, float], newest: Callable[[], int | None]
    ) -> str | None:
        """Records a step; returns a warning if its update was skipped.

        Args:
          step: the step, from 1.
          values: its `skipped`, `loss`, `grad_norm` and `lr`.
          newest: returns the newest checkpoint.

        Raises:
          FloatingPointError: too many updates in a row were skipped; the message names the report.
        """
        if not values["skipped"]:
            self.streak, self._bad = 0, []
            self._last_finite = f"the last finite loss was {values['loss']:.6g} at step {step}"
            return None
        self.streak += 1
        self.total += 1
        shown = {name: str(values[name]) for name in ("loss", "grad_norm", "lr")}
        self._bad.append({"step": step, **shown})
        numbers = ", ".join(f"{name} {value}" for name, value in shown.items())
        if self.streak < self._max_skips:
            return (
                f"step {step}: {numbers}: not finite, the update was skipped "
                f"({self.streak} in a row; {self._max_skips} end the run)"
            )
        raise FloatingPointError(
            f"step {step}: {numbers}: not finite, {self.streak} updates in a row; "
            f"{self._last_finite}; {_saved(newest())}. The examples of these batches are "
            f"{self._report()}. Remedies: {REMEDIES}"
        )

    def _report(self) -> str:
        """Process 0 writes the examples of the skipped batches; returns where."""
        steps = [bad | {"examples": self._describe_batch(bad["step"])} for bad in self._bad]
        path = os.path.join(self._workdir, f"not_finite_{steps[-1]['step']:08d}.json")
        try:
            if jax.process_index() == 0:
                filesystem.write_json(path, steps)
        except OSError as error:
            return f"not listed, since {path} cannot be written ({error})"
        return f"listed in {path}"


def _saved(step: int | None) -> str:
    return "nothing was saved" if step is None else f"checkpoint {step} is untouched"
