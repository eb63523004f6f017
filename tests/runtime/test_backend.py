"""A missing device is a one-line error in every command, and is not blamed on a checkpoint."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from mae_jax.checkpoint import layout, reader
from mae_jax.runtime.cli import run_command
from mae_jax.runtime.errors import UsageError
from tests.checkpoint.test_checkpointer import save, step_names
from tests.helpers import tiny_configs
from tests.helpers.processes import REPO

COMMANDS = {
    "main": ["mae_jax.main", *tiny_configs.flags(), "--workdir=run"],
    "preflight": ["mae_jax.tools.preflight", *tiny_configs.flags(), "--workdir=run"],
    "inspect": ["mae_jax.tools.inspect", "--verify", "run"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_without_its_device_ends_with_one_line(tmp_path, name):
    save(tmp_path / "run", 1, 2).close()
    done = subprocess.run(
        [sys.executable, "-m", *COMMANDS[name]],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "abacus", "PYTHONPATH": REPO},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: JAX_PLATFORMS=abacus: jax cannot start its devices")
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert step_names(tmp_path / "run") == ["1", "2"]


def no_gpu():
    raise AssertionError  # what jax raises for JAX_PLATFORMS=cuda without a GPU


def no_tpu():
    raise RuntimeError("Unable to initialize backend 'tpu': it is in use (set JAX_PLATFORMS='')")


@pytest.mark.parametrize("missing, said", [(no_gpu, "there are none"), (no_tpu, "it is in use)")])
def test_it_is_told_wherever_the_device_is_first_needed(
    tmp_path, monkeypatch, capsys, missing, said
):
    save(tmp_path, 1).close()
    monkeypatch.setattr(jax, "devices", missing)
    assert run_command(missing) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: JAX_PLATFORMS") and said in error and error.count("\n") == 1
    found = layout.find(str(tmp_path))
    with pytest.raises(UsageError, match="JAX_PLATFORMS") as caught, reader.as_corrupt(found):
        missing()
    assert not isinstance(caught.value, reader.CorruptCheckpointError)


def test_other_errors_keep_their_tracebacks():
    for error in (AssertionError(), RuntimeError("Unable to initialize backend"), KeyError("x")):
        with pytest.raises(type(error)):
            run_command(lambda error=error: _raise(error))


def _raise(error):
    raise error


def test_all_commands_end_in_the_same_way():
    files = [
        pathlib.Path(REPO, "mae_jax", "main.py"),
        *pathlib.Path(REPO).glob("mae_jax/tools/*.py"),
        *pathlib.Path(REPO).glob("mae_jax/tools/*/__main__.py"),
    ]
    texts = [file.read_text() for file in files if file.name != "__init__.py"]
    assert len(texts) > 8 and all("sys.exit(run_command(main))" in text for text in texts)
