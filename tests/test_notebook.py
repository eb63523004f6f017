"""The notebook of docs/ runs from its first cell to its last."""

import json

import matplotlib
import pytest

from tests.helpers.processes import REPO

# Two updates of a tiny model.
FLAGS = [
    "--config.steps=2",
    "--config.batch_size=8",
    "--config.model.image_size=(24,24)",
    "--config.model.patch_size=(8,8)",
    "--config.model.depth=1",
    "--config.data.holdout=8",
    "--config.eval_every=2",
    "--config.figure_every=0",
]


@pytest.fixture(scope="module")
def cells():
    with open(f"{REPO}/docs/quickstart.ipynb", encoding="utf-8") as file:
        found = json.load(file)["cells"]
    assert all(cell["cell_type"] == "markdown" or not cell["outputs"] for cell in found)
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def test_every_cell_runs(cells, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", REPO)
    matplotlib.use("agg")
    cells = [cell.replace("FLAGS = []", f"FLAGS = {FLAGS}") for cell in cells]
    cells = [cell.replace("per_class=100", "per_class=10") for cell in cells]
    scope: dict = {}
    for cell in cells:
        exec(compile(cell, "quickstart.ipynb", "exec"), scope)
    printed = capfd.readouterr().out
    assert "<Pretrained runs/quickstart/pretrained, step 2" in printed
    assert scope["classifier"].class_names == ["circle", "square", "triangle"]
    assert scope["nearest"][:, 0].tolist() == scope["queries"].tolist()
    lines = [line for line in printed.splitlines() if line.endswith("%")]
    assert len(lines) == 5
    assert {line.split()[0] for line in lines} <= {"circle", "square", "triangle"}
