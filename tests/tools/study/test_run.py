"""How a study handles signals and finished runs."""

import os
import signal
import subprocess
import sys
import threading

import ml_collections
import pytest

from mae_jax.runtime.errors import UsageError
from mae_jax.tools.study import run
from mae_jax.tools.study.plan import Cell, Stage

DEAF = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(0)); time.sleep(60)"


def stage(folder, name="pretrain", base=None, **config):
    return Stage(name, str(folder / name), [], ml_collections.ConfigDict(config), base)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_study_stops_even_if_its_run_succeeded(tmp_path, monkeypatch, number):
    code = DEAF.replace("signal.SIGTERM", "signal.SIGINT") if number == signal.SIGINT else DEAF
    monkeypatch.setattr(run, "command", lambda stage: [sys.executable, "-c", code])
    cell = Cell("a", [stage(tmp_path, a=1), stage(tmp_path, "linprobe", a=1)])
    threading.Timer(1.0, os.kill, (os.getpid(), number)).start()
    with run.Stop().handle_signals() as stop:
        assert run.run_cell(cell, "", stop) == 75
    assert stop.requested
    assert run.is_done(cell.stages[0])
    assert not os.path.exists(cell.stages[1].folder)


def test_a_signal_while_a_run_is_being_started_reaches_it():
    code = DEAF.replace("exit(0)", "exit(3)").replace(
        "time.sleep", "print(1, flush=True); time.sleep"
    )
    with run.Stop().handle_signals() as stop:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait_for(process) == 3


def test_a_stage_of_another_pretraining_is_not_done(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "command", lambda stage: [sys.executable, "-c", ""])
    first = stage(tmp_path, epochs=1.0)
    probe = stage(tmp_path, "linprobe", base=first.config, a=1)
    with run.Stop().handle_signals() as stop:
        assert run.run_cell(Cell("a", [first, probe]), "", stop) == 0
    assert run.is_done(probe)
    longer = stage(tmp_path, epochs=2.0)
    with pytest.raises(UsageError, match=r"pretrain.epochs: 1.0 -> 2.0\): .* or remove .*0$"):
        run.is_done(probe._replace(base=longer.config))
