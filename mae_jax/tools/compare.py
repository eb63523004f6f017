"""Compares one metric across runs, in a table and optionally a plot.

Examples:
  python -m mae_jax.tools.compare runs/finetune/demo runs/scratch/demo
  python -m mae_jax.tools.compare runs/a runs/b --metric train/loss \\
      --out loss.png

Metrics are read from each run's metrics.jsonl. A metric is named SPLIT/NAME,
such as eval/top1, eval/loss, train/loss or knn/top1.
"""

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from mae_jax.checkpoint.best import lower_is_better
from mae_jax.runtime import disk, filesystem
from mae_jax.runtime.cli import make_parser, run_command, say
from mae_jax.runtime.errors import UsageError
from mae_jax.runtime.text import printable
from mae_jax.tasks import figures
from mae_jax.train import metric_writer

PREFERRED = ("eval/top1", "knn/top1", "eval/loss")


class Curve(NamedTuple):
    """One metric of one run, by step and by epoch."""

    steps: list[int]
    epochs: list[float]
    values: list[float]


def read_run(folder: str) -> dict[str, Curve]:
    """All curves of a run: "eval/top1" -> Curve.

    Raises:
      UsageError: the folder does not contain a run.
    """
    curves: dict[str, Curve] = {}
    try:
        for values in metric_writer.read(folder):
            step, epoch, split = (values.pop(key) for key in ("step", "epoch", "split"))
            for name, value in values.items():
                curve = curves.setdefault(f"{split}/{name}", Curve([], [], []))
                for column, new in zip(curve, (step, epoch, value), strict=True):
                    column.append(new)
    except FileNotFoundError:
        raise UsageError(f"{folder} has no metrics.jsonl: pass run folders") from None
    return curves


def _label(run: str) -> str:
    return run if filesystem.in_bucket(run) else os.path.normpath(run)


def table(metric: str, runs: dict[str, Curve]) -> str:
    """Markdown table: last and best value of each run, and the step of the best."""
    best = min if lower_is_better(metric) else max
    lines = [
        f"| run | steps | epochs | last {metric} | best | at step |",
        "|---|---|---|---|---|---|",
    ]
    for name, (steps, epochs, values) in runs.items():
        top = best(values)
        length = f"{steps[-1]} | {epochs[-1]:.4g}"
        best_step = steps[values.index(top)]
        scores = f"{values[-1]:.4g} | {top:.4g} | {best_step}"
        lines.append(f"| {printable(name)} | {length} | {scores} |")
    return "\n".join(lines)


def compare(folders: Sequence[str], metric: str | None) -> tuple[str, dict[str, Curve]]:
    """The metric and the curve of each run that has it.

    Raises:
      UsageError: no run has it; the message lists the available metrics.
    """
    all_curves = {_label(folder): read_run(folder) for folder in folders}
    names = sorted({name for curves in all_curves.values() for name in curves})
    metric = metric or next((name for name in PREFERRED if name in names), None)
    runs = {run: curves[metric] for run, curves in all_curves.items() if metric in curves}
    if metric is None or not runs:
        raise UsageError(f"no run has the metric {metric}; available: {', '.join(names)}")
    return metric, runs


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = make_parser("tools.compare", __doc__)
    parser.add_argument(
        "runs", type=filesystem.expand, nargs="+", metavar="RUN", help="run folders to compare"
    )
    parser.add_argument(
        "--metric",
        metavar="SPLIT/NAME",
        help=f"metric to compare (default: the first of {', '.join(PREFERRED)} that any run has)",
    )
    parser.add_argument(
        "--out",
        type=filesystem.expand,
        metavar="PNG",
        help="image file to plot the curves into (default: no plot)",
    )
    args = parser.parse_args(argv)
    metric, runs = compare(args.runs, args.metric)
    say(*table(metric, runs).splitlines())
    missing = [run for run in args.runs if _label(run) not in runs]
    if missing:
        say(f"runs without {metric}: {', '.join(missing)}")
    if args.out:
        lines = {name: (curve.epochs, curve.values) for name, curve in runs.items()}
        with disk.translate_errors(args.out):
            figures.save_png(args.out, figures.curves(metric, lines, xlabel="epoch"))
        say(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
