"""The table that a benchmark prints."""

from mae_jax.tools.bench.table import table


def test_columns_are_side_by_side_after_the_single_values():
    text = table(
        {"a": {"x": 1, "y": 2.5}, "b": {"x": 3, "z": "k"}, "ratio": 0.5, "nest": {"q": {}}}
    )
    rows = [line.split() for line in text.splitlines()]
    assert rows == [
        ["ratio", "0.5"],
        ["nest", "{'q':", "{}}"],
        ["a", "b"],
        ["x", "1", "3"],
        ["y", "2.5"],
        ["z", "k"],
    ]
