"""The launch scripts, with a fake Python, uv, and nvidia-smi that only record their arguments."""

import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.launch.machine import FAKE_PYTHON, FAKE_UV, ROOT, Machine

SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch"), ROOT / ".ci" / "run"])
ACCELERATORS = ["cpu", "cuda12", "cuda13", "tpu"]
LISTS = [*ACCELERATORS, "dev", "build"]  # the files of launch/locks


def installed_for(machine: Machine, **env: str) -> str:
    """The accelerator whose packages the first start installs."""
    status, _, err = machine.run(**env)
    assert status == 0, err
    (line,) = machine.installs()
    (accelerator,) = re.findall(r"/launch/locks/(\w+)\.txt", line)
    return accelerator


def test_first_start_installs_the_locked_packages_and_then_runs(machine: Machine) -> None:
    status, out, err = machine.run("--config=c.py", "--workdir=two words", "", "*")
    assert status == 0, err
    pip = "pip install --quiet --disable-pip-version-check --use-pep517 --require-hashes"
    assert machine.calls() == [
        f"{pip} -r {machine.locks}/build.txt",
        f"{pip} --no-build-isolation -r {machine.locks}/cpu.txt",
    ]
    assert out.splitlines() == [
        *(str(machine.cwd), "-P", "-m", "mae_jax.main", "--config=c.py", "--workdir=two words"),
        *("", "*", f"path={machine.repo}"),
    ]
    assert "installing the packages for cpu" in err and "2.3 GB" in err


def test_later_starts_are_silent_and_install_nothing(machine: Machine) -> None:
    machine.run()
    machine.installs()
    status, _, err = machine.run()
    assert (status, err, machine.installs()) == (0, "", [])


def test_starts_from_any_folder_and_through_links(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "linked repo").symlink_to(machine.repo)
    (tmp_path / "mae").symlink_to(machine.repo / "launch" / "local.sh")
    machine.cwd = tmp_path / "else where"
    machine.cwd.mkdir()
    for script in (
        str(tmp_path / "linked repo" / "launch" / "local.sh"),
        str(tmp_path / "mae"),
        "../a repo/launch/local.sh",
    ):
        status, out, err = machine.run(script=script, PYTHONPATH="/theirs", CDPATH=str(tmp_path))
        assert status == 0, err
        assert out.splitlines()[0] == str(machine.cwd)
        assert f"path={machine.repo}:/theirs" in out
    assert len(machine.installs()) == 1


def test_passes_on_the_exit_status(machine: Machine) -> None:
    assert machine.run(FAKE_FAIL="mae_jax.main")[0] == 3


def changed(path: Path) -> None:
    path.write_text(path.read_text().replace("3.13.1", "3.11.9") + "# changed\n")


@pytest.mark.parametrize(
    ("file", "env"),
    [
        ("launch/locks/cpu.txt", {}),
        (".venv/pyvenv.cfg", {}),
        ("launch/locks/cuda13.txt", {"MAE_JAX_ACCELERATOR": "cuda13"}),
        ("requirements.txt", {"MAE_JAX_UNLOCKED": "1"}),
    ],
)
def test_installs_again_when_what_it_depends_on_changes(
    machine: Machine, file: str, env: dict[str, str]
) -> None:
    machine.run(**env)
    machine.installs()
    changed(machine.repo / file)
    machine.run(**env)
    assert len(machine.installs()) == 1
    machine.run(**env)
    assert machine.installs() == []


def test_a_list_that_is_not_used_may_change(machine: Machine) -> None:
    machine.run()
    machine.installs()
    for name in ("cuda12", "cuda13", "tpu", "dev"):
        changed(machine.locks / f"{name}.txt")
    machine.run()
    assert machine.installs() == []


def test_nothing_is_installed_when_what_builds_it_is_refused(machine: Machine) -> None:
    (machine.folder / "fail").write_text("build.txt")
    assert machine.run()[0] == 1
    assert machine.installs() == []


def test_a_failed_first_installation_is_retried_from_the_beginning(machine: Machine) -> None:
    (machine.folder / "fail").write_text("cpu.txt")
    status, out, err = machine.run()
    assert status == 1 and out == "" and "the installation failed" in err
    (machine.venv / "half").touch()
    (machine.folder / "fail").unlink()
    status, _, err = machine.run()
    assert status == 0, err
    assert not (machine.venv / "half").exists()
    assert len(machine.installs()) == 2


def test_a_failed_update_keeps_what_was_there(machine: Machine) -> None:
    machine.run()
    (machine.venv / "wandb").touch()
    lock = machine.locks / "cpu.txt"
    before = lock.read_text()
    lock.write_text(before + "# newer\n")
    (machine.folder / "fail").touch()
    status, _, err = machine.run()
    assert status == 1 and f"MAE_JAX_PYTHON={machine.venv}/bin/python" in err
    assert machine.run(MAE_JAX_PYTHON=f"{machine.venv}/bin/python")[0] == 0
    lock.write_text(before)  # how far the update got is unknown
    assert machine.run()[0] == 1
    (machine.folder / "fail").unlink()
    assert machine.run()[0] == 0
    assert (machine.venv / "wandb").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_installation_is_never_taken_for_a_finished_one(
    machine: Machine, number: signal.Signals
) -> None:
    machine.run()
    changed(machine.locks / "cpu.txt")
    (machine.folder / "hang").touch()
    process = machine.start()
    wait_for(machine.folder / "hanging")
    os.killpg(process.pid, number)
    process.communicate(timeout=10)
    assert process.returncode != 0
    (machine.folder / "hang").unlink()
    (machine.venv / "half").touch()
    machine.installs()
    status, _, err = machine.run()
    assert status == 0 and "did not finish" in err
    assert len(machine.installs()) == 1
    assert not (machine.venv / "half").exists()


@pytest.mark.parametrize("locking", ["flock", "mkdir"])
def test_two_starts_at_once_install_once(machine: Machine, locking: str) -> None:
    if locking == "mkdir":
        (machine.bin / "flock").unlink()
    (machine.folder / "slow").touch()
    first, second = machine.start(), machine.start()
    errors = first.communicate(timeout=30)[1] + second.communicate(timeout=30)[1]
    assert (first.returncode, second.returncode) == (0, 0), errors
    assert "waiting" in errors
    assert len(machine.installs()) == 1
    assert not (machine.repo / ".venv.lock.d").exists()


def test_the_program_does_not_hold_the_lock(machine: Machine) -> None:
    python = FAKE_PYTHON.replace(
        "*)\n    printf '%s\\n' \"$PWD\"", '*) ls -l /proc/$$/fd; printf "$PWD"'
    )
    (machine.bin / "ls").symlink_to(shutil.which("ls") or "")
    machine.add_program("python3.13", python)
    out = machine.run()[1]
    assert "/dev/" in out or "pipe:" in out
    assert ".venv.lock" not in out


def test_fills_a_venv_made_by_hand_and_keeps_its_packages(machine: Machine) -> None:
    (machine.venv / "bin").mkdir(parents=True)
    shutil.copy(machine.bin / "python3.13", machine.venv / "bin" / "python")
    (machine.venv / "wandb").touch()
    (machine.folder / "fail").touch()
    assert machine.run()[0] == 1
    (machine.folder / "fail").unlink()
    (machine.folder / "hang").touch()
    process = machine.start()
    wait_for(machine.folder / "hanging")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    (machine.folder / "hang").unlink()
    status, _, err = machine.run()
    assert status == 1 and "remove it" in err
    (machine.venv / "mae_jax.unfinished").unlink()
    assert machine.run()[0] == 0
    assert (machine.venv / "wandb").exists()


def test_starts_again_when_the_python_of_the_venv_is_gone(machine: Machine) -> None:
    machine.run()
    (machine.venv / "bin" / "python").unlink()
    (machine.venv / "bin" / "python").symlink_to("/nowhere/python3.13")
    status, _, err = machine.run()
    assert status == 0 and "is gone" in err


def test_uses_uv_when_it_is_there(machine: Machine) -> None:
    machine.add_program("uv", FAKE_UV)
    assert machine.run()[0] == 0
    make, *fill = machine.calls()
    assert make.startswith("uv venv") and f"--python {machine.bin}/python3.13" in make
    pip = f"uv pip install --quiet --compile-bytecode --python {machine.venv}/bin/python"
    assert fill == [
        f"{pip} --require-hashes -r {machine.locks}/build.txt",
        f"{pip} --require-hashes --no-build-isolation -r {machine.locks}/cpu.txt",
    ]
    machine.run()
    assert machine.installs() == []


def test_says_what_is_missing(machine: Machine) -> None:
    status, _, err = machine.run(FAKE_NO_VENV="1")
    assert status == 1 and "apt install python3.13-venv" in err
    machine.add_program("python3.13", 'echo "Python 3.10.1"; exit 1')
    status, _, err = machine.run()
    assert status == 1 and "Python 3.11, 3.12 or 3.13 is needed" in err
    machine.add_program("python3.13", FAKE_PYTHON)
    status, _, err = machine.run(MAE_JAX_ACCELERATOR="rocm")
    assert status == 1 and "cpu, cuda12, cuda13 or tpu" in err


def test_unlocked_takes_the_newest(machine: Machine) -> None:
    machine.run()
    machine.installs()
    machine.run(MAE_JAX_UNLOCKED="1")
    (line,) = machine.calls()
    assert f" --upgrade -r {machine.repo}/requirements.txt --upgrade-strategy eager" in line
    machine.run(MAE_JAX_UNLOCKED="1")
    assert machine.calls() == []
    machine.run(MAE_JAX_UNLOCKED="1", MAE_JAX_ACCELERATOR="cuda13", script="test.sh")
    (line,) = machine.calls()
    assert f"-r {machine.repo}/requirements-dev.txt jax[cuda13]" in line
    assert "--require-hashes" not in line and "/locks/" not in line


def test_a_given_python_is_used_as_it_is(machine: Machine) -> None:
    status, out, err = machine.run("--x", MAE_JAX_PYTHON=str(machine.bin / "python3.13"))
    assert (status, err) == (0, "")
    assert "mae_jax.main\n--x\n" in out
    assert not machine.venv.exists()


@pytest.mark.parametrize(
    ("driver", "capability", "accelerator"),
    [
        ("580.65.06", "9.0", "cuda13"),
        ("610.10", "12.0", "cuda13"),
        ("580.65.06", "7.5", "cuda13"),
        ("580.65.06", "7.0", "cuda12"),  # V100: CUDA 13 dropped it
        ("579.99", "9.0", "cuda12"),
        ("525.60.13", "8.0", "cuda12"),
        ("470.82.01", "8.0", "cpu"),
    ],
)
def test_chooses_by_driver_and_gpu(
    machine: Machine, driver: str, capability: str, accelerator: str
) -> None:
    machine.add_gpu(driver, capability)
    assert installed_for(machine) == accelerator


def test_the_oldest_of_several_gpus_decides(machine: Machine) -> None:
    machine.add_program("nvidia-smi", "printf '580.1, 9.0\\n580.1, 7.0\\n580.1, 8.0\\n'")
    assert installed_for(machine) == "cuda12"


def test_broken_nvidia_smi_means_cpu(machine: Machine) -> None:
    machine.add_program("nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    assert installed_for(machine) == "cpu"


@pytest.mark.parametrize("kind", ACCELERATORS)
def test_the_accelerator_can_be_given(machine: Machine, kind: str) -> None:
    machine.add_gpu("580.65.06")
    assert installed_for(machine, MAE_JAX_ACCELERATOR=kind) == kind


NVRM = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (root@host)\n"


def test_asks_nvidia_smi_once_per_driver(machine: Machine) -> None:
    machine.add_file("proc/driver/nvidia/version", NVRM.format("580.65.06") + "GCC version: 12.3.0")
    machine.add_file("dev/nvidia0")
    machine.add_gpu("580.65.06", "7.0")
    smi = machine.folder / "smi"
    assert installed_for(machine) == "cuda12"
    assert len(smi.read_text().splitlines()) == 1
    machine.run()
    assert len(smi.read_text().splitlines()) == 1
    machine.add_file("proc/driver/nvidia/version", NVRM.format("590.10"))
    machine.add_gpu("590.10", "8.0")
    assert installed_for(machine) == "cuda13"
    assert len(smi.read_text().splitlines()) == 2


@pytest.mark.parametrize(("driver", "kind"), [("580.65.06", "cuda13"), ("550.54.14", "cuda12")])
def test_reads_the_driver_without_nvidia_smi(machine: Machine, driver: str, kind: str) -> None:
    machine.add_file("proc/driver/nvidia/version", NVRM.format(driver))
    machine.add_file("dev/nvidia0")
    assert installed_for(machine) == kind


def test_a_container_without_the_gpus_of_its_host_is_a_cpu(machine: Machine) -> None:
    machine.add_file("proc/driver/nvidia/version", NVRM.format("580.65.06"))
    assert installed_for(machine) == "cpu"


def test_another_cuda_starts_again_and_no_gpu_keeps_what_is_there(machine: Machine) -> None:
    machine.run(MAE_JAX_ACCELERATOR="cuda12")
    (machine.venv / "plugin").touch()
    machine.installs()
    assert machine.run()[0] == 0  # a login node without a GPU
    assert machine.installs() == []
    changed(machine.locks / "cuda12.txt")
    assert installed_for(machine) == "cuda12"
    assert (machine.venv / "plugin").exists()
    assert installed_for(machine, MAE_JAX_ACCELERATOR="cuda13") == "cuda13"
    assert not (machine.venv / "plugin").exists()


@pytest.mark.parametrize(
    ("node", "vendor", "device", "kind"),
    [
        ("dev/accel0", "0x1ae0", "0x0063", "tpu"),  # v5e
        ("dev/vfio/0", "0x1ae0", "0x006f", "tpu"),  # v6e
        ("dev/vfio/0", "0x1ae0", "0x0042", "cpu"),  # Google's network card
        ("dev/vfio/12", "0x10de", "0x0063", "cpu"),  # a GPU passed through to a virtual machine
        ("dev/vfio/vfio", "0x1ae0", "0x006f", "cpu"),  # the driver, without a device
        ("dev/accel/accel0", "0x1da3", "0x1000", "cpu"),  # of another vendor
        ("dev/null", "0x1ae0", "0x0063", "cpu"),  # a TPU that this container cannot access
    ],
)
def test_finds_a_tpu(machine: Machine, node: str, vendor: str, device: str, kind: str) -> None:
    machine.add_file(node)
    machine.add_file("sys/bus/pci/devices/0000:00:04.0/vendor", f"{vendor}\n")
    machine.add_file("sys/bus/pci/devices/0000:00:04.0/device", f"{device}\n")
    assert installed_for(machine) == kind


def test_finds_a_tpu_of_a_new_generation_in_a_tpu_container(machine: Machine) -> None:
    machine.add_file("dev/vfio/0")
    assert installed_for(machine, TPU_ACCELERATOR_TYPE="v9-8") == "tpu"


def test_test_script_runs_every_check(machine: Machine) -> None:
    status, out, err = machine.run("tests/a b.py", "-k", "x or y", script="test.sh")
    assert status == 0, err
    (line,) = machine.installs()
    assert line.endswith(f" -r {machine.locks}/cpu.txt -r {machine.locks}/dev.txt")
    checks = [
        *("-m\nruff\ncheck\n.", "-m\nruff\nformat\n--check\n.", "-m\npyright\n"),
        "-m\npytest\n-n\nauto\n--maxprocesses\n8\n--no-loadscope-reorder\n--dist\nloadfile\n"
        "tests/a b.py\n-k\nx or y\n",
    ]
    assert all(f"{machine.repo}\n{check}" in out for check in checks)
    assert out.splitlines()[-1].startswith("== all passed")
    assert machine.run()[2] == ""  # the test environment includes everything to run


def test_fast_tests_are_some_folders_without_types(machine: Machine) -> None:
    status, out, err = machine.run("--fast", "-x", script="test.sh")
    assert status == 0, err
    assert "-m\nruff\ncheck" in out and "-m\npyright\n" not in out
    words = out.split("loadfile\n")[1].split("\n")
    *paths, flag = words[: words.index("-x") + 1]
    assert flag == "-x" and paths[0] == "tests/test_imports.py"
    assert all((ROOT / path).exists() for path in paths)
    assert out.splitlines()[-1].startswith("== all passed: ruff check, ruff format, pytest (")


@pytest.mark.parametrize("name", ["ruff check", "format", "pyright", "pytest"])
def test_test_script_fails_when_one_check_does(machine: Machine, name: str) -> None:
    status, out, _ = machine.run(script="test.sh", FAKE_FAIL=name)
    assert status == 1
    assert "-m\npytest\n" in out  # the other checks still ran
    assert re.match(rf"== FAILED: .*{name} \(", out.splitlines()[-1])


def test_shellcheck() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of requirements-dev.txt
    if platform.machine() == "aarch64" and not shellcheck.exists():
        pytest.skip("there are no wheels of it for Linux on ARM")
    done = subprocess.run([shellcheck, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_ready_to_start(script: Path) -> None:
    if script.name in ("setup.sh", "common.sh", "pod.sh", "tpu_node.sh"):  # only sourced
        return
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()


def requirements(name: str) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def locked(name: str) -> list[tuple[Requirement, list[str]]]:
    """The packages in a list of launch/locks, each with its hashes."""
    text = (ROOT / "launch" / "locks" / f"{name}.txt").read_text().replace("\\\n", "")
    found = []
    for line in text.splitlines():
        if not line.startswith("#"):
            pin, *hashes = line.split("--hash=")
            found.append((Requirement(pin), [one.strip() for one in hashes]))
    return found


@pytest.mark.parametrize("name", LISTS)
def test_every_package_of_a_list_has_hashes(name: str) -> None:
    packages = locked(name)
    assert packages
    for pin, hashes in packages:
        (exact,) = pin.specifier
        assert exact.operator == "==" and not pin.extras, pin
        assert hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes), pin
        # Not only the files for the machine that created the list.
        assert len(hashes) > 10 or pin.name not in ("jaxlib", "numpy", "pillow"), pin


def test_the_lists_agree() -> None:
    hashes: dict[str, list[str]] = {}
    versions: dict[tuple[str, str], str] = {}
    for name in LISTS:
        for pin, found in locked(name):
            assert hashes.setdefault(f"{pin.name}{pin.specifier}", found) == found, (name, pin)
            key = (pin.name, str(pin.marker))
            assert versions.setdefault(key, str(pin.specifier)) == str(pin.specifier), (name, pin)


@pytest.mark.parametrize("machine_name", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_the_lists_pin_every_requirement_within_its_bounds(
    accelerator: str, python: str, machine_name: str
) -> None:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": machine_name,
        "sys_platform": "linux",
    }

    def is_wanted(requirement: Requirement) -> bool:
        return requirement.marker is None or requirement.marker.evaluate(environment)

    pins: dict[str, str] = {}
    for name in (accelerator, "dev"):
        ours = {pin.name: str(pin.specifier)[2:] for pin, _ in locked(name) if is_wanted(pin)}
        assert all(pins.get(package, version) == version for package, version in ours.items())
        pins |= ours
        assert len(ours) == sum(is_wanted(pin) for pin, _ in locked(name))  # each once
        for requirement in requirements(f"requirements{'-dev' if name == 'dev' else ''}.txt"):
            if is_wanted(requirement):
                version = ours[requirement.name.lower()]
                assert requirement.specifier.contains(version), (requirement, version)
    # JAX rejects a jaxlib or plugin of another version.
    plugins = {name for name in pins if name.startswith("jax-cuda")}
    parts = ("plugin", "pjrt") if accelerator.startswith("cuda") else ()
    assert plugins == {f"jax-{accelerator}-{part}" for part in parts}
    assert {pins[name] for name in ("jax", "jaxlib", *plugins)} == {pins["jax"]}
    assert ("libtpu" in pins) == (accelerator == "tpu")


@pytest.mark.parametrize(
    "name",
    ["requirements.txt", "requirements-dev.txt", *(f"launch/locks/{name}.txt" for name in LISTS)],
)
def test_requirements_name_no_host_and_no_folder(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"://|index-url|find-links|\s@\s|(^|\s)(/|[A-Za-z]:\\)\w", text)


def wheel(folder: Path, name: str) -> str:
    """Writes a package with one empty module; returns its hash."""
    path = folder / f"{name}-1-py3-none-any.whl"
    info = f"{name}-1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n")
    return f" --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.mark.parametrize(
    ("faulty", "option", "message"),
    [
        ("", "", ""),
        ("cpu", f" --hash=sha256:{'0' * 64}", "DO NOT MATCH THE HASHES"),
        ("cpu", "", "Hashes are required in --require-hashes mode"),
        ("build", f" --hash=sha256:{'0' * 64}", "DO NOT MATCH THE HASHES"),
    ],
    ids=["right", "another file", "no hash", "another builder"],
)
def test_pip_refuses_what_is_not_on_the_list(
    machine: Machine, faulty: str, option: str, message: str
) -> None:
    """With the real pip, into a separate folder."""
    pytest.importorskip("pip")
    target = machine.folder / "target"
    for name in ("build", "cpu"):
        right = wheel(machine.folder, f"of_{name}")
        line = f"of_{name}==1{option if name == faulty else right}\n"
        (machine.locks / f"{name}.txt").write_text(line)
    machine.add_program("python", f'exec {sys.executable} "$@"')
    (machine.venv / "bin").mkdir(parents=True)
    shutil.copy(machine.bin / "python", machine.venv / "bin")
    status, _, err = machine.run(
        *("-c", 'set -euo pipefail; source "$0"; setup run', f"{machine.repo}/launch/setup.sh"),
        script=str(machine.bin / "bash"),
        PIP_CONFIG_FILE=os.devnull,
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(machine.folder),
        PIP_TARGET=str(target),
    )
    assert (status == 0) == (not faulty) and message in err, err
    installed = {path.stem for path in target.glob("*.py")}
    assert installed == {"": {"of_build", "of_cpu"}, "cpu": {"of_build"}, "build": set()}[faulty]
    assert (machine.venv / "mae_jax.run").exists() == (not faulty)


# Adds a package to its output file.
LOCKING_UV = """\
printf 'uv %s\\n' "$*" >>"$FAKE/log"
while [[ $1 != --output-file ]]; do shift; done
if [[ -n ${FAKE_FAIL:-} && $2 == *"$FAKE_FAIL"* ]]; then exit 1; fi
if [[ $2 == */all ]]; then cp "$2" "$FAKE/kept"; fi
cat >/dev/null; printf 'new==1 \\\n' >>"$2"
"""


def test_lock_keeps_versions_unless_told_otherwise(machine: Machine) -> None:
    machine.add_program("uv", LOCKING_UV)
    for args in ((), ("--upgrade",)):
        assert machine.run(*args, script="lock.sh")[0] == 0
        first, *others = machine.calls()
        assert ("--upgrade" in first) == bool(args) and "--generate-hashes" not in first
        assert len(others) == len(LISTS)
        assert all("--generate-hashes" in line and "/all" in line for line in others)
        assert not any("--upgrade" in line for line in others)
        assert {path.read_text() for path in machine.locks.iterdir()} == {"new==1 \\\n"}
        if not args:
            kept = (machine.folder / "kept").read_text().splitlines()
            pins = {str(pin) for name in LISTS for pin, _ in locked(name)}
            assert {str(Requirement(line)) for line in kept} == pins


def test_lock_that_fails_changes_nothing(machine: Machine) -> None:
    machine.add_program("uv", LOCKING_UV)
    before = {path.name: path.read_text() for path in machine.locks.iterdir()}
    assert machine.run(script="lock.sh", FAKE_FAIL="tpu.txt")[0] == 1
    assert {path.name: path.read_text() for path in machine.locks.iterdir()} == before


def wait_for(path: Path, *, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def test_speed_comparison_goes_on_when_one_part_fails(machine: Machine) -> None:
    machine.add_program("sizes", '[[ "$*" != *vit_b.py* ]] && echo "$@"')
    env = {"MAE_JAX_PYTHON": str(machine.bin / "sizes")}
    status, out, _ = machine.run("--torch_python=py", "--repeats=3", script="bench.sh", **env)
    lines = [line for line in out.splitlines() if line.startswith("-P")]
    assert len(lines) == 3 and all(line.endswith("--torch_python=py --repeats=3") for line in lines)
    assert status == 1 and out.splitlines()[-1].startswith("== not measured: ViT-B/16, batch 256 (")
