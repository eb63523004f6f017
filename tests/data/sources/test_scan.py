"""What real folders contain in addition to images: links, forbidden folders, system folders."""

import errno
import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from mae_jax.data import evaluation_folder
from mae_jax.data.sources import scan
from mae_jax.runtime.errors import UsageError
from tests.data.helpers import JPEG, labels, paths, sources, write


def test_broken_links_are_logged_and_skipped(tmp_path, caplog):
    write(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "a" / "self.jpg").symlink_to(tmp_path / "a" / "self.jpg")
    (tmp_path / "ping").symlink_to(tmp_path / "pong")
    (tmp_path / "pong").symlink_to(tmp_path / "ping")
    (tmp_path / "b" / "gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    train, _ = sources(tmp_path)
    assert paths(train, tmp_path) == ["a/1.jpg", "b/1.jpg"] and train.classes == ["a", "b"]
    assert (
        "5 could not be read and are left out: a/self.jpg (Too many levels of symbolic links)"
        in caplog.text
    )
    for name in ("b/gone.jpg (No such file", "b/up (a link to a folder above", "ping (", "pong ("):
        assert name in caplog.text


@pytest.fixture
def ordinary_user():
    """A folder that anyone may enter, used without root privileges."""
    root, owner = Path(tempfile.mkdtemp()), os.geteuid()
    root.chmod(0o777)
    if owner == 0:
        os.seteuid(65534)
    yield root
    os.seteuid(owner)
    shutil.rmtree(root)


def test_forbidden_folders_are_one_line_and_links_into_them_skipped(ordinary_user, caplog):
    root = ordinary_user
    write(root, "data/a/1.jpg", "data/b/1.jpg", "secret/inner/1.jpg", "closed/1.jpg")
    (root / "data" / "link").symlink_to(root / "secret" / "inner")  # cannot be read
    (root / "data" / "linked").symlink_to(root / "closed")  # cannot be listed
    (root / "data" / "a" / "2.jpg").symlink_to(root / "secret" / "inner" / "1.jpg")
    for name in ("secret", "closed"):
        (root / name).chmod(0)
    try:
        train, _ = sources(root / "data")
        assert paths(train, root / "data") == ["a/1.jpg", "b/1.jpg"]
        assert (
            "3 could not be read and are left out: a/2.jpg (Permission denied), link ("
            in caplog.text
        )
        for mode in (0o000, 0o400):  # cannot be listed; can be listed, but entries cannot be read
            (root / "data" / "b").chmod(mode)
            with pytest.raises(UsageError, match=r"cannot read \S*/data/b\S*: Permission denied"):
                sources(root / "data")
        for mode in (0o000, 0o400):
            (root / "data").chmod(mode)
            with pytest.raises(UsageError, match=r"cannot read \S*/data\S*: Permission denied"):
                sources(root / "data")
        with pytest.raises(UsageError, match="root=.*inner cannot be read: Permission denied"):
            sources(root / "secret" / "inner")
    finally:
        for name in ("data", "secret", "closed", "data/b"):
            (root / name).chmod(0o777)


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOENT, None), (errno.EIO, "Input/output error.*2.jpg")]
)
def test_a_file_that_vanishes_is_skipped_but_not_if_the_storage_fails(
    tmp_path, monkeypatch, caplog, number, message
):
    write(tmp_path, "1.jpg", "2.jpg")
    scandir = os.scandir

    class Entry:
        def __init__(self, entry):
            self.name, self.path, self.is_dir = entry.name, entry.path, entry.is_dir
            self._stat = entry.stat

        def stat(self):
            if self.name == "2.jpg":
                raise OSError(number, os.strerror(number), self.path)
            return self._stat()

    class Scan(list):
        __enter__ = list.__iter__
        __exit__ = lambda *_: None  # noqa: E731

    monkeypatch.setattr(scan.os, "scandir", lambda path: Scan(map(Entry, scandir(path))))
    if message:
        with pytest.raises(OSError, match=message):  # `make_sources` tries it again
            scan.scan_folder(str(tmp_path))
    else:
        assert scan.scan_folder(str(tmp_path)).paths == ["1.jpg"]
        assert (
            "1 could not be read and are left out: 2.jpg (No such file or directory)" in caplog.text
        )


def test_system_folders_are_skipped_and_counted(tmp_path, caplog):
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", "cat/@eaDir/1.jpg/thumb.jpg", "dog/@eaDir/t.jpg")
    write(tmp_path, "__MACOSX/cat/._1.jpg", ".git/x.jpg", "cat/._1.jpg")
    with caplog.at_level(logging.INFO):
        train, _ = sources(tmp_path)
    assert paths(train, tmp_path) == ["cat/1.jpg", "dog/1.jpg"] and train.classes == ["cat", "dog"]
    assert "not entered: @eaDir(2) .git(1) __MACOSX(1)" in caplog.text
    assert "(hidden)(1)" in caplog.text


def test_names_that_look_the_same_are_one_class(tmp_path):
    write(tmp_path, "train/caf\u00e9/1.jpg", "train/cafe\u0301/2.jpg", "train/zoo/3.jpg")
    write(tmp_path, "val/cafe\u0301/1.jpg", "val/zoo/2.jpg")
    train, evaluation = sources(tmp_path)
    assert train.classes == evaluation.classes == ["caf\u00e9", "zoo"]
    assert labels(train) == [0, 0, 1] and labels(evaluation) == [0, 1]
    (tmp_path / "list.csv").write_text(
        "path,label\ntrain/zoo/3.jpg,cafe\u0301\ntrain/zoo/3.jpg,caf\u00e9\n", encoding="utf-8"
    )
    assert labels(sources(tmp_path / "list.csv").train) == [0, 0]


def test_an_image_next_to_class_folders_is_logged(tmp_path, caplog):
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", "cover.jpg")
    assert sources(tmp_path).train.classes is None
    assert "an image lies next to the 2 folders (cover.jpg)" in caplog.text


def test_a_folder_around_the_classes_is_entered(tmp_path):
    write(tmp_path, "PetImages/Cat/1.jpg", "PetImages/Dog/1.jpg")
    train, _ = sources(tmp_path)
    assert paths(train, tmp_path) == ["PetImages/Cat/1.jpg", "PetImages/Dog/1.jpg"]
    assert train.classes == ["Cat", "Dog"]
    # In held-out images the only folder may be one of several classes.
    write(
        tmp_path / "b", "train/cat/1.jpg", "train/dog/1.jpg", "val/dog/x/1.jpg", "val/dog/y/2.jpg"
    )
    assert labels(sources(tmp_path / "b").eval) == [1, 1]


def test_a_kept_listing_outlives_other_rules(tmp_path, caplog):
    """Files that an earlier version listed and this one would not are still the data of the run."""
    write(tmp_path, "all/cat/1.jpg", "all/dog/1.jpg", "all/cat/@eaDir/2.jpg")
    (tmp_path / "run" / "data").mkdir(parents=True)
    names = ["all/cat/1.jpg", "all/cat/@eaDir/2.jpg", "all/dog/1.jpg"]
    lines = ['{"version": 1, "classes": ["all"]}', *(f'["{n}", {len(JPEG)}, 0]' for n in names)]
    kept = tmp_path / "run" / "data" / "listing_train.jsonl"
    kept.write_text("\n".join(lines) + "\n")
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "all").rename(root / "all")
    train, _ = sources(root, tmp_path / "run")
    assert paths(train, root) == names and train.classes == ["all"]
    (root / names[1]).unlink()
    with pytest.raises(UsageError, match="1 missing, for example all/cat/@eaDir/2.jpg"):
        sources(root, tmp_path / "run")
    # Other classes are refused.
    kept.write_text("\n".join(lines).replace('["all"]', '["all", "b"]') + "\n")
    write(root, names[1])
    with pytest.raises(UsageError, match="of another label"):
        sources(root, tmp_path / "run")


def test_the_order_of_classes_that_a_model_does_not_name(tmp_path, caplog):
    """Plain order, as in torchvision; timm's order differs here, which must be logged."""
    names = ["0", "1", "2", "10", "11"]
    write(tmp_path, *(f"{name}/1.jpg" for name in names))
    plain = evaluation_folder(str(tmp_path), None, number=5)
    assert plain.classes == ["0", "1", "10", "11", "2"] and labels(plain) == [0, 1, 2, 3, 4]
    assert "(class 2 is 10). timm's order is the natural one (class 2 is 2)" in caplog.text
    natural = evaluation_folder(str(tmp_path), names, number=5)
    assert natural.classes == names and labels(natural) == [0, 1, 3, 4, 2]
    caplog.clear()
    write(tmp_path / "b", "n01/1.jpg", "n02/1.jpg")
    evaluation_folder(str(tmp_path / "b"), None, number=2)
    assert not caplog.records
    write(tmp_path / "c", "Zebra/1.jpg", "ant/1.jpg")
    evaluation_folder(str(tmp_path / "c"), None, number=2)
    assert "(class 0 is Zebra)" in caplog.text and "(class 0 is ant)" in caplog.text
    with pytest.raises(UsageError, match="are not classes of the model"):
        evaluation_folder(str(tmp_path / "b"), ["n01", "n02", "n02"], number=3)
