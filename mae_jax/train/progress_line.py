"""The most important numbers of a step, on a line that fits the terminal."""

from typing import NamedTuple

from mae_jax.train.throughput import LIMIT


class Field(NamedTuple):
    """A part of a line; parts with a high `rank` are left out first."""

    rank: int
    text: str


def fields(values: dict[str, float], eta: str = "") -> list[Field]:
    """The numbers to show, in this order; the metrics have all of them.

    Args:
      values: metrics and speed of a step, by name.
      eta: remaining time, or "".
    """
    waits = values.get("data_wait", 0.0)
    shown = (
        (0, "loss", "loss {}", _number),
        (3, "baseline_loss", "(base {})", _number),
        (3, "top1", "top1 {}", _number),
        (4, "lr", "lr {}", _rate),
        (1, "images_per_s", "{} img/s", _speed),
        (2, "data_wait", "waits {:.0%}", None),
        (5, "mfu", "mfu {:.0%}", None),
    )
    found = [
        Field(rank, text.format(form(values[name]) if form else values[name]))
        for rank, name, text, form in shown
        if name in values and (name != "data_wait" or waits > LIMIT)
    ]
    return found + [Field(0, f"eta {eta}")] * bool(eta)


def fit(parts: list[Field], width: int) -> str:
    """The parts on one line, without the least important ones if it would be too long."""
    while len(line := " ".join(part.text for part in parts)) > width and len(parts) > 1:
        last = max(part.rank for part in parts)
        if last == 0:
            break
        parts = [part for part in parts if part.rank < last]
    return line


def _number(value: float) -> str:
    return f"{value:.3e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"


def _rate(value: float) -> str:
    """0.0012 -> 1.2e-3."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if value and exponent else f"{value:g}"


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
