"""launch/slurm.sbatch with fake programs that record their arguments, and in a real Slurm."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import tiny_configs
from tests.helpers.processes import xla_flags
from tests.launch.machine import ROOT
from tests.launch.slurm_cluster import cluster, find_root

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
# Runs a task for each of FAKE_STATUSES; exits with the largest status, like the real srun.
SRUN = """\
printf "%s\\n" "$@" >"$FAKE/srun"
printf "%s" "${SRUN_CPUS_PER_TASK:-}" >"$FAKE/cpus"
largest=0
for status in ${FAKE_STATUSES:-0}; do
  own=0
  FAKE_STATUS=$status "${@:2}" || own=$?
  ((own <= largest)) || largest=$own
done
exit "$largest"
"""


@pytest.fixture
def job(machine):
    """Runs the script like Slurm; returns (status, errors, arguments of scontrol)."""
    (copy := machine.folder / "slurm_script").write_text((ROOT / "launch/slurm.sbatch").read_text())
    copy.chmod(0o755)
    original = f"{machine.repo}/launch/slurm.sbatch"
    machine.add_program(
        "scontrol",
        f"""if [[ $1 == show ]]; then printf '   Command=%s --config=x\\n' '{original}'; exit; fi
printf '%s ' "$@" >>"$FAKE/scontrol"; kill $PPID""",
    )
    machine.add_program("srun", SRUN)

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
    assert words[-1] == "--config.watchdog.abort=True"  # so that a hung run is requeued
    assert words[-7] == f"{machine.venv}/bin/python"
    job("--config.watchdog.abort=False")
    words = (machine.folder / "srun").read_text().splitlines()
    assert words[-2:] == ["mae_jax.main", "--config.watchdog.abort=False"]


def test_its_name_may_also_be_part_of_a_flag(job, machine):
    """Or of a folder: Slurm reports the whole command in one line, without quotes."""
    original = machine.repo / "launch" / "slurm.sbatch"
    folder = machine.folder / "slurm.sbatch 2"
    folder.mkdir()
    (folder / "repo").symlink_to(machine.repo)
    for path in (original, folder / "repo" / "launch" / "slurm.sbatch"):
        line = f"   Command={path} --workdir=runs/slurm.sbatch --config=x"
        machine.add_program("scontrol", f"echo '{line}'")
        assert job("--config=c.py")[0] == 0


def test_head_of_the_script():
    text = (ROOT / "launch/slurm.sbatch").read_text()
    options = set(re.findall(r"^#SBATCH (\S+)$", text, re.MULTILINE))
    assert options >= {"--requeue", "--signal=TERM@300", "--open-mode=append"}


def test_help_is_the_comment_at_the_top(machine):
    status, out, _ = machine.run("--help", script="slurm.sbatch")
    assert status == 0 and out.startswith("Trains on a Slurm cluster") and "--study" in out


def test_srun_is_told_how_many_cpus_a_task_has(job, machine):
    job("--config=c.py", SLURM_CPUS_PER_TASK="12")
    assert (machine.folder / "cpus").read_text() == "12"


def test_preflight_takes_the_same_flags(job, machine):
    assert job("--preflight", "--config=c.py")[0] == 0
    words = (machine.folder / "srun").read_text().splitlines()
    assert words[-3:-1] == ["mae_jax.tools.preflight", "--config=c.py"]


@pytest.mark.parametrize("statuses", ["75", "70", "70 134", "134 70", "75 0", "137 75 1"])
def test_what_was_stopped_goes_back_into_the_queue(job, statuses):
    ended, err, asked = job("--config=c.py", FAKE_STATUSES=statuses)
    assert ended == -15 and asked == "requeue 7 ", err
    assert f"stopped with {70 if '70' in statuses else 75}: requeueing" in err


@pytest.mark.parametrize("statuses, status", [("1", 1), ("2 2", 2), ("0 137", 137), ("253", 253)])
def test_what_failed_does_not(job, statuses, status):
    assert job("--config=c.py", FAKE_STATUSES=statuses)[::2] == (status, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_task_that_is_told_to_stop_takes_its_time(job, machine, number):
    job("--config=c.py")
    shell = (machine.folder / "srun").read_text().splitlines()[1:5]
    assert shell[:2] == ["bash", "-c"]
    saving = "trap 'kill $!; sleep 0.3; exit 75' TERM INT USR1; sleep 20 & echo; wait"
    with subprocess.Popen(
        [*shell, "bash", "-c", saving], stdout=subprocess.PIPE, start_new_session=True
    ) as task:
        assert task.stdout and task.stdout.readline()
        os.killpg(task.pid, number)  # Slurm signals all processes of a task
        assert task.wait(10) == 205


def test_not_for_ever(job):
    env = {"SLURM_RESTART_COUNT": "3", "MAE_JAX_REQUEUES": "3", "FAKE_STATUSES": "75"}
    status, err, asked = job("--config=c.py", **env)
    assert (status, asked) == (1, "") and "MAE_JAX_REQUEUES=3" in err
    status, err, asked = job("--config=c.py", FAKE_STATUSES="70", SLURM_RESTART_COUNT="100")
    assert (status, asked) == (1, "") and "MAE_JAX_REQUEUES=100" in err
    assert job("--config=c.py", **env | {"SLURM_RESTART_COUNT": "2"})[2] == "requeue 7 "


def test_a_row_of_a_study_for_each_task_of_an_array(job, machine):
    assert job("--study=s.py", SLURM_ARRAY_TASK_ID="4")[0] == 0
    words = (machine.folder / "srun").read_text().splitlines()
    assert words[-4:-2] == ["mae_jax.tools.study", "--study=s.py"] and words[-1] == "--cell=4"
    assert words[-2] == "--config.watchdog.abort=True"
    assert job("--study=s.py")[0] == 0  # not an array: all rows
    assert "--cell" not in (machine.folder / "srun").read_text()
    status, err, _ = job("--study=s.py", SLURM_NTASKS="8")
    assert status == 2 and "--ntasks=1" in err


def test_one_task_of_an_array_is_put_back_not_all(job):
    array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}
    assert job("--study=s.py", FAKE_STATUSES="75", **array)[2] == "requeue 5_2 "


def test_a_study_has_no_preflight(job):
    status, err, _ = job("--preflight", "--study=s.py")
    assert status == 2 and "--preflight checks a recipe" in err


def test_by_hand_it_only_shows(job, machine):
    status, out, err = machine.run("--dry_run", "--config=c.py", script="slurm.sbatch")
    assert status == 0 and re.match(r"srun --wait=600 .*mae_jax.main --config=c.py", out), err
    words = subprocess.run(
        ["bash", "-c", f"srun() {{ printf '%s\\n' \"$@\"; }}; {out}"], capture_output=True
    )
    job("--config=c.py")
    assert words.stdout == (machine.folder / "srun").read_bytes()  # it can be pasted into a shell
    status, _, err = machine.run("--config=c.py", script="slurm.sbatch")
    assert status == 2 and "sbatch [its options] launch/slurm.sbatch --config=c.py" in err


def ask(environment, *command, cwd=None):
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for(environment, job, seconds):
    """(number, state, restarts) of a job that has ended, or of each task of an array.

    The time limit of what was put back is lifted.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        shown = ask(environment, "scontrol", "show", "job", job)
        tasks = re.findall(r"JobId=(\d+).*?JobState=(\w+).*?Restarts=(\d+)", shown, re.DOTALL)
        states = {state for _, state, _ in tasks}
        if not states & {"PENDING", "RUNNING", "COMPLETING", "REQUEUED"}:
            return tasks
        for number, state, restarts in tasks:
            if state == "PENDING" and int(restarts):
                ask(environment, "scontrol", "update", f"JobId={number}", "TimeLimit=30")
        time.sleep(1)
    raise AssertionError(shown)


@pytest.fixture
def submit(tmp_path):
    """Submits the script to a real Slurm; returns "STATE restarts" of each job, and its output."""
    if find_root() is None:
        pytest.skip("needs Slurm, see slurm_cluster.py")
    with cluster(tmp_path / "slurm") as environment:
        environment |= {
            "MAE_JAX_PYTHON": sys.executable,
            "XLA_FLAGS": xla_flags(devices=1),
        }

        def run(*flags, options=(), seconds=600, **env):
            words = ["sbatch", "--parsable", *options, str(ROOT / "launch/slurm.sbatch"), *flags]
            job = ask(environment | env, *words, cwd=tmp_path)
            tasks = wait_for(environment, job, seconds)
            logs = [(tmp_path / f"mae_jax-{number}.log").read_text() for number, _, _ in tasks]
            return [f"{state} {restarts}" for _, state, restarts in tasks], "".join(logs)

        yield run


@pytest.mark.slow
def test_a_time_limit_is_survived_bit_for_bit(tmp_path, submit):
    """Two tasks, signaled half a minute before the time limit, end like an uninterrupted run."""
    flags = tiny_configs.flags(steps=3000, log_every=100, data__num_eval=200, eval_every=1000)
    two = ["--ntasks-per-node=2"]
    limit = [*two, "--time=1", "--signal=TERM@30"]
    ended, output = submit(*flags, f"--workdir={tmp_path}/limited", options=limit, seconds=900)
    assert ended == ["COMPLETED 1"], output
    assert "stopped with 75: requeueing the job" in output
    ended, output = submit(*flags, f"--workdir={tmp_path}/whole", options=two)
    assert ended == ["COMPLETED 0"], output
    for split in ("train", "eval"):
        found, wanted = (
            tiny_configs.metric_lines(tmp_path / name, split) for name in ("limited", "whole")
        )
        assert found == wanted


@pytest.mark.slow
def test_the_others_of_a_task_that_hung_do_not_keep_it_out_of_the_queue(tmp_path, submit):
    """In the first start, one of two tasks exits like the watchdog, and the other aborts."""
    (program := tmp_path / "python").write_text(
        "#!/usr/bin/env bash\n[[ -n $SLURM_STEP_ID && -z $SLURM_RESTART_COUNT ]] || exit 0\n"
        "((SLURM_PROCID)) || exit 70\nkill -ABRT $$\n"
    )
    program.chmod(0o755)
    two = ["--ntasks-per-node=2"]
    ended, output = submit("--config=c.py", options=two, MAE_JAX_PYTHON=str(program))
    assert ended == ["COMPLETED 1"], output
    assert "Aborted" in output and "stopped with 70: requeueing the job" in output


@pytest.mark.slow
def test_the_rows_of_a_study_are_an_array(tmp_path, submit):
    folder = tmp_path / "studies"
    ended, output = submit(*tiny_configs.STUDY, f"--workdir={folder}", options=["--array=0-1"])
    assert ended == ["COMPLETED 0", "COMPLETED 0"], output
    _, *rows = (folder / "mask_ratio.csv").read_text().splitlines()
    assert [float(row.split(",")[1]) > 0 for row in rows] == [True, True]
