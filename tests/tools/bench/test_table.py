"""The table of a benchmark."""

from mae_jax.tools.bench.table import table


def test_columns_stand_side_by_side_and_the_rest_before():
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
