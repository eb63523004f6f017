"""The study command, with real runs of a tiny recipe."""

import signal
import subprocess
import sys
import time

import pytest

from mae_jax.runtime.errors import UsageError
from mae_jax.tasks import figures
from mae_jax.tools.study import __main__ as study
from mae_jax.tools.study import report, run
from tests.helpers import tiny_configs
from tests.helpers.processes import REPO


def start(workdir, *more):
    flags = [*tiny_configs.STUDY, f"--workdir={workdir}", *more]
    words = [sys.executable, "-m", "mae_jax.tools.study", *flags]
    return subprocess.Popen(
        words, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_stopped_study_continues_and_gives_the_same_table(tmp_path):
    whole = start(tmp_path / "whole")
    assert whole.wait() == 0, whole.stderr
    table = (tmp_path / "whole" / "mask_ratio.csv").read_text()
    assert len(table.splitlines()) == 3 and table.splitlines()[2].startswith("0.75,0.")
    assert (tmp_path / "whole" / "mask_ratio.md").read_text().startswith("## Masking ratio")
    assert (tmp_path / "whole" / "mask_ratio.png").stat().st_size > 10_000

    workdir = tmp_path / "stopped"
    log = workdir / "base" / "pretrain" / "log.txt"  # 0.75, the second row
    process = start(workdir)
    while "step 3/60" not in (log.read_text() if log.exists() else ""):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate()
    assert process.returncode == 75, messages
    assert "run the same command to continue" in messages
    assert not (workdir / "mask_ratio.csv").read_text().splitlines()[2].startswith("0.75,0.")

    again = start(workdir)
    _, messages = again.communicate()
    assert again.returncode == 0, messages
    assert "0.5, pretrain was done before" in messages
    assert "continuing after step" in log.read_text()
    assert (workdir / "mask_ratio.csv").read_text() == table

    other = start(workdir, "--config.seed=1")
    _, messages = other.communicate()
    assert other.returncode == 2
    assert "is done, with another configuration (seed: 0 -> 1): choose another --work" in messages


def test_a_failed_run_is_reported_and_the_others_continue(tmp_path):
    in_the_way = tmp_path / "mask.ratio=0.5" / "pretrain" / "config.json"
    in_the_way.mkdir(parents=True)
    process = start(tmp_path)
    _, messages = process.communicate()
    assert process.returncode == 1, messages
    assert "error: rows that failed: 0.5" in messages and "0.75, pretrain done in" in messages


@pytest.mark.parametrize(
    "statuses, ended", [([70, 0], 70), ([0, 70], 70), ([70, 1], 70), ([75], 75)]
)
def test_hung_and_stopped_runs_decide_the_exit_status(
    tmp_path, monkeypatch, capsys, statuses, ended
):
    """Each run exits with the next status; after a row that hung the next one still runs."""
    left = iter(statuses)
    monkeypatch.setattr(run, "command", lambda _: [sys.executable, "-c", f"exit({next(left)})"])
    monkeypatch.setattr(study, "write", lambda *_: "table")
    assert study.main([*tiny_configs.STUDY, f"--workdir={tmp_path}"]) == ended
    assert not list(left)
    hung = [row for row, status in zip(("0.5", "0.75"), statuses, strict=False) if status == 70]
    message = f"rows that hung: {', '.join(hung)}; run the same command to continue"
    err = capsys.readouterr().err
    assert (message in err) == bool(hung)
    assert ("stopped; run the same command to continue" in err) == (ended == 75)


def test_a_row_that_another_task_finishes_while_writing_is_in_the_table(tmp_path, monkeypatch):
    """Row 0 finishes while the plot of row 1 is drawn, and may have written its table earlier."""
    drawn = []
    monkeypatch.setattr(run, "run_cell", lambda *_: 0)
    monkeypatch.setattr(run, "is_done", lambda stage: bool(drawn) and "0.5" in stage.folder)
    monkeypatch.setattr(report, "measured", lambda *_: {"loss": 0.25})
    monkeypatch.setattr(figures, "save_png", lambda *_, **__: drawn.append(1))
    assert study.main([*tiny_configs.STUDY, f"--workdir={tmp_path}", "--cell=1"]) == 0
    assert "\n0.5,0.25," in (tmp_path / "mask_ratio.csv").read_text()
    assert len(drawn) == 2


def test_the_commands_can_be_printed_and_split(tmp_path, capsys):
    words = [*tiny_configs.STUDY, f"--workdir={tmp_path}", "--dry_run"]
    assert study.main(words) == 0
    both = capsys.readouterr().out.splitlines()
    assert len(both) == 2 and "--config.mask.ratio=0.5" in both[0]
    assert study.main([*words, "--cell=1"]) == 0
    assert capsys.readouterr().out.splitlines() == both[1:]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "word, message",
    [
        ("--cell=2", "has rows 0 to 1"),
        ("--stages=pretrain", "pretrain is not one of linprobe, finetune"),
        ("--probe.epochs=2", "unknown argument '--probe.epochs=2'"),
        ("--pretrain.mask.rato=2", "did you mean --config.mask.ratio"),
        ("--rows=two", "must be a number"),
    ],
)
def test_mistakes_are_reported_before_anything_runs(tmp_path, word, message):
    with pytest.raises(UsageError, match=message):
        study.main([*tiny_configs.STUDY, f"--workdir={tmp_path}", word])
    assert not list(tmp_path.iterdir())
