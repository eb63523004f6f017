"""The commands around classification: evaluate a checkpoint, compare runs."""

import json
import os
import resource
import shutil

import numpy as np
import pytest
from PIL import Image

from mae_jax.runtime.errors import RunError, UsageError
from mae_jax.tasks.classification_eval import Predictions
from mae_jax.tasks.classify import Classify
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tools import compare, evaluate
from mae_jax.train import loop
from tests.helpers import tiny_configs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A fine-tuned run on a folder, with an average of the weights."""
    root, workdir = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("bird", "cat", "dog")):
        (root / name).mkdir()
        for i in range(20):
            pixels = np.clip(rng.normal(40 + 80 * label, 20, (16, 16, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    config = tiny_configs.classify_config(
        init_from="", epochs=14.0, steps=0, data__source="folder", data__root=str(root),
        data__holdout=15, model__num_classes=3, optim__ema=0.5, eval_every=39,
    )  # fmt: skip
    assert loop.run(Classify(config, str(workdir)), config, str(workdir))
    return root, workdir


def test_evaluation_reproduces_what_the_run_logged(run, tmp_path, capsys):
    root, workdir = run
    assert evaluate.main(["--checkpoint", str(workdir), "--out", str(tmp_path)]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines() if " " in line)
    logged = tiny_configs.metric_lines(workdir, "eval")[-1]
    for name in ("top1", "top5", "loss", "count", "ema_top1", "ema_loss"):
        assert float(printed[name]) == pytest.approx(logged[name], rel=1e-5)
    assert logged["ema_top1"] > 0.6 and logged["count"] == 15  # brightness gives the class away
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert len(lines) == 16 and lines[1].startswith(str(root))
    right = sum(line.split(",")[1] == line.split(",")[2] for line in lines[1:])
    assert right / 15 == pytest.approx(logged["ema_top1"])
    assert Image.open(tmp_path / "confusion.png").size[0] > 300


def fill(folder, names, number=6):
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(number):
            shade = 40 + 80 * ("bird", "cat", "dog").index(name) if name != "fox" else 0
            Image.new("RGB", (16, 16), (shade, shade, shade + i)).save(folder / name / f"{i}.png")


def test_all_images_of_another_folder_with_some_of_the_classes(run, tmp_path):
    fill(tmp_path / "new", ("dog", "bird"))
    metrics, answers, _ = evaluate.evaluate(str(run[1]), images=str(tmp_path / "new"), batch_size=4)
    assert metrics["count"] == 12 and answers.classes == ["bird", "cat", "dog"]
    assert sorted(answers.label) == [0] * 6 + [2] * 6
    assert metrics["ema_top1"] > 0.8


def test_a_folder_with_other_classes_is_refused(run, tmp_path):
    fill(tmp_path / "new", ("bird", "cat", "fox"))
    arguments = ["--checkpoint", str(run[1]), "--out", str(tmp_path / "out")]
    with pytest.raises(UsageError, match="are not classes of the model .*wrong folder"):
        evaluate.main([*arguments, "--images", str(tmp_path / "new")])
    with pytest.raises(UsageError, match="missing.*for example bird/10.png"):
        evaluate.main([*arguments, "--root", str(tmp_path / "new")])
    # Without the list that the run saved, the files must be identical.
    listing = run[1] / "data"
    listing.rename(run[1] / "elsewhere")
    with pytest.raises(UsageError, match="images have changed .*--images DIR"):
        evaluate.main([*arguments, "--root", str(tmp_path / "new")])
    shutil.rmtree(listing, ignore_errors=True)
    (run[1] / "elsewhere").rename(listing)


def test_a_classifier_has_no_annotations(run, tmp_path):
    arguments = ["--checkpoint", str(run[1]), "--out", str(tmp_path), "--annotations", "a.json"]
    with pytest.raises(UsageError, match="--annotations needs --images"):
        evaluate.main(arguments)
    with pytest.raises(UsageError, match="--annotations is for detectors"):
        evaluate.main([*arguments, "--images", str(run[0])])


def test_a_pre_training_run_is_not_a_classifier(tmp_path):
    config = tiny_configs.config(steps=1)
    loop.run(Pretrain(config, str(tmp_path)), config, str(tmp_path))
    with pytest.raises(UsageError, match="is not a classifier"):
        evaluate.main(["--checkpoint", str(tmp_path), "--out", str(tmp_path / "out")])


def write_run(folder, top1):
    folder.mkdir()
    lines = [
        {"step": 10 * i, "split": "eval", "epoch": i / 2, "top1": v} for i, v in enumerate(top1)
    ]
    lines.append({"step": 5, "epoch": 0.25, "split": "train", "loss": 1.0})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 99, "spl')


def test_runs_are_compared_in_a_table_and_a_plot(tmp_path, capsys):
    write_run(tmp_path / "a", [0.1, 0.5, 0.4])
    write_run(tmp_path / "b", [0.2, 0.3])
    out = tmp_path / "plot.png"
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == f"| {tmp_path / 'a'} | 20 | 1 | 0.4 | 0.5 | 10 |"
    assert lines[3] == f"| {tmp_path / 'b'} | 10 | 0.5 | 0.3 | 0.3 | 10 |"
    assert np.asarray(Image.open(out)).std() > 5
    metric, curves = compare.compare([str(tmp_path / "a")], "train/loss")
    assert "| 5 | 0.25 | 1 | 1 | 5 |" in compare.table(metric, curves)
    with pytest.raises(UsageError, match="eval/top2; available: eval/top1, train/loss"):
        compare.main([str(tmp_path / "a"), "--metric=eval/top2"])
    with pytest.raises(UsageError, match="has no metrics.jsonl"):
        compare.main([str(tmp_path)])


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    lines = '{"step": 1, "epoch": 1.0, "split": "eval", "loss": 1.0}\n'
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text(lines)
    names = [f"class {i}" for i in range(9)]
    best = np.zeros((1000, 5), np.int32)
    answers = Predictions(names, np.arange(1000), best[:, 0], best, np.zeros(1000, np.float32))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # no file longer than this
    try:
        with pytest.raises(RunError, match="c.png cannot be written: File too large"):
            compare.main([str(tmp_path / "run"), "--out", str(tmp_path / "c.png")])
        with pytest.raises(OSError, match="File too large"):
            answers.write(str(tmp_path / "answers"), str)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(os.listdir(tmp_path)) == ["answers", "run"]
    assert os.listdir(tmp_path / "answers") == []
