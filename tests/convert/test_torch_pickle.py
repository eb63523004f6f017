"""Reading PyTorch's files without PyTorch; the files were written by torch 2.13 (torch.save)."""

import contextlib
import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from mae_jax.convert import torch_pickle
from mae_jax.runtime.errors import UsageError
from tests.parity import official


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_every_kind_of_tensor_and_container_is_read(name):
    content = torch_pickle.read(official.path(name))
    base = np.arange(24, dtype=np.float32)
    expected = {
        "whole": base.reshape(2, 3, 4),
        "view": base.reshape(4, 6)[1:3, 2:5],
        "turned": base.reshape(4, 6).T,
        "half": (np.arange(5) / 4).astype(np.float16),
        "bfloat": np.arange(5, dtype=np.float32) / 4,
        "long": np.array([1, -2, 3]),
        "byte": np.array([1, 255], np.uint8),
        "flag": np.array([True, False]),
        "scalar": np.float32(2.5),
        "none": np.zeros((0, 3), np.float32),
        "parameter": np.array([1, 2], np.float32),
    }
    assert list(content["model"]) == list(expected)
    for key, value in expected.items():
        found = content["model"][key]
        assert found.shape == value.shape
        np.testing.assert_array_equal(found.astype(value.dtype), value)
    assert str(content["model"]["bfloat"].dtype) == "bfloat16"
    assert content["model"]["half"].dtype == np.float16
    assert content["args"] == {
        "input_size": 224,
        "norm_pix_loss": True,
        "device": "cuda",
        "betas": (0.9, 0.95),
    }
    assert content["epoch"] == 7 and content["tags"] == {1, 2} and content["size"] == (2, 3)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def archive(path, pickled, files=()):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for name, data in files:
            file.writestr(f"archive/{name}", data)
    return str(path)


def legacy(path, pickled):
    buffer = io.BytesIO()
    for value in (
        torch_pickle._LEGACY_MAGIC,
        torch_pickle._LEGACY_VERSION,
        {"little_endian": True},
    ):
        pickle.dump(value, buffer, protocol=2)
    path.write_bytes(buffer.getvalue() + pickled)
    return str(path)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("write", [archive, legacy])
def test_a_file_that_runs_a_command_is_refused_and_does_not(tmp_path, write, protocol):
    witness = tmp_path / "ran"
    pickled = pickle.dumps({"model": Malicious(f"touch {witness}")}, protocol)
    with pytest.raises(UsageError, match=r"bad\.pth: refused: .*system"):
        torch_pickle.read(write(tmp_path / "bad.pth", pickled))
    assert not witness.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"cbuiltins\ngetattr\n(S'1'\nS'2'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"ctorch.hub\nload\n.",
        b"(S'x'\niposix\nsystem\n.",
        b"\x80\x02ccopyreg\n_reconstructor\n.",
        b"\x80\x02cmae_jax.convert.pth\nread\n.",
    ],
)
def test_nothing_but_tensors_and_plain_containers_can_be_named(tmp_path, opcodes):
    with pytest.raises(UsageError, match="refused: the file wants to call"):
        torch_pickle.read(archive(tmp_path / "bad.pth", opcodes))


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cargparse\nNamespace\n(dN}S'evil'\nI1\ns\x86b.",
        b"ctorch._utils\n_rebuild_tensor_v2\n}S'evil'\nI1\nsb.",
        b"ctorch\nFloatStorage\n}S'evil'\nI1\nsb.",
        b"ccollections\nOrderedDict\nN}S'evil'\nI1\ns\x86b.",
    ],
)
def test_what_a_file_may_name_it_cannot_change_for_the_next_one(tmp_path, opcodes):
    path = archive(tmp_path / "bad.pth", opcodes)
    with contextlib.suppress(UsageError):
        torch_pickle.read(path)
    for thing in torch_pickle._callables().values():
        assert not hasattr(thing, "evil")
    assert not hasattr(torch_pickle._Storage, "evil") and not hasattr(torch_pickle._Tensor, "evil")


def test_a_small_file_cannot_fill_the_memory_or_the_day(tmp_path):
    numbers = [("data/0", np.arange(4, dtype=np.float32).tobytes())]
    with pytest.raises(UsageError, match="entries made of 4 numbers"):
        torch_pickle.read(archive(tmp_path / "large.pth", tensor(0, 2**30, 0), numbers))
    nested = []
    for _ in range(100):
        nested = [nested, nested]  # 2 to the 100 lists, of which 100 are different
    assert len(torch_pickle.read(archive(tmp_path / "deep.pth", pickle.dumps(nested)))) == 2


def test_optimizer_state_is_skipped():
    assert set(torch_pickle.read(official.path("micro_training.pth"))) == {
        "model",
        "epoch",
        "scaler",
        "args",
    }


def tensor(offset, size, stride, key="0"):
    """A pickle of one float32 tensor that is a view of storage `key`, of 4 numbers."""
    lines = f"ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'{key}'\n"
    lines += f"S'cpu'\nI4\ntQI{offset}\n(I{size}\nt(I{stride}\ntI00\nNtR."
    return lines.encode()


def test_a_view_must_lie_inside_its_storage(tmp_path):
    numbers = [("data/0", np.arange(4, dtype=np.float32).tobytes())]
    good = torch_pickle.read(archive(tmp_path / "good.pth", tensor(1, 3, 1), numbers))
    np.testing.assert_array_equal(good, [1, 2, 3])
    for offset, size, stride in ((2, 3, 1), (0, 2, 4), (-1, 2, 1), (0, 1000000, 0), (0, 2, -1)):
        path = archive(tmp_path / "bad.pth", tensor(offset, size, stride), numbers)
        if (offset, size, stride) == (0, 1000000, 0):
            assert torch_pickle.read(path).shape == (
                1000000,
            )  # expand(): legal, one number many times
            continue
        with pytest.raises(UsageError, match="outside its storage"):
            torch_pickle.read(path)


def test_damaged_and_foreign_files_are_named(tmp_path):
    with open(official.path("torch_zip.pth"), "rb") as file:
        data = file.read()
    path = tmp_path / "x.pth"
    for content in (b"", b"no pickle at all", data[: len(data) // 2], pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"x\.pth"):
            torch_pickle.read(str(path))
    with open(official.path("torch_legacy.pth"), "rb") as file:
        path.write_bytes(file.read()[:-9])
    with pytest.raises(UsageError, match=r"x\.pth"):
        torch_pickle.read(str(path))
    short = [("data/0", b"\0" * 8)]
    with pytest.raises(UsageError, match=r"short\.pth is damaged"):
        torch_pickle.read(archive(tmp_path / "short.pth", tensor(0, 4, 1), short))
    big = [("byteorder", b"big"), ("data/0", b"\0" * 16)]
    with pytest.raises(UsageError, match="big-endian"):
        torch_pickle.read(archive(tmp_path / "big.pth", tensor(0, 4, 1), big))
