"""COCO's zip files to folders, on a release of the same structure with tiny files."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from mae_jax.data.sources.coco import find
from mae_jax.runtime.cli import run_command
from mae_jax.tools import prepare_coco
from mae_jax.tools.prepare_coco import Release, Split, Zip
from tests.helpers.processes import REPO

IMAGES = {"train2017": 7, "val2017": 3}


def name(number):
    return f"{number:012d}.jpg"


def write_zip(path, files, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for member, content in files.items():
            file.writestr(member, content)
    return Zip(path.name, path.stat().st_size, hashlib.md5(path.read_bytes()).hexdigest())


@pytest.fixture
def release(tmp_path):
    """Writes the zip files; returns what they should contain."""
    folder = tmp_path / "zips"
    folder.mkdir()
    splits, annotations = [], {"annotations/captions_val2017.json": b"{}"}
    for split, count in IMAGES.items():
        files = {f"{split}/": b""}  # as in the original
        files |= {f"{split}/{name(i)}": f"{split} {i} ".encode() * 50 for i in range(count)}
        archive = write_zip(folder / f"{split}.zip", files)
        content = {
            "images": [{"id": i, "file_name": name(i)} for i in range(count)],
            "annotations": [{"id": i} for i in range(2 * count)],
        }
        annotations[f"annotations/instances_{split}.json"] = json.dumps(content)
        splits.append(Split(split, archive, count, 2 * count))
    path = folder / "annotations_trainval2017.zip"
    return Release(tuple(splits), write_zip(path, annotations, zipfile.ZIP_DEFLATED))


def command(tmp_path, release, *flags):
    flags = (f"--zips={tmp_path / 'zips'}", f"--out={tmp_path / 'out'}", "--workers=2", *flags)
    return run_command(lambda: prepare_coco.main(flags, release))


def contents(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }


def test_the_release():
    """Sizes, sums and counts as published."""
    train, val = prepare_coco.COCO_2017.splits
    assert (train.images, train.objects, val.images, val.objects) == (118287, 860001, 5000, 36781)
    assert [x.name for x in prepare_coco.COCO_2017.splits] == ["train2017", "val2017"]
    assert train.annotations == "annotations/instances_train2017.json"


def test_images_and_annotations_are_unpacked_where_training_finds_them(tmp_path, release, capsys):
    assert command(tmp_path, release, "--verify_md5") == 0
    out, err = capsys.readouterr()
    assert f"--config.data.source=coco --config.data.root={tmp_path / 'out'}\n" in out
    assert "7 images with 14 annotations" in err and "3 images with 6 annotations" in err
    found = contents(tmp_path / "out")
    assert len(found) == 7 + 3 + 2
    assert found[f"val2017/{name(2)}"] == b"val2017 2 " * 50
    places = find(str(tmp_path / "out"), split="train", eval_split="")
    assert [x and os.path.basename(x.annotations) for x in places] == [
        "instances_train2017.json", "instances_val2017.json",
    ]  # fmt: skip
    assert not (tmp_path / "out" / prepare_coco.SCRATCH).exists()


def test_dry_run_does_nothing(tmp_path, release, capsys):
    assert command(tmp_path, release, "--dry_run") == 0
    assert os.listdir(tmp_path) == ["zips"]
    out, err = capsys.readouterr()
    assert not out and "train2017.zip: 7 files to unpack, 0 done" in err
    assert "--dry_run: nothing was written" in err


def test_an_interrupted_command_continues(tmp_path, release, capsys, monkeypatch):
    replace, done = os.replace, []

    def stop(*paths):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(replace(*paths))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        assert command(tmp_path, release) == 130
    assert "stopped; run the same command to continue" in capsys.readouterr().err
    out = tmp_path / "out"
    partial = [path for path in contents(out) if prepare_coco.SCRATCH not in path]
    assert 4 <= len(partial) < 12
    whole = next(iter((out / "train2017").iterdir()))
    whole.write_bytes(b"cut short")
    assert command(tmp_path, release) == 0
    assert f", {len(partial) - 3} done" in capsys.readouterr().err
    found = contents(out)
    assert len(found) == 12 and len(found[f"train2017/{whole.name}"]) > 100
    before = {path: (out / path).stat().st_mtime_ns for path in found}
    assert command(tmp_path, release) == 0
    assert {path: (out / path).stat().st_mtime_ns for path in found} == before


def test_bad_input(tmp_path, release, capsys):
    assert command(tmp_path, release, "--workers=0") == 2
    assert "error: --workers=0" in capsys.readouterr().err
    path = tmp_path / "zips" / "val2017.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert command(tmp_path, release) == 2
    assert f"error: {path} has {len(whole) - 10:,} bytes" in (err := capsys.readouterr().err)
    assert "resume the download with: curl -C -" in err
    path.write_bytes(whole + b"x")
    assert command(tmp_path, release) == 2
    assert "it is not the original" in capsys.readouterr().err
    path.unlink()
    assert command(tmp_path, release) == 2
    assert capsys.readouterr().err.startswith(f"error: {path} does not exist")
    assert os.listdir(tmp_path) == ["zips"]


def damaged(data, place):
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


def test_damaged_zip_files(tmp_path, release, capsys):
    path = tmp_path / "zips" / "train2017.zip"
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, whole.index(b"train2017 3 ") + 5))
    assert command(tmp_path, release, "--verify_md5") == 1
    assert "has the right size, but its MD5 sum is" in capsys.readouterr().err
    assert command(tmp_path, release) == 1
    assert f"error: {path} is damaged (Bad CRC-32" in capsys.readouterr().err
    path.write_bytes(bytes(len(whole)))
    assert command(tmp_path, release) == 1
    assert f"error: {path} is damaged (" in capsys.readouterr().err
    path.write_bytes(whole)
    assert command(tmp_path, release) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 8}, "train2017.zip contains 7 images, not 8"),
        ({"objects": 13}, "lists 7 images and 14 annotations, not 7 and 13: it is not the orig"),
        ({"name": "test2017"}, "does not contain annotations/instances_test2017.json"),
    ],
)
def test_other_counts_are_refused(tmp_path, release, capsys, change, message):
    train, val = release.splits
    release = release._replace(splits=(train._replace(**change), val))
    assert command(tmp_path, release) == 1
    assert message in capsys.readouterr().err


def test_other_images_are_named(tmp_path, release, capsys):
    folder = tmp_path / "out" / "val2017"
    folder.mkdir(parents=True)
    (folder / "mine.jpg").touch()
    assert command(tmp_path, release) == 1
    assert "0 are missing, 1 are not in it (mine.jpg)" in capsys.readouterr().err


def test_failing_disks(tmp_path, release, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)._replace(free=1)
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        assert command(tmp_path, release) == 1
    assert "error: too little disk space" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "disk full")))
        assert command(tmp_path, release) == 1
    assert "disk full; complete files are kept" in capsys.readouterr().err
    assert command(tmp_path, release) == 0


def test_the_script(tmp_path):
    """With the real release, whose files do not exist."""
    script = os.path.join(REPO, "launch", "prepare_coco.sh")

    def start(*flags):
        return subprocess.run(
            [script, *flags],
            env=os.environ | {"MAE_JAX_PYTHON": sys.executable},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    refused = start("--zips=a folder", "--out=out")
    assert refused.returncode == 2
    assert refused.stderr.startswith(
        "error: a folder/train2017.zip does not exist: get this file of 19,336,861,798 bytes"
    )
    assert not os.listdir(tmp_path)
