"""Folders and lists of images: what is found, in which order, and what a restart checks."""

import logging
import os

import pytest
from etils import epath
from PIL import Image

from mae_jax.data import make_sources
from mae_jax.data.sources.scan import EXTENSIONS
from mae_jax.data.transforms import decode
from mae_jax.runtime.errors import UsageError
from tests.data.helpers import JPEG, paths, sources, write


def test_class_folders_and_splits(image_folder):
    train, evaluation = sources(image_folder)
    assert (len(train), len(evaluation)) == (12, 4)
    assert train.classes == evaluation.classes == ["cat", "dog"]
    assert [record.label for record in train.read(range(12))] == [0] * 6 + [1] * 6
    assert [record.label for record in evaluation.read(range(4))] == [0, 0, 1, 1]
    assert train.read([0])[0].data == (image_folder / "train/cat/0.jpg").read_bytes()


def test_a_flat_folder_of_all_kinds_in_sorted_order(tmp_path, caplog):
    write(tmp_path, "b.PNG", "a.jpeg", "deep/er/c.webp", "Z.npy", ".hidden.jpg", ".x/a.jpg")
    write(tmp_path, "notes.txt", "README")
    with caplog.at_level(logging.INFO):
        train, evaluation = sources(tmp_path)
    assert paths(train, tmp_path) == ["Z.npy", "a.jpeg", "b.PNG", "deep/er/c.webp"]
    assert train.classes is None and evaluation is None
    assert {record.label for record in train.read(range(4))} == {-1}
    assert "4 images: .jpeg(1) .npy(1) .png(1) .webp(1)" in caplog.text
    assert "(no extension)(1) .txt(1)" in caplog.text


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "elsewhere", "x.jpg")
    write(tmp_path / "root", "a/1.jpg")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "a" / "gone.jpg").symlink_to(tmp_path / "nothing")
    train, _ = sources(tmp_path / "root")
    assert paths(train, tmp_path / "root") == ["a/1.jpg", "b/x.jpg"]
    assert train.classes == ["a", "b"]


def test_held_out_images_are_never_trained_on(tmp_path):
    write(tmp_path, *(f"{i:02}.jpg" for i in range(20)))
    train, evaluation = sources(tmp_path, holdout=5)
    kept, held = paths(train, tmp_path), paths(evaluation, tmp_path)
    assert len(held) == 5 and sorted(kept + held) == [f"{i:02}.jpg" for i in range(20)]
    assert paths(sources(tmp_path, holdout=5).eval, tmp_path) == held
    assert train.fingerprint() != evaluation.fingerprint()


def test_no_images_names_what_was_found(tmp_path):
    for name in ("a.heic", "b.HEIC", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    message = (
        rf"no images under {tmp_path}; looked for .jpg .jpeg .* .npy; "
        r"found 3 files with other extensions: .heic\(2\) .txt\(1\)"
    )
    with pytest.raises(UsageError, match=message):
        sources(tmp_path)


def test_every_extension_of_a_format_that_is_read_is_looked_for():
    Image.init()
    formats = (*decode.FORMATS, "MPO")  # which is JPEG
    known = {e for e, form in Image.registered_extensions().items() if form in formats}
    assert set(EXTENSIONS) == known | {".npy"}
    assert len(set(EXTENSIONS)) == len(EXTENSIONS)


def test_a_class_without_a_usable_image_is_named(tmp_path, caplog):
    write(tmp_path, "cat/1.jpg", "cat/notes.txt", "dog/old/1.heic", "dog/2.heic", "empty/x/1.webp")
    (tmp_path / "empty/x/1.webp").unlink()
    train, _ = sources(tmp_path)
    assert train.classes == ["cat"]
    (line,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert "none of the files in the folder 'dog' is used: .heic(2)" in line


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"root": "/no/such/place"}, "--config.data.root=/no/such/place does not exist"),
        ({"root": ""}, "--config.data.root is empty"),
        ({"split": "training"}, "--config.data.split=training"),
        ({"eval_split": "test"}, "--config.data.eval_split=test"),
    ],
)
def test_wrong_places_are_named(image_folder, config, message):
    with pytest.raises(UsageError, match=message):
        sources(**({"root": image_folder} | config))


def test_evaluation_images_are_not_trained_on_by_accident(tmp_path):
    write(tmp_path, "images/1.jpg", "val/2.jpg")
    with pytest.raises(UsageError, match="--config.data.split="):
        sources(tmp_path)


def test_labels_of_unknown_classes_are_not_used(tmp_path, caplog):
    write(tmp_path, "train/a/1.jpg", "train/c/1.jpg", "val/c/1.jpg", "val/zebra/2.jpg")
    _, evaluation = sources(tmp_path)
    assert evaluation.classes is None and "zebra" in caplog.text
    assert {record.label for record in evaluation.read([0, 1])} == {-1}


def test_evaluation_labels_follow_the_training_classes(tmp_path):
    write(tmp_path, "train/a/1.jpg", "train/c/1.jpg", "val/c/1.jpg")
    _, evaluation = sources(tmp_path)
    assert evaluation.classes == ["a", "c"]
    assert evaluation.read([0])[0].label == 1


def test_text_lists(tmp_path):
    write(tmp_path, "x/with space.jpg", "y.jpg")
    (tmp_path / "list.txt").write_text("# comment\ny.jpg\t3\n\nx/with space.jpg\t0\n")
    train, _ = sources(tmp_path / "list.txt")
    assert paths(train, tmp_path) == ["y.jpg", "x/with space.jpg"]
    assert [record.label for record in train.read([0, 1])] == [3, 0]
    assert train.classes == ["0", "1", "2", "3"]
    (tmp_path / "bad.txt").write_text("y.jpg 3\n")
    with pytest.raises(UsageError, match="y.jpg 3 .*a label follows a TAB"):
        sources(tmp_path / "bad.txt")


def test_csv_lists_with_names_and_an_evaluation_list(tmp_path):
    write(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "train.csv").write_text("label,path\nzebra,1.jpg\nant,2.jpg\n")
    (tmp_path / "test.csv").write_text("path,label\n3.jpg,zebra\n")
    train, evaluation = sources(tmp_path / "train.csv", eval_split="test.csv")
    assert train.classes == ["ant", "zebra"]
    assert [record.label for record in train.read([0, 1])] == [1, 0]
    assert evaluation.read([0])[0].label == 1
    (tmp_path / "bad.csv").write_text("file\n1.jpg\n")
    with pytest.raises(UsageError, match="column `path`"):
        sources(tmp_path / "bad.csv")


@pytest.mark.parametrize("label", ["", "-1"])
def test_a_list_with_missing_labels_is_unlabeled(tmp_path, caplog, label):
    write(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "list.csv").write_text(f"path,label\n1.jpg,0\n2.jpg,{label}\n")
    train, _ = sources(tmp_path / "list.csv")
    assert train.classes is None and "1 images have no label" in caplog.text


def test_a_restart_keeps_the_order_and_leaves_new_files_out(image_folder, tmp_path, caplog):
    first = sources(image_folder, tmp_path / "run").train
    write(image_folder / "train", "aardvark/0.jpg", "cat/99.jpg")
    again = sources(image_folder, tmp_path / "run").train
    assert paths(again, image_folder) == paths(first, image_folder)
    assert again.classes == ["cat", "dog"]
    assert again.fingerprint() == first.fingerprint()
    assert "2 files are new" in caplog.text
    fresh = sources(image_folder, tmp_path / "other run").train
    assert len(fresh) == 14 and fresh.fingerprint()["hash"] != first.fingerprint()["hash"]


def test_a_restart_refuses_missing_and_changed_files(image_folder, tmp_path):
    sources(image_folder, tmp_path)
    (image_folder / "train/cat/3.jpg").unlink()
    with (image_folder / "train/dog/1.jpg").open("ab") as file:
        file.write(b"more")
    message = "1 missing, 1 of another size, for example cat/3.jpg, dog/1.jpg"
    with pytest.raises(UsageError, match=message):
        sources(image_folder, tmp_path)


def test_a_moved_folder_is_still_the_same_data(image_folder, tmp_path):
    first = sources(image_folder, tmp_path / "run").train
    moved = image_folder.rename(tmp_path / "moved")
    again = sources(moved, tmp_path / "run").train
    assert again.fingerprint()["hash"] == first.fingerprint()["hash"]


def test_a_damaged_listing_is_named(image_folder, tmp_path):
    sources(image_folder, tmp_path)
    listing = tmp_path / "data" / "listing_train.jsonl"
    listing.write_text(listing.read_text()[:-20])
    with pytest.raises(UsageError, match="listing_train.jsonl is damaged"):
        sources(image_folder, tmp_path)


def test_a_start_that_led_to_no_checkpoint_binds_nothing(image_folder, tmp_path):
    sources(image_folder, tmp_path / "run")
    write(tmp_path / "other", "a.jpg", "b.jpg")
    options = {"source": "folder", "root": str(tmp_path / "other")}
    workdir = str(tmp_path / "run")
    new = make_sources(options, image_size=(8, 8), channels=3, workdir=workdir, resuming=False)
    assert len(new.train) == 2


def test_processes_that_start_together_may_remove_each_others_listing(
    image_folder, tmp_path, monkeypatch
):
    sources(image_folder, tmp_path)
    kind = type(epath.Path(tmp_path))
    unlink = kind.unlink

    def after_another(path, **options):
        unlink(path)
        unlink(path, **options)

    monkeypatch.setattr(kind, "unlink", after_another)
    monkeypatch.setattr(kind, "exists", lambda path: True)  # a moment ago
    options = {"source": "folder", "root": str(image_folder)}
    new = make_sources(
        options, image_size=(8, 8), channels=3, workdir=str(tmp_path), resuming=False
    )
    assert len(new.train) == 12
    assert sorted(os.listdir(tmp_path / "data")) == ["listing_eval.jsonl", "listing_train.jsonl"]


def test_a_restart_tells_renamed_files_and_new_labels(tmp_path):
    write(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    lines = ["path,label", "1.jpg,ant", "2.jpg,zebra", "3.jpg,ant"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    sources(tmp_path / "list.csv", tmp_path / "run")
    write(tmp_path, "0.jpg")
    more = [*lines, "0.jpg,aardvark"]  # the same classes with other numbers: no change
    (tmp_path / "list.csv").write_text("\n".join(more))
    assert len(sources(tmp_path / "list.csv", tmp_path / "run").train) == 3
    (tmp_path / "list.csv").write_text("\n".join(lines).replace("2.jpg,zebra", "2.jpg,ant"))
    with pytest.raises(UsageError, match=r"1 of another label, for example 2\.jpg; .*--workdir"):
        sources(tmp_path / "list.csv", tmp_path / "run")
    (tmp_path / "3.jpg").rename(tmp_path / "4.jpg")
    (tmp_path / "list.csv").write_text("\n".join(lines).replace("3.jpg", "4.jpg"))
    with pytest.raises(UsageError, match=r"1 missing, .* 3\.jpg \(1 others are new: renamed\?\)"):
        sources(tmp_path / "list.csv", tmp_path / "run")


@pytest.mark.parametrize("label", ["-2", "1048576", "99999999999999999999"])
def test_labels_out_of_range_stop_the_start(tmp_path, label):
    write(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "list.csv").write_text(f"path,label\n1.jpg,0\n2.jpg,{label}\n")
    with pytest.raises(UsageError, match=f"list.csv contains the label {label}; use 0, 1"):
        sources(tmp_path / "list.csv")


def test_a_list_names_files_anywhere_but_nothing_else(tmp_path):
    write(tmp_path, "elsewhere/1.jpg")
    (tmp_path / "lists").mkdir()
    absolute = tmp_path / "elsewhere" / "1.jpg"
    (tmp_path / "lists" / "list.txt").write_text(f"../elsewhere/1.jpg\n{absolute}\n")
    train, _ = sources(tmp_path / "lists" / "list.txt")
    assert {record.data for record in train.read([0, 1])} == {JPEG}
    os.mkfifo(tmp_path / "lists" / "pipe.jpg")
    for name in ("pipe.jpg", "/dev/zero", ".."):
        (tmp_path / "lists" / "list.txt").write_text(f"{name}\n")
        with pytest.raises(UsageError, match="1 of the 1 files in .* are not there"):
            sources(tmp_path / "lists" / "list.txt")
