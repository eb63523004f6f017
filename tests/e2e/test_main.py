"""The command line in subprocesses: exit statuses, messages, signals, several processes."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from mae_jax.checkpoint import layout
from mae_jax.runtime import workdir, workdir_lock
from tests.helpers import tiny_configs
from tests.helpers.processes import REPO, free_address, xla_flags


def start(*arguments, cwd, devices=1):
    env = os.environ | {
        "XLA_FLAGS": xla_flags(devices),
        "PYTHONPATH": REPO,
    }
    command = [sys.executable, "-m", "mae_jax.main", *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process):
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "no recipe: use --config="),
        (["--config=configs/nowhere.py"], "nowhere.py"),
        (["--config=configs/vit_l.py", "--config.optim.base_lrr=1"], "base_lrr"),
        (["--config=configs/vit_l.py", "--config.batch_size=many"], "batch_size"),
        (["--config=configs/vit_l.py:other"], "unknown setting 'other'"),
        (["--config=configs/vit_l.py", "stray"], "unexpected argument 'stray'"),
        (["--confg=configs/vit_l.py"], "confg"),
    ],
)
def test_mistyped_command_ends_at_once_with_one_line(tmp_path, arguments, message):
    status, output = finish(start(*arguments, cwd=tmp_path))
    assert status == 2
    assert message in output
    assert output.startswith("error: ") and output.count("\n") == 1
    assert not os.listdir(tmp_path)


REFUSED = [
    ({"model.image_size": "(18,16)"}, "image height 18 is not divisible by patch size 4"),
    ({"model.size": "XL"}, "--config.model.size=XL is not one of"),
    ({"data.source": "folder", "data.root": "/no/such/folder"}, "/no/such/folder"),
    ({"init_from": "/no/run"}, "no checkpoint under /no/run"),
    ({"mesh.fsdp": "3"}, "does not match 1 devices"),
]
# Refused by the same code. tests/config/test_validate.py checks their rules, without a process.
REFUSED_TOO = [
    ({"mask.ratio": "1.0"}, "--config.mask.ratio=1.0 must be a number in [0, 1)"),
    ({"mask.ratio": "0.0"}, "hides none of 16 patches"),
    ({"mask.kind": "blob"}, "--config.mask.kind=blob is not one of"),
    ({"model.remat": "all"}, "--config.model.remat=all is not one of"),
    ({"model.attention": "cudnn"}, "--config.model.attention=cudnn needs an NVIDIA GPU"),
    ({"data.source": "web"}, "--config.data.source=web is not one of"),
    ({"grad_accum": "3"}, "--config.batch_size=16 is not divisible by"),
    ({"model.channels": "4"}, "--config.data.mean="),
    ({"task": "sing"}, "--config.task=sing is not one of"),
    ({"model.num_heads": "5"}, "num_heads=5"),
    ({"checkpoint.keep": "0"}, "--config.checkpoint.keep=0 must be an integer from 1"),
    ({"seed": "-1"}, "--config.seed=-1 must be an integer from 0"),
]


@pytest.mark.parametrize(
    "changes, message",
    [*REFUSED, *(pytest.param(*case, marks=pytest.mark.slow) for case in REFUSED_TOO)],
)
def test_impossible_run_is_refused_with_the_way_out(tmp_path, changes, message):
    status, output = finish(start(*tiny_configs.flags(**changes), "--workdir=w", cwd=tmp_path))
    last = output.strip().splitlines()[-1]
    assert status == 2, output
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in output


def signal_after_step_three(process, number):
    """Sends the signal once step 3 or later is logged; returns the output so far."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(r"step ([3-9]|\d\d+)/", line):
            process.send_signal(number)
            break
    return "".join(lines)


def test_a_signal_saves_and_the_same_command_continues_on_other_devices(tmp_path):
    flags = tiny_configs.flags(steps=100, log_every=1)
    process = start(*flags, "--workdir=w", cwd=tmp_path, devices=4)
    printed = signal_after_step_three(process, signal.SIGTERM)
    status, rest = finish(process)
    assert status == 75, printed + rest
    assert "Next" not in rest
    step = layout.find(str(tmp_path / "w")).step
    assert 3 <= step < 100
    before = tiny_configs.metric_lines(tmp_path / "w")
    assert [line["step"] for line in before] == list(range(1, step + 1))
    status, output = finish(start(*flags, "--workdir=w", cwd=tmp_path, devices=1))
    assert status == 0, output
    assert f"continuing after step {step}" in output
    assert "\n  python -m mae_jax.tools.reconstruct --checkpoint w --images DIR --out" in output
    lines = tiny_configs.metric_lines(tmp_path / "w")
    assert [line["step"] for line in lines] == list(range(1, 101))
    assert lines[:step] == before
    # A wrong state or other data would jump; rounding on another number of devices does not.
    assert finish(start(*flags, "--workdir=whole", cwd=tmp_path, devices=1))[0] == 0
    whole = tiny_configs.metric_lines(tmp_path / "whole")
    for a, b in zip(lines, whole[: step + 20], strict=False):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-3)


def test_control_c_saves_too_in_a_folder_of_any_name(tmp_path):
    folder = tmp_path / "mit Leerzeichen, 100 %s, 模型"
    folder.mkdir()
    process = start(*tiny_configs.flags(steps=100, log_every=1, figure_every=2), cwd=folder)
    printed = signal_after_step_three(process, signal.SIGINT)
    status, rest = finish(process)
    assert status == 75, printed + rest
    assert 3 <= layout.find(str(folder / "runs" / "demo")).step < 100
    assert os.listdir(folder / "runs" / "demo" / "pictures")
    assert not os.path.exists(folder / "runs" / "demo" / workdir_lock.LOCK)


def test_a_second_run_is_refused_and_changes_nothing(tmp_path):
    with workdir.lock(str(tmp_path / "w"), first=True):
        (tmp_path / "w" / "config.json").write_text("the first run's")
        status, output = finish(start(*tiny_configs.flags(), "--workdir=w", cwd=tmp_path))
        assert sorted(os.listdir(tmp_path / "w")) == ["config.json", workdir_lock.LOCK]
    assert status == 2, output
    assert f"is in use by process {os.getpid()} on " in output.strip().splitlines()[-1]
    assert (tmp_path / "w" / "config.json").read_text() == "the first run's"


def start_two(flags, cwd, own=((), ())):
    """Two processes of one run, with two devices and individual flags each."""
    several = [f"--coordinator={free_address()}", "--num_processes=2"]
    return [
        start(*flags, *several, f"--process_id={i}", *own[i], cwd=cwd, devices=2) for i in range(2)
    ]


def test_two_processes_stop_at_the_same_step_when_one_is_told_to(tmp_path):
    flags = [*tiny_configs.flags(steps=100, log_every=1), "--workdir=w"]
    first, second = start_two(flags, tmp_path)
    for line in first.stdout:
        if "step 3/" in line:
            second.send_signal(signal.SIGTERM)
            break
    for process in (first, second):
        status, output = finish(process)
        assert status == 75, output
    assert 3 <= layout.find(str(tmp_path / "w")).step < 100


@pytest.mark.parametrize("resident", [False, True])
def test_two_processes_with_two_devices_equal_one_with_four(tmp_path, resident):
    changes = {"eval_every": 3, "figure_every": 6, "data__on_device": resident}
    flags = tiny_configs.flags(steps=6, log_every=1, **changes)
    assert finish(start(*flags, "--workdir=one", cwd=tmp_path, devices=4))[0] == 0
    for index, process in enumerate(start_two([*flags, "--workdir=two"], tmp_path)):
        status, output = finish(process)
        assert status == 0, output
        assert ("Next, for example" in output) == (index == 0)
    for split in ("train", "eval"):
        one, two = (tiny_configs.metric_lines(tmp_path / name, split) for name in ("one", "two"))
        assert len(one) == (6 if split == "train" else 3)
        for a, b in zip(one, two, strict=True):
            assert a.keys() == b.keys()
            for key in a.keys() - {"split"}:
                np.testing.assert_allclose(a[key], b[key], rtol=2e-6, err_msg=key)


@pytest.mark.slow
def test_a_second_run_of_two_processes_is_refused_in_both(tmp_path):
    with workdir.lock(str(tmp_path / "w"), first=True):
        outcomes = [finish(p) for p in start_two([*tiny_configs.flags(), "--workdir=w"], tmp_path)]
        assert os.listdir(tmp_path / "w") == [workdir_lock.LOCK]
    assert [status for status, _ in outcomes] == [2, 2], outcomes
    assert "is in use by process" in outcomes[0][1]
    assert "process 0" in outcomes[1][1] and "is in use by process" in outcomes[1][1]
