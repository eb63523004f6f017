"""The lines and the bar that show how far a run is, and how long it will take."""

import io
import logging

import pytest

from mae_jax.train import progress, progress_line
from mae_jax.train.progress import Progress

PRETRAIN = {
    "loss": 0.41234,
    "baseline_loss": 0.39981,
    "lr": 1.2e-3,
    "grad_norm": 3.0,
    "images_per_s": 92.4,
    "data_wait": 0.01,
    "data_wait_ms": 2.0,
    "mfu": 0.45,
}
CLASSIFY = {"loss": 1.2345, "top1": 0.8125, "lr": 6e-3, "images_per_s": 231.0, "data_wait": 0.0}


class Clock:
    """A clock that tests set."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def line(caplog, values, *, step, num_steps, seconds_per_step=0.2):
    clock = Clock()
    shown = Progress(step - 10, num_steps, clock=clock)
    clock.now += 10 * seconds_per_step
    with caplog.at_level(logging.INFO, logger="mae_jax"):
        caplog.clear()
        shown.log(step, values)
    return caplog.messages[0]


def test_a_line_shows_the_loss_first_and_leaves_out_what_does_not_fit(caplog):
    assert line(caplog, PRETRAIN, step=1200, num_steps=5752) == (
        "step 1200/5752 loss 0.4123 (base 0.3998) lr 1.2e-3 92 img/s eta 15:10"
    )
    assert line(caplog, CLASSIFY, step=1200, num_steps=5752) == (
        "step 1200/5752 loss 1.234 top1 0.8125 lr 6.0e-3 231 img/s eta 15:10"
    )
    assert line(caplog, PRETRAIN, step=312_500, num_steps=500_000, seconds_per_step=2.0) == (
        "step 312500/500000 loss 0.4123 (base 0.3998) 92 img/s eta 104:10:00"
    )
    bound = PRETRAIN | {"data_wait": 0.35}
    assert line(caplog, bound, step=1200, num_steps=5752) == (
        "step 1200/5752 loss 0.4123 (base 0.3998) 92 img/s waits 35% eta 15:10"
    )


@pytest.mark.parametrize("values", [PRETRAIN, CLASSIFY, PRETRAIN | {"loss": float("nan")}])
@pytest.mark.parametrize("num_steps", [20, 5_752, 125_000, 2**31 - 1])
@pytest.mark.parametrize("speed", [1e-6, 0.3, 31_415.9])
def test_no_line_is_wider_than_a_terminal(caplog, values, num_steps, speed):
    for step in (10, num_steps // 2, num_steps):
        shown = values | {"images_per_s": speed}
        text = line(caplog, shown, step=step, num_steps=num_steps, seconds_per_step=64 / speed)
        assert len(f"12:34:56 {text}") <= 80
        assert "loss" in text and "eta" in text


@pytest.mark.parametrize("num_steps", [20, 125_000, 2**31 - 1])
@pytest.mark.parametrize("columns", [80, 200, 60])
def test_nor_is_the_bar(monkeypatch, num_steps, columns):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(progress.sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = Progress(0, num_steps, clock=Clock())
    shown.step()
    shown.log(1, PRETRAIN)
    shown.close()
    frames = [frame for frame in screen.getvalue().split("\r") if frame.strip()]
    assert all(len(frame.rstrip("\n")) <= min(columns, 80) for frame in frames)
    assert "loss 0.4123" in frames[-1] and frames[-1].rstrip("\n").endswith("eta 00:00")
    assert len(frames[-1].split("|")[1]) >= progress.BAR


@pytest.mark.parametrize(
    "value, text", [(1e-3, "1.0e-3"), (0.0, "0"), (1.5, "1.5e0"), (2.4e-10, "2.4e-10")]
)
def test_learning_rates_are_short(value, text):
    assert [field.text for field in progress_line.fields({"lr": value})] == [f"lr {text}"]


def test_pauses_do_not_count_in_the_remaining_time(caplog, monkeypatch):
    from mae_jax.train import throughput

    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    meter = throughput.ThroughputMeter(batch_size=1, flops_per_image=1.0)
    shown = Progress(0, 100, clock=meter.clock)
    now[0] += 10 * 2.0 + 500.0
    meter.add_pause(500.0)
    with caplog.at_level(logging.INFO, logger="mae_jax"):
        shown.log(10, {"loss": 1.0})
    assert caplog.messages == ["step 10/100 loss 1 eta 03:00"]


def announced(caplog, *, seconds_per_step, steps, num_steps, first_look="", active=True):
    clock = Clock()
    shown = Progress(0, num_steps, clock=clock, first_look=first_look, active=active)
    clock.now += 1000  # compiles
    shown.step()
    shown.restart()
    with caplog.at_level(logging.INFO, logger="mae_jax"):
        for _ in range(steps - 1):
            clock.now += seconds_per_step
            shown.step()
    return caplog.messages


def test_what_is_before_a_restart_does_not_count(caplog):
    clock = Clock()
    shown = Progress(0, 1_005, clock=clock)
    with caplog.at_level(logging.INFO, logger="mae_jax"):
        for seconds in [9.0] * 5 + [0.5] * 14:
            if shown._step == 5:
                shown.restart()
            clock.now += seconds
            shown.step()
        shown.log(15, {"loss": 1.0})
    announced, line = caplog.messages
    assert announced.startswith("at this speed the remaining 987 steps take 8 min")
    assert line.endswith("eta 11:33")  # 14 steps of half a second counted as the 10 since step 5


def test_other_processes_are_silent(caplog):
    shown = Progress(0, 100, clock=Clock(), active=False)
    with caplog.at_level(logging.INFO, logger="mae_jax"):
        shown.log(10, {"loss": 1.0})
        shown.message("saved")
    assert caplog.messages == []


QUICK = "--config=configs/folder.py:quick"


def test_the_remaining_time_is_announced_once(caplog):
    lines = announced(caplog, seconds_per_step=0.6, steps=100, num_steps=13_014, first_look=QUICK)
    assert lines == [
        "at this speed the remaining 13,000 steps take 2 h 10 min on this machine",
        f"(for a first look: {QUICK})",
    ]


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"steps": 13}, []),  # too few to tell
        ({"seconds_per_step": 0.01, "steps": 300}, []),
        ({"num_steps": 14}, []),  # nothing remains
        ({"num_steps": 3_614}, ["the remaining 3,600 steps take 1 h"]),
        ({"seconds_per_step": 20.0, "steps": 5, "first_look": ""}, []),
        (
            {"seconds_per_step": 20.0, "steps": 6, "first_look": ""},
            ["4,008 steps take 22 h 16 min"],
        ),
        ({"first_look": ""}, ["the remaining 4,000 steps take 1 h 7 min"]),
        ({"active": False}, []),
    ],
)
def test_not_before_the_speed_is_known_and_quick_only_if_it_takes_long(caplog, changes, expected):
    options = {"seconds_per_step": 1.0, "steps": 14, "num_steps": 4_014, "first_look": QUICK}
    lines = announced(caplog, **options | changes)
    assert len(lines) == len(expected)
    assert all(part in found for part, found in zip(expected, lines, strict=True))
