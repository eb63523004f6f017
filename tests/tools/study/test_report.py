"""Tables and plots of studies."""

import json

import numpy as np

from mae_jax.tasks import figures
from mae_jax.tools.study import plan, report


def make_study(tmp_path):
    rows = {"0.5": {"mask.ratio": 0.5}, "0.75": {}}
    study = plan.Study("s", "Ratio", "mask.ratio", rows, {"linprobe": {"0.75": 73.5}}, {})
    cells, done = [], {}
    for row, loss, top1 in (("0.5", 0.25, 0.4), ("0.75", 0.5, None)):
        stages = []
        for name in ("pretrain", "linprobe"):
            folder = tmp_path / row / name
            folder.mkdir(parents=True)
            stages.append(plan.Stage(name, str(folder), [], None, None))
            done[str(folder)] = name == "pretrain" or top1 is not None
            lines = [
                {"step": 0, "epoch": 0, "split": "eval", "loss": 9.0, "baseline_loss": 1.0},
                {"step": 1, "epoch": 1, "split": "eval", "loss": loss, "baseline_loss": 1.0},
                {"step": 1, "epoch": 1, "split": "train", "loss": 7.0},
            ]
            if name == "linprobe":
                lines = [{"step": 1, "epoch": 1, "split": "eval", "top1": top1 or 0.1}]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / "metrics.jsonl").write_text(text)
        cells.append(plan.Cell(row, stages))
    return study, report.rows(study, cells, done)


def test_a_table_has_the_newest_numbers_of_what_is_done(tmp_path):
    study, table = make_study(tmp_path)
    assert table == [
        {"mask.ratio": "0.5", "loss": 0.25, "baseline loss": 1.0, "linear probe": 40.0},
        {"mask.ratio": "0.75", "loss": 0.5, "baseline loss": 1.0, "paper: linear probe": 73.5},
    ]
    assert report.markdown(study.title, table).splitlines()[2:] == [
        "| mask.ratio | loss | baseline loss | linear probe | paper: linear probe |",
        "|---|---|---|---|---|",
        "| 0.5 | 0.2500 | 1.0000 | 40.0 | – |",
        "| 0.75 | 0.5000 | 1.0000 | – | 73.5 |",
    ]
    assert report.comma_separated(table).splitlines()[1] == "0.5,0.25,1.0,40.0,"


def test_a_plot_has_a_panel_for_each_kind_of_number(tmp_path):
    study, table = make_study(tmp_path)
    names, shown = report.series(study, table)
    assert names == ["0.5", "0.75"]
    assert shown == {
        "loss": {"loss": [0.25, 0.5], "baseline loss": [1.0, 1.0]},
        "measured, %": {"linear probe": [40.0, None]},
        "paper, %": {"linear probe": [None, 73.5]},
    }
    for rows in (names, ["a", "b"]):
        image = figures.panels("Ratio", rows, shown)
        assert image.dtype == np.uint8 and image.shape[1] > 2.5 * image.shape[0]
        thirds = np.array_split(image, 3, axis=1)
        assert all((np.ptp(part.astype(int), axis=2) > 60).any() for part in thirds)  # in color
