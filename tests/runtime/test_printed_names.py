"""Names with newlines and escape sequences are printed escaped."""

import contextlib
import io
import logging

import numpy as np
import pytest

from mae_jax.runtime import cli, text
from mae_jax.runtime.errors import RunError, UsageError
from mae_jax.tasks import figures
from mae_jax.tools import compare

NAME = "a\n12:00:00 all is well\x1b[2J\x9b\u202e\udcff.jpg"
SHOWN = r"a\n12:00:00 all is well\x1b[2J\x9b\u202e\xff.jpg"


@pytest.mark.parametrize(
    "seconds, shown",
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3569, "59 min"),
        (3599, "1 h"),
        (7800, "2 h 10 min"),
        (72_600, "20 h 10 min"),
        (1_728_000, "20 d"),
        (86_390, "1 d"),
        (273_000, "3 d 4 h"),
    ],
)
def test_durations(seconds, shown):
    assert text.duration(seconds) == shown


@contextlib.contextmanager
def our_log():
    """Captures our log output away from pytest, whose reports cannot contain all these names."""
    root, ours, written = logging.getLogger(), logging.getLogger("mae_jax"), io.StringIO()
    handlers, levels = root.handlers[:], (root.level, ours.level)
    with contextlib.redirect_stderr(written):
        root.handlers.clear()  # not closed, since they are restored
        cli.setup_logging()
    try:
        yield written
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        ours.setLevel(levels[1])


def test_a_record_stays_on_its_line():
    with our_log() as log:
        logging.getLogger("mae_jax.data").warning("bad image %d: %s", 1, NAME)
        logging.getLogger("orbax").warning(f"cannot read {NAME}")
    lines = log.getvalue().splitlines()
    assert [line[9:] for line in lines] == [f"bad image 1: {SHOWN}", f"cannot read {SHOWN}"]


def test_a_traceback_keeps_its_lines():
    with our_log() as log:
        try:
            raise ValueError("a \x1b[31m red \udcff one")
        except ValueError:
            logging.getLogger("mae_jax").exception("it failed")
    first, *_, last = log.getvalue().splitlines()
    assert first.endswith("it failed") and last == r"ValueError: a \x1b[31m red \xff one"


@pytest.mark.parametrize(("kind", "status"), [(UsageError, 2), (RunError, 1)])
def test_an_error_is_one_line(capsys, kind, status):
    def command():
        raise kind(f"cannot read {NAME}")

    assert cli.run_command(command) == status
    assert capsys.readouterr().err == f"error: cannot read {SHOWN}\n"


def test_what_commands_print(capsys):
    cli.say()
    cli.say(NAME, "two")
    assert capsys.readouterr().out == f"{SHOWN}\ntwo\n"
    curve = compare.Curve([1], [1.0], [0.5])
    assert compare.table("eval/top1", {NAME: curve}).splitlines()[2].startswith(f"| {SHOWN} |")


def test_ordinary_names_stay_as_they_are():
    for name in ("Füße 100%.jpg", "日本語", "a b\\c", ""):
        assert text.printable(name) == text.quoted(name) == name
    assert text.quoted("a ") == "'a '"


def test_plots_take_any_names():
    names = [NAME, r"$\nonsense$", "日本"]
    assert figures.confusion_matrix(np.eye(3, dtype=int), names).std() > 5
    assert figures.curves("t", {name: ([0, 1], [0, 1]) for name in names}, xlabel="x").std() > 5
