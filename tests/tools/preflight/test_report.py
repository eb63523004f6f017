"""Rows of several processes."""

import jax
import pytest

from mae_jax.distributed import collectives
from mae_jax.runtime.errors import RunError
from mae_jax.tools.preflight.report import FAILED, OK, WARNING, Report, Row

GOOD, ODD, BAD = Row(OK, "a", "x"), Row(WARNING, "b", "y", "mend it"), Row(FAILED, "c", "z")


@pytest.fixture
def told():
    return []


def test_a_failure_is_not_forgotten(told):
    report = Report(told.append)
    assert report.add(GOOD, ODD) and report.fine
    assert not report.add(ODD, BAD) and not report.fine
    assert report.add(GOOD) and not report.fine
    assert told == [GOOD, ODD, ODD, BAD, GOOD]


def test_a_failure_on_another_process_counts(told, monkeypatch):
    monkeypatch.setattr(collectives, "all_gather", lambda mine: [mine, True])
    report = Report(told.append)
    assert not report.add(GOOD) and not report.fine


def test_where_the_others_cannot_be_asked_it_is_raised(told, monkeypatch):
    report = Report(told.append)
    assert not report.add_shared(BAD)  # alone: nobody waits
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(collectives, "all_gather", lambda _: pytest.fail("asked"))
    with pytest.raises(RunError, match="^c: z$"):
        report.add_shared(BAD)
    assert told == [BAD, BAD]


def test_printed_lines():
    assert GOOD.lines() == ["✓ a           x"]
    assert ODD.lines() == ["! b           y", " " * 14 + "-> mend it"]
