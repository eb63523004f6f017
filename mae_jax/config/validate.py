"""Refuses a configuration that cannot work, before jax starts or anything is compiled.

`check_names` and `check_values` need the configuration alone; `check_together` also knows the
devices. What depends on the data (the length of an epoch, ...) is checked by the tasks.
"""

import difflib
import functools
import math
from collections.abc import Callable
from typing import Any

from mae_jax.config.diff import flatten, pair
from mae_jax.config.rules import Choice, Str, closest
from mae_jax.config.schema import ALIASES, GROUPS, KEYS, keys_of
from mae_jax.runtime.errors import UsageError, all_of, require

LONGEST = 80  # characters of a value in a message
LEAST_SHAPES = 6  # pixels: smaller figures cannot be told apart
MOST_PATCHES = 2**16  # attention among them would take tables of 2**32


def check_name(key: str) -> None:
    """Raises UsageError unless `key` is that of a value, with what was perhaps meant."""
    if key in KEYS:
        return
    if key in GROUPS:
        first = next(name for name in KEYS if name.startswith(f"{key}."))
        raise UsageError(f"--config.{key} is a group of keys: set them singly, as --config.{first}")
    raise UsageError(
        f"--config.{shorten(key)}: there is no such key{_meant(key)} (docs/configuration.md)"
    )


def shorten(text: str) -> str:
    """Text that is no longer than a message bears."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def _meant(key: str) -> str:
    """The key that is called so elsewhere, or is written nearly so, or whose last part is."""
    last = key.split(".")[-1]
    if other := ALIASES.get(last.lower().replace("-", "_")):
        return f"; did you mean --config.{other}?"
    parts = {name.split(".")[-1]: name for name in KEYS}
    close = difflib.get_close_matches(last, parts, n=1)
    if hint := closest(key, KEYS):
        return hint.replace("mean ", "mean --config.")
    return f"; did you mean --config.{parts[close[0]]}?" if close else ""


def check_value(key: str, value: Any) -> None:
    """Raises UsageError unless `value` is what the key's rule allows."""
    rule = KEYS[key].rule
    if rule.accepts(value):
        return
    plain = isinstance(value, str) and value.isprintable() and isinstance(rule, (Choice, Str))
    text = shorten(value if plain and value else repr(value))
    if isinstance(rule, Choice):
        hint = closest(value, rule.options) if isinstance(value, str) else ""
        raise UsageError(f"--config.{key}={text} is not {rule.allowed()}{hint}")
    raise UsageError(f"--config.{key}={text} must be {rule.allowed()}")


def check_values(config: Any) -> None:
    """Every key is known and in range, and none that the task needs is missing.

    Raises:
      UsageError: for all that is not so.
    """
    flat = flatten(config)
    all_of(*(functools.partial(_check_key, key, value) for key, value in flat.items()))
    require("task" in flat, "the recipe has no config.task: derive it from configs/vit_l.py")
    needed = keys_of(flat["task"]).items()
    lacking = [f"config.{key} ({row.rule.allowed()})" for key, row in needed if key not in flat]
    require(
        not lacking,
        f"the recipe has no {', '.join(lacking[:3])}{', ...' * (len(lacking) > 3)}, which "
        f"{config.task} needs: derive it from a file of configs/",
    )


def _check_key(key: str, value: Any) -> None:
    check_name(key)
    check_value(key, value)


def check_combinations(config: Any, num_devices: int, *more: Callable[[], object]) -> None:
    """What `check_values` checks, and whether the values of several keys fit together.

    Args:
      config: the whole configuration.
      num_devices: that share a batch.
      more: further checks, of values that are known to be in range.

    Raises:
      UsageError: for all that does not.
    """
    check_values(config)
    checks = (_check_image, _check_channels, _check_target)
    all_of(
        functools.partial(_check_batch, config, num_devices),
        *(functools.partial(check, config) for check in checks),
        *more,
    )


def _check_batch(config: Any, num_devices: int) -> None:
    rows, batch = num_devices * config.grad_accum, config.batch_size
    if batch < 1:  # to be chosen
        return
    low = batch // rows * rows
    nearest = f"{low} or {low + rows}" if low else f"{rows}"
    require(
        batch % rows == 0,
        f"--config.batch_size={batch} is not divisible by {num_devices} devices x "
        f"grad_accum {config.grad_accum} = {rows}; nearest: {nearest}",
    )


def _check_image(config: Any) -> None:
    sizes = [
        pair(config.model[key], f"--config.model.{key}") for key in ("image_size", "patch_size")
    ]
    patches = math.prod(image // patch for image, patch in zip(*sizes, strict=True))
    require(
        patches <= MOST_PATCHES,
        f"--config.model.image_size={sizes[0]} has {patches} patches of {sizes[1]}, where "
        f"{MOST_PATCHES} are possible: raise --config.model.patch_size",
    )
    require(
        config.data.source != "shapes" or min(sizes[0]) >= LEAST_SHAPES,
        f"--config.data.source=shapes has no pictures of {sizes[0]}: --config.model.image_size "
        f"takes sides of {LEAST_SHAPES} or more",
    )


def _check_channels(config: Any) -> None:
    channels = config.model.channels
    for key in ("mean", "std"):
        values = config.data[key]
        require(
            len(values) == channels,
            f"--config.data.{key}={values} has {len(values)} numbers, but --config.model.channels="
            f"{channels}",
        )
        _check_units(config.data, key)
    require(
        channels == 3 or not (config.data.randaug_magnitude or config.data.color_jitter),
        f"RandAugment and colour jitter need 3 channels, not {channels}: set "
        "--config.data.randaug_magnitude=0 and --config.data.color_jitter=0",
    )


def _check_units(data: Any, key: str) -> None:
    """8-bit images are scaled to [0, 1], so no mean or deviation can lie outside."""
    values = data[key]
    if data.dtype != "uint8" or all(0 <= value <= 1 for value in values):
        return
    scaled = tuple(round(value / 255, 4) for value in values)
    meant = f"; in units of 0 to 255? Then set --config.data.{key}={scaled}"
    raise UsageError(
        f"--config.data.{key}={tuple(values)} does not fit 8-bit images, whose values are scaled "
        f"to [0, 1] first{meant if all(0 <= x <= 1 for x in scaled) else ''} (pixels keep the "
        "units of their files with --config.data.dtype=float32)"
    )


def _check_target(config: Any) -> None:
    if config.task != "pretrain" or config.target.kind != "pca":
        return
    target, channels = config.target, config.model.channels
    patch = pair(config.model.patch_size, "--config.model.patch_size")
    require(
        not target.normalize,
        "--config.target.kind=pca takes the pixels as they are: set "
        "--config.target.normalize=False",
    )
    numbers = patch[0] * patch[1] * channels
    require(
        target.components <= numbers,
        f"--config.target.components={target.components} is more than the {numbers} numbers of a "
        f"patch of {patch[0]}x{patch[1]} pixels in {channels} channels: lower it to {numbers} or "
        "less",
    )
