"""The preflight command, in one process and in two real ones."""

import pytest

from mae_jax.tools.preflight import __main__ as preflight
from tests.helpers import tiny_configs
from tests.helpers.processes import run_two

# Arguments: coordinator, index, where process 1 fails ("" for nowhere), flags.
TWO = """
import sys, time
import jax
from mae_jax.tools.preflight import run_checks
from mae_jax.tools.preflight.__main__ import main

address, index, fails, *words = sys.argv[1:]

def fail(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

if index == "1" and fails == "step":
    run_checks.make_train_step = lambda *_, **__: fail
if index == "1" and fails == "reading":
    run_checks.timed = fail
if index == "1" and fails == "program":
    run_checks.read_data = None
sys.exit(main([*words, f"--coordinator={address}", "--num_processes=2", f"--process_id={index}"]))
"""


def run_both(tmp_path, *more, fails=""):
    """(status, output, errors) of both processes; if one hung, JAX would abort it after 100 s."""
    words = [fails, *tiny_configs.flags(), f"--workdir={tmp_path}/w"]
    return run_two(TWO, [words, [*words, *more]])


def test_help_describes_the_command_and_its_flags(capsys):
    assert preflight.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Checks before an expensive run") and "--allow_config_change " in text


def test_two_processes(tmp_path):
    first, second = run_both(tmp_path)
    assert first[0] == second[0] == 0, first[2]
    assert "2 processes with the same" in first[1] and "all-reduce  4 MB" in first[1]
    assert first[1].count("✓") == 11 and "✓" not in second[1]


def test_two_processes_that_differ(tmp_path):
    ended = run_both(tmp_path, "--config.mask.ratio=0.5")
    for status, output, _ in ended:
        assert status == 1 and "--config.mask.ratio" in output and "process 1" in output


def test_what_may_be_changed_is_the_same_everywhere(tmp_path):
    ended = run_both(tmp_path, "--allow_config_change")
    for status, output, _ in ended:
        assert status == 1 and "--allow_config_change true, but false on process 0" in output


@pytest.mark.parametrize(
    "fails, row", [("step", "✗ step"), ("reading", "✗ data"), ("program", None)]
)
def test_one_that_fails_leaves_no_other_waiting_in_a_collective(tmp_path, fails, row):
    first, second = run_both(tmp_path, fails=fails)
    assert first[0] == 1 and second[0] == 1, (first, second)
    assert row is None or f"process 1: {row}" in second[1]
    if fails == "reading":  # both finish reading, and stop together
        assert "process 0: ✓ data" in first[1] and "step" not in first[1].split("✓ data")[1]
    else:
        assert "process 1 (" in first[2] and "failed: " in first[2]
