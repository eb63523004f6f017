"""Schedules in steps and linear ones, against plain arithmetic."""

import jax
import numpy as np
import pytest

from mae_jax.optim import schedules

RUN = {"warmup_epochs": 2.0, "epochs": 10.0, "steps_per_epoch": 5.0}  # 50 steps, 10 of warm-up
STEPS = np.arange(50)


def rates(make, **options):
    return np.asarray(jax.vmap(make(0.5, **RUN | options))(STEPS))


def warmup(start=0.0):
    return np.minimum(start + (1 - start) * STEPS / 10, 1)


@pytest.mark.parametrize("start", [0.0, 0.001])
def test_the_rate_drops_tenfold_at_each_milestone(start):
    found = rates(schedules.warmup_steps, milestones=(0.5, 0.9), warmup_start=start)
    factor = np.where(STEPS < 25, 1, np.where(STEPS < 45, 0.1, 0.01))
    np.testing.assert_allclose(found, 0.5 * factor * warmup(start), rtol=1e-6)


def test_milestones_are_exact_in_a_run_of_many_steps():
    steps, drop_at = 184_375, 163_889
    schedule = schedules.warmup_steps(
        1.0, warmup_epochs=0.1, epochs=100.6, steps_per_epoch=steps / 100.6,
        milestones=(drop_at / steps,),
    )  # fmt: skip
    before, after = (float(schedule(step)) for step in (drop_at - 1, drop_at))
    assert before == 1 and after == pytest.approx(0.1)


def test_a_drop_within_the_warm_up_is_one_of_the_warm_up():
    found = rates(schedules.warmup_steps, milestones=(0.1,))
    np.testing.assert_allclose(found, 0.5 * np.where(STEPS < 5, 1, 0.1) * warmup(), rtol=1e-6)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_a_linear_decay_begins_with_the_warm_up(floor):
    found = rates(schedules.warmup_linear, min_lr=floor, warmup_start=0.2)
    decay = floor + (0.5 - floor) * (1 - STEPS / 50)
    np.testing.assert_allclose(found, decay * warmup(0.2), rtol=1e-5)
    last = schedules.warmup_linear(0.5, **RUN, min_lr=floor)
    assert float(last(50)) == float(last(60)) == pytest.approx(floor, abs=1e-7)


def test_a_warm_up_may_begin_above_zero():
    plain, raised = (rates(schedules.warmup_cosine, warmup_start=x) for x in (0.0, 0.4))
    np.testing.assert_allclose(raised[:10], 0.5 * warmup(0.4)[:10], rtol=1e-6)
    assert plain[0] == 0
    np.testing.assert_array_equal(plain[10:], raised[10:])
