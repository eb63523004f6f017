"""Storage errors of any library become one line that names the disk."""

import errno
import os
import shutil

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from mae_jax.runtime import disk
from mae_jax.runtime.errors import RunError, UsageError

TENSORSTORE = ValueError("RESOURCE_EXHAUSTED: Error writing: No space [os_error_code='28'] [spec]")
SAFETENSORS = SafetensorError("Error while serializing: I/O error: No space (os error 28)")
ROOM = "(disk {}: 1.5 MB free, 2.0 GB needed)"


def hidden():
    try:
        try:
            raise OSError(errno.EDQUOT, "quota")
        except OSError:
            raise RuntimeError("the writer failed")  # noqa: B904 - as libraries do it
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error, text",
    [
        (
            OSError(errno.ENOSPC, "x"),
            "No space left on device (disk {}: 1.5 MB free, 2.0 GB needed)",
        ),
        (TENSORSTORE, "No space left on device (disk {}: 1.5 MB free, 2.0 GB needed)"),
        (SAFETENSORS, "No space left on device (disk {}: 1.5 MB free, 2.0 GB needed)"),
        (hidden(), "Disk quota exceeded (disk {}: 1.5 MB free, 2.0 GB needed)"),
        (OSError(errno.EIO, "x"), "Input/output error (disk {})"),
        (RuntimeError("two\nlines"), "two lines"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_lines_name_the_disk_its_room_and_what_is_needed(tmp_path, monkeypatch, error, text):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_500_000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)
    line = disk.error_line(error, str(tmp_path / "not" / "there"), 2 * 10**9)
    assert line == text.format(disk.mount_of(str(tmp_path)))


def test_the_disk_is_that_of_the_path():
    assert disk.mount_of("/proc/self/status") == "/proc"
    assert os.path.ismount(disk.mount_of("/no/such/folder"))


def test_what_cannot_fit_is_refused_where_the_room_is_known(tmp_path, monkeypatch):
    disk.require_room(str(tmp_path), 1)
    with pytest.raises(OSError, match="No space left"):
        disk.require_room(str(tmp_path), 10**18)
    disk.require_room("gs://bucket/run", 10**18)
    unknown = shutil.disk_usage(tmp_path)._replace(total=0, free=0)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: unknown)
    disk.require_room(str(tmp_path), 10**18)


def test_full_disks_fail_and_bad_paths_are_refused(tmp_path):
    refused = pytest.raises(RunError, match="/dev/full cannot be written: No space left on device")
    with refused, disk.translate_errors("/dev/full"), open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="Not a directory"), disk.writing(f"{tmp_path}/file/a"):
        pass
    with pytest.raises(KeyError), disk.translate_errors("a"):
        raise KeyError("a mistake of ours")


def test_the_text_of_safetensors_is_known(tmp_path):
    with (
        pytest.raises(UsageError, match="cannot be written: "),
        disk.translate_errors(str(tmp_path)),
    ):
        save_file({"a": np.zeros(3)}, tmp_path / "no" / "folder")
