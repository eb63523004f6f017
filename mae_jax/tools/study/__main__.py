"""Runs a table of the paper: pre-trains, probes and fine-tunes each of its rows.

Examples:
  python -m mae_jax.tools.study --study=configs/ablations/mask_ratio.py
  python -m mae_jax.tools.study --study=configs/ablations/mask_ratio.py \\
      --pretrain=configs/cifar10.py:laptop --stages=linprobe \\
      --linprobe=configs/linprobe/cifar10.py:laptop --rows=0.25,0.5,0.75 \\
      --config.data.root=DIR --pretrain.epochs=8

To continue after any interruption, run the same command again: rows that are
done are skipped, and a half-finished one continues. Studies in one workdir
share the runs they have in common. STUDY.md, STUDY.csv and STUDY.png are
written into the workdir after every row.

--config.KEY=VALUE changes a key in all stages, --STAGE.KEY=VALUE in one.
--stages= (empty) only pre-trains. On many machines, or in the tasks of a Slurm
array, --cell=I runs only row I, counted from 0. --dry_run prints the commands.

Exit status: 0 all done, 1 a run failed, 2 invalid input, 70 a run hung and the
watchdog ended it (--config.watchdog.abort=True), 75 stopped by a signal. After
70 and 75, run the same command to continue.
"""

import argparse
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from mae_jax.runtime import disk, filesystem, workdir
from mae_jax.runtime.cli import run_command, setup_logging
from mae_jax.runtime.errors import HUNG, STOPPED, RunError, UsageError
from mae_jax.tasks import figures
from mae_jax.tools.study import plan, report, run

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args, rest = _parser().parse_known_args(argv)
    setup_logging()
    study = plan.load(args.study)
    folder = workdir.resolve(args.workdir)
    if filesystem.in_bucket(folder):
        raise UsageError(f"--workdir={folder}: a study keeps its logs and tables on a disk")
    stages = _stages(args.stages)
    cells = plan.cells(
        plan.choose(study, _words(args.rows)),
        recipes={stage: getattr(args, stage) or study.recipes[stage] for stage in stages},
        overrides=_overrides(rest, stages),
        workdir=folder,
    )
    if args.cell is not None and not 0 <= args.cell < len(cells):
        raise UsageError(f"--cell={args.cell}: the study has rows 0 to {len(cells) - 1}")
    mine = cells if args.cell is None else [cells[args.cell]]
    if args.dry_run:
        for cell in mine:
            for stage in cell.stages:
                print(shlex.join(run.command(stage)))
        return 0
    done = _done(cells)  # or refused: at once
    log.info("%d of %d runs are done", sum(done.values()), len(done))
    with run.Stop().listening() as stop:
        return _run(study, cells, mine, folder, stop)


def _run(
    study: plan.Study,
    cells: Sequence[plan.Cell],
    mine: Sequence[plan.Cell],
    folder: str,
    stop: run.Stop,
) -> int:
    failed: dict[str, int] = {}
    table = ""
    for cell in mine:
        status = run.run_cell(cell, f"[{cells.index(cell) + 1}/{len(cells)}]", stop)
        if stop.heard or status == STOPPED:
            return STOPPED
        if status:
            failed[cell.row] = status
        table = write(study, cells, folder)
    print(table)
    if hung := [row for row, status in failed.items() if status == HUNG]:
        log.error("rows that hung: %s; the same command continues", ", ".join(hung))
        return HUNG
    if failed:
        raise RunError(f"rows that failed: {', '.join(failed)}; the others are done")
    return 0


def write(study: plan.Study, cells: Sequence[plan.Cell], folder: str) -> str:
    """Writes table and plot of what is done so far; returns the table."""
    text, written = "", None
    # Tasks of an array write the same files: over a newer table, if another row was done meanwhile.
    while (done := _done(cells)) != written:
        with disk.translate_errors(folder):
            text, written = _write(study, report.rows(study, cells, done), folder), done
    return text


def _write(study: plan.Study, table: Sequence[dict[str, Any]], folder: str) -> str:
    text = report.markdown(study.title, table)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, study.name)
    image = figures.panels(study.title, *report.series(study, table))
    figures.save_png(path + ".png", image, shared=True)
    for extension, content in ((".md", text), (".csv", report.comma_separated(table))):
        filesystem.write(path + extension, content.encode(), shared=True)
    return text


def _done(cells: Sequence[plan.Cell]) -> dict[str, bool]:
    return {stage.folder: run.is_done(stage) for cell in cells for stage in cell.stages}


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _stages(text: str) -> list[str]:
    later = [stage for stage in plan.STAGES if stage != "pretrain"]
    for stage in _words(text):
        if stage not in later:
            raise UsageError(f"--stages={text}: {stage} is none of {', '.join(later)}")
    return ["pretrain", *(stage for stage in later if stage in _words(text))]


def _overrides(words: Sequence[str], stages: Sequence[str]) -> dict[str, list[str]]:
    """`--config.KEY=VALUE` for all stages, `--STAGE.KEY=VALUE` for one, as arguments of main."""
    found: dict[str, list[str]] = {stage: [] for stage in stages}
    for word in words:
        match = re.fullmatch(r"--(\w+)\.([^=]+=.*)", word)
        if match is None or match[1] not in ("config", *plan.STAGES):
            raise UsageError(
                f"unknown argument {word!r}: settings are --config.KEY=VALUE or --STAGE.KEY=VALUE "
                f"with one of {', '.join(plan.STAGES)}"
            )
        for stage in stages:
            if match[1] in ("config", stage):
                found[stage].append(f"--config.{match[2]}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mae_jax.tools.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--study", type=filesystem.expand, required=True, help="a file of configs/ablations"
    )
    parser.add_argument("--workdir", default="runs/studies", help="folder of studies (%(default)s)")
    parser.add_argument("--rows", default="", help="A,B,...: these rows alone")
    parser.add_argument("--stages", default="linprobe,finetune", help="after pre-training")
    for stage, recipe in plan.STAGES.items():
        parser.add_argument(
            f"--{stage}", metavar="RECIPE", help=f"default: the study's, or {recipe}"
        )
    parser.add_argument("--cell", type=int, help="run this row alone, counted from 0")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
