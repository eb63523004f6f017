"""Weights that were made to do harm are refused with one line; docs/security.md."""

import ast
import collections
import functools
import io
import json
import pickle
import resource
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mae_jax import convert
from mae_jax.convert import torch_pickle as reader
from mae_jax.runtime.errors import UsageError
from tests.convert.test_torch_pickle import archive, legacy, tensor
from tests.helpers.processes import REPO
from tests.parity import official

ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
ROOM = 2**29  # bytes that reading may take


def safetensors(header, body=bytes(16), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()

    def make(root):
        path = root / "x.safetensors"
        size = struct.pack("<Q", len(text) if length is None else length)
        path.write_bytes(size + text + body)
        return path

    return make


@functools.cache
def good_metadata():
    hints = convert.Hints(num_heads=3, decoder_num_heads=2, normalize=True)
    return json.dumps(convert.load(official.path("mae_tiny.safetensors"), hints=hints).metadata)


def described(change):
    """A valid file of ours, except for its metadata."""

    def make(root):
        metadata = json.loads(good_metadata())
        if isinstance(change, str):
            text = change
        else:
            for key, value in change.items():
                metadata[key] = metadata[key] | value if isinstance(value, dict) else value
            text = json.dumps(metadata)
        arrays = load_file(official.path("mae_tiny.safetensors"))
        save_file(arrays, str(root / "x.safetensors"), {"mae_jax": text})
        return root / "x.safetensors"

    return make


def hugging_face(config=None, index=None):
    """A good folder, but for some keys of config.json, or with an index."""

    def make(root):
        folder = root / "folder"
        shutil.copytree(official.path("hf_tiny_v4names"), folder)
        if isinstance(config, str):
            (folder / "config.json").write_text(config)
        elif config:
            good = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(good | config))
        if index is not None:
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return make


def zipped(name="x.npz", compression=zipfile.ZIP_DEFLATED, **members):
    def make(root):
        with zipfile.ZipFile(root / name, "w", compression) as file:
            for member, data in members.items():
                file.writestr(member, data)
        return root / name

    return make


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def pth(pickled, files=(), write=archive):
    return lambda root: write(root / "x.pth", pickled, *([files] if files else []))


def lying_zip(root):
    """A .pth whose directory says that four numbers are a terabyte."""
    numbers = [("data/0", np.arange(4, dtype=np.float32).tobytes())]
    path = Path(archive(root / "x.pth", tensor(0, 2**38, 1).replace(b"I4\n", b"I%d\n" % 2**38),
                        numbers))  # fmt: skip
    data = bytearray(path.read_bytes())
    for entry in range(2):  # size of every entry, packed and unpacked, in the central directory
        start = [i for i in range(len(data)) if data[i : i + 4] == b"PK\1\2"][entry]
        data[start + 20 : start + 28] = struct.pack("<II", 2**32 - 2, 2**32 - 2)
    path.write_bytes(data)
    return path


def many_views():
    """Ten thousand tensors of the same million numbers."""
    one = tensor(0, 10**6, 1).replace(b"I4\n", b"I1000000\n")[:-1]
    return b"(" + one * 10_000 + b"l."


MILLION = [("data/0", bytes(4 * 10**6))]
HUGE_TENSOR = tensor(0, 2**38, 1).replace(b"I4\n", b"I%d\n" % 2**38)
NESTED = b"]q\x00" + b"".join(
    b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60)
)
HARMFUL = {
    "pth: device without end": (pth(NESTED + b"ctorch\ndevice\nh\x3c\x85R."), "device that is"),
    "pth: object number": (pth(b"]r\xff\xff\xff\x7f."), "refused: object number 2147483647"),
    "pth: legacy object number": (pth(b"]r\xff\xff\xff\x7f.", write=legacy), "object number"),
    "pth: bytes": (pth(b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"."), "damaged"),
    "pth: storage": (pth(HUGE_TENSOR, [("data/0", bytes(16))]), "damaged"),
    "pth: sizes of a zip": (lying_zip, "unpacks to"),
    "pth: zip bomb": (
        zipped("x.pth", **{"a/data.pkl": tensor(0, 4, 1), "a/data/0": bytes(10**7)}),
        "its entries are compressed",
    ),
    "pth: legacy storage": (pth(HUGE_TENSOR + pickle.dumps(["0"], 2) + struct.pack("<Q", 2**38),
                                write=legacy), "cut short"),
    "pth: shared numbers": (pth(many_views(), MILLION), "many times larger than the file"),
    "pth: path": (zipped("x.pth", zipfile.ZIP_STORED, **{"../../data.pkl": b"]."}), "no weights"),
    "safetensors: beyond the file": (safetensors({"a": ENTRY | {"data_offsets": [0, 10**9]}}),
                                     "cannot be read"),
    "safetensors: overlapping": (safetensors({"a": ENTRY, "b": ENTRY}), "cannot be read"),
    "safetensors: negative": (safetensors({"a": ENTRY | {"data_offsets": [-16, 0]}}), "cannot be"),
    "safetensors: header of 2^60": (safetensors({}, length=2**60), "header too large"),
    "safetensors: shape": (safetensors({"a": ENTRY | {"shape": [2**40, 2**40]}}), "cannot be read"),
    "safetensors: other shape": (safetensors({"a": ENTRY | {"shape": [4, 4]}}), "cannot be read"),
    "safetensors: nested": (safetensors(b"[" * 10**5), "cannot be read"),
    "safetensors: type": (safetensors({"a": ENTRY | {"dtype": "F8_E4M3", "shape": [16]}}),
                          "cannot be read"),
    "npz: bomb": (zipped(**{"a.npy": npy(np.zeros(7 * 10**7, np.uint8))}), "unpacks to"),
    "npz: objects": (zipped(**{"a.npy": npy(np.array([{}]), allow_pickle=True)}), "never loaded"),
    "npz: shape": (zipped(**{"a.npy": npy(np.zeros(0)).replace(b"(0,), }", b"(1<<40,)}")}),
                   "cannot be read"),
    "npz: size": (zipped(**{"a.npy": npy(np.zeros(3))[:-8]}), "cut short|cannot be read"),
    "npz: other file": (zipped(**{"a.txt": b"hello, here I am"}), "cannot be read"),
    "metadata: no JSON": (described("{"), "cannot be read"),
    "metadata: nested": (described("[" * 10**5), "cannot be read"),
    "metadata: a list": (described("[]"), "do not describe a model"),
    "metadata: empty": (described("{}"), "is missing"),
    "metadata: blocks": (described({"model": {"depth": 10**9}}), "depth is 1000000000"),
    "metadata: more blocks": (described({"model": {"depth": 10**6}}), "1,000,002 blocks"),
    "metadata: image": (described({"model": {"image_size": [10**7] * 2}}), "image_size is"),
    "metadata: patches": (described({"model": {"image_size": [2**18] * 2}}), "patches"),
    "metadata: linear head": (described({"model": {"decoder_depth": 0}}), "decoder_depth is 0"),
    "metadata: mask tokens": (described({"model": {"encoder_mask_tokens": 1}}), "tokens is 1"),
    "metadata: text": (described({"model": {"embed_dim": "48"}}), "embed_dim is '48'"),
    "metadata: kind": (described({"model": {"kind": "__class__"}}), "kind is '__class__'"),
    "metadata: unknown": (described({"model": {"dropout": 1}}), "'dropout'"),
    "metadata: heads": (described({"model": {"num_heads": 5}}), "5 heads"),
    "folder: outside": (hugging_face(index={"weight_map": {"a": "../../../../etc/passwd"}}),
                        "refused: it names '../../../../etc/passwd'"),
    "folder: outside by .safetensors": (
        hugging_face(index={"weight_map": {"a": "../x.safetensors"}}), "refused: it names"),
    "folder: absolute": (hugging_face(index={"weight_map": {"a": "/etc/x.safetensors"}}),
                         "refused: it names"),
    "folder: no names": (hugging_face(index={"weight_map": {"a": 3}}), "refused: it names 3"),
    "folder: no index": (hugging_face(index={}), "refused: it names None"),
    "folder: image": (hugging_face({"image_size": 10**7}), "image_size is"),
    "folder: heads": (hugging_face({"num_attention_heads": "many"}), "num_heads is 'many'"),
    "folder: patch": (hugging_face({"patch_size": 0}), "patch_size is"),
    "folder: labels": (hugging_face({"id2label": {"zero": "cat"}}), "not as its library writes"),
    "folder: nested": (hugging_face('{"a":' * 10**5), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_weights_are_refused_in_bounded_memory(tmp_path, name):
    make, message = HARMFUL[name]
    path = str(make(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, hard))
    try:
        with pytest.raises(UsageError, match=message) as caught:
            convert.load(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_number_in_a_name_makes_no_model_of_so_many_blocks(tmp_path):
    arrays = load_file(official.path("vit_tiny_gp0.safetensors"))
    arrays["blocks.999999999.norm1.weight"] = np.ones(48, np.float32)
    save_file(arrays, str(tmp_path / "x.safetensors"))
    found = convert.load(str(tmp_path / "x.safetensors"), hints=convert.Hints(num_heads=3))
    with pytest.raises(UsageError, match="unused .*blocks.999999999"):
        found.report.check()


def test_tied_weights_are_no_bomb(tmp_path):
    pair = b"(" + tensor(0, 4, 1)[:-1] * 2 + b"l."
    numbers = [("data/0", np.arange(4, dtype=np.float32).tobytes())]
    one, two = reader.read(archive(tmp_path / "x.pth", pair, numbers))
    np.testing.assert_array_equal(one, two)


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def test_the_package_runs_nothing_that_it_reads():
    """Only two readers unpickle, tensors and arrays, by unpicklers that call nothing else.

    No evaluation of text, no shell; `save` only writes a pickle.
    """
    found = collections.Counter()
    for path in (Path(REPO) / "mae_jax").rglob("*.py"):
        tree, name = (
            ast.parse(path.read_text()),
            path.relative_to(Path(REPO) / "mae_jax").as_posix(),
        )
        for function, options in calls(tree):
            last = function.rpartition(".")[2]
            loads = last in ("load", "loads", "unsafe_load", "full_load")
            assert function not in (
                "eval",
                "exec",
                "compile",
                "__import__",
                "os.system",
                "os.popen",
            )
            assert not (loads and function.split(".")[0] in ("torch", "yaml", "pickle", "joblib"))
            assert options.get("allow_pickle", "False") == "False", name
            assert "shell" not in options and options.get("weights_only") is None, name
            if function == "np.load":
                assert options.get("allow_pickle") == "False", name
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in names:
                if module.split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal", "shelve"):
                    found[name, module] += 1
    modules = ("convert/torch_pickle.py", "convert/numpy_pickle.py", "convert/save.py")
    assert found == {(module, "pickle"): 1 for module in modules}
