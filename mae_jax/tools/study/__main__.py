"""Runs a study: pre-trains, probes and fine-tunes each row of a table.

Examples:
  python -m mae_jax.tools.study --study=configs/ablations/mask_ratio.py
  python -m mae_jax.tools.study --study=configs/ablations/mask_ratio.py \\
      --pretrain=configs/cifar10.py:laptop --stages=linprobe \\
      --linprobe=configs/linprobe/cifar10.py:laptop --rows=0.25,0.5,0.75 \\
      --config.data.root=DIR --pretrain.epochs=8

Every table of the paper is a study file in configs/ablations. After each row,
STUDY.md, STUDY.csv and STUDY.png in the workdir are updated. To continue after
an interruption, run the same command again: finished runs are skipped and an
unfinished one is resumed. Studies in the same workdir share identical runs.

--config.KEY=VALUE changes a key in all stages, --STAGE.KEY=VALUE in one of
pretrain, linprobe and finetune. --stages= (empty) only pre-trains. To spread
the rows over machines or a Slurm array, run only row I with --cell=I.

Exit status: 0 all done, 1 a run failed, 2 invalid input, 70 a run hung and was
ended by the watchdog (--config.watchdog.abort=True), 75 stopped by a signal.
After 70 and 75, run the same command to continue.
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
from mae_jax.runtime.cli import make_parser, run_command, setup_logging
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
        raise UsageError(f"--workdir={folder}: a study needs a local folder, not a bucket")
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
    done = _done(cells)  # raises if a finished run had another configuration
    log.info("%d of %d runs are done", sum(done.values()), len(done))
    with run.Stop().handle_signals() as stop:
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
        if stop.requested or status == STOPPED:
            return STOPPED
        if status:
            failed[cell.row] = status
        table = write(study, cells, folder)
    print(table)
    if hung := [row for row, status in failed.items() if status == HUNG]:
        log.error("rows that hung: %s; run the same command to continue", ", ".join(hung))
        return HUNG
    if failed:
        raise RunError(f"rows that failed: {', '.join(failed)}; the others are done")
    return 0


def write(study: plan.Study, cells: Sequence[plan.Cell], folder: str) -> str:
    """Writes the table and plot of the finished runs; returns the table."""
    text, written = "", None
    # Tasks of an array write the same files. Repeat if another task finished a row while we wrote,
    # or an older table could replace a newer one.
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
            raise UsageError(f"--stages={text}: {stage} is not one of {', '.join(later)}")
    return ["pretrain", *(stage for stage in later if stage in _words(text))]


def _overrides(words: Sequence[str], stages: Sequence[str]) -> dict[str, list[str]]:
    """`--config.KEY=VALUE` for all stages, `--STAGE.KEY=VALUE` for one, as arguments of main."""
    found: dict[str, list[str]] = {stage: [] for stage in stages}
    for word in words:
        match = re.fullmatch(r"--(\w+)\.([^=]+=.*)", word)
        if match is None or match[1] not in ("config", *plan.STAGES):
            raise UsageError(
                f"unknown argument {word!r}: override keys with --config.KEY=VALUE or "
                f"--STAGE.KEY=VALUE, where STAGE is one of {', '.join(plan.STAGES)}"
            )
        for stage in stages:
            if match[1] in ("config", stage):
                found[stage].append(f"--config.{match[2]}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("tools.study", __doc__, allow_abbrev=False)
    add = parser.add_argument
    study = "study file, such as those in configs/ablations"
    add("--study", type=filesystem.expand, required=True, metavar="FILE", help=study)
    workdir_help = "folder for runs and tables (default: %(default)s)"
    add("--workdir", default="runs/studies", metavar="DIR", help=workdir_help)
    add("--rows", default="", metavar="A,B,...", help="run only these rows (default: all)")
    stages = "stages after pre-training (default: %(default)s)"
    add("--stages", default="linprobe,finetune", metavar="A,B,...", help=stages)
    for stage, recipe in plan.STAGES.items():
        default = f"recipe of this stage (default: the study's, or {recipe})"
        add(f"--{stage}", metavar="RECIPE", help=default)
    add("--cell", type=int, metavar="I", help="run only row I, counted from 0")
    add("--dry_run", action="store_true", help="print the commands without running them")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
