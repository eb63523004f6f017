"""Applies a row of an ablation to a recipe; shared by the files in this folder."""

import ml_collections


def apply(config: ml_collections.ConfigDict, changes: dict) -> ml_collections.ConfigDict:
    """Sets dotted keys of `config` and returns it."""
    config.update_from_flattened_dict(changes)
    return config


def choose(rows: dict[str, dict], row: str) -> dict:
    """The changes of a row.

    Raises:
      ValueError: there is no such row.
    """
    if row not in rows:
        raise ValueError(f"unknown row {row!r}: one of {', '.join(rows)}")
    return rows[row]
