"""Recipes and their flags, in process: any input gives a config or one clear line."""

import os
import sys

import pytest
from absl.flags import FlagValues

from mae_jax.config import flags
from mae_jax.runtime.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections


@pytest.fixture(autouse=True)
def own_modules():
    """Recipes of a test import modules named `configs`, which must not leak into other tests."""

    def known():
        return {name: x for name, x in sys.modules.items() if name.split(".")[0] == "configs"}

    before = known()
    yield
    for name in known():
        del sys.modules[name]
    sys.modules.update(before)


def parse(*argv):
    sys.modules.pop("config_config", None)  # or the last recipe is reused
    values = FlagValues()
    flags.define_config(values, list(argv))
    return flags.parse(list(argv), values)


def run_flags(*argv):
    sys.modules.pop("config_config", None)
    values = FlagValues()
    flags.define_run(values, list(argv))
    flags.parse(list(argv), values)
    return values


def test_the_flags_of_a_run():
    recipe = "--config=configs/finetune/demo.py"
    values = run_flags(recipe, "--workdir=a/b", "--coordinator=h:1", "--num_processes=2")
    assert flags.workdir_of(values) == os.path.abspath("a/b")
    assert (values.coordinator, values.num_processes, values.process_id) == ("h:1", 2, None)
    assert (values.distributed, values.allow_config_change) == ("auto", False)
    named_after = flags.workdir_of(run_flags(recipe))
    assert named_after == os.path.abspath("runs/finetune/demo")
    with pytest.raises(UsageError, match="--workdir is empty"):
        flags.workdir_of(run_flags(recipe, "--workdir="))
    with pytest.raises(UsageError, match="distributed"):
        run_flags(recipe, "--distributed=perhaps")


def test_help_has_what_the_program_says_and_every_flag():
    values = FlagValues()
    flags.define_run(values, [])
    first, *lines = flags.help_of("It trains.", values).splitlines()
    assert first == "It trains." and "  Folder of the run" in "".join(lines)
    assert {line.split()[0] for line in lines if line.startswith("  --")} == {
        *("--config", "--workdir", "--allow_config_change", "--distributed"),
        *("--coordinator", "--num_processes", "--process_id"),
    }


def test_values_of_every_type_are_read():
    config = parse(
        *("--config=configs/finetune/demo.py", "--config.batch_size=32", "--config.epochs", "3"),
        *("--config.model.image_size=32,48", "--noconfig.data.hflip", "--config.data.on_device"),
        *("--config.data.mean=(0.1,0.2,0.3)", "-config.data.root=a b/100%=Füße"),
    )
    assert (config.batch_size, config.epochs) == (32, 3.0)
    assert config.model.image_size == (32, 48) and config.data.mean == (0.1, 0.2, 0.3)
    assert (config.data.hflip, config.data.on_device) == (False, True)
    assert config.data.root == "a b/100%=Füße"


@pytest.mark.parametrize(
    "words, message",
    [
        (
            "--config.modle.size=B",
            "modle.size: there is no such key; did you mean --config.model.s",
        ),
        ("--config.base_lr=1", "did you mean --config.optim.base_lr?"),
        ("--config.model={}", "--config.model is a group of keys"),
        ("--config.data.mean[0]=1", "did you mean --config.data.mean?"),
        ("--config.mix.group=2", "the recipe has no key --config.mix.group"),
        ("--config.label_smoothing=0.1", "the recipe has no key --config.label_smoothing"),
        (
            "--config.mask.kind=randm",
            "=randm is not one of random, block, grid, checkerboard or your own module:attribute",
        ),
        (
            "--config.batch_size=many",
            "batch_size='many' must be -1 or an integer from 0 to 16777216",
        ),
        ("--config.batch_size=1e3", "batch_size='1e3' must be -1 or an integer"),
        ("--config.batch_size=", "batch_size='' must be -1 or an integer"),
        ("--config.batch_size", "Missing value for flag --config.batch_size"),
        ("--config.data.hflip=perhaps", "hflip='perhaps' must be True or False"),
        (
            "--config.model.image_size=(1,x",
            "image_size='(1,x' must be (0, 0) or 1 or 2 integers in",
        ),
        ("--config.optim.b1=nan", "optim.b1=nan must be a number in [0, 1)"),
        ("--config.optim.b1=1e999", "optim.b1=inf must be a number in [0, 1)"),
        ("--config.model.size=" + "x" * 999, "x... (999 characters) is not one of Ti, S, B"),
        ("--config.seed=1 --config=configs/demo.py", "--config must come before --config.seed"),
        ("--flagfile=/no/such/file", "/no/such/file"),
    ],
)
def test_mistakes_are_one_line_that_names_them(words, message):
    argv = [] if "--config=" in words else ["--config=configs/demo.py"]
    with pytest.raises(UsageError) as caught:
        parse(*argv, *words.split())
    text = str(caught.value)
    assert message in text and "\n" not in text and len(text) < 300


HEAD = "from configs import demo\ndef get_config():\n  c = demo.get_config()\n  "


@pytest.mark.parametrize(
    "program, message",
    [
        ("def get_config(:", "SyntaxError: invalid syntax"),
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this"),
        ("x = 1", "has no get_config() function"),
        ("def get_config():\n  return {'task': 'knn'}", "must return an ml_collections.ConfigDict"),
        ("def get_config():\n  pass", "no recipe"),
        ("def get_config():\n  return 1 / 0", "recipe.py:2): ZeroDivisionError: division by zero"),
        ("def get_config():\n  return {}['key']", "recipe.py:2): KeyError: 'key'"),
        ("def get_config():\n  raise ValueError('unknown\\nsetting')", "setting"),
        ("\0", "null bytes"),
        (HEAD + "c.mesage = 3\n  return c", "--config.mesage: there is no such key"),
        (HEAD + "del c.watchdog\n  return c", "the recipe has no config.watchdog.seconds"),
        (HEAD + "del c.task\n  return c", "the recipe has no config.task"),
        (HEAD + "c.seed = True\n  return c", "--config.seed=True must be an integer"),
        (HEAD + "c.model = None\n  return c", "--config.model is a group"),
    ],
)
def test_recipes_that_fail_are_one_line_that_says_where(tmp_path, program, message):
    (tmp_path / "recipe.py").write_text(program)
    with pytest.raises(UsageError) as caught:
        parse(f"--config={tmp_path}/recipe.py")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_several_mistyped_keys_are_reported_together():
    words = ["--config.data.path=x", "--config.lr=1", "--config.batch_sise=2"]
    with pytest.raises(UsageError) as caught:
        parse("--config=configs/demo.py", *words)
    first, *lines = str(caught.value).splitlines()
    assert first == "3 problems"
    for line, meant in zip(lines, ["data.root", "optim.base_lr", "batch_size"], strict=True):
        assert f"did you mean --config.{meant}?" in line
    words = ["--config.optim.b1=2", "--config.mask.ratio=1", "--config.epochs=-2"]
    with pytest.raises(UsageError) as caught:
        parse("--config=configs/demo.py", *words)
    assert str(caught.value).count(" a number in [0, ") == 3


@pytest.mark.parametrize(
    "path, meant",
    [
        ("folder", "configs/folder.py"),
        ("folder.py", "configs/folder.py"),
        ("configs/foldr.py", "configs/folder.py"),
        ("vit_l", "configs/vit_l.py"),
        ("finetune/demo", "configs/finetune/demo.py"),
        ("cifar", "configs/cifar10.py"),
        ("cifar10:laptop", "configs/cifar10.py"),
    ],
)
def test_the_name_of_a_recipe_is_answered_with_its_path(path, meant):
    with pytest.raises(UsageError) as caught:
        parse(f"--config={path}")
    text = str(caught.value)
    assert f"; did you mean --config={meant}?" in text and "\n" not in text
    assert "cifar10, demo, folder, tokenizer" in text and "ablations" not in text


def test_what_is_not_a_program_is_one_line_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.py").write_text("")
    (tmp_path / "image.png").write_bytes(bytes(range(256)))
    (tmp_path / "notes.md").write_text("# Notes\n\nIt's not a program.\n")
    (tmp_path / "config.json").write_text('{"a": 1}')
    with open(tmp_path / "huge.py", "wb") as file:
        file.truncate(2**21)
    for path, message in (
        ("/dev/zero", "=/dev/zero is not a regular file"),
        (f"{tmp_path}/fifo", "/fifo is not a regular file"),
        (f"{tmp_path}/folder", "/folder is a folder: give one of its files (mine.py)"),
        (f"{tmp_path}/image.png", "/image.png is not a Python program"),
        (f"{tmp_path}/notes.md", "notes.md:3: SyntaxError: unterminated string literal"),
        (f"{tmp_path}/config.json", "/config.json has no get_config()"),
        (f"{tmp_path}/huge.py", "/huge.py has 2,097,152 bytes: too large for a recipe"),
        (f"{tmp_path}/none.py", "/none.py: No such file or directory"),
        (f"{tmp_path}/none.py/x.py", "No such file or directory"),
        ("x" * 300, "File name too long"),
        ("a\0b", "embedded null byte"),
    ):
        with pytest.raises(UsageError) as caught:
            parse(f"--config={path}")
        assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["", "configs", "configs/nowhere.py", "configs/demo.py:x"])
def test_no_recipe(path):
    with pytest.raises(UsageError):
        parse(f"--config={path}")
    with pytest.raises(UsageError, match="no recipe: use --config="):
        parse()


def test_recipes_import_from_their_own_configs_and_from_ours_and_no_other(tmp_path, monkeypatch):
    """From any folder, with other modules named `configs`, in any order."""
    elsewhere = tmp_path / "project" / "configs"
    elsewhere.mkdir(parents=True)
    (elsewhere / "__init__.py").write_text("raise RuntimeError('of another project')")
    monkeypatch.chdir(elsewhere.parent)
    monkeypatch.syspath_prepend(str(elsewhere.parent))
    own = tmp_path / "mine" / "configs"
    (own / "sub").mkdir(parents=True)
    (own / "demo.py").write_text("STEPS = 7")  # ours has no such attribute
    (own / "sub" / "exp.py").write_text(
        "from configs import demo, tokenizer\n"
        "def get_config():\n  c = tokenizer.get_config()\n  c.steps = demo.STEPS\n  return c"
    )
    for _ in range(2):
        assert parse("--config=configs/finetune/demo.py").task == "classify"
        mine = parse(f"--config={own}/sub/exp.py")
        assert (mine.task, mine.steps) == ("tokenizer", 7)


def test_a_recipe_in_the_current_folder_wins(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse("--config=configs/demo.py").steps == 0
    text = "from configs import folder\ndef get_config():\n  c = folder.get_config()\n"
    (tmp_path / "configs" / "demo.py").write_text(text + "  c.steps = 5\n  return c")
    assert parse("--config=configs/demo.py").steps == 5


def test_keys_of_earlier_versions_are_taken_and_told_about(tmp_path, caplog):
    flags._warn_renamed_once.cache_clear()
    (tmp_path / "mine.py").write_text(
        "from configs import demo\ndef get_config():\n  c = demo.get_config()\n"
        "  c.data.resident = True\n  c.picture_every = 7\n  c.picture_images = 5\n  return c"
    )
    mine = f"--config={tmp_path}/mine.py"
    for config in (
        parse(mine, "--config.picture_every=8", "--config.figure_images", "9"),
        parse(mine, "--config.figure_every=8", "-config.picture_images", "9"),
    ):
        assert (config.data.on_device, config.figure_every, config.figure_images) == (True, 8, 9)
        assert "resident" not in config.data and "picture_every" not in config
    assert not parse(mine, "--noconfig.data.resident").data.on_device
    assert not parse(mine, "--config.data.resident=False").data.on_device
    assert parse("--config=configs/demo.py", "--config.data.resident").data.on_device
    assert sorted(record.getMessage() for record in caplog.records) == [
        "data.resident is now called data.on_device; the old name still works",
        "picture_every is now called figure_every; the old name still works",
        "picture_images is now called figure_images; the old name still works",
    ]


@pytest.mark.parametrize(
    "line, message",
    [
        ("c.picture_every = -2", "--config.figure_every=-2 must be -1 or an integer from 0"),
        ("c.picture_every = 1.5", "--config.figure_every=1.5 must be -1 or an integer from 0"),
        ("c.steps = c.picture_every", "(picture_every is now called figure_every)"),
        ("del c.data.resident", "(data.resident is now called data.on_device)"),
    ],
)
def test_mistakes_with_keys_of_earlier_versions_name_the_present_ones(tmp_path, line, message):
    (tmp_path / "mine.py").write_text(f"{HEAD}{line}\n  return c")
    with pytest.raises(UsageError) as caught:
        parse(f"--config={tmp_path}/mine.py")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="figure_every=-2 must be -1 or an integer"):
        parse("--config=configs/demo.py", "--config.picture_every=-2")


@pytest.mark.parametrize(
    "recipe, advice",
    [
        ("configs/folder.py", "--config=configs/folder.py:quick"),
        ("configs/folder.py:full", "--config=configs/folder.py:quick"),
        ("configs/scratch/folder.py", "--config=configs/scratch/folder.py:quick"),
        ("configs/folder.py:quick", ""),
        ("configs/demo.py", ""),
        ("configs/vit_l.py:ablation", ""),
    ],
)
def test_the_quick_setting_of_a_recipe_is_known_without_running_it(
    tmp_path, monkeypatch, recipe, advice
):
    monkeypatch.chdir(tmp_path)  # the recipes are found elsewhere, too
    assert flags.quick_setting(run_flags(f"--config={recipe}")) == advice


def test_so_is_that_of_a_recipe_of_your_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my recipe.py").write_text(
        "from configs import common, demo\ndef get_config(which='full'):\n"
        "  common.check_setting(which, 'full', 'quick')\n  return demo.get_config()\n"
    )
    assert (
        flags.quick_setting(run_flags("--config=my recipe.py")) == "--config='my recipe.py':quick"
    )
