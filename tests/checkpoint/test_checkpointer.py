"""Checkpoints of a tiny state: all types of damage, failed saves, deletion of old steps."""

import gc
import json
import os
import pathlib
import resource
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mae_jax.checkpoint import checkpointer, layout, reader, writer
from mae_jax.distributed import sharding
from mae_jax.runtime.errors import UsageError
from mae_jax.train.state import TrainState
from tests.helpers.processes import run_two

# Orbax leaves the reading of other arrays unfinished when one cannot be read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

NOTHING: dict = {}


def make_state(step):
    rng = np.random.default_rng(step)
    place = NamedSharding(sharding.make_mesh(), PartitionSpec())

    def array(*shape, dtype=jnp.float32):
        return jax.device_put(jnp.asarray(rng.normal(size=shape), dtype), place)

    params = {"dense": {"kernel": array(128, 32), "bias": array(16, dtype=jnp.bfloat16)}}
    return TrainState(
        step=jax.device_put(jnp.int32(step), place),
        params=params,
        opt_state=(NOTHING, {"mu": jax.tree.map(lambda x: 2 * x, params)}),
        model_state={},
        ema={},
    )


def abstract(fsdp=1, devices=None):
    mesh = sharding.make_mesh(fsdp=fsdp, devices=devices)
    state = make_state(0)
    shardings = jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec()), state)
    shardings.params["dense"]["kernel"] = NamedSharding(mesh, PartitionSpec("fsdp"))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )


def save(run, *steps, **options):
    saver = checkpointer.Checkpointer(str(run), **options)
    for step in steps:
        saver.save(make_state(step), {"step": step})
    saver.wait()
    return saver


def assert_same(a, b):
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


def step_names(run):
    return sorted(os.listdir(run / "checkpoints"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run with steps 1 and 2."""
    run = tmp_path_factory.mktemp("sound")
    save(run, 1, 2).close()
    return run


@pytest.fixture
def run(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    return tmp_path / "run"


def data_files(folder):
    tops = [top for top, _, _ in os.walk(folder / "state") if os.path.basename(top) == "d"]
    return [os.path.join(top, name) for top in tops for name in os.listdir(top)]


def flip_a_bit(file):
    with open(file, "r+b") as opened:
        opened.seek(os.path.getsize(file) // 2)
        byte = opened.read(1)[0]
        opened.seek(-1, 1)
        opened.write(bytes([byte ^ 16]))


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def damage_data(folder):
    for file in data_files(pathlib.Path(folder)):
        flip_a_bit(file)


def only_data(function):
    return lambda folder: [function(file) for file in data_files(folder)]


def edit_metadata(folder):
    file = folder / "metadata" / "metadata"
    file.write_text(file.read_text().replace('"step": 2', '"step": 2, "rate": 3'))


def metadata_of_another_step(folder):
    shutil.rmtree(folder / "metadata")
    shutil.copytree(folder.parent / "1" / "metadata", folder / "metadata")


def whole_of_another_step(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "1", folder)


def state_of_another_step(folder):
    shutil.rmtree(folder / "state")
    shutil.copytree(folder.parent / "1" / "state", folder / "state")


def manifest_of_another_step(folder):
    shutil.copy(folder.parent / "1" / "state" / "manifest.ocdbt", folder / "state")


def overwrite(name, text):
    return lambda folder: (folder / name).write_text(text)


def zero(file):
    size = os.path.getsize(file)
    with open(file, "wb") as opened:
        opened.write(bytes(size))


FAULTS = {
    "flipped bit": lambda f: flip_a_bit(max(data_files(f), key=os.path.getsize)),
    "flipped bits in all data": damage_data,
    "truncated data": only_data(lambda file: os.truncate(file, os.path.getsize(file) // 2)),
    "truncated to nothing": only_data(lambda file: os.truncate(file, 0)),
    "zeros in the place of data": only_data(zero),
    "missing data": only_data(os.remove),
    "no manifest": lambda f: os.remove(f / "state" / "manifest.ocdbt"),
    "no _METADATA": lambda f: os.remove(f / "state" / "_METADATA"),
    "no marker": lambda f: os.remove(f / "_CHECKPOINT_METADATA"),
    "empty folder": empty,
    "no state": lambda f: shutil.rmtree(f / "state"),
    "no metadata": lambda f: shutil.rmtree(f / "metadata"),
    "truncated metadata": lambda f: os.truncate(f / "metadata" / "metadata", 9),
    "zeros in the place of metadata": lambda f: zero(f / "metadata" / "metadata"),
    "metadata that are no JSON": overwrite("metadata/metadata", "<html>"),
    "metadata without content": overwrite("metadata/metadata", "{}"),
    "metadata of another kind": overwrite("metadata/metadata", "null"),
    "_METADATA that is no JSON": overwrite("state/_METADATA", "<html>"),
    "_METADATA without content": overwrite("state/_METADATA", "{}"),
    "_METADATA of another kind": overwrite("state/_METADATA", "[]"),
    "edited metadata": edit_metadata,
    "metadata of another step": metadata_of_another_step,
    "another step": whole_of_another_step,
    "state of another step": state_of_another_step,
    "manifest of another step": manifest_of_another_step,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damage_is_found_by_all_who_read(run, fault):
    FAULTS[fault](run / "checkpoints" / "2")
    saver = checkpointer.Checkpointer(str(run))
    with pytest.raises(reader.CorruptCheckpointError) as caught:
        saver.restore(2, abstract())
    assert "\n" not in str(caught.value) and "checkpoints/2 is damaged: " in str(caught.value)
    with pytest.raises(reader.CorruptCheckpointError):
        reader.verify(layout.find(str(run)))
    with pytest.raises(reader.CorruptCheckpointError):
        reader.load_arrays(str(run), ("params", "opt_state", "step"))
    assert step_names(run) == ["1", "2"]  # only a start renames steps
    saver.quarantine(2, caught.value.reason)
    assert saver.latest_step() == 1 and step_names(run) == ["1", "corrupt-2"]
    assert_same(saver.restore(1, abstract()), make_state(1))
    saver.close()


def test_no_flipped_bit_anywhere_ever_gives_other_values(run):
    rng = np.random.default_rng(0)
    folder = run / "checkpoints" / "2"
    files = [os.path.join(top, name) for top, _, names in os.walk(folder) for name in names]
    saver, right, damaged = checkpointer.Checkpointer(str(run)), make_state(2), 0
    for file in [f for f in files if os.path.getsize(f)] * 2:
        with open(file, "rb") as opened:
            content = bytearray(opened.read())
        changed = content.copy()
        changed[rng.integers(len(content))] ^= 1 << rng.integers(8)
        for text in (changed, content):
            with open(file, "wb") as opened:
                opened.write(text)
            try:
                assert_same(saver.restore(2, abstract()), right)
                assert saver.metadata(2) == {"step": 2}
            except reader.CorruptCheckpointError:
                assert text is changed
                damaged += 1
    assert damaged > 10
    saver.close()


@pytest.mark.parametrize("devices, fsdp", [(1, 1), (2, 2), (4, 2), (4, 4)])
def test_a_copy_is_restored_on_other_devices(run, devices, fsdp):
    saver = checkpointer.Checkpointer(str(run), read_only=True)
    state = saver.restore(2, abstract(fsdp, jax.devices()[:devices]))
    assert_same(state, make_state(2))
    assert len(state.params["dense"]["kernel"].sharding.device_set) == devices
    saver.close()


def test_another_model_is_not_damage(run):
    saver = checkpointer.Checkpointer(str(run))
    other = abstract()
    other.params["dense"]["bias"] = jax.ShapeDtypeStruct((4,), jnp.bfloat16)
    other.params["extra"] = jax.ShapeDtypeStruct((), jnp.float32)
    text = r"does not fit .*params/dense/bias was bfloat16\[16\], is bfloat16\[4\], params/extra is"
    with pytest.raises(UsageError, match=text) as caught:
        saver.restore(2, other)
    assert not isinstance(caught.value, reader.CorruptCheckpointError)
    saver.close()


def of_tensorstore(code, number):
    """An error of tensorstore for a disk that does not respond."""
    return ValueError(
        f'{code}Error opening "zarr" driver: Error reading local file "d/0": Failed to read: '
        f"No [tensorstore_spec='{{}}'] [os_error_code='{number}']"
    )


TROUBLE = [
    PermissionError(13, "no"),
    OSError(5, "Input/output error"),
    RuntimeError("can't start new thread"),
    MemoryError(),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    jax.errors.JaxRuntimeError("INTERNAL: a device is lost"),
    jax.errors.JaxRuntimeError("DATA_LOSS: a device is lost"),
    TypeError("restore() got an unexpected keyword argument"),
    KeyError("tree_metadata"),
    AttributeError("module 'orbax' has no attribute 'x'"),
    AssertionError("of a library"),
    ValueError("PyTree structures differ"),
    FileNotFoundError(2, "No such file or directory", "/usr/lib/libcuda.so"),
    of_tensorstore("UNKNOWN: ", 5),
    of_tensorstore("FAILED_PRECONDITION: ", 107),
    of_tensorstore("NOT_FOUND: ", 19),
    of_tensorstore("", 22),
    ValueError("UNAVAILABLE: Error reading gs://bucket"),
]


@pytest.mark.parametrize("error", TROUBLE, ids=repr)
def test_what_does_not_prove_damage_is_not_damage(run, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", refuse)
    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", refuse)
    saver, found = checkpointer.Checkpointer(str(run)), layout.find(str(run))
    for read in (
        lambda: saver.restore(2, abstract()),
        lambda: reader.verify(found),
        lambda: reader.load_arrays(found),
    ):
        with pytest.raises(UsageError) as caught:
            read()
        assert not isinstance(caught.value, reader.CorruptCheckpointError)
        message = str(caught.value)
        assert f"checkpoints/2 cannot be read ({type(error).__name__}: " in message
        assert "left unchanged" in message and "\n" not in message
    saver.close()


def test_a_disk_that_refuses_a_file_is_not_damage(run):
    """A real error of tensorstore with an error code of the operating system, ELOOP."""
    for file in data_files(run / "checkpoints" / "2"):
        os.remove(file)
        os.symlink(os.path.basename(file), file)
    with pytest.raises(UsageError, match="cannot be read .*Too many levels") as caught:
        reader.verify(layout.find(str(run)))
    assert not isinstance(caught.value, reader.CorruptCheckpointError)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state/_METADATA": "0"}'])
def test_small_files_without_checksums_prove_nothing(run, text):
    """As in earlier versions, or after a kill at the wrong moment."""
    sums = run / "checkpoints" / "2" / "small_files.json"
    sums.write_text(text) if text else os.remove(sums)
    assert reader.verify(layout.find(str(run))) == (5, True)
    (run / "checkpoints" / "2" / "state" / "_METADATA").write_text("{}")
    with pytest.raises(UsageError, match="cannot be read .KeyError: ") as caught:
        reader.verify(layout.find(str(run)))
    assert not isinstance(caught.value, reader.CorruptCheckpointError)


@pytest.mark.parametrize("moment", ["before", "while"])
def test_a_step_deleted_while_it_is_read_is_not_damaged(run, monkeypatch, caplog, moment):
    path, restore, seen = str(run), ocp.PyTreeCheckpointHandler.restore, []

    def train_on():
        if len(seen) == 1:
            save(run, 3, keep=1).close()

    def late(*args, **kwargs):
        train_on()
        return restore(*args, **kwargs)

    def work(found):
        seen.append(found.step)
        if moment == "before":
            train_on()
        return reader.load_metadata(found), reader.load_arrays(found)["params"]

    if moment == "while":
        monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", late)
    with caplog.at_level("INFO"):
        metadata, params = reader.resolve_and_read(path, work)
    assert seen == [2, 3] and metadata == {"step": 3} and step_names(run) == ["3"]
    assert_same(params, make_state(3).params)
    assert "checkpoints/2 does not exist" in caplog.text and "reading step 3 instead" in caplog.text
    with pytest.raises(layout.NoSuchStep, match=r"checkpoints/2 does not exist.*run: 3\)"):
        reader.resolve_and_read(f"{path}/checkpoints/2", work)


def test_a_checkpoint_of_an_earlier_version_is_used(tmp_path, caplog):
    state = make_state(3)
    parts = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(parts), metadata=ocp.args.JsonSave({"step": 3})
    )
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(3, args=args)
    saver = checkpointer.Checkpointer(str(tmp_path))
    assert_same(saver.restore(saver.latest_step(), abstract()), state)
    assert "without checksums" in caplog.text
    assert saver.metadata(3) == {"step": 3}
    other = abstract()
    other.params["extra"] = jax.ShapeDtypeStruct((), jnp.float32)
    with pytest.raises(UsageError, match="does not fit"):
        saver.restore(3, other)
    saver.close()


@pytest.mark.parametrize("bad", ["params", "opt_state"])
def test_what_is_not_finite_never_reaches_the_disk(tmp_path, bad):
    saver = save(tmp_path, 1)
    state = make_state(2)
    part = state.params if bad == "params" else state.opt_state[1]["mu"]
    part["dense"]["bias"] = part["dense"]["bias"].at[3].set(jnp.inf)
    with pytest.raises(FloatingPointError, match=f"after step 2 .*{bad}.*/dense/bias"):
        saver.save(state, {"step": 2})
    saver.close()
    assert step_names(tmp_path) == ["1"]


def test_a_disk_that_is_full_is_told_and_the_step_saved_again(tmp_path):
    saver = save(tmp_path, 1, keep=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # no file longer than this
    try:
        saver.save(make_state(2), {"step": 2})
        with pytest.raises(writer.SaveFailed, match="checkpoint 2 is not saved: "):
            saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saver.pop_error() is None  # reported once
    assert saver.latest_step() == 1
    saver.save(make_state(2), {"step": 2})
    saver.wait()
    assert saver.pop_error() is None and saver.latest_step() == 2
    assert_same(saver.restore(2, abstract()), make_state(2))
    saver.close()
    assert step_names(tmp_path) == ["2"]


def test_a_folder_that_cannot_be_made_is_told_and_not_raised(tmp_path):
    saver = checkpointer.Checkpointer(str(tmp_path))
    (tmp_path / "checkpoints").write_text("a file")
    saver.save(make_state(1), {"step": 1})
    assert "checkpoint 1 is not saved" in str(saver.pop_error())
    assert saver.pop_error() is None
    os.remove(tmp_path / "checkpoints")
    saver.save(make_state(1), {"step": 1})
    saver.close()
    assert step_names(tmp_path) == ["1"]


def test_asking_for_failures_does_not_wait(tmp_path, monkeypatch):
    hold, wait = threading.Event(), ocp.AsyncCheckpointer.wait_until_finished

    def slow(self):
        if threading.current_thread().name == "checkpoint":
            hold.wait()
            raise OSError("bucket is gone")
        wait(self)

    saver = checkpointer.Checkpointer(str(tmp_path))
    monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", slow)
    saver.save(make_state(1), {"step": 1})
    assert saver.pop_error() is None
    hold.set()
    while not (error := saver.pop_error()):
        pass
    assert str(error) == "checkpoint 1 is not saved: bucket is gone"
    monkeypatch.undo()
    saver.close()


def test_nothing_is_deleted_before_the_new_step_was_read_back(tmp_path, monkeypatch):
    saver, verify = save(tmp_path, 1, 2, keep=1, keep_every=10), reader.verify
    assert step_names(tmp_path) == ["2"]

    def damaged_on_the_way(found, tree):
        assert step_names(tmp_path) == ["2", "3"]
        flip_a_bit(max(data_files(tmp_path / "checkpoints" / "3"), key=os.path.getsize))
        return verify(found, tree)

    monkeypatch.setattr(reader, "verify", damaged_on_the_way)
    saver.save(make_state(3), {"step": 3})
    with pytest.raises(writer.SaveFailed, match="set aside as corrupt-3 after reading back"):
        saver.wait()
    monkeypatch.undo()
    assert step_names(tmp_path) == ["2", "corrupt-3"]
    assert saver.latest_step() == 2
    for step in (3, 10, 11):
        saver.save(make_state(step), {"step": step})
    saver.close()
    assert step_names(tmp_path) == ["10", "11", "corrupt-3"]


def test_what_cannot_be_read_back_is_neither_set_aside_nor_a_reason_to_delete(
    tmp_path, monkeypatch
):
    tries = []

    def unreadable(found, tree):
        with reader.as_corrupt(found):
            tries.append(found.step)
            raise OSError(5, "Input/output error")

    saver = save(tmp_path, 1, keep=1)
    monkeypatch.setattr(reader, "verify", unreadable)
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.0)
    saver.save(make_state(2), {"step": 2})
    with pytest.raises(writer.SaveFailed, match="2 is written but could not be read back.*Inp"):
        saver.wait()
    assert len(tries) > 3
    monkeypatch.undo()
    assert step_names(tmp_path) == ["1", "2"]
    assert_same(saver.restore(2, abstract()), make_state(2))
    saver.close()


def test_a_save_leaves_nothing_behind_in_memory(tmp_path):
    saver = checkpointer.Checkpointer(str(tmp_path))

    def objects_after(steps):
        for step in steps:
            saver.save(make_state(step), {"step": step})
            saver.wait()
        gc.collect()
        return len(gc.get_objects())

    before = objects_after(range(1, 4))
    # What tensorstore loses when Orbax asks for its counters; 17 of each array when verifying asked
    # the checkpoint for its tree.
    assert (objects_after(range(4, 9)) - before) / 5 < 40


def test_leftovers_of_a_kill_are_removed_only_at_the_start(run, caplog):
    left = [run / "checkpoints" / n for n in ("3.orbax-checkpoint-tmp", "deleting-0")]
    for folder in left:
        (folder / "state").mkdir(parents=True)
    checkpointer.Checkpointer(str(run), read_only=True).close()
    assert len(step_names(run)) == 4
    with caplog.at_level("INFO"):
        saver = checkpointer.Checkpointer(str(run))
    assert saver.latest_step() == 2
    assert all(f"removing {folder}" in caplog.text for folder in left)
    saver.close()
    assert step_names(run) == ["1", "2"]


def test_weights_keep_their_checksums(tmp_path):
    params = {"dense": {"kernel": np.arange(600.0, dtype=np.float32)}}
    checkpointer.save_weights(str(tmp_path / "w"), params, {}, {"model": {}})
    assert reader.load_metadata(str(tmp_path / "w")) == {"model": {}}
    assert reader.verify(layout.find(str(tmp_path / "w"))) == (1, True)
    text = json.loads((tmp_path / "w" / "metadata" / "metadata").read_text())
    text["arrays"]["params/dense/kernel"][2] = "0" * 16
    del text["sha256"]
    (tmp_path / "w" / "metadata" / "metadata").write_text(json.dumps(text))
    with pytest.raises(reader.CorruptCheckpointError, match="params/dense/kernel has other values"):
        reader.load_arrays(str(tmp_path / "w"))


def test_verifying_reads_a_little_at_a_time(run, monkeypatch):
    groups, restore = [], ocp.PyTreeCheckpointHandler.restore

    def spy(*args, **kwargs):
        state = restore(*args, **kwargs)
        groups.append(sum(isinstance(x, np.ndarray) for x in jax.tree.leaves(state)))
        return state

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", spy)
    monkeypatch.setattr(reader, "_GROUP_BYTES", 1)
    assert reader.verify(layout.find(str(run))) == (5, True)
    assert groups == [1] * 5
    reader.load_arrays(str(run))
    assert groups[5:] == [2]  # only the parameters


@pytest.mark.parametrize("size, is_split", [(2**10, False), (2**20, True)])
def test_only_large_arrays_are_split_over_their_replicas(tmp_path, caplog, size, is_split):
    state = make_state(3)
    place = state.params["dense"]["kernel"].sharding
    state.params["new"] = jax.device_put(np.arange(size * 4, dtype=np.float32), place)
    saver = checkpointer.Checkpointer(str(tmp_path))
    with jax.log_compiles():
        saver.save(state, {})
    assert ("jit(slice)" in caplog.text) == is_split
    saver.wait()
    saved = reader.load_arrays(str(tmp_path))
    np.testing.assert_array_equal(saved["params"]["new"], np.arange(size * 4, dtype=np.float32))


def test_names_of_what_is_set_aside_never_collide(run):
    for expected in ("corrupt-2", "corrupt-2-2", "corrupt-2-3"):
        assert layout.quarantine(str(run), 2) == expected
        shutil.copytree(run / "checkpoints" / "1", run / "checkpoints" / "2")
    assert layout.quarantined(str(run)) == ["corrupt-2", "corrupt-2-2", "corrupt-2-3"]


TWO = """
import logging, os, resource, signal, sys
import jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jax.experimental import multihost_utils
from mae_jax.checkpoint import checkpointer
from mae_jax.checkpoint import reader
from mae_jax.checkpoint import writer
from mae_jax.checkpoint import writer
from tests.checkpoint.test_checkpointer import abstract
from tests.checkpoint.test_checkpointer import damage_data
from tests.checkpoint.test_checkpointer import make_state
run, first = sys.argv[3], jax.process_index() == 0
meet = lambda: multihost_utils.sync_global_devices("here")
saver = checkpointer.Checkpointer(run)

def save(step):
    saver.save(make_state(step), {"step": step})
    while (failure := saver.pop_error()) is None and step not in saver.steps():
        meet()
    if failure is None:
        saver.wait()
    print(step, failure)

if first:
    open(run + "/checkpoints", "w").close()
meet()
save(1)  # refused by process 0, reported by both
if first:
    os.remove(run + "/checkpoints")
meet()
save(1)
# One process cannot write its part: none waits long, and the step can be saved again later.
writer.WAIT_SECONDS = 5
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
if not first:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
meet()
saver.save(make_state(2), {"step": 2})
try:
    saver.wait()
    print("saved")
except writer.SaveFailed:
    print("2 not saved")
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
writer.WAIT_SECONDS = 60
meet()
save(2)
mine = run + "/checkpoints/2"
if first:
    damage_data(mine)
meet()
try:
    saver.restore(2, abstract(fsdp=4))
except reader.CorruptCheckpointError as error:
    print("damaged")
    saver.quarantine(2, error.reason)
print(saver.steps())
state = saver.restore(1, abstract(fsdp=4))
whole = multihost_utils.process_allgather(state.params, tiled=True)
right = multihost_utils.process_allgather(make_state(1).params, tiled=True)
jax.tree.map(np.testing.assert_array_equal, whole, right)
saver.close()
print("done")
"""


@pytest.mark.slow
def test_two_processes_agree_on_failures_and_damage(tmp_path):
    for status, output, errors in run_two(TWO, [[str(tmp_path)]] * 2, devices=2):
        lines = [line for line in output.splitlines() if "Gloo" not in line]
        assert status == 0, output + errors
        assert lines[0].startswith("1 checkpoint 1 is not saved: "), output
        assert lines[1:] == ["1 None", "2 not saved", "2 None", "damaged", "[1]", "done"], output
    assert step_names(tmp_path) == ["1", "corrupt-2"]
