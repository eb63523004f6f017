"""DALL-E's files: whole pickled modules, of which nothing is run."""

import io
import os
import pickle
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from mae_jax.convert import tokenizer, torch_pickle
from mae_jax.runtime.errors import UsageError
from tests.convert import dall_e
from tests.convert.test_torch_pickle import Malicious, archive


def encoder(**changes):
    return dall_e.state_dict(np.random.default_rng(0), part="encoder", **changes)


def test_a_pickled_module_is_read_as_its_state_dict(tmp_path):
    theirs = encoder()
    path = dall_e.write(tmp_path / "encoder.pkl", theirs, "encoder")
    found = torch_pickle.read(path)
    assert found.keys() == theirs.keys()
    for name, x in theirs.items():
        np.testing.assert_array_equal(found[name], x)


def test_names_layout_and_sizes(tmp_path):
    theirs = encoder()
    save_file(theirs, str(tmp_path / "x.safetensors"))
    found = tokenizer.load(str(tmp_path / "x.safetensors"))
    assert found.sizes == {
        "channels": 3,
        "vocab_size": 24,
        "hidden_dim": 8,
        "groups": 3,
        "blocks_per_group": 2,
        "init_dim": 128,
    }
    kernel = found.arrays["encoder/group_2/block_1/conv_1/kernel"]
    other = theirs["blocks.group_2.block_1.res_path.conv_1.w"]
    np.testing.assert_array_equal(kernel, other.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(
        found.arrays["encoder/output/bias"], theirs["blocks.output.conv.b"]
    )
    again = dall_e.write(tmp_path / "encoder.pkl", theirs, "encoder")
    assert tokenizer.load(again).sha256 == found.sha256
    described = tokenizer.from_metadata(found.metadata())
    assert {k: x.shape for k, x in described.arrays.items()} == {
        k: x.shape for k, x in found.arrays.items()
    }


def test_what_is_not_whole_is_refused(tmp_path):
    def load(arrays):
        save_file(arrays, str(tmp_path / "x.safetensors"))
        return tokenizer.load(str(tmp_path / "x.safetensors"))

    theirs = encoder()
    without = {k: v for k, v in theirs.items() if "block_2.res_path.conv_3.w" not in k}
    with pytest.raises(UsageError, match="missing encoder/group_1/block_2/conv_3/kernel"):
        load(without)
    with pytest.raises(UsageError, match=r"input/bias is \(9,\), needed \(8,\)"):
        load(theirs | {"blocks.input.b": np.zeros(9, np.float32)})
    with pytest.raises(UsageError, match="no blocks.input.w"):
        load({"a": np.zeros(3, np.float32)})
    with pytest.raises(UsageError, match="not part of DALL-E"):
        load(theirs | {"head.w": np.zeros((1, 1, 1, 1), np.float32)})
    with pytest.raises(UsageError, match="DALL-E's encoder.pkl is needed"):
        load(dall_e.state_dict(np.random.default_rng(0), part="decoder"))
    with pytest.raises(UsageError, match="no tokenizer can have groups 9999"):
        load(theirs | {"blocks.group_9999.block_1.id_path.b": np.zeros(8, np.float32)})


def test_a_module_that_runs_a_command_is_refused_and_does_not(tmp_path):
    witness = tmp_path / "ran"
    with dall_e.classes() as find:
        module = object.__new__(find("dall_e.encoder", "Encoder"))
        module.__dict__ |= {"_parameters": {}, "_modules": {"x": Malicious(f"touch {witness}")}}
        pickled = pickle.dumps(module, 2)
    path = archive(tmp_path / "encoder.pkl", pickled)
    with pytest.raises(UsageError, match=f"refused: .* call {os.name}.system"):
        tokenizer.load(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cdall_e.utils\nload_model\n.",
        b"cdall_e\nload_model\n.",
        b"ctorch.nn.modules.module\nModule\n.",
        b"ctorch.nn.modules.container\nModuleList\n.",
    ],
)
def test_no_other_module_can_be_named(tmp_path, opcodes):
    with pytest.raises(UsageError, match="refused: the file wants to call"):
        torch_pickle.read(archive(tmp_path / "x.pkl", opcodes))


def pickled_modules(build):
    with dall_e.classes() as find:

        def module(parts):
            made = object.__new__(find("torch.nn.modules.container", "Sequential"))
            made.__dict__ |= {"_parameters": {}, "_modules": parts}
            return made

        file = io.BytesIO()
        pickle.Pickler(file, 2).dump(build(module))
    return file.getvalue()


def test_modules_that_share_parts_or_have_endless_names_are_refused(tmp_path):
    def deep(module):
        made = module({})
        made._parameters["w"] = None
        for _ in range(20):
            made = module({"x" * 90: made})
        return made

    def shared(module):
        inner = module({})
        for _ in range(60):
            inner = module({"a": inner, "b": inner})
        return inner

    def circular(module):
        outer = module({})
        outer._modules["x"] = outer
        return outer

    for build, message in (
        (shared, "part of several"),
        (circular, "damaged"),
        (lambda module: module({"x" * 10**6: module({})}), "missing or too long names"),
        (lambda module: module({("x",): module({})}), "missing or too long names"),
        (deep, "missing or too long names"),
    ):
        with pytest.raises(UsageError, match=message):
            torch_pickle.read(archive(tmp_path / "x.pkl", pickled_modules(build)))


def test_what_a_file_does_to_a_module_it_does_not_do_to_the_next_one(tmp_path):
    opcodes = b"cdall_e.encoder\nEncoder\n(N}S'evil'\nI1\ns\x86b."
    with pytest.raises(UsageError):
        torch_pickle.read(archive(tmp_path / "bad.pkl", opcodes))
    assert not any(hasattr(thing, "evil") for thing in torch_pickle._callables().values())


def test_sizes_of_an_archive_are_not_believed(tmp_path):
    path = tmp_path / "encoder.pkl"
    dall_e.write(path, encoder(), "encoder")
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\1\2")
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**32 - 2, 2**32 - 2)
    path.write_bytes(data)
    with pytest.raises(UsageError, match="unpacks to"):
        tokenizer.load(str(path))
