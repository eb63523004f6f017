"""Compares variants of a recipe: `mae_jax.tools.bench step --rows`."""

import statistics
from typing import Any

from mae_jax.config.schema import current_name
from mae_jax.runtime.errors import UsageError
from mae_jax.tools.bench.step import TimedStep, interleave, make_task, summarize


def bench_rows(config: Any, rows: dict[str, dict[str, Any]], repeats: int) -> dict[str, Any]:
    """Times the train steps of all rows, interleaved, on batches that are already on the devices.

    All rows are in memory at the same time.

    Args:
      config: the configuration that the rows change, of any task that trains.
      rows: name -> values by dotted key.
      repeats: timed steps of each row.

    Returns:
      A dict of numbers for each row. `speed_up` is over the first row: the median of the ratios of
      all rounds; `flop_ratio` is the speed-up that the FLOPs of the official algorithm predict.

    Raises:
      UsageError: the recipe lacks a key that a row changes, or the values do not fit together.
    """
    steps, flops, batches = {}, {}, {}
    for name, changes in rows.items():
        changed = config.copy_and_resolve_references()
        try:
            changed.update_from_flattened_dict({current_name(k): x for k, x in changes.items()})
        except KeyError as error:
            raise UsageError(f"--rows: the recipe lacks a key of row {name}: {error}") from error
        task = make_task(changed)
        steps[name] = TimedStep(task, changed)
        flops[name], batches[name] = task.flops_per_image, changed.batch_size
    times = interleave(steps, repeats)
    first = next(iter(rows))
    result = {}
    for name, step in steps.items():
        images = batches[name] / batches[first]
        result[name] = summarize(times[name], step, batches[name], flops[name]) | {
            "train_gflop_per_image": round(flops[name] / 1e9, 1),
            "speed_up": round(speed_up(times[first], times[name], images=images), 2),
            "flop_ratio": round(flops[first] / flops[name], 2),
        }
    return result


def speed_up(first: list[float], other: list[float], *, images: float) -> float:
    """Median over all rounds of the ratio of images/s, other over first.

    Args:
      first, other: seconds of their steps, round by round.
      images: images per step of the other, divided by images per step of the first.
    """
    return images * statistics.median(a / b for a, b in zip(first, other, strict=True))
