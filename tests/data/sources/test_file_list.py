"""What real folders and lists hold besides images: links, forbidden places, encodings, labels."""

import errno
import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from mae_jax.data import evaluation_folder, make_sources
from mae_jax.data.sources import file_list
from mae_jax.runtime.errors import UsageError
from tests.data.helpers import jpeg, picture

JPEG = jpeg(picture(0, 8, 8))


def sources(root, workdir=None, **config):
    return make_sources(
        {"source": "folder", "root": str(root), **config},
        image_size=(8, 8),
        channels=3,
        workdir=str(workdir) if workdir else None,
    )


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG)


def labels(source):
    return [record.label for record in source.read(range(len(source)))]


def paths(source, root):
    return [os.path.relpath(source.describe(i), root) for i in range(len(source))]


# Folders.


def test_links_that_lead_nowhere_are_named_and_left_out(tmp_path, caplog):
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
    """A folder that anybody may enter, used without root's rights."""
    root, owner = Path(tempfile.mkdtemp()), os.geteuid()
    root.chmod(0o777)
    if owner == 0:
        os.seteuid(65534)
    yield root
    os.seteuid(owner)
    shutil.rmtree(root)


def test_forbidden_folders_are_one_line_and_links_into_them_left_out(ordinary_user, caplog):
    root = ordinary_user
    write(root, "data/a/1.jpg", "data/b/1.jpg", "secret/inner/1.jpg", "closed/1.jpg")
    (root / "data" / "link").symlink_to(root / "secret" / "inner")  # cannot be looked at
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
        for mode in (0o000, 0o400):  # not listed; listed, but nothing in it can be looked at
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
def test_a_file_that_vanishes_is_left_out_but_not_if_the_storage_fails(
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

    monkeypatch.setattr(file_list.os, "scandir", lambda path: Scan(map(Entry, scandir(path))))
    if message:
        with pytest.raises(OSError, match=message):  # `make_sources` tries it again
            file_list.scan_folder(str(tmp_path))
    else:
        assert file_list.scan_folder(str(tmp_path)).paths == ["1.jpg"]
        assert (
            "1 could not be read and are left out: 2.jpg (No such file or directory)" in caplog.text
        )


def test_folders_of_systems_are_passed_by_and_counted(tmp_path, caplog):
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


def test_an_image_beside_class_folders_is_named(tmp_path, caplog):
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", "cover.jpg")
    assert sources(tmp_path).train.classes is None
    assert "an image lies beside the 2 folders (cover.jpg)" in caplog.text


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
    """What an earlier version listed and this one would not is still the data of the run."""
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
    """Plain order, as torchvision has it; timm's is another here, which must not go unsaid."""
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


# Lists.


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-8"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_in_the_encodings_of_other_systems(tmp_path, encoding, end):
    write(tmp_path, "\u00fc.jpg", "2.jpg")
    lines = ["# made by a tool", "\u00fc.jpg\tcat", "  # more", "2.jpg\tdog", ""]
    (tmp_path / "list.txt").write_bytes(end.join(lines).encode(encoding))
    train, _ = sources(tmp_path / "list.txt")
    assert paths(train, tmp_path) == ["\u00fc.jpg", "2.jpg"] and labels(train) == [0, 1]
    lines = ["# made by a tool, 2026", 'Path, "Label"', "\u00fc.jpg, cat", "# x, y", '2.jpg, "dog"']
    (tmp_path / "list.csv").write_bytes(end.join(lines).encode(encoding))
    train, _ = sources(tmp_path / "list.csv")
    assert paths(train, tmp_path) == ["\u00fc.jpg", "2.jpg"] and train.classes == ["cat", "dog"]


@pytest.mark.parametrize(
    ("header", "classes"),
    [
        ("path, label", ["x"]), ("Path,Label", ["x"]), ("PATH ,LABEL ", ["x"]),
        ('"path", "label"', ["x"]), ("# path,label", ["x"]), ("path,class", None),
    ],
)  # fmt: skip
def test_headers_of_csv_lists(tmp_path, caplog, header, classes):
    write(tmp_path, "#1.jpg")
    (tmp_path / "list.csv").write_text(f"{header}\n#1.jpg,x\n")
    assert sources(tmp_path / "list.csv").train.classes == classes
    assert ("no column is called label (but 'class')" in caplog.text) == (classes is None)


def test_bad_lists_are_one_line(tmp_path):
    def refused(content, message, name="list.csv"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=message) as caught:
            sources(tmp_path / name)
        assert str(caught.value).isprintable()

    refused(b"path,path\n1.jpg,2.jpg\n", "one column `path`.*it has 'path', 'path'")
    refused(b"", "it has none")
    refused(b"# only a comment\n", "it has none")
    refused(b'path\n"' + b"x" * 200_000 + b'"\n', "is not a CSV file: field larger")
    refused("path\n1.jpg\n".encode("utf-16-le"), "it is not UTF-8 text", "list.txt")
    refused(b"\xff\xfe1", "is not valid utf-16-le", "list.txt")
    refused(b"a\x1b[31m.jpg\n", r"for example 'a\\x1b\[31m.jpg' \(", "list.txt")
    refused(b"1.jpg \n\xff.jpg\n", r"for example '1.jpg ', '\\udcff.jpg' \(", "list.txt")


@pytest.mark.parametrize(
    ("texts", "classes"),
    [
        (["1_0", "1_1", "2_0", "2_1"], ["1_0", "1_1", "2_0", "2_1"]),
        (["2020_01", "2020_02"], ["2020_01", "2020_02"]),
        (["007", "7"], ["007", "7"]),
        (["+1", "0"], ["+1", "0"]),
        (["\u0663", "0"], ["0", "\u0663"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["0.5", "1"], ["0.5", "1"]),
        (["2", "0", "-0"], ["0", "1", "2"]),
        (["2.0", "10.0", "0.0", "1.0", "3", "4", "5"], [str(i) for i in range(11)]),
    ],
)
def test_only_whole_numbers_are_numbers(tmp_path, texts, classes):
    write(tmp_path, "1.jpg")
    rows = "\n".join(f"1.jpg,{label}" for label in texts)
    (tmp_path / "list.csv").write_text(f"path,label\n{rows}\n", encoding="utf-8")
    train, _ = sources(tmp_path / "list.csv")
    assert train.classes == classes
    assert [classes[label] for label in labels(train)] == [
        text.removesuffix(".0").replace("-0", "0") for text in texts
    ]


def test_classes_that_are_mostly_empty_are_told(tmp_path, caplog):
    write(tmp_path, "1.jpg")
    (tmp_path / "list.csv").write_text("path,label\n1.jpg,0\n1.jpg,202003\n")
    assert len(sources(tmp_path / "list.csv").train.classes) == 202_004
    assert "only 2 of these 202,004 classes have an image" in caplog.text
    with pytest.raises(UsageError, match="holds the label 1{5000}; use"):
        (tmp_path / "list.csv").write_text(f"path,label\n1.jpg,{'1' * 5000}\n")
        sources(tmp_path / "list.csv")
