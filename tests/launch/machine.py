"""A fake machine whose programs only record their arguments."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = [
    "bash",
    "cat",
    "cp",
    "dirname",
    "env",
    "flock",
    "mkdir",
    "mktemp",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "sleep",
    "sort",
    "timeout",
]

# Handles the calls of the scripts: two probes, -m venv, pip, and our own programs.
FAKE_PYTHON = """\
case "$*" in
  *sys.version_info*) [[ ${0##*/} != python3.12 ]] || exit 127; exit 0 ;;
  *ensurepip*) exit "${FAKE_NO_VENV:-0}" ;;
  "-m venv "*)
    mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; printf 'version = 3.13.1\\n' >"$3/pyvenv.cfg" ;;
  *"pip --version"*) ;;
  *"pip install"*)
    printf 'pip' >>"$FAKE/log"; printf ' %s' "${@:4}" >>"$FAKE/log"; printf '\\n' >>"$FAKE/log"
    if [[ -e $FAKE/hang ]]; then trap 'exit 1' INT; : >"$FAKE/hanging"; sleep 20; fi
    if [[ -e $FAKE/slow ]]; then sleep 1; fi
    if [[ -e $FAKE/fail && "$*" == *"$(<"$FAKE/fail")"* ]]; then exit 1; fi ;;
  *)
    printf '%s\\n' "$PWD" "$@"
    printf '%s\\n' "path=$PYTHONPATH"
    if [[ -n ${FAKE_FAIL:-} && "$*" == *"$FAKE_FAIL"* ]]; then exit 3; fi
    exit "${FAKE_STATUS:-0}" ;;
esac
"""
FAKE_UV = """\
printf 'uv' >>"$FAKE/log"; printf ' %s' "$@" >>"$FAKE/log"; printf '\\n' >>"$FAKE/log"
if [[ $1 == venv ]]; then
  mkdir -p "${@: -1}/bin"; cp "$FAKE/bin/python3.13" "${@: -1}/bin/python"
  printf 'version_info = 3.13.1\\n' >"${@: -1}/pyvenv.cfg"
fi
"""


class Machine:
    """A machine with a copy of the scripts, nothing but TOOLS on PATH, and no accelerator."""

    def __init__(self, folder: Path):
        self.bin = folder / "bin"
        self.sysroot = folder / "sys root"
        self.repo = folder / "a repo"
        self.venv = self.repo / ".venv"
        self.locks = self.repo / "launch" / "locks"
        self.log = folder / "log"
        self.folder = folder
        self.cwd = folder
        self.env = {
            "FAKE": str(folder),
            "PATH": str(self.bin),
            "MAE_JAX_SYSROOT": str(self.sysroot),
        }
        self.bin.mkdir()
        self.sysroot.mkdir()
        for name in TOOLS:
            found = shutil.which(name)
            assert found, f"{name} is not on this machine"
            (self.bin / name).symlink_to(found)
        # python3.12 is like a pyenv shim: on PATH, but it does not start.
        for name in ("python3.12", "python3.13"):
            self.add_program(name, FAKE_PYTHON)
        shutil.copytree(ROOT / "launch", self.repo / "launch")
        for file in ROOT.glob("requirements*"):
            shutil.copy(file, self.repo)

    def add_program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!{shutil.which('bash')}\n{text}")
        (self.bin / name).chmod(0o755)

    def add_file(self, name: str, text: str = "") -> None:
        path = self.sysroot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def add_gpu(self, driver: str, capability: str = "9.0") -> None:
        """A GPU that only nvidia-smi reports, as on WSL."""
        self.add_program(
            "nvidia-smi", f'echo "smi" >>"$FAKE/smi"\nprintf "%s\\n" "{driver}, {capability}"'
        )

    def start(self, *args: str, script: str = "local.sh", **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [script if "/" in script else f"{self.repo}/launch/{script}", *args],
            cwd=self.cwd,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *args: str, script: str = "local.sh", **env: str) -> tuple[int, str, str]:
        process = self.start(*args, script=script, **env)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def calls(self) -> list[str]:
        """The calls of pip and uv so far; clears them."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def installs(self) -> list[str]:
        """The calls, without those that install build requirements."""
        return [line for line in self.calls() if not line.endswith("build.txt")]
