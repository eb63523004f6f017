"""What a benchmark prints for people."""

from typing import Any


def table(result: dict[str, Any]) -> str:
    """Rows of numbers under their names, then the values that stand alone.

    Args:
      result: name -> number or text; name -> {column: number}, a row; or name -> {row: {column:
        number}}, several rows.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, value in result.items():
        if isinstance(value, dict):
            nested = any(isinstance(x, dict) for x in value.values())
            rows |= value if nested else {name: value}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = []
    if rows:
        lines.append(f"{'':<24}" + "".join(f"  {column}" for column in columns))
    for name, row in rows.items():
        cells = (f"  {row.get(column, ''):>{len(column)}}" for column in columns)
        lines.append(f"{name:<24}" + "".join(cells))
    alone = {name: value for name, value in result.items() if not isinstance(value, dict)}
    return "\n".join(lines + [f"{name:<24}  {value}" for name, value in alone.items()])
