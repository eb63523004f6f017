"""Several variants of a recipe side by side; the command is `mae_jax.tools.bench`, `--rows`."""

import statistics
from typing import Any

from mae_jax.config.schema import current_name
from mae_jax.runtime.errors import UsageError
from mae_jax.tools.bench.step import TimedStep, make_task, numbers_of, take_turns


def bench_rows(config: Any, rows: dict[str, dict[str, Any]], repeats: int) -> dict[str, Any]:
    """Times the train step of each row, by turns, on batches that lie on the devices.

    All of them are in memory at once.

    Args:
      config: what the rows change; a configuration of any task that trains.
      rows: for the name of each row, values by dotted key.
      repeats: timed steps of each.

    Returns:
      For each row a dict of numbers. `speed_up` is over the first row: the median over the turns of
      their ratio; `flop_ratio` is what the official algorithm's arithmetic would make of it.

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
    times = take_turns(steps, repeats)
    first = next(iter(rows))
    result = {}
    for name, step in steps.items():
        images = batches[name] / batches[first]
        result[name] = numbers_of(times[name], step, batches[name], flops[name]) | {
            "train_gflop_per_image": round(flops[name] / 1e9, 1),
            "speed_up": round(speed_up(times[first], times[name], images=images), 2),
            "flop_ratio": round(flops[first] / flops[name], 2),
        }
    return result


def speed_up(first: list[float], other: list[float], *, images: float) -> float:
    """Median over the turns of how many times the images/s of the first the other makes.

    Args:
      first, other: seconds of their steps, turn by turn.
      images: of a step of the other, in those of the first.
    """
    return images * statistics.median(a / b for a, b in zip(first, other, strict=True))
