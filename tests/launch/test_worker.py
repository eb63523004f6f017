"""`launch/worker.sh setup`: what it installs and mounts on a bare machine."""

import shutil

import pytest

from tests.launch.machine import FAKE_PYTHON, FAKE_UV, Machine

SHARE = "10.0.0.2:/share"
# Records its arguments; the input of tee has to be read.
FAKE_SUDO = """\
printf '%s\\n' "$*" >>"$FAKE/sudo"
if [[ $2 == tee ]]; then cat >"$FAKE/teed"; fi
"""


@pytest.fixture
def worker(machine: Machine) -> Machine:
    """A machine with a HOME, without a share and without sudo."""
    machine.env |= {"HOME": str(machine.folder / "home")}
    grep = shutil.which("grep")
    assert grep
    (machine.bin / "grep").symlink_to(grep)
    machine.add_program("mountpoint", 'test -e "$FAKE/mounted"')
    return machine


def setup(machine: Machine, *args: str, **env: str) -> tuple[int, str]:
    status, _, err = machine.run("setup", *args, script="worker.sh", **env)
    return status, err


def test_a_python_that_is_new_enough_is_used(worker: Machine) -> None:
    status, err = setup(worker)
    assert status == 0, err
    assert "installing uv" not in err and not any("uv" in call for call in worker.calls())


@pytest.fixture
def old(worker: Machine) -> Machine:
    """A machine whose Python is too old."""
    for name in ("python3.12", "python3.13"):
        (worker.bin / name).unlink()
    return worker


def test_uv_is_fetched_where_no_python_is_new_enough(old: Machine) -> None:
    for name, text in (("uv", FAKE_UV), ("python3.13", FAKE_PYTHON)):
        old.add_program(name, text)
        (old.bin / name).rename(old.folder / name)
    # The old Python's pip works, but installs programs where only worker.sh looks.
    old.add_program(
        "python3",
        """\
[[ $* == "-m pip install --user --quiet uv" ]] || exit 1
mkdir -p "$HOME/.local/bin" && cp "$FAKE/uv" "$HOME/.local/bin/"
""",
    )
    uv = old.folder / "uv"
    uv.write_text(uv.read_text().replace("$FAKE/bin/python3.13", "$FAKE/python3.13"))
    status, err = setup(old)
    assert status == 0, err
    make, *fill = old.calls()
    assert make.startswith("uv venv") and "--python 3.12" in make
    assert fill and all(call.startswith("uv pip install") for call in fill)


def test_without_python_and_uv_it_says_so(old: Machine) -> None:
    status, err = setup(old)
    assert status == 1
    assert "uv could not be installed" in err and "Python 3.11, 3.12 or 3.13 is needed" in err


def sudo(machine: Machine) -> list[str]:
    return (machine.folder / "sudo").read_text().splitlines()


@pytest.mark.parametrize("has_nfs", [True, False])
def test_a_new_share_is_mounted_by_root_and_opened_to_everybody(
    worker: Machine, has_nfs: bool
) -> None:
    worker.add_program("sudo", FAKE_SUDO)
    if has_nfs:
        worker.add_program("mount.nfs", "")
    status, err = setup(worker, f"--nfs={SHARE}")
    assert status == 0, err
    share = f"{worker.sysroot}/mnt/mae_jax"
    assert sudo(worker) == [
        "-n true",
        f"-n tee -a {worker.sysroot}/etc/fstab",
        *([] if has_nfs else ["-n apt-get install -qq -y nfs-common"]),
        f"-n mkdir -p {share}",
        f"-n mount {share}",
        f"-n chmod 1777 {share}",
    ]
    line = f"{SHARE} {share} nfs defaults,_netdev 0 0\n"
    assert (worker.folder / "teed").read_text() == line


def test_a_share_that_is_mounted_and_writable_is_left_alone(worker: Machine) -> None:
    worker.add_program("sudo", FAKE_SUDO)
    share = worker.sysroot / "mnt" / "mae_jax"
    share.mkdir(parents=True)
    (worker.folder / "mounted").touch()
    worker.add_file("etc/fstab", f"{SHARE} {share} nfs defaults,_netdev 0 0\n")
    assert setup(worker, f"--nfs={SHARE}")[0] == 0
    assert sudo(worker) == ["-n true"]


def test_a_second_share_is_refused(worker: Machine) -> None:
    worker.add_program("sudo", FAKE_SUDO)
    share = worker.sysroot / "mnt" / "mae_jax"
    worker.add_file("etc/fstab", f"{SHARE} {share} nfs defaults,_netdev 0 0\n")
    status, err = setup(worker, "--nfs=10.0.0.3:/share")
    assert status == 1 and "another share is mounted" in err and "fstab" in err
    assert sudo(worker) == ["-n true"] and worker.calls() == []


def test_without_sudo_it_is_done_by_whoever_calls(worker: Machine) -> None:
    worker.add_program("sudo", FAKE_SUDO + "exit 1\n")  # it requires a password
    for name in ("mount", "mount.nfs", "tee"):
        worker.add_program(
            name, f'echo "{name}" >>"$FAKE/asked"; [[ $0 != */tee ]] || cat >/dev/null'
        )
    status, err = setup(worker, f"--nfs={SHARE}")
    assert status == 0, err
    assert sudo(worker) == ["-n true"]
    assert (worker.folder / "asked").read_text() == "tee\nmount\n"
