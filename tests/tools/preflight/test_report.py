"""Reports of several processes."""

import jax
import pytest

from mae_jax.distributed import collectives
from mae_jax.runtime.errors import RunError
from mae_jax.tools.preflight.report import FAILED, OK, WARNING, Report, Row

GOOD, ODD, BAD = Row(OK, "a", "x"), Row(WARNING, "b", "y", "mend it"), Row(FAILED, "c", "z")


@pytest.fixture
def shown():
    return []


def test_a_failure_is_not_forgotten(shown):
    report = Report(shown.append)
    assert report.add(GOOD, ODD) and report.passed
    assert not report.add(ODD, BAD) and not report.passed
    assert report.add(GOOD) and not report.passed
    assert shown == [GOOD, ODD, ODD, BAD, GOOD]


def test_a_failure_on_another_process_counts(shown, monkeypatch):
    monkeypatch.setattr(collectives, "all_gather", lambda mine: [mine, True])
    report = Report(shown.append)
    assert not report.add(GOOD) and not report.passed


def test_a_shared_failure_is_raised_without_asking_the_others(shown, monkeypatch):
    report = Report(shown.append)
    assert not report.add_shared(BAD)  # a single process
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(collectives, "all_gather", lambda _: pytest.fail("asked"))
    with pytest.raises(RunError, match="^c: z$"):
        report.add_shared(BAD)
    assert shown == [BAD, BAD]


def test_human_readable_lines():
    assert GOOD.lines() == ["✓ a           x"]
    assert ODD.lines() == ["! b           y", " " * 14 + "-> mend it"]
