"""Pickles of arrays are read without executing anything in them."""

import os
import pickle

import numpy as np
import pytest

from mae_jax.convert import numpy_pickle
from mae_jax.runtime.errors import UsageError

ARRAYS = {
    "f4": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "f2": np.ones((1, 0, 2), np.float16),
    "big": np.arange(3, dtype=">i4"),
    "scalar": np.float32(2.5),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_round_trip(tmp_path, protocol):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": ARRAYS, "__author__": "me"}, protocol))
    found = numpy_pickle.read(str(path))
    assert numpy_pickle.is_pickle(path.read_bytes()[:9])
    assert found["__author__"] == "me"
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found["model"][name], array, strict=True)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


class Objects:
    def __reduce__(self):
        return np.dtype, ("O",)


@pytest.mark.parametrize("what", [Evil(), Objects(), np.array([None])])
def test_anything_else_is_refused(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": what}))
    with pytest.raises(UsageError, match="refused"):
        numpy_pickle.read(str(path))
    assert not (tmp_path / "executed").exists()


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(ARRAYS)[:-30])
    with pytest.raises(UsageError, match=r"model\.pkl is damaged"):
        numpy_pickle.read(str(path))
