"""How processes connect, where they listen, and which GPUs a Slurm task uses."""

import socket

import jax
import pytest
from jax._src import xla_bridge

from mae_jax.distributed import initialize
from mae_jax.distributed.initialize import bind_address, slurm_devices
from mae_jax.runtime import host
from mae_jax.runtime.errors import UsageError
from tests.helpers.processes import run_two

EIGHT = "0,1,2,3,4,5,6,7"


def devices(visible=EIGHT, *, local=0, tasks="1", node=0, on_node=8):
    return slurm_devices(
        {
            "CUDA_VISIBLE_DEVICES": visible,
            "SLURM_LOCALID": str(local),
            "SLURM_NODEID": str(node),
            "SLURM_STEP_TASKS_PER_NODE": tasks,
            "SLURM_GPUS_ON_NODE": str(on_node),
        }
    )


def test_one_task_per_node_takes_them_all():
    assert devices(tasks="1(x4)", node=3) == list(range(8))


def test_one_task_per_gpu_takes_the_one_of_its_number():
    assert [devices(local=i, tasks="8(x2)", node=1) for i in range(8)] == [[i] for i in range(8)]


def test_two_tasks_divide_the_gpus_of_a_node():
    assert devices(local=1, tasks="2") == [4, 5, 6, 7]


def test_a_task_that_slurm_bound_takes_what_it_sees():
    """--gpus-per-task=1 and =2: by default, jax would ask for GPU 3 of one."""
    assert devices("3", local=3, tasks="8") == [0]
    assert devices("6,7", local=3, tasks="4") == [0, 1]


def test_nodes_with_different_numbers_of_tasks():
    assert devices(local=1, tasks="8(x2),4", node=2) == [2, 3]
    assert devices(local=1, tasks="8(x2),4", node=1) == [1]


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(UsageError, match=r"8 GPUs .* 3 tasks .*--ntasks-per-node"):
        devices(tasks="3")


def test_jax_decides_elsewhere():
    assert slurm_devices({"CUDA_VISIBLE_DEVICES": EIGHT}) is None
    assert devices("") is None


@pytest.fixture
def names(monkeypatch):
    """Addresses of hosts; only loopback addresses and 0.0.0.0 belong to this machine."""
    known = {"debian": ["127.0.1.1"], "here": ["127.0.1.1", "0.0.0.0"], "proxy": ["203.0.113.7"]}

    def look_up(name, *_, **__):
        if name not in known:
            raise socket.gaierror("unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (x, 0)) for x in known[name]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "here"])
def test_process_0_listens_at_the_address_that_the_others_call(names, name):
    assert bind_address(name, "1234") == f"{name}:1234"


@pytest.mark.parametrize("name", ["debian", "proxy", "unknown"])
def test_it_listens_everywhere_where_it_does_not_know_its_own_address(names, name, caplog):
    """Debian maps the host name to 127.0.1.1, which no other host can reach."""
    assert bind_address(name, "1234") is None
    assert f"port 1234 listens on every network interface: {name} is" in caplog.text


# Its arguments: coordinator, index. Prints where this process listens, and how many share the host.
LISTENING = """
import os, sys
from mae_jax.distributed import initialize
from mae_jax.runtime import host

address, index = sys.argv[1:]
initialize.start("auto", address, 2, int(index))
import jax
from jax.experimental import multihost_utils
multihost_utils.sync_global_devices("the collectives listen")
sockets = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
           if os.path.lexists(f"/proc/self/fd/{fd}")}
for table in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{table}").readlines()[1:]:
        _, local, _, state, *rest = line.split()
        if state == "0A" and f"socket:[{rest[5]}]" in sockets:
            print("listens", local.split(":")[0])
print("processes", host.processes)
multihost_utils.sync_global_devices("over")
"""
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def test_processes_of_one_machine_listen_on_its_loopback_interface_only():
    for index, (status, said, errors) in enumerate(run_two(LISTENING, [[], []])):
        assert status == 0, errors
        lines = [line.split() for line in said.splitlines() if line.startswith(("li", "pr"))]
        found = [address for word, address in lines if word == "listens"]
        assert len(found) >= 2 - index  # the coordinator, and gloo in both
        assert set(found) <= LOOPBACK
        assert ["processes", "2"] in lines


def test_so_do_their_collectives_whatever_the_name_of_the_host(monkeypatch):
    made, factories = [], {}
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "put back afterwards")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    monkeypatch.setattr(host, "processes", 1)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(initialize, "_count_on_host", lambda: 2)
    register = factories.setdefault
    monkeypatch.setattr(
        xla_bridge, "register_backend_factory", lambda *words, **_: register(*words)
    )
    initialize.start("auto", "other:1", 2, 0)
    assert not factories and "NCCL_SOCKET_IFNAME" not in initialize.os.environ
    initialize.start("auto", "localhost:1", 2, 0)
    assert initialize.os.environ["NCCL_SOCKET_IFNAME"] == "lo"
    monkeypatch.setattr(
        "jaxlib._jax.make_gloo_tcp_collectives", lambda **options: made.append(options["hostname"])
    )
    monkeypatch.setattr(xla_bridge, "make_cpu_client", lambda collectives: "client")
    assert factories["cpu"]() == "client" and made == ["localhost"]


@pytest.fixture
def laptop(monkeypatch):
    """An environment without cluster variables and TPU chips."""
    for name in initialize.os.environ:
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORD")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(initialize.glob, "glob", lambda pattern: [])
    return monkeypatch


@pytest.mark.parametrize(
    "mode, variable, value",
    [
        ("auto", "OMPI_COMM_WORLD_SIZE", "2"),
        ("auto", "SLURM_STEP_NUM_TASKS", "4"),
        ("on", "--distributed", "on"),
    ],
)
def test_variables_of_a_cluster_without_a_cluster_are_named(laptop, mode, variable, value):
    laptop.setenv(variable, value)
    with pytest.raises(UsageError) as caught:
        initialize.start(mode)
    text = str(caught.value)
    assert text.startswith(f"{variable}={value}, but jax finds no cluster (")
    assert "--distributed=off" in text and "\n" not in text


@pytest.mark.parametrize("value", ["1", "", "many"])
def test_one_process_connects_to_nobody(laptop, value):
    laptop.setenv("OMPI_COMM_WORLD_SIZE", value)
    laptop.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("connects"))
    initialize.start()
    laptop.setenv("OMPI_COMM_WORLD_SIZE", "2")
    initialize.start("off")


@pytest.mark.parametrize(
    "coordinator, count, index, message",
    [
        ("localhost", 2, 0, "--coordinator=localhost must be HOST:PORT"),
        ("localhost:http", 2, 0, "must be HOST:PORT"),
        (":1234", 2, 0, "must be HOST:PORT"),
        ("localhost:70000", 2, 0, "must be HOST:PORT"),
        ("localhost:1234", 2, 2, "--process_id=2 must be 0 to 1"),
        ("localhost:1234", 0, 0, "--num_processes=0 must be at least 1"),
        ("localhost:1234", None, 0, "together"),
    ],
)
def test_flags_that_make_no_sense_together(coordinator, count, index, message):
    with pytest.raises(UsageError, match=message):
        initialize.start("auto", coordinator, count, index)
