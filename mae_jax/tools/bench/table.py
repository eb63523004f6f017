"""Formats the results of a benchmark."""

from typing import Any


def table(result: dict[str, Any]) -> str:
    """Human-readable table: single values first, then one column for each dict of plain values."""
    columns = {k: v for k, v in result.items() if _is_column(v)}
    lines = [f"{name:<32} {value}" for name, value in result.items() if name not in columns]
    if not columns:
        return "\n".join(lines)
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    lines.append(" " * 24 + "".join(f"{name:>16}" for name in columns))
    for row in rows:
        cells = "".join(f"{column.get(row, ''):>16}" for column in columns.values())
        lines.append(f"{row:<24}{cells}")
    return "\n".join(lines)


def _is_column(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(x, (int, float, str)) for x in value.values())
