"""Signals sent to small processes, in various states of the main thread."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.processes import REPO, free_address

# Python's signal handlers have to wait until this ends, as they do while XLA compiles.
IN_C = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
IN_PYTHON = "[time.sleep(0.01) for _ in range(3000)]"
POLLING = "[(time.sleep(0.01), stop.poll() and sys.exit('heard')) for _ in range(3000)]"
PROGRAM = """
import hashlib, sys, time
from mae_jax.runtime import preemption
preemption.START_GRACE, preemption.REPEAT = 0.5, 0.5
with preemption.stop_on_signals() as stop:
    stop.before_leaving.append(lambda: print("released", flush=True))
    {before}
    print("ready", flush=True)
    {body}
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize(
    "before, body, pauses, status, said",
    [
        ("", IN_PYTHON, [0], 1, "Interrupted"),
        ("", IN_C, [0.3], 75, "stopped before the first step"),  # sent once the call has begun
        ("stop.mark_savable()", POLLING, [0], 1, "finishing this step, then saving; press again"),
        ("stop.mark_savable()", IN_C, [0.3, 0.05, 0.7], None, "second signal"),
    ],
    ids=["starting", "compiling", "working", "hanging"],
)
def test_signals(before, body, pauses, status, said, number):
    program = PROGRAM.format(before=before, body=body)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": REPO},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for pause in pauses:
        time.sleep(pause)
        assert process.poll() is None  # the earlier signals have not ended it
        process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == (128 + number if status is None else status), output
    assert said in output
    assert ("released" in output) == (body == IN_C)  # otherwise the main thread cleans up


def test_a_single_process_hears_sigterm_though_jax_distributed_took_it():
    code = f"""
import os, signal, time
import jax
from mae_jax.runtime.preemption import stop_on_signals
with stop_on_signals() as stop:
    jax.distributed.initialize("{free_address()}", 1, 0)
    stop.reinstall()
    stop.mark_savable()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    print("asked", stop.poll())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "asked True" in done.stdout, done.stderr


HANGING = """
import os
_, full = os.pipe()
os.set_blocking(full, False)
try:
    while os.write(full, bytes(4096)):
        pass
except BlockingIOError:
    os.set_blocking(full, True)
os.dup2(full, 2)  # it has no reader
"""


def test_a_terminal_that_hangs_delays_no_request():
    program = HANGING + PROGRAM.format(before="stop.mark_savable()", body=POLLING)
    process = subprocess.Popen(
        [sys.executable, "-c", program.replace("'heard'", "3")],
        env=os.environ | {"PYTHONPATH": REPO},
        text=True,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 3
