"""Checksums are the same on all devices and differ for any other content."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mae_jax.checkpoint import checksums


def arrays():
    rng = np.random.default_rng(0)
    bits = {t: rng.integers(0, np.iinfo(t).max, (8, 12), t) for t in (np.uint8, np.uint16)}
    return {
        "float32": rng.normal(size=(8, 12)).astype(np.float32),
        "special": np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45] * 2, np.float32),
        "bfloat16": bits[np.uint16].view(ml_dtypes.bfloat16),
        "int32": rng.integers(-(2**31), 2**31, (4, 2, 8), np.int32),
        "uint8": bits[np.uint8],
        "bool": rng.random((4, 12)) < 0.5,
        "scalar": np.int32(7).reshape(()),
        "one": np.float32(1).reshape(1),
        "empty": np.zeros((0, 4), np.float32),
    }


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_devices_and_numpy_agree_however_an_array_is_split(devices):
    expected, nonfinite = checksums.host_record(arrays())
    assert set(nonfinite) == {"special", "bfloat16"}
    assert expected["int32"][:2] == [[4, 2, 8], "int32"]
    assert len({checksum for _, _, checksum in expected.values()}) == len(expected)
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(-1, 1 + devices // 4), ("a", "b"))
    for rows, columns in ((None, None), ("a", None), (None, "b"), ("a", "b")):
        placed = {
            name: jax.device_put(x, NamedSharding(mesh, P(rows, columns) if x.ndim > 1 else P()))
            for name, x in arrays().items()
        }
        for found, bad in (checksums.device_record(placed), checksums.checksums(placed)):
            assert found == expected and set(bad) == set(nonfinite)


def test_a_changed_bit_is_always_found():
    rng = np.random.default_rng(1)
    for name, x in arrays().items():
        if not x.size or x.dtype == bool:
            continue
        right, _ = checksums.host_record({name: x})
        for _ in range(100):
            flipped = np.frombuffer(x.tobytes(), np.uint8).copy()
            flipped[rng.integers(flipped.size)] ^= 1 << rng.integers(8)
            wrong = {name: flipped.view(x.dtype).reshape(x.shape)}
            assert checksums.differences(right, checksums.host_record(wrong)[0])


def test_order_signs_and_long_arrays_matter():
    x = np.arange(3 * checksums.CHUNK + 5, dtype=np.float32)
    right, _ = checksums.host_record({"x": x})
    assert checksums.device_record({"x": jnp.asarray(x)}) == (right, [])
    swapped, negated, last, rolled = x.copy(), x.copy(), x.copy(), np.roll(x, 1)
    swapped[[7, checksums.CHUNK + 7]] = swapped[[checksums.CHUNK + 7, 7]]
    negated[[3, 9]] *= -1  # the highest bit, twice
    last[-1] = 0
    for other in (swapped, negated, last, rolled, x[::-1]):
        (line,) = checksums.differences(right, checksums.host_record({"x": other})[0])
        assert line.startswith("x has other values (checksum ")


def test_64_bits_count_too():
    x = np.array([1, 2**40, -3])
    for other in (np.array([1, 2**41, -3]), np.array([2, 2**40, -3])):
        assert checksums.host_record({"x": x}) != checksums.host_record({"x": other})
    with jax.enable_x64(True):
        assert checksums.device_record({"x": jnp.asarray(x)}) == checksums.host_record({"x": x})


def test_differences_are_named():
    saved = {"a": [[2], "float32", "1"], "b": [[], "int32", "2"], "c": [[1], "int8", "3"]}
    found = {"a": [[3], "float32", "1"], "b": [[], "int32", "9"], "d": [[1], "int8", "3"]}
    assert checksums.differences(saved, found) == [
        "a was float32[2], is float32[3]",
        "b has other values (checksum 2, now 9)",
        "c is missing",
        "d is unknown",
    ]
    assert len(checksums.differences(saved, found, checksums=False)) == 3
    assert checksums.abbreviate("abcde") == "a, b, c and 2 more"


def test_content_hash_depends_only_on_values_dtypes_names_and_shapes():
    params = {"a": np.arange(6.0).reshape(2, 3), "b": {"c": np.zeros(2)}}
    same = {"b/c": np.zeros(2), "a": np.asfortranarray(params["a"])}
    assert checksums.content_hash(params) == checksums.content_hash(same)
    for other in (
        {**params, "a": params["a"].reshape(3, 2)},
        {**params, "a": params["a"] + 1e-12},
        {**params, "a": params["a"].astype(np.float32)},
        {"a": params["a"], "d": params["b"]},
    ):
        assert checksums.content_hash(other) != checksums.content_hash(params)


def test_content_hash_never_changes():
    """Checkpoints with a tokenizer and extracted features contain such values."""
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {"b/kernel": kernel, "a/bias": np.array([1, -2], ml_dtypes.bfloat16)}
    expected = "10eaf1d0eec5a17b9d7bd327da67a24aea397887f4f7fbfd5d8e1dc7b2688504"
    assert checksums.content_hash(arrays) == expected


def test_metadata_have_a_digest():
    metadata = {"step": 1, "rate": 0.1, "size": [4, 4]}
    with_digest = checksums.add_digest(metadata)
    assert checksums.check_digest(with_digest) == metadata
    assert checksums.check_digest(metadata) == metadata  # of an earlier version
    with pytest.raises(checksums.DigestError, match="do not match their checksum"):
        checksums.check_digest(with_digest | {"rate": 0.3})
