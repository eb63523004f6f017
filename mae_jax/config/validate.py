"""Rejects invalid configurations before anything is compiled.

`check_name` and `check_values` need only the config, and run before jax starts;
`check_combinations` also needs the devices. The tasks check what depends on the data, such as the
length of an epoch.
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

MAX_CHARS = 80  # of a value in a message
MIN_SHAPES_SIDE = 6  # pixels; smaller shapes are indistinguishable
MAX_PATCHES = 2**16  # the attention matrix would have 2**32 entries


def check_name(key: str) -> None:
    """Raises UsageError, with a suggestion, unless `key` is the name of a value."""
    if key in KEYS:
        return
    if key in GROUPS:
        first = next(name for name in KEYS if name.startswith(f"{key}."))
        raise UsageError(f"--config.{key} is a group of keys: set one, such as --config.{first}")
    raise UsageError(
        f"--config.{shorten(key)}: there is no such key{_suggestion(key)} (docs/configuration.md)"
    )


def shorten(text: str) -> str:
    """The text, truncated for a message."""
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}... ({len(text)} characters)"


def _suggestion(key: str) -> str:
    """Suggests the key with this alias, with a similar name, or with a similar last part."""
    last = key.split(".")[-1]
    if other := ALIASES.get(last.lower().replace("-", "_")):
        return f"; did you mean --config.{other}?"
    parts = {name.split(".")[-1]: name for name in KEYS}
    close = difflib.get_close_matches(last, parts, n=1)
    if hint := closest(key, KEYS):
        return hint.replace("mean ", "mean --config.")
    return f"; did you mean --config.{parts[close[0]]}?" if close else ""


def check_value(key: str, value: Any) -> None:
    """Raises UsageError unless the key's rule accepts `value`."""
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
    """Checks that every key is known and in range, and that no required key is missing.

    Raises:
      UsageError: with every problem.
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
    """Runs `check_values`, and checks that the values are consistent with each other.

    Args:
      config: the whole configuration.
      num_devices: number of devices that split a batch.
      more: further checks, run only if all values are in range.

    Raises:
      UsageError: with every problem.
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
        patches <= MAX_PATCHES,
        f"--config.model.image_size={sizes[0]} has {patches} patches of {sizes[1]}, more "
        f"than {MAX_PATCHES}: raise --config.model.patch_size",
    )
    require(
        config.data.source != "shapes" or min(sizes[0]) >= MIN_SHAPES_SIDE,
        f"--config.data.source=shapes cannot draw images of {sizes[0]}: the sides of "
        f"--config.model.image_size must be at least {MIN_SHAPES_SIDE}",
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
        f"RandAugment and color jitter need 3 channels, not {channels}: set "
        "--config.data.randaug_magnitude=0 and --config.data.color_jitter=0",
    )


def _check_units(data: Any, key: str) -> None:
    """8-bit images are scaled to [0, 1], so their mean and deviation must be in that range."""
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
        f"--config.target.components={target.components} is more than the {numbers} values of a "
        f"patch of {patch[0]}x{patch[1]} pixels in {channels} channels: lower it to {numbers} or "
        "less",
    )
