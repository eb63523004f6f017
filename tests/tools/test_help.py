"""The overview of `python -m mae_jax`, and the --help of each command."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys

import pytest

from mae_jax.__main__ import commands
from tests.helpers.processes import REPO

TOOLS = [name for name in commands() if name != "main"]


def module_of(name):
    """The module that `python -m mae_jax.NAME` runs."""
    spec = importlib.util.find_spec(f"mae_jax.{name}")
    return importlib.import_module(spec.name + ".__main__" * bool(spec.submodule_search_locations))


def printed(*words, cwd=REPO):
    env = os.environ | {"PYTHONPATH": REPO, "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def check(text, name):
    """Checks for valid examples, a description of every flag, and at most 80 columns."""
    assert [line for line in text.splitlines() if len(line) > 80] == []
    listed = dict(re.findall(r"^  (--\w+)\b[^\n]*?(?:  |\n {8,})(\S[^\n]*)$", text, re.MULTILINE))
    undocumented = set(re.findall(r"^  (--\w+)", text, re.MULTILINE)) - listed.keys()
    assert listed and not undocumented
    block = re.search(r"^Examples:\n((?:  .*\n)+)\n", text, re.MULTILINE)[1]
    examples = block.replace("\\\n", "").splitlines()
    assert len(examples) >= 2
    for example in examples:
        assert f"mae_jax.{name} " in example or f"launch/{name.split('.')[-1]}.sh" in example
        for flag in re.findall(r"(--(?!config\.)\w+)", example):
            assert flag in listed, (flag, example)
        for recipe in re.findall(r"configs/[\w/]+\.py", example):
            assert os.path.exists(os.path.join(REPO, recipe)), recipe


@pytest.mark.parametrize("name", TOOLS)
def test_help_of_a_tool_lists_its_flags_and_two_examples(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    try:
        status = module_of(name).main(["--help"])
    except SystemExit as error:  # argparse
        status = error.code
    assert status == 0
    check(capsys.readouterr().out, name)


def test_help_of_main_lists_recipes_and_where_their_keys_are_documented(tmp_path):
    text = printed("-m", "mae_jax.main", "--help", cwd=tmp_path)
    check(text, "main")
    assert re.search(r"configs/finetune/ +cifar10, demo, folder, vit_b", text)
    assert "docs/configuration.md" in text and "python -m mae_jax.config.schema" in text
    assert printed("-m", "mae_jax.config.schema").startswith("| key |")


def test_the_package_prints_an_overview():
    text = printed("-m", "mae_jax")
    assert max(map(len, text.splitlines())) <= 80
    for name, what in commands().items():
        assert f"  {name} " in text and what.split()[0] in text
    for recipe in ("vit_l", "configs/finetune/", "mae_jax.load(", "getting_started.md"):
        assert recipe in text
    files = {f.removesuffix(".py") for f in os.listdir(os.path.join(REPO, "mae_jax", "tools"))}
    assert {name.removeprefix("tools.") for name in TOOLS} == files - {"__init__", "__pycache__"}
