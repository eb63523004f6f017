"""The best step of a run by one of its metrics, recorded in `<run>/best.json`."""

import json
import math
import re
from typing import Any, NamedTuple

from mae_jax.runtime import filesystem

FILE = "best.json"
# Parts of a metric's name, such as `ema_top1`, `test_error` or `box_AP`.
_LOWER = re.compile(r"loss|error|mse|kl", re.IGNORECASE)
_HIGHER = re.compile(r"top\d+|acc|accuracy|m?ap\d*|m?iou|auc|f1|psnr", re.IGNORECASE)


class Best(NamedTuple):
    """A step and its value of a metric.

    Attributes:
      metric: `split/name` as in metrics.jsonl, such as eval/top1.
      value: finite.
      step: number of completed steps.
    """

    metric: str
    value: float
    step: int

    def beats(self, other: "Best | None") -> bool:
        """Whether this is better than `other`; an equal value is not."""
        if other is None:
            return True
        sign = -1 if lower_is_better(self.metric) else 1
        return sign * self.value > sign * other.value

    def __str__(self) -> str:
        return f"step {self.step}, {self.metric} {self.value:.4g}"


def lower_is_better(metric: str) -> bool | None:
    """Whether lower values of a metric are better, judged by its name; None if unknown."""
    parts = metric.split("/")[-1].split("_")
    if any(_LOWER.fullmatch(part) for part in parts):
        return True
    return False if any(_HIGHER.fullmatch(part) for part in parts) else None


def candidate(metric: str, step: int, metrics: dict[str, float]) -> Best | None:
    """The value of a metric after a step; None if it was not computed or is not finite.

    Args:
      metric: `split/name`; "" for none.
      step: number of completed steps.
      metrics: values by `split/name`.
    """
    value = metrics.get(metric, math.nan)
    return Best(metric, value, step) if math.isfinite(value) else None


def read(run: str) -> Best | None:
    """The recorded best step of a run; None if there is no valid record."""
    try:
        record: Any = json.loads(filesystem.read(f"{run}/{FILE}"))
        return Best(str(record["metric"]), float(record["value"]), int(record["step"]))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def write(run: str, best: Best | None) -> None:
    """Records the best step of a run, atomically; None removes the record.

    Raises:
      OSError: the run's folder cannot be written to.
    """
    if best is None:
        filesystem.remove(f"{run}/{FILE}")
    else:
        filesystem.write_json(f"{run}/{FILE}", best._asdict())
