"""ImageNet's tar files to folders and to TFDS, on a synthetic release with tiny images."""

import collections
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from mae_jax.data import DataOptions
from mae_jax.data.sources.folder import make_folder_sources
from mae_jax.runtime.errors import RunError, UsageError
from mae_jax.tools.prepare_imagenet import folders, tars, tfds
from mae_jax.tools.prepare_imagenet import release as imagenet_release
from tests.helpers.processes import REPO
from tests.tools.prepare_imagenet import fake_imagenet as fake


@pytest.fixture
def made(tmp_path):
    train, val = fake.images()
    return train, val, fake.write(tmp_path / "tars", train, val)


def make(tmp_path, release, workers=1):
    folders.make_folders(tmp_path / "tars", tmp_path / "out", release, workers=workers)
    folders.check_folders(tmp_path / "tars", tmp_path / "out", release)


def expected(train, val, release):
    files = {f"train/{w}/{name}": data for w in train for name, data in train[w].items()}
    labels = dict(zip(sorted(val), release.val_labels, strict=True))
    return files | {f"val/{labels[name]}/{name}": data for name, data in val.items()}


def contents(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_the_real_release_is_consistent():
    real = imagenet_release.imagenet_2012()
    assert len(real.classes) == 1000 and list(real.classes) == sorted(real.classes)
    assert set(collections.Counter(real.val_labels).values()) == {50}
    for name, wnid in real.known.items():
        assert real.val_labels[int(name[15:23]) - 1] == wnid


@pytest.mark.parametrize("workers", [1, 2])
def test_every_file_in_its_place(tmp_path, made, workers):
    train, val, release = made
    make(tmp_path, release, workers)
    assert contents(tmp_path / "out") == expected(train, val, release)
    assert sorted(os.listdir(tmp_path / "out")) == ["train", "val"]


def test_the_folder_source_reads_it_with_the_right_labels(tmp_path, made):
    train, val, release = made
    make(tmp_path, release)
    options = DataOptions(source="folder", root=str(tmp_path / "out"))
    read_train, read_val = make_folder_sources(options, workdir=None)
    want = expected(train, val, release)
    for source, part in ((read_train, "train"), (read_val, "val")):
        assert tuple(source.classes) == release.classes
        found = {}
        for index in range(len(source)):
            (record,) = source.read([index])
            found[os.path.relpath(source.describe(index), tmp_path / "out")] = (
                record.data,
                release.classes[record.label],
            )
        assert found == {k: (v, k.split("/")[1]) for k, v in want.items() if k.startswith(part)}


def test_a_second_call_extracts_nothing(tmp_path, made, monkeypatch):
    make(tmp_path, made[2])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    monkeypatch.setattr(tars, "extract_class", lambda task: pytest.fail(str(task)))
    make(tmp_path, made[2])
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before


def test_stopped_in_the_middle_of_a_class(tmp_path, made, monkeypatch):
    train, val, release = made
    written = []

    def read_on(*args, real=tars.train_images):
        if len(written) == 2:  # half of the images are there, then it stops
            images = real(*args)
            return (image if i < 1 else stop() for i, image in enumerate(images))
        written.append(args)
        return real(*args)

    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tars, "train_images", read_on)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, release)
    out = tmp_path / "out"
    half = [path for path in contents(out) if path.startswith(folders.SCRATCH)]
    assert len(half) == 1
    want = expected(train, val, release)
    whole = {path: data for path, data in contents(out).items() if path not in half}
    first_two = set(release.classes[:2])
    assert whole == {p: d for p, d in want.items() if p[:5] == "train" and p[6:15] in first_two}
    make(tmp_path, release)
    assert contents(out) == want


KILLED = """
import pathlib, sys, time
from mae_jax.tools.prepare_imagenet import folders
from mae_jax.tools.prepare_imagenet import tars
from tests.tools.prepare_imagenet import fake_imagenet as fake
from tests.tools.prepare_imagenet.test_folders import slow_extract

if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    train, val = fake.images()
    release = fake.release(folder / "tars", train, val)
    tars.extract_class = slow_extract
    folders.make_folders(folder / "tars", folder / "out", release, workers=int(sys.argv[2]))
"""


def slow_extract(task, real=tars.extract_class):
    """Pauses for a minute when the first validation class is half done."""
    if task.inner is None:
        os.makedirs(task.scratch)
        with open(os.path.join(task.scratch, "half"), "w") as file:
            file.write(str(os.getpid()))
        time.sleep(60)
    return real(task)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_started_again(tmp_path, made, workers):
    train, val, release = made
    (tmp_path / "run.py").write_text(KILLED)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path), str(workers)],
        env=os.environ | {"PYTHONPATH": REPO},
    )
    out = tmp_path / "out"
    deadline = time.monotonic() + 30
    pids = []
    while not all(pids) or len(pids) < workers:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
        pids = [path.read_text() for path in out.glob(f"{folders.SCRATCH}/*/half")]
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(map(alive, pids)):  # workers do not outlive it
        assert time.monotonic() < deadline
        time.sleep(0.02)
    want = expected(train, val, release)
    whole = {path: data for path, data in contents(out).items() if not path.startswith(".")}
    assert whole == {path: data for path, data in want.items() if path.startswith("train")}
    make(tmp_path, release)
    assert contents(out) == want


def test_two_at_once_are_refused(tmp_path, made):
    with (
        folders._locked_scratch(tmp_path / "out"),
        pytest.raises(UsageError, match="another process is extracting"),
    ):
        make(tmp_path, made[2])


def test_missing_and_wrong_size(tmp_path, made):
    release = made[2]
    folder = tmp_path / "tars"
    imagenet_release.check_tars(folder, release)
    size = release.val.size
    path = folder / "val.tar"
    os.truncate(path, size - 512)
    with pytest.raises(
        UsageError, match=rf"{path} has {size - 512:,} bytes, not {size:,}.*curl -C"
    ):
        imagenet_release.check_tars(folder, release)
    os.truncate(path, size + 512)
    with pytest.raises(UsageError, match="not the original; download it again"):
        imagenet_release.check_tars(folder, release)
    path.unlink()
    with pytest.raises(UsageError, match=rf"{path} does not exist: get this file of {size:,} byte"):
        imagenet_release.check_tars(folder, release)


def test_md5(tmp_path, made):
    with pytest.raises(RunError, match="right size, but its MD5 sum is .*, not 000"):
        imagenet_release.check_tars(tmp_path / "tars", made[2], verify_md5=True)


def link(name, target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    "name", ["../n01751748_5.JPEG", "/n01751748_5.JPEG", "n01751748_5.jpg", "n01751748_5.JPEG\n"]
    + ["a/n01751748_5.JPEG", "n09193705_5.JPEG", "n01751748_٣.JPEG", "n01751748_9.JPEG"],
)  # fmt: skip
def test_other_names_are_refused(tmp_path, name):
    train, val = fake.images()
    wnid = fake.LABELS[0]
    content = link(name) if name.endswith("_9.JPEG") else fake.image(1)  # a name like others
    bad = fake.tar_of(train[wnid] | {name: content})
    release = fake.write(tmp_path / "tars", train, val, inner={wnid: bad})
    with pytest.raises(RunError, match=r"n01751748\.tar in .*contains") as error:
        make(tmp_path, release)
    assert repr(name) in str(error.value)
    assert not (tmp_path / "out" / "train" / wnid).exists()
    assert not list(tmp_path.rglob("*_[59].*"))


@pytest.mark.parametrize(
    "name", ["../ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000006.JPEG"]
)
def test_other_validation_names_are_refused(tmp_path, name):
    train, val = fake.images()
    release = fake.write(tmp_path / "tars", train, val | {name: b""})
    release = release._replace(val_labels=release.val_labels[:5])
    with pytest.raises(RunError, match="not one of the 5 images") as error:
        make(tmp_path, release)
    assert repr(name) in str(error.value)


def test_a_missing_class_and_a_strange_one(tmp_path):
    train, val = fake.images()
    release = fake.write(tmp_path / "tars", dict(list(train.items())[1:]), val)
    with pytest.raises(RunError, match="lacks the tar files of 1 classes, for example n01751748"):
        make(tmp_path, release)
    (tmp_path / "out" / "train" / "n00000000").mkdir(parents=True)
    with pytest.raises(UsageError, match="n00000000, which is not an ImageNet class"):
        make(tmp_path, release)


@pytest.mark.parametrize("damage", ["cut at a file", "cut in a file", "zeroed header", "no image"])
def test_damaged_class(tmp_path, damage):
    train, val = fake.images()
    wnid = fake.LABELS[0]
    good = fake.tar_of(train[wnid])
    second = tars.Entry("", *positions(good)[1])
    if damage == "cut at a file":
        bad = good[: second.offset - 512]
    elif damage == "cut in a file":
        bad = good[: second.offset + 300]
    elif damage == "zeroed header":
        bad = good[: second.offset - 512] + b"x" * 512 + good[second.offset :]
    else:
        bad = good[: second.offset] + b"\0" * second.size + good[second.offset + second.size :]
    release = fake.write(tmp_path / "tars", train, val, inner={wnid: bad})
    with pytest.raises(RunError, match="truncated|damaged|neither JPEG nor PNG"):
        make(tmp_path, release)
    assert not (tmp_path / "out" / "train" / wnid).exists()


def positions(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member.offset_data, member.size) for member in tar]


def test_too_little_disk(tmp_path, made, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    release = made[2]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, release.train.size))
    with pytest.raises(
        RunError, match=r"too little disk space: .* needs .* MB, .* are free: free another"
    ):
        make(tmp_path, release)
    assert not contents(tmp_path / "out")
    # Finished classes need no more space.
    monkeypatch.undo()
    make(tmp_path, release)
    shutil.rmtree(tmp_path / "out" / "train" / fake.LABELS[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, release.train.size))
    make(tmp_path, release)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 0))
    make(tmp_path, release)


def test_wrong_counts(tmp_path, made):
    train, val, release = made
    make(tmp_path, release)
    out = tmp_path / "out"
    with pytest.raises(RunError, match="contains 15 images, not 16"):
        make(tmp_path, release._replace(train_images=16))
    (out / "train" / fake.LABELS[1] / next(iter(train[fake.LABELS[1]]))).unlink()
    with pytest.raises(RunError, match=r"n09193705: 2 instead of 3\); remove them"):
        make(tmp_path, release)
    shutil.rmtree(out / "train" / fake.LABELS[1])
    make(tmp_path, release)
    next((out / "val" / fake.LABELS[2]).iterdir()).unlink()
    with pytest.raises(RunError, match="n02105855: 0 instead of 1"):
        make(tmp_path, release)


def test_known_image_in_the_wrong_class(tmp_path, made):
    name = "ILSVRC2012_val_00000001.JPEG"
    with pytest.raises(RunError, match=f"{name} is missing from its class folder .*/val/n09193705"):
        make(tmp_path, made[2]._replace(known={name: "n09193705"}))


def test_tfds(tmp_path, caplog):
    """The builder of TFDS, on synthetic tar files with the real names, read by our source."""
    from mae_jax.data.sources.tfds import make_tfds_sources

    train, val = fake.images()
    folder, out = tmp_path / "tars", tmp_path / "out"
    fake.write(folder, train, val)
    names = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
    (folder / "train.tar").rename(folder / names[0])
    (folder / "val.tar").rename(folder / names[1])
    release = fake.release(folder, train, val, names=names)
    tfds.make_tfds(folder, out, release)
    options = DataOptions(source="tfds", name="imagenet2012", root=str(out))
    sources = make_tfds_sources(options, workdir=None)
    for source, number in zip(sources, (3, 1), strict=True):
        records = source.read(range(len(source)))
        found = collections.Counter(source.classes[record.label] for record in records)
        assert found == dict.fromkeys(fake.LABELS, number)
    jpegs = {data for images in train.values() for name, data in images.items() if name != fake.PNG}
    assert len(jpegs & {r.data for r in sources[0].read(range(15))}) == 14
    with caplog.at_level("INFO"):
        tfds.make_tfds(folder, out, release)
    assert "nothing to prepare" in caplog.text
    with pytest.raises(RunError, match="has 15 images in train, not 16"):
        tfds.make_tfds(folder, out, release._replace(train_images=16))
