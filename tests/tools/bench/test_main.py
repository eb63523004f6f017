"""The benchmarks run and compare like with like."""

import json

import pytest

from mae_jax.runtime.errors import UsageError
from mae_jax.tools.bench import __main__ as bench
from mae_jax.tools.bench.variants import speed_up
from tests.helpers import tiny_configs


def test_bench_step_compares_with_the_plain_algorithm(capsys):
    arguments = ["step", *tiny_configs.flags(), "--against=plain", "--repeats=2"]
    assert bench.main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["speed_up_over_plain"] > 0 and result["peak_memory_mb"] > 0
    for name in ("ours", "plain"):
        numbers = result[name]
        assert numbers["fastest_ms"] <= numbers["step_ms"] <= numbers["slowest_ms"]
        assert numbers["images_per_s"] > 0 and numbers["compile_s"] > 0
        assert numbers["memory_mb"] > 0 and "mfu" not in numbers  # the peak of a CPU is unknown


def test_any_task_that_trains_can_be_timed(capsys):
    changes = {**tiny_configs.CHANGES, "init_from": ""}
    flags = [f"--config.{k}={v}" for k, v in changes.items() if "decoder" not in k]
    for what in ("step", "data"):
        arguments = [what, "--config=configs/linprobe/demo.py", *flags, "--repeats=2"]
        assert bench.main(arguments) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["ours"]["images_per_s"] > 0
        with pytest.raises(UsageError, match="--against="):
            bench.main([*arguments, "--against=" + ("plain" if what == "step" else "pil")])


def test_rows_take_turns(capsys, tmp_path):
    rows = tmp_path / "rows.py"
    rows.write_text(
        "ROWS = {'tokens': {'model.encoder_mask_tokens': True}, 'default': {},"
        " 'half': {'batch_size': 8}}"
    )
    assert bench.main(["step", *tiny_configs.flags(), f"--rows={rows}", "--repeats=2"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    tokens, default, half = (result[name] for name in ("tokens", "default", "half"))
    assert tokens["speed_up"] == tokens["flop_ratio"] == half["flop_ratio"] / default["flop_ratio"]
    assert default["flop_ratio"] > 1.2  # fewer tokens in the encoder
    for numbers in (tokens, default, half):
        assert numbers["speed_up"] > 0 and numbers["train_gflop_per_image"] >= 0
    assert half["images_per_s"] == pytest.approx(8000 / half["step_ms"], rel=1e-2)


def test_operators_are_timed_without_a_recipe(capsys, monkeypatch):
    names = ("roi_align", "nms")  # gradients take longest to compile
    monkeypatch.setattr("mae_jax.tools.bench.ops.OPERATORS", names)
    arguments = ["ops", "--image_size=64", "--channels=2", "--chunk=512", "--repeats=1"]
    assert bench.main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    ours = result["ours"]
    for name in names:
        assert 0 < ours[f"{name}_min_ms"] <= ours[f"{name}_ms"]
        assert ours[f"{name}_compile_s"] > 0 and ours[f"{name}_memory_mb"] > 0
    assert "nms_speed_up" not in result


def test_speed_up_is_of_images_round_by_round():
    assert speed_up([1.0, 2.0, 30.0], [0.5, 1.0, 1.0], images=0.5) == 1.0


@pytest.mark.parametrize(
    "text, message",
    [
        ("ROWS = {}", "has no ROWS"),
        ("ROWS = {'a': {'model.detph': 3}}", "did you mean --config.model.depth"),
        ("ROWS = {'a': {'model.depth': -1}}", "--config.model.depth=-1 must be"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
    ],
)
def test_bad_rows_are_explained(text, message, tmp_path):
    (tmp_path / "rows.py").write_text(text)
    with pytest.raises(UsageError, match=message):
        bench.main(["step", *tiny_configs.flags(), f"--rows={tmp_path / 'rows.py'}"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["step", *tiny_configs.flags(), "--rows=nowhere.py"],
            "--rows=nowhere.py: No such file or directory",
        ),
        (
            ["step", *tiny_configs.flags(), "--rows=x.py", "--against=plain"],
            "--rows compares with its own first row",
        ),
        (
            ["step", *tiny_configs.flags(model__encoder_mask_tokens=True), "--against=torch"],
            "the PyTorch step has no --config.model.encoder_mask_tokens",
        ),
        (
            ["data", *tiny_configs.flags(data__augment="none"), "--against=pil"],
            "--against=pil supports only --config.data.augment=crop, not none",
        ),
        ([], "no command: pass one of step, data, compile, ops"),
        (["speed"], "no command: pass one of step, data, compile, ops"),
        (
            ["step", "--config=configs/demo.py", "--against=pil"],
            "--against=pil must be one of plain, torch, official",
        ),
        (["step", *tiny_configs.flags(), "--against=torch"], "--torch_python="),
        (
            ["step", *tiny_configs.flags(), "--against=torch", "--torch_python=/bin/false"],
            "exited with status 1",
        ),
        (["data", *tiny_configs.flags(), "--against=pil"], "needs image files"),
        (["ops", "--config=configs/demo.py"], "takes no recipe"),
        (["ops", "--chanels=3"], "Unknown command line flag 'chanels'"),
        (["ops", "512"], "unexpected argument '512'"),
        (["ops", "--chunk=0"], "--chunk must be at least 1"),
        (["ops", "--image_size=31"], "--image_size must be at least 32"),
        (["ops", "--against=torch"], "must be one of torchvision for `ops`"),
        (
            ["ops", "--image_size=32", "--channels=1", "--against=torchvision"],
            "--torch_python=",
        ),
    ],
)
def test_bad_command_is_explained(arguments, message):
    with pytest.raises(UsageError, match=message):
        bench.main(arguments)
