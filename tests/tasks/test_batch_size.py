"""The batch size that is left to the memory."""

import types

import jax
import pytest

from configs import folder
from mae_jax.distributed import consistency, sharding
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks import TASKS, adaptation, batch_size, presets
from mae_jax.tasks.classify import Classify
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train import largest_batch
from mae_jax.train.compile_step import StepDoesNotFit, abstract_batch
from mae_jax.train.state import abstract_state
from mae_jax.train.step import make_train_step
from tests.helpers import tiny_configs

FIXED, PER_ROW = 10**6, 10**5  # bytes of a step that the tests pretend to compile


@pytest.fixture
def compiled(monkeypatch):
    """The batches that were compiled; a step needs FIXED bytes and PER_ROW for each of its rows."""
    tried = []

    def compile_step(config, task, mesh):
        tried.append(config.batch_size)
        plan = types.SimpleNamespace(
            argument_size_in_bytes=FIXED,
            temp_size_in_bytes=PER_ROW * config.batch_size // mesh.size,
            output_size_in_bytes=FIXED,
            alias_size_in_bytes=FIXED,
        )
        return types.SimpleNamespace(memory_analysis=lambda: plan)

    monkeypatch.setattr(batch_size, "compile_step", compile_step)
    return tried


@pytest.fixture
def memory(monkeypatch):
    """Sets the number of rows that fit on a device; without it any number fits."""

    def rows(number):
        limit = round((FIXED + PER_ROW * (number + 0.5)) / largest_batch.USABLE)
        monkeypatch.setattr(largest_batch, "memory_limit", lambda: limit)

    rows(10**6)
    return rows


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def chosen(config, num_images, kind=Pretrain):
    config.batch_size = 0
    adaptation.adapt(
        config, num_images=num_images, holdout=0, num_devices=jax.device_count(), make_task=kind
    )
    return config.batch_size


def test_bench_takes_the_largest_multiple_of_devices_and_accumulation_steps(compiled, memory):
    memory(105)
    config = tiny_configs.config(grad_accum=2, batch_size=16)
    # 104 or 105 rows for each of 4 devices; rounded down to whole groups of 32 images.
    assert batch_size.find_largest(Pretrain, config) == 416
    assert config.batch_size == 16 and len(compiled) <= 5
    memory(1)
    with pytest.raises(UsageError, match="not even a batch of 8 fits"):
        batch_size.find_largest(Pretrain, config)


@pytest.mark.parametrize(
    "rows, images, changes, batch",
    [
        (105, 10_000, {}, 416),  # the memory decides
        (10**6, 10_000, {}, 4_096),  # the paper's batch
        (10**6, 1_000, {}, 992),  # the number of images
        (10**6, 10_000, {"steps": 0, "epochs": 3.0}, 288),  # 100 updates
        (10**6, 20, {}, 20),  # fewer than a group
        (7, 10_000, {}, 28),
    ],
)
def test_memory_images_updates_and_the_paper_limit_the_batch(
    compiled, memory, accelerator, caplog, rows, images, changes, batch
):
    memory(rows)
    with caplog.at_level("INFO", logger="mae_jax"):
        assert chosen(tiny_configs.config(**changes), images) == batch
    first, adapted = caplog.messages  # and nothing of the task that is compiled
    assert first.startswith("looking for the largest batch")
    assert adapted.startswith(f"adapted to {images} training images: batch_size 0 -> {batch}")
    assert (len(compiled) == 1) == (rows == 10**6)


def test_on_cpu_it_is_modest(compiled, memory):
    assert chosen(tiny_configs.config(), 100_000) == batch_size.MAX_ON_CPU
    assert compiled == [batch_size.MAX_ON_CPU]


def test_epochs_that_depend_on_the_images_come_first(compiled, memory, accelerator):
    config = folder.get_config()
    assert chosen(config, 3_000) == 2_976
    assert config.epochs == 800 and config.eval_every == 800 * 3_000 // 2_976 // 20


@pytest.mark.parametrize("devices_fit", [False, True])
def test_groups_still_divide_it(compiled, memory, accelerator, devices_fit):
    memory(105 if devices_fit else 10)
    config = tiny_configs.classify_config(mix__mixup=0.8, mix__group=32)
    batch = chosen(config, 5_000, Classify)
    assert batch == (416 if devices_fit else 32)
    assert config.mix.group == 32


def test_mixed_images_come_in_pairs(compiled, memory, monkeypatch):
    one = sharding.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda **_: one)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    memory(7)
    assert batch_size.find_largest(Pretrain, tiny_configs.config()) == 7
    mixed = tiny_configs.classify_config(mix__mixup=0.8)
    assert batch_size.find_largest(Classify, mixed) == 6


def test_the_memory_of_process_0_decides(compiled, memory, monkeypatch):
    memory(105)
    monkeypatch.setattr(consistency, "from_primary", lambda limit: limit // 2)
    assert batch_size.find_largest(Pretrain, tiny_configs.config()) < 416 // 2


def test_a_step_that_the_compiler_refuses_does_not_fit(memory, monkeypatch, accelerator):
    tried = []

    def compile_step(config, task, mesh):
        tried.append(config.batch_size)
        if config.batch_size > 512:
            raise StepDoesNotFit("too large")
        return config.batch_size

    monkeypatch.setattr(batch_size, "compile_step", compile_step)
    monkeypatch.setattr(batch_size, "planned_bytes", lambda rows: FIXED + PER_ROW * rows // 4)
    memory(140)
    batch = chosen(tiny_configs.config(), 10_000)
    assert 448 <= batch <= 512 and len(tried) <= 8


def test_too_few_images_and_nothing_to_train_are_refused(compiled, memory):
    with pytest.raises(UsageError, match="is more than the 3 training images"):
        chosen(tiny_configs.config(), 3)
    config = tiny_configs.config()
    del config.optim
    config.task = "knn"
    with pytest.raises(UsageError, match="batch_size=0 is for training, and knn trains nothing"):
        chosen(config, 100)


@pytest.mark.parametrize("kind", sorted(TASKS.keys() - {"knn"}))
def test_every_task_can_be_compiled_for_it(kind, memory, monkeypatch):
    make = {
        "classify": tiny_configs.classify_config,
        "detect": tiny_configs.detect_config,
        "tokenizer": tiny_configs.tokenizer_config,
    }
    config = make.get(kind, tiny_configs.config)(batch_size=0, steps=7, data__num_train=96)
    largest = presets.largest_batch(config)
    if kind != "classify":  # which has the most to divide; the others are only traced
        monkeypatch.setattr(batch_size, "compile_step", traced)
        monkeypatch.setattr(batch_size, "planned_bytes", lambda batch: batch)
    task = TASKS[kind](config, "")
    assert config.batch_size == min(96, largest) and len(task.data.train_source) == 96


def traced(config, task, mesh):
    abstract = abstract_state(task, mesh)
    step = make_train_step(task, abstract, mesh, seed=0, grad_accum=config.grad_accum)
    jax.eval_shape(step, abstract, abstract_batch(task, config.batch_size, mesh))
    return config.batch_size


def test_process_0_says_how_much_memory_there_is():
    stored = {}
    store = types.SimpleNamespace(set=stored.__setitem__, get=lambda key, **_: stored[key])
    assert consistency._pass_on(store, 0, 80) == 80
    assert consistency._pass_on(store, 1, 79) == 80
    consistency.publish_error(store, 0, UsageError("no such folder"))
    with pytest.raises(UsageError, match="process 0 failed during startup"):
        consistency._pass_on(store, 1, 79)
