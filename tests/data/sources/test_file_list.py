"""List files: encodings, headers, labels."""

import pytest

from mae_jax.runtime.errors import UsageError
from tests.data.helpers import labels, paths, sources, write


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


def test_classes_that_are_mostly_empty_are_logged(tmp_path, caplog):
    write(tmp_path, "1.jpg")
    (tmp_path / "list.csv").write_text("path,label\n1.jpg,0\n1.jpg,202003\n")
    assert len(sources(tmp_path / "list.csv").train.classes) == 202_004
    assert "only 2 of these 202,004 classes have an image" in caplog.text
    with pytest.raises(UsageError, match="contains the label 1{5000}; use"):
        (tmp_path / "list.csv").write_text(f"path,label\n1.jpg,{'1' * 5000}\n")
        sources(tmp_path / "list.csv")
