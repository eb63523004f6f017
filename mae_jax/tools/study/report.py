"""Results of a study next to the paper's numbers, as a table (Markdown, CSV) and a plot."""

import contextlib
import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from mae_jax.tools.study.plan import Cell, Study
from mae_jax.train import metric_writer

# For each stage: column -> (split, name) of metrics.jsonl; accuracies in percent.
COLUMNS: dict[str, dict[str, tuple[str, str]]] = {
    "pretrain": {
        "loss": ("eval", "loss"),
        "baseline loss": ("eval", "baseline_loss"),
        "probe": ("probe", "top1"),
        "kNN": ("knn", "top1"),
    },
    "linprobe": {"linear probe": ("eval", "top1")},
    "finetune": {"fine-tuned": ("eval", "top1")},
}
PAPER = {"linprobe": "linear probe", "finetune": "fine-tuned"}  # stage -> column


def measured(stage: str, folder: str) -> dict[str, float]:
    """The latest evaluation results of a run by column; {} if there are none yet."""
    newest: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(FileNotFoundError):
        newest = {values["split"]: values for values in metric_writer.read(folder)}
    results = {}
    for column, (split, name) in COLUMNS[stage].items():
        if split in newest:
            value = newest[split][name]
            results[column] = 100 * value if name == "top1" else value
    return results


def rows(study: Study, cells: Sequence[Cell], done: Mapping[str, bool]) -> list[dict[str, Any]]:
    """One dict per row: its name, our results, and the paper's.

    Args:
      study: the study.
      cells: its runs.
      done: folder of a stage -> whether its run is finished; unfinished runs are left out.
    """
    table = []
    for cell in cells:
        row: dict[str, Any] = {study.key or "row": cell.row}
        for stage in cell.stages:
            if done[stage.folder]:
                row |= measured(stage.name, stage.folder)
        for stage, column in PAPER.items():
            if cell.row in study.paper.get(stage, {}):
                row[f"paper: {column}"] = study.paper[stage][cell.row]
        table.append(row)
    return table


def columns(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of all rows: the row's name, our results, then the paper's."""
    names = list(dict.fromkeys(name for row in table for name in row))
    return sorted(names, key=lambda name: name.startswith("paper"))


def markdown(title: str, table: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown."""
    names = columns(table)
    lines = [f"## {title}", "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in table:
        lines.append(f"| {' | '.join(_text(name, row.get(name)) for name in names)} |")
    return "\n".join(lines) + "\n"


def comma_separated(table: Sequence[Mapping[str, Any]]) -> str:
    """The table as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns(table), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


def series(
    study: Study, table: Sequence[Mapping[str, Any]]
) -> tuple[list[str], dict[str, dict[str, list[float | None]]]]:
    """Names of the rows, and panel -> curve -> values, for `figures.panels`."""
    names = [str(row[study.key or "row"]) for row in table]
    shown: dict[str, dict[str, list[float | None]]] = {}
    for column in columns(table)[1:]:
        paper = column.startswith("paper: ")
        panel = "paper, %" if paper else "loss" if "loss" in column else "measured, %"
        values = [row.get(column) for row in table]
        shown.setdefault(panel, {})[column.removeprefix("paper: ")] = values
    return names, shown


def _text(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}" if "loss" in name else f"{value:.1f}"
    return str(value)
