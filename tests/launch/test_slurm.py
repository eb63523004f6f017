"""launch/slurm.sbatch: with programs that write down what they are asked, and in a real Slurm."""

import re
import subprocess
import sys
import time

import pytest

from tests import tiny
from tests.launch.machine import ROOT
from tests.launch.slurm_cluster import cluster, find_root

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}


@pytest.fixture
def job(machine):
    """Runs the script as Slurm would; (status, errors, what scontrol was asked)."""
    (copy := machine.folder / "slurm_script").write_text((ROOT / "launch/slurm.sbatch").read_text())
    copy.chmod(0o755)
    original = f"{machine.repo}/launch/slurm.sbatch"
    machine.add_program(
        "scontrol",
        f"""if [[ $1 == show ]]; then printf '   Command=%s --config=x\\n' '{original}'; exit; fi
printf '%s ' "$@" >>"$FAKE/scontrol"; kill $PPID""",
    )
    machine.add_program("srun", 'printf "%s\\n" "$@" >"$FAKE/srun"; exit "${FAKE_STATUS:-0}"')

    def run(*args, **env):
        status, _, err = machine.run(*args, script=str(copy), **JOB, **env)
        asked = machine.folder / "scontrol"
        return status, err, asked.read_text() if asked.exists() else ""

    return run


def test_starts_a_run_from_the_copy_that_slurm_makes(job, machine):
    status, err, asked = job("--config=c.py", "--workdir=two words")
    assert (status, asked) == (0, ""), err
    words = (machine.folder / "srun").read_text().splitlines()
    assert words[-6:-1] == ["-P", "-m", "mae_jax.main", "--config=c.py", "--workdir=two words"]
    assert words[-1] == "--config.watchdog.abort=True"  # a hung run is worth starting again
    assert str(machine.venv) in words[1]


def test_preflight_takes_the_same_flags(job, machine):
    assert job("--preflight", "--config=c.py")[0] == 0
    words = (machine.folder / "srun").read_text().splitlines()
    assert words[-3:-1] == ["mae_jax.tools.preflight", "--config=c.py"]


@pytest.mark.parametrize("status", ["75", "70"])
def test_what_was_stopped_goes_back_into_the_queue(job, status):
    ended, err, asked = job("--config=c.py", FAKE_STATUS=status)
    assert ended == -15 and asked == "requeue 7 ", err


@pytest.mark.parametrize("status", ["1", "2", "137"])
def test_what_failed_does_not(job, status):
    assert job("--config=c.py", FAKE_STATUS=status)[::2] == (int(status), "")


def test_not_for_ever(job):
    env = {"SLURM_RESTART_COUNT": "3", "MAE_JAX_REQUEUES": "3", "FAKE_STATUS": "75"}
    status, err, asked = job("--config=c.py", **env)
    assert (status, asked) == (1, "") and "MAE_JAX_REQUEUES=3" in err


def test_a_row_of_a_study_for_each_task_of_an_array(job, machine):
    assert job("--study=s.py", SLURM_ARRAY_TASK_ID="4")[0] == 0
    words = (machine.folder / "srun").read_text().splitlines()
    assert words[-4:-2] == ["mae_jax.tools.study", "--study=s.py"] and words[-1] == "--cell=4"
    status, err, _ = job("--study=s.py", SLURM_NTASKS="8")
    assert status == 2 and "--ntasks=1" in err


def test_one_task_of_an_array_is_put_back_not_all(job):
    array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}
    assert job("--study=s.py", FAKE_STATUS="75", **array)[2] == "requeue 5_2 "


def test_a_study_has_no_preflight(job):
    status, err, _ = job("--preflight", "--study=s.py")
    assert status == 2 and "--preflight looks at a recipe" in err


def test_by_hand_it_only_shows(machine):
    status, out, err = machine.run("--dry_run", "--config=c.py", script="slurm.sbatch")
    assert status == 0 and re.match(r"srun --wait=600 .*mae_jax.main --config=c.py", out), err
    status, _, err = machine.run("--config=c.py", script="slurm.sbatch")
    assert status == 2 and "sbatch [its options] launch/slurm.sbatch --config=c.py" in err


def ask(environment, *command, cwd=None):
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for(environment, job, seconds):
    """(state, restarts) of a job that has ended; its time limit is lifted once it was put back."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        shown = ask(environment, "scontrol", "show", "job", job)
        state, restarts = re.findall(r"JobState=(\w+)|Restarts=(\d+)", shown)
        if state[0] not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
            return state[0], int(restarts[1])
        if state[0] == "PENDING" and int(restarts[1]):
            ask(environment, "scontrol", "update", f"JobId={job}", "TimeLimit=30")
        time.sleep(1)
    raise AssertionError(shown)


@pytest.mark.slow
@pytest.mark.skipif(find_root() is None, reason="needs Slurm, see slurm_cluster.py")
def test_a_time_limit_is_survived_bit_for_bit(tmp_path):
    """Two tasks; a minute's limit, told half a minute before; the end equals a run left alone.

    Six minutes, two of them Slurm's pause before it starts a job again.
    """
    flags = tiny.flags(steps=3000, log_every=100, data__num_eval=200, eval_every=1000)
    one_device = "--xla_force_host_platform_device_count=1"
    with cluster(tmp_path / "slurm") as environment:
        environment |= {"MAE_JAX_PYTHON": sys.executable, "XLA_FLAGS": one_device}

        def submit(workdir, *options):
            command = ["sbatch", "--parsable", "--ntasks-per-node=2", *options]
            script = [str(ROOT / "launch/slurm.sbatch"), *flags, f"--workdir={workdir}"]
            return ask(environment, *command, *script, cwd=tmp_path)

        limited = submit(tmp_path / "limited", "--time=1", "--signal=TERM@30")
        ended = wait_for(environment, limited, 900)
        output = (tmp_path / f"mae_jax-{limited}.log").read_text()
        assert ended == ("COMPLETED", 1), output
        assert "stopped with 75: back into the queue" in output
        whole = submit(tmp_path / "whole")
        assert wait_for(environment, whole, 600) == ("COMPLETED", 0)
    for split in ("train", "eval"):
        found, wanted = (tiny.metric_lines(tmp_path / name, split) for name in ("limited", "whole"))
        assert found == wanted
