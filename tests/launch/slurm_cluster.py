"""A Slurm cluster of one machine for a test: both daemons, without root or munge.

The programs are those on PATH; or, unpacked anywhere (`dpkg -x` of Debian's slurmctld, slurmd,
slurm-client, slurm-wlm-basic-plugins, munge and the libraries that they lack), those below the
folder MAE_JAX_SLURM.

Credentials expire soon, since a job that was put back waits until its old ones have.
"""

import contextlib
import os
import pwd
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ReturnToService=2
MinJobAge=300
KillWait=30
SchedulerParameters=batch_sched_delay=0,sched_interval=5
{plugins}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def find_root() -> Path | None:
    """The folder that contains usr/bin and usr/sbin; None if there is no Slurm."""
    roots = [Path(root) for root in (os.environ.get("MAE_JAX_SLURM"), "/") if root]
    return next((root for root in roots if _daemon(root, "slurmctld")), None)


def _daemon(root: Path, name: str) -> Path | None:
    """The path of a daemon, which Debian names slurmd-wlm and so on."""
    names = (root / "usr/sbin" / f"{name}{suffix}" for suffix in ("-wlm", ""))
    return next((path for path in names if path.exists()), None)


@contextlib.contextmanager
def cluster(folder: Path, *, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Runs the daemons; yields the environment in which sbatch and other commands find them."""
    root = find_root()
    assert root is not None, "no Slurm"
    library = next((root / "usr/lib").glob("*/slurm-wlm"), None)
    (folder / "state").mkdir(parents=True)
    config = folder / "slurm.conf"
    with socket.socket() as first, socket.socket() as second:
        for free in (first, second):
            free.bind(("", 0))
        ports = (first.getsockname()[1], second.getsockname()[1])
    config.write_text(
        CONFIG.format(
            host=socket.gethostname().split(".")[0],
            user=pwd.getpwuid(os.getuid()).pw_name,
            folder=folder,
            cpus=cpus,
            ports=ports,
            plugins=f"PluginDir={library}" if library else "",
        )
    )
    environment = os.environ | {
        "SLURM_CONF": str(config),
        "PATH": f"{root}/usr/bin:{root}/usr/sbin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{library}:{library.parent if library else ''}",
    }
    step = _daemon(root, "slurmstepd")
    daemons = [
        [_daemon(root, "slurmctld"), "-D"],
        [_daemon(root, "slurmd"), "-D", *(["-d", step] if step else [])],
    ]
    running = []
    try:
        for command in daemons:
            running.append(subprocess.Popen(list(map(str, command)), env=environment))
        _wait_until_idle(environment, folder)
        yield environment
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(30)


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    until = time.monotonic() + 30
    while True:
        asked = subprocess.run(
            ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True
        )
        if asked.stdout.strip() == "idle":
            return
        if time.monotonic() > until:
            logs = [path.read_text()[-2000:] for path in folder.glob("*.log")]
            raise AssertionError("\n".join([asked.stdout, asked.stderr, *logs]))
        time.sleep(0.3)
