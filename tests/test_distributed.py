"""Which GPUs a task of Slurm takes."""

import pytest

from mae_jax.distributed import slurm_devices
from mae_jax.errors import UsageError

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
    """--gpus-per-task=1 and =2: jax alone would look for GPU 3 among one."""
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
