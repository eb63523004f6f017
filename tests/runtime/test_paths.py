"""`~` is the home folder in every path, although shells do not expand it in `--flag=~/x`."""

import json

import pytest

from mae_jax import inference
from mae_jax.config.rules import Place
from mae_jax.config.schema import KEYS
from mae_jax.data import image_source, load_images, make_sources
from mae_jax.runtime import filesystem
from mae_jax.runtime.errors import UsageError
from mae_jax.tools import (
    compare,
    convert,
    evaluate,
    extract,
    inspect,
    prepare_coco,
    reconstruct,
)
from mae_jax.tools.prepare_imagenet import __main__ as prepare_imagenet
from mae_jax.tools.study import __main__ as study
from tests.config.test_flags import parse
from tests.data.helpers import jpeg, picture

NOBODY = "~nobody-of-this-name/x"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_what_is_expanded(home, monkeypatch):
    assert filesystem.expand("~/a") == f"{home}/a" and filesystem.expand("~") == str(home)
    for path in ("", "a/~/b", "gs://b/~", "tfds:x/y", "/~"):
        assert filesystem.expand(path) == path
    with pytest.raises(UsageError, match=r"no such user; write \./~nobody"):
        filesystem.expand(NOBODY)
    monkeypatch.chdir(home)
    (home / "~draft.jpg").touch()
    assert filesystem.expand("~draft.jpg") == "~draft.jpg"


@pytest.mark.parametrize(
    ("tool", "flags"),
    [
        (compare, ["--out"]),
        (convert, ["--from", "--to", "--classes"]),
        (evaluate, ["--checkpoint", "--out", "--images", "--classes", "--root"]),
        (extract, ["--checkpoint", "--out", "--images", "--root"]),
        (prepare_coco, ["--zips", "--out"]),
        (prepare_imagenet, ["--tars", "--out"]),
        (reconstruct, ["--checkpoint", "--out", "--images", "--mask", "--priority"]),
        (study, ["--study"]),
        (inspect, []),
    ],
)
def test_flags_of_tools(tool, flags):
    for flag in flags:
        with pytest.raises(UsageError, match="no such user"):
            tool.main([f"{flag}={NOBODY}"])
    if tool in (compare, inspect):
        with pytest.raises(UsageError, match="no such user"):
            tool.main([NOBODY])


@pytest.mark.filterwarnings("ignore:the load_module")
def test_configurations(home):
    keys = [key for key, row in KEYS.items() if isinstance(row.rule, Place)]
    assert sorted(keys) == ["data.root", "init_from", "resume", "target.tokenizer"]
    with open("configs/demo.py", encoding="utf-8") as file:
        (home / "demo.py").write_text(file.read(), encoding="utf-8")
    config = parse("--config=~/demo.py", *(f"--config.{key}=~/{key}" for key in keys))
    for key in keys:
        value = config
        for part in key.split("."):
            value = value[part]
        assert value == f"{home}/{key}"
    with pytest.raises(UsageError, match="no such user"):
        parse("--config=configs/demo.py", f"--config.init_from={NOBODY}")
    with pytest.raises(UsageError, match=rf"^{NOBODY}: there is no such user"):
        parse(f"--config={NOBODY}")


def test_the_python_interface(home):
    (home / "set").mkdir()
    (home / "set" / "1.jpg").write_bytes(jpeg(picture(0)))
    assert image_source("~/set/*.jpg").describe(0) == f"{home}/set/1.jpg"
    config = {"source": "folder", "root": "~/set"}
    train, _ = make_sources(config, image_size=(8, 8), channels=3, workdir=None)
    assert train.describe(0) == f"{home}/set/1.jpg"
    assert load_images(["~/set/1.jpg"], image_size=(8, 8), channels=3).shape == (1, 8, 8, 3)
    (home / "weights").mkdir()
    (home / "weights" / "config.json").write_text(json.dumps({}))
    with pytest.raises(UsageError, match=f"{home}/weights"):
        inference.load("~/weights")
