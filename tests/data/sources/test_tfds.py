"""Prepared TFDS data sets, in both file formats, are read at random without the set's own code."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from mae_jax.data import eval_batches, make_sources, train_batches
from mae_jax.data.loader import Loader
from mae_jax.data.options import DataOptions
from mae_jax.data.sources.tfds import TfdsSource
from mae_jax.data.sources.tfrecord import Part, TFRecordReader
from mae_jax.runtime.errors import UsageError
from tests.data.helpers import jpeg, picture

COUNTS = {"train": 23, "validation": 5}


def image(split, i):
    return jpeg(picture(1000 * len(split) + i, 20, 30))


class TinyPictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A few labeled JPEGs in two splits."""

    VERSION = tfds.core.Version("1.2.0")
    code_path = None  # TFDS would look for checksums next to this file

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "file_name": tfds.features.Text(),
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=["ant", "bee", "cow"]),
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for i in range(COUNTS[split]):
            yield i, {"file_name": str(i), "image": image(split, i), "label": i % 3}


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory):
    """The set prepared in both file formats."""
    places = {}
    for form in ("tfrecord", "array_record"):
        places[form] = tmp_path_factory.mktemp(form)
        TinyPictures(data_dir=places[form], file_format=form).download_and_prepare(
            download_config=tfds.download.DownloadConfig(num_shards=3, try_download_gcs=False)
        )
    return places


@pytest.fixture(params=["tfrecord", "array_record"])
def data_dir(request, data_dirs):
    return data_dirs[request.param]


def sources(place, workdir=None, **config):
    config = {"source": "tfds", "name": "tiny_pictures", "root": str(place), **config}
    return make_sources(
        config,
        image_size=(8, 8),
        channels=3,
        workdir=str(workdir) if workdir else None,
    )


def numbers(source, split="train"):
    """Which image each example is; checks its label on the way."""
    known = {image(split, i): i for i in range(COUNTS[split])}
    found = []
    for record in source.read(np.arange(len(source))):
        found.append(known[record.data])
        assert record.label == found[-1] % 3
    return found


def test_splits_labels_and_random_access(data_dir):
    train, evaluation = sources(data_dir)
    assert train.classes == ["ant", "bee", "cow"]
    order = numbers(train)
    assert sorted(order) == list(range(23))
    assert sorted(numbers(evaluation, "validation")) == list(range(5))
    for i in (22, 0, 13, 7):
        assert train.read([i])[0].data == image("train", order[i])
    assert train.describe(17) == "tiny_pictures/1.2.0/train#17"
    assert train.fingerprint()["count"] == 23
    assert train.fingerprint() == sources(data_dir).train.fingerprint()


def test_parts_of_a_split_complement_each_other(data_dir):
    whole = numbers(sources(data_dir).train)
    train, evaluation = sources(data_dir, split="train[:70%]", eval_split="train[70%:]")
    assert 0 < len(evaluation) < len(train)
    assert numbers(train) + numbers(evaluation) == whole
    assert train.fingerprint()["hash"] != evaluation.fingerprint()["hash"]


def test_batches_from_many_threads(data_dir):
    train, evaluation = sources(data_dir)
    iterator = train_batches(
        train,
        data_config={"workers": 4},
        image_size=(8, 8),
        channels=3,
        batch_size=23,
        seed=0,
    )
    order = np.array(numbers(train))
    for _ in range(4):
        batch = next(iterator)
        assert sorted(batch["index"]) == list(range(23))
        assert (batch["label"] == order[batch["index"]] % 3).all()
    assert iterator.bad_count == 0
    (batch,) = eval_batches(evaluation, data_config={}, image_size=(8, 8), channels=3, batch_size=8)
    assert batch["valid"].sum() == 5


def test_the_record_index_is_kept_and_checked(tmp_path, data_dirs):
    data_dir = data_dirs["tfrecord"]
    first = numbers(sources(data_dir, tmp_path).train)
    assert (tmp_path / "data" / "records_train.npz").exists()
    assert numbers(sources(data_dir, tmp_path).train) == first
    parts = sorted((data_dir / "tiny_pictures" / "1.2.0").glob("*train*"))
    short = tmp_path / parts[0].name
    short.write_bytes(parts[0].read_bytes()[:-3])
    part = Part(str(short), skip=0, take=1, in_file=1)
    with pytest.raises(UsageError, match="is cut short"):
        TFRecordReader([part], cache=None)
    with pytest.raises(UsageError, match="not those this run started with"):
        TFRecordReader([part], cache=tfds.core.Path(tmp_path / "data" / "records_train.npz"))
    whole = part._replace(path=str(parts[0]), in_file=99)
    with pytest.raises(UsageError, match="dataset_info.json says 99"):
        TFRecordReader([whole], cache=None)


def test_files_in_a_bucket_go_through_tensorflow(data_dirs, monkeypatch):
    data_dir = data_dirs["tfrecord"]
    expected = numbers(sources(data_dir).train)
    monkeypatch.setattr("mae_jax.data.sources.tfrecord._is_remote", lambda path: True)
    assert numbers(sources(data_dir).train) == expected


def test_missing_files_are_named(data_dir, tmp_path):
    place = tmp_path / "copy" / "tiny_pictures" / "1.2.0"
    place.mkdir(parents=True)
    for path in (data_dir / "tiny_pictures" / "1.2.0").iterdir():
        if "00001-of" not in path.name:
            (place / path.name).write_bytes(path.read_bytes())
    with pytest.raises(
        UsageError, match="1 of 3 files .* are missing, for example .*00001-of-00003"
    ):
        sources(tmp_path / "copy")


def test_an_unknown_split_lists_those_there_are(data_dir):
    with pytest.raises(UsageError, match=r"no split 'valid'; it has train, validation"):
        sources(data_dir, eval_split="valid")


def test_a_set_that_is_not_prepared_says_how(tmp_path):
    with pytest.raises(UsageError) as error:
        sources(tmp_path, name="imagenet2012")
    for text in (
        "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar",
        f"launch/prepare_imagenet.sh --tars=TARS --out={tmp_path} --format=tfds",
        "--config.data.source=folder --config.data.root=DIR",
    ):
        assert text in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"tfds.builder\('cifar10'.*download_and_prepare"):
        sources(tmp_path, name="cifar10")
    with pytest.raises(UsageError, match="--config.data.name is empty"):
        sources(tmp_path, name="")
    for name in ("a/b/c:x", "../.."):
        with pytest.raises(UsageError, match="cannot be the name of a TFDS data set") as error:
            sources(tmp_path, name=name)
        assert "\n" not in str(error.value)


def test_labels_that_are_no_class_are_bad_images(data_dir):
    source = sources(data_dir).train
    assert isinstance(source, TfdsSource)
    source.classes = ["ant", "bee"]  # of three
    loader = Loader(source, DataOptions(), channels=3)
    for index in range(len(source)):
        loader.load(np.array([index]))
    assert len(loader.bad) == 7
    bad = next(index for index in range(len(source)) if index in loader.bad)
    assert "the label 2 is none of 2 classes" in loader.bad.reason(bad)


def test_another_process_may_remove_the_index_of_a_start(data_dirs, tmp_path, monkeypatch):
    folder = data_dirs["tfrecord"] / "tiny_pictures" / "1.2.0"
    path = str(min(folder.glob("*train*")))
    with pytest.raises(UsageError, match="contains") as caught:
        TFRecordReader([Part(path, skip=0, take=1, in_file=0)], cache=None)
    number = int(str(caught.value).split("contains ")[1].split()[0])
    cache = epath.Path(tmp_path / "data" / "records_train.npz")
    monkeypatch.setattr(type(cache), "exists", lambda path: True)  # a moment ago
    assert len(TFRecordReader([Part(path, skip=0, take=1, in_file=number)], cache=cache)) == 1
    assert cache.is_file()


def test_a_damaged_index_is_named(data_dirs, tmp_path):
    sources(data_dirs["tfrecord"], workdir=tmp_path)
    index = tmp_path / "data" / "records_train.npz"
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(UsageError, match=r"records_train\.npz is damaged"):
        sources(data_dirs["tfrecord"], workdir=tmp_path)
