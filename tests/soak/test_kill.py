"""A few kills; `python -m tests.soak.kill` makes as many as you like."""

import pytest

from tests.soak.kill import soak


def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path):
    report = soak(str(tmp_path), kills=2, steps=36)
    assert report.kills == 2 and report.in_saves >= 1


@pytest.mark.slow
def test_it_does_so_after_many_kills(tmp_path):
    report = soak(str(tmp_path), kills=30, steps=600)
    assert report.in_saves >= 10
