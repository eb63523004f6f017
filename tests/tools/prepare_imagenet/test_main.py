"""The command and its script: flags, exit statuses and output."""

import os
import shutil
import subprocess
import sys

import pytest

from mae_jax.runtime.cli import run_command
from mae_jax.tools.prepare_imagenet import __main__ as prepare_imagenet
from tests.helpers.processes import REPO
from tests.tools.prepare_imagenet import fake_imagenet as fake


@pytest.fixture
def release(tmp_path):
    return fake.write(tmp_path / "tars", *fake.images())


def command(tmp_path, release, *flags):
    flags = (f"--tars={tmp_path / 'tars'}", f"--out={tmp_path / 'out'}", "--workers=1", *flags)
    return run_command(lambda: prepare_imagenet.main(flags, release))


def test_success_prints_the_flags_to_train_with(tmp_path, release, capsys):
    assert command(tmp_path, release) == 0
    out, err = capsys.readouterr()
    assert f"--config.data.source=folder --config.data.root={tmp_path / 'out'}\n" in out
    assert "10 of 10 folders" in err and "15 images of 5 classes" in err


@pytest.mark.parametrize("kind", ["folders", "tfds"])
def test_dry_run_does_nothing(tmp_path, release, capsys, kind):
    assert command(tmp_path, release, "--dry_run", f"--format={kind}") == 0
    assert os.listdir(tmp_path) == ["tars"]
    out, err = capsys.readouterr()
    assert not out
    assert " MB needed in " in err and "--dry_run: nothing was written" in err
    if kind == "folders":
        assert f"{tmp_path / 'out' / 'train'}: 5 classes to extract" in err


def test_bad_input(tmp_path, release, capsys):
    assert command(tmp_path, release, "--workers=0") == 2
    assert "error: --workers=0" in capsys.readouterr().err
    (tmp_path / "tars" / "val.tar").unlink()
    assert command(tmp_path, release) == 2
    assert capsys.readouterr().err.startswith(
        f"error: {tmp_path / 'tars' / 'val.tar'} does not exist"
    )
    assert os.listdir(tmp_path) == ["tars"]


def test_failures(tmp_path, release, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)._replace(free=1)
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        assert command(tmp_path, release) == 1
    assert "error: too little disk space" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *a: (_ for _ in ()).throw(OSError(28, "disk full")))
        assert command(tmp_path, release) == 1
    assert "disk full; finished classes are kept" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command(tmp_path, release) == 130
    assert "stopped; run the same command to continue" in capsys.readouterr().err
    assert command(tmp_path, release) == 0


def test_the_script(tmp_path):
    """With the real release, whose files do not exist."""
    script = os.path.join(REPO, "launch", "prepare_imagenet.sh")

    def start(*flags):
        return subprocess.run(
            [script, *flags],
            env=os.environ | {"MAE_JAX_PYTHON": sys.executable},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    shown = start("--help")
    assert shown.returncode == 0 and "Exit status: 0 done" in shown.stdout
    refused = start("--tars=a folder", "--out=out")
    assert refused.returncode == 2
    assert refused.stderr.startswith(
        "error: a folder/ILSVRC2012_img_train.tar does not exist: get this file of "
        "147,897,477,120 bytes"
    )
    assert start("--tars=a").returncode == 2
    assert not os.listdir(tmp_path)
