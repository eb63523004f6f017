"""The index of TFRecord files: errors are one line."""

import os

import pytest

from mae_jax.data.sources import tfrecord
from mae_jax.runtime.errors import UsageError


@pytest.mark.parametrize("kind", [PermissionError, FileNotFoundError])
def test_a_file_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch, kind):
    def closed(path):
        raise kind(13, "out of reach", path)

    path = tmp_path / "a.tfrecord-00000-of-00001"
    path.write_bytes(b"\0" * 32)
    monkeypatch.setattr(tfrecord, "_open", closed)
    part = tfrecord.Part(str(path), 0, 1, 1)
    with pytest.raises(UsageError, match=f"cannot read the data file {os.fspath(path)}: out of"):
        tfrecord.TFRecordReader([part], cache=None)
