"""`pip install .` in a new environment, used from an empty folder."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import mae_jax
from mae_jax.checkpoint import released
from tests.helpers import tiny_configs

REPO = Path(__file__).resolve().parents[1]
BUILT_FROM = ("mae_jax", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")
# Without PYTHONPATH, which would contain the clone.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
RELEASED, WEIGHT_FILES = "mae_jax/checkpoint/released", (".safetensors", ".md")
USE = """
import mae_jax, sys
assert "jax" not in sys.modules
model = mae_jax.load("runs/demo")
print(mae_jax.__file__, repr(model), model.features(model.load_images("photos")).shape, sep="\\n")
print(repr(mae_jax.load("clothing-96")))
"""


def run(*words, cwd):
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of this clone, because building leaves files behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*BUILT_FROM, *(p.name for p in REPO.glob("requirements*.txt"))):
        copy = shutil.copytree if (REPO / name).is_dir() else shutil.copy
        copy(REPO / name, source / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, f"--wheel-dir={out}", source, cwd=out)
    (found,) = out.glob("mae_jax-*.whl")
    return found


def test_the_wheel_contains_every_module_recipe_and_released_weight_in_one_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {p.relative_to(REPO).as_posix() for p in (REPO / "mae_jax").rglob("*.py")}
    recipes = {p.relative_to(REPO).as_posix() for p in (REPO / "configs").rglob("*.py")}
    weights = {f"{RELEASED}/{name}{end}" for name in released.names() for end in WEIGHT_FILES}
    assert names == modules | weights | {f"mae_jax/_recipes/{name}" for name in recipes}
    assert f"-{mae_jax.__version__}-" in wheel.name


def test_installed_elsewhere_it_trains_a_recipe_by_name_and_loads_the_run(wheel, tmp_path):
    venv.create(tmp_path / "env", symlinks=os.name != "nt")
    python = tmp_path / "env" / "bin" / "python"
    # Dependencies come from the environment of the tests; this clone does not.
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", f"--python={python}", "install", "--no-deps", "--no-index")
    run(*pip, wheel, cwd=tmp_path)

    place = tmp_path / "empty"
    (place / "photos").mkdir(parents=True)
    for name in "abc":
        noise = np.random.default_rng(ord(name)).integers(0, 255, (20, 30, 3), np.uint8)
        Image.fromarray(noise).save(place / "photos" / f"{name}.png")
    flags = tiny_configs.flags(steps=2, data__num_train=32)
    run(python, "-m", "mae_jax.main", *flags, cwd=place)
    where, shown, shape, by_name = run(python, "-c", USE, cwd=place).splitlines()
    assert Path(where) == site / "mae_jax" / "__init__.py"
    assert shown.startswith("<Pretrained runs/demo, step 2: ViT-Ti: 1 blocks of width 24, ")
    assert shape == "(3, 24)"
    assert by_name.startswith("<Pretrained clothing-96, step ")
    overview = run(python, "-m", "mae_jax", cwd=place)
    assert "finetune/" in overview and "Documentation: docs/ in the source repository" in overview


def test_extras_are_the_lists_that_launch_installs_from():
    with open(REPO / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    assert extras.keys() == {"cuda12", "cuda13", "tpu", "tensorboard", "dev", "interop"}
    for name in ("dev", "interop"):
        lines = (REPO / f"requirements-{name}.txt").read_text().splitlines()
        wanted = [re.sub(r"(^| +)#.*", "", line) for line in lines if not line.startswith("--")]
        assert extras[name] == list(filter(None, wanted)), name


def test_the_citation_names_this_version():
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (mae_jax.__version__, "Apache-2.0")
    assert (REPO / "LICENSE").read_text().split()[:2] == ["Apache", "License"]
