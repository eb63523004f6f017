"""launch/local.sh with several processes: fake ones for GPUs, real ones on CPU."""

import os
import signal
import subprocess
import sys

import pytest

from mae_jax.checkpoint import layout
from tests.helpers import tiny_configs
from tests.helpers.processes import xla_flags
from tests.launch.machine import ROOT


def dry_run(machine, *args, **env):
    status, out, err = machine.run("--dry_run", *args, **env)
    assert status == 0, err
    return out.splitlines()


def test_dry_run_installs_and_starts_nothing(machine):
    (line,) = dry_run(machine, "--config=c.py", "--workdir=two words")
    assert line.endswith("-P -m mae_jax.main --config=c.py '--workdir=two words'")
    assert not machine.calls() and not machine.venv.exists()


def test_help_is_the_comment_at_the_top(machine):
    status, out, _ = machine.run("--help")
    assert status == 0 and out.startswith("Trains on this machine") and "--processes=N" in out
    assert not machine.venv.exists()


@pytest.mark.parametrize("script", ["test.sh", "bench.sh"])
def test_help_of_other_scripts_installs_nothing(machine, script):
    status, out, _ = machine.run("--help", script=script)
    assert status == 0 and f"  launch/{script} " in out
    assert not machine.venv.exists() and not machine.calls()


def test_preflight_takes_the_same_flags(machine):
    (line,) = dry_run(machine, "--config=c.py", "--preflight")
    assert line.endswith("-m mae_jax.tools.preflight --config=c.py")


def test_gpus_are_divided(machine):
    gpus = {"MAE_JAX_ACCELERATOR": "cuda13", "CUDA_VISIBLE_DEVICES": "4,5,GPU-a,7"}
    lines = dry_run(machine, "--processes=2", **gpus)
    for index, (line, mine) in enumerate(zip(lines, ("4,5", "GPU-a,7"), strict=True)):
        assert f"CUDA_VISIBLE_DEVICES={mine} " in line
        assert f"--num_processes=2 --process_id={index}" in line


def test_gpus_are_counted_by_nvidia_smi(machine):
    machine.add_program("nvidia-smi", 'printf "%s\\n" 0 1')
    lines = dry_run(machine, "--processes=2", MAE_JAX_ACCELERATOR="cuda12")
    assert [f"CUDA_VISIBLE_DEVICES={i} " in line for i, line in enumerate(lines)] == [True, True]


@pytest.mark.parametrize(
    "flag, env, message",
    [
        ("--processes=3", {"MAE_JAX_ACCELERATOR": "cuda13"}, "does not divide the 4 GPUs"),
        ("--processes=8", {"MAE_JAX_ACCELERATOR": "cuda13"}, "does not divide the 4 GPUs"),
        ("--processes=2", {"MAE_JAX_ACCELERATOR": "tpu"}, "one process uses all chips"),
        (
            "--processes=2",
            {"MAE_JAX_ACCELERATOR": "cuda13", "CUDA_VISIBLE_DEVICES": ""},
            "does not divide the 0 GPUs",
        ),
        ("--processes=0", {}, "must be a number"),
        ("--processes=two", {}, "must be a number"),
    ],
)
def test_what_cannot_be_shared_is_refused(machine, flag, env, message):
    env = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"} | env
    status, _, err = machine.run("--dry_run", flag, **env)
    assert status == 2 and message in err


# One of several processes: records its signals, saves shortly after one, and exits with its own
# word of FAKE_STATUSES.
PROCESS = """\
if [[ $1 == -c ]]; then # asked for its version, and for a free port
  [[ $2 != *socket* ]] || echo 1234
  exit
fi
number=${*: -1} number=${number#*=}
trap 'echo TERM >>"$FAKE/heard.$number"' TERM
trap 'echo INT >>"$FAKE/heard.$number"' INT
trap 'echo USR1 >>"$FAKE/heard.$number"' USR1
statuses=($FAKE_STATUSES)
if [[ -n ${FAKE_WAIT:-} ]]; then
  echo "up $number"
  until [[ -s $FAKE/heard.$number ]] || ((SECONDS > 20)); do sleep 0.05; done
  sleep 0.3
fi
exit "${statuses[number]}"
"""


@pytest.fixture
def processes(machine):
    """Options and environment for three of these processes."""
    machine.add_program("process", PROCESS)
    python = str(machine.bin / "process")
    return ["--processes=3", "--config=c.py"], {"MAE_JAX_PYTHON": python}


@pytest.mark.parametrize(
    "statuses, status",
    [
        ("0 0 0", 0),
        ("134 0 70", 70),
        ("70 134 134", 70),
        ("134 75 1", 75),
        ("70 75 70", 75),
        ("0 3 134", 3),
    ],
)
def test_after_which_the_same_command_goes_on_decides(machine, processes, statuses, status):
    flags, env = processes
    assert machine.run(*flags, **env, FAKE_STATUSES=statuses)[0] == status


@pytest.mark.parametrize("to_all", [False, True])
@pytest.mark.parametrize("name", ["TERM", "INT", "USR1"])
def test_a_signal_reaches_each_process_once(machine, processes, name, to_all):
    """Signals only the script or, like Ctrl-C, its group; it waits for all processes to save."""
    flags, env = processes
    process = machine.start(*flags, **env, FAKE_STATUSES="75 0 0", FAKE_WAIT="1")
    others = [process.stderr.readline() for _ in range(2)]
    assert process.stdout.readline() == "up 0\n"
    assert sorted(others) == ["[1] up 1\n", "[2] up 2\n"]
    (os.killpg if to_all else os.kill)(process.pid, getattr(signal, f"SIG{name}"))
    process.communicate(timeout=20)
    assert process.returncode == 75
    heard = [(machine.folder / f"heard.{number}").read_text() for number in range(3)]
    assert heard == [f"{name}\n"] * 3


def start(folder, flags, *own):
    """The real script, with the current Python."""
    env = os.environ | {"MAE_JAX_PYTHON": sys.executable, "XLA_FLAGS": xla_flags(devices=1)}
    return subprocess.Popen(
        [str(ROOT / "launch/local.sh"), *own, *flags],
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_two_processes_stop_together_and_one_goes_on(tmp_path):
    flags = [*tiny_configs.flags(steps=60, log_every=1), "--workdir=w"]
    process = start(tmp_path, flags, "--processes=2")
    assert process.stdout
    for line in process.stdout:
        if " step 3/" in line:
            process.send_signal(signal.SIGTERM)  # only the script, as a job manager would
            break
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    found = layout.find(str(tmp_path / "w"))
    assert found and 3 <= found.step < 60
    process = start(tmp_path, flags)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    steps = [line["step"] for line in tiny_configs.metric_lines(tmp_path / "w")]
    assert steps == list(range(1, 61))


def test_a_mistake_ends_all_of_them_with_its_status(tmp_path):
    process = start(tmp_path, [*tiny_configs.flags(batch_size=7), "--workdir=w"], "--processes=2")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "batch_size" in output
