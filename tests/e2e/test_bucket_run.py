"""A whole run in a bucket, with the real clients of TensorFlow, Orbax and TensorStore."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mae_jax.checkpoint import layout, reader
from mae_jax.runtime.errors import UsageError
from mae_jax.tools import compare
from mae_jax.train import metric_writer
from tests.helpers import tiny_configs
from tests.helpers.processes import REPO

RUN = "gs://bucket/run"


def start(workdir):
    flags = tiny_configs.flags(steps=10, checkpoint__every_steps=5, eval_every=5, figure_every=5)
    command = [sys.executable, "-m", "mae_jax.main", *flags, f"--workdir={workdir}"]
    return subprocess.Popen(
        command, cwd=REPO, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def losses(workdir):
    return [
        (line["step"], line["split"], line["loss"]) for line in metric_writer.read(str(workdir))
    ]


def test_a_run_that_is_killed_goes_on_and_ends_as_one_on_a_disk(gcs, tmp_path, caplog):
    first, complete = start(RUN), "run/checkpoints/5/commit_success.txt"
    until = time.monotonic() + 120
    while complete not in gcs.names("bucket") and first.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)  # while the next one is written
    assert first.communicate() and first.returncode == -signal.SIGKILL
    on_disk, again = start(tmp_path / "run"), start(RUN)
    text = again.communicate()[0]
    assert again.returncode == 0 and "continuing after step 5 of 10" in text, text
    assert on_disk.communicate() and on_disk.returncode == 0
    assert losses(RUN) == losses(tmp_path / "run") and len(losses(RUN)) == 5
    assert compare.read_run(RUN).keys() == compare.read_run(str(tmp_path / "run")).keys()
    names = {name.split("/")[1] for name in gcs.names("bucket")}
    assert names == set(os.listdir(tmp_path / "run"))  # the lock is gone
    assert gcs.read("bucket", "run/pictures/step_00000010.png").startswith(b"\x89PNG")
    assert layout.steps(RUN) == [5, 10]
    found = layout.find(RUN)
    assert reader.verify(found).compared
    for status in (401, 403):
        gcs.refuse("READ", "checkpoints/10/state/", status)
        with pytest.raises(UsageError, match="cannot be read") as caught:
            reader.verify(found)
        assert not isinstance(caught.value, reader.CorruptCheckpointError)
