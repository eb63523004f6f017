"""Types of rules for config values; `schema` lists the rule of every key."""

import abc
import dataclasses
import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

from mae_jax.runtime import extensions

LARGEST = 2**31 - 1  # steps and examples are counted in int32 on devices
HUGE = 1e9


@dataclasses.dataclass(frozen=True)
class Rule(abc.ABC):
    """A constraint on a value."""

    @abc.abstractmethod
    def allowed(self) -> str:
        """The allowed values, to follow "must be" in a message."""

    @abc.abstractmethod
    def accepts(self, value: Any) -> bool:
        """Whether a value is allowed."""


@dataclasses.dataclass(frozen=True)
class Int(Rule):
    """An integer from `low` to `high`, or one of `also`, such as -1 for "the rest"."""

    low: int = 0
    high: int = LARGEST
    also: tuple[int, ...] = ()

    def allowed(self) -> str:
        return f"{_exceptions(self.also)}an integer from {self.low} to {self.high}"

    def accepts(self, value: Any) -> bool:
        return _is_whole(value) and (self.low <= value <= self.high or value in self.also)


@dataclasses.dataclass(frozen=True)
class Float(Rule):
    """A finite number from `low` to `high`; `above` and `below` exclude the endpoints.

    `also` lists exceptions, such as -1 for "chosen from the number of images".
    """

    low: float = 0.0
    high: float = HUGE
    above: bool = False
    below: bool = False
    also: tuple[Any, ...] = ()

    def allowed(self) -> str:
        return f"{_exceptions(self.also)}a number in {_interval(self)}"

    def accepts(self, value: Any) -> bool:
        return _is_number(value) and (_inside(self, value) or value in self.also)


@dataclasses.dataclass(frozen=True)
class Floats(Float):
    """A sequence of numbers from `low` to `high`.

    Attributes:
      lengths: allowed lengths; empty for any. If 1 is allowed, so is a number without a tuple.
      whole: integers only.
      ordered: must not decrease.
    """

    lengths: tuple[int, ...] = ()
    whole: bool = False
    ordered: bool = False

    def allowed(self) -> str:
        count = " or ".join(map(str, sorted(self.lengths))) or "one or more"
        order = ", in increasing order" if self.ordered else ""
        kind = "integers" if self.whole else "numbers"
        return f"{_exceptions(self.also)}{count} {kind} in {_interval(self)}{order}"

    def accepts(self, value: Any) -> bool:
        if isinstance(value, (tuple, list)) and tuple(value) in self.also:
            return True
        if not isinstance(value, (tuple, list)) and 1 in self.lengths:
            value = (value,)
        if not isinstance(value, (tuple, list)) or not value:
            return False
        good = _is_whole if self.whole else _is_number
        return (
            (not self.lengths or len(value) in self.lengths)
            and all(good(x) and _inside(self, x) for x in value)
            and (not self.ordered or list(value) == sorted(value))
        )


@dataclasses.dataclass(frozen=True)
class Bool(Rule):
    """True or False."""

    def allowed(self) -> str:
        return "True or False"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Choice(Rule):
    """One of a few words; if `extensible`, also a user-defined `module:attribute`."""

    options: tuple[str, ...]
    extensible: bool = False

    def allowed(self) -> str:
        own = " or your own module:attribute" if self.extensible else ""
        return f"one of {', '.join(self.options)}{own}"

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, str):
            return False
        own = self.extensible and extensions.NAME.fullmatch(value) is not None
        return value in self.options or own


@dataclasses.dataclass(frozen=True)
class Str(Rule):
    """Printable text that matches a pattern; by default anything up to the length of a path.

    Attributes:
      form: regular expression.
      shown: human-readable form of the pattern.
    """

    form: str = r".{0,4096}"
    shown: str = "text"

    def allowed(self) -> str:
        return self.shown

    def accepts(self, value: Any) -> bool:
        whole = isinstance(value, str) and re.fullmatch(self.form, value)
        return bool(whole) and value.isprintable()


@dataclasses.dataclass(frozen=True)
class Place(Str):
    """A path, or ""; `~` is the home folder (`filesystem.expand`)."""

    shown: str = "a path"


def closest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" if a known word is close to an unknown one, or ""."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _exceptions(values: tuple[Any, ...]) -> str:
    return "".join(f"{value} or " for value in values)


def _interval(rule: Float) -> str:
    left, right = "(" if rule.above else "[", ")" if rule.below else "]"
    return f"{left}{rule.low:g}, {rule.high:g}{right}"


def _inside(rule: Float, value: float) -> bool:
    if (rule.above and value == rule.low) or (rule.below and value == rule.high):
        return False
    return rule.low <= value <= rule.high
