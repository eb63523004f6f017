"""The import rule: a package imports only from packages in lower `LAYERS`."""

import ast
import glob
import importlib
import os
import subprocess
import sys

import pytest

from tests.helpers.processes import REPO

LAYERS = [
    {"runtime"},
    {"config"},
    {"ops", "distributed"},
    {"models", "optim", "data"},
    {"checkpoint"},
    {"convert"},
    {"train"},
    {"tasks"},
    {"inference"},
    {"tools", "main", "__main__"},
]
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
PACKAGE = os.path.join(REPO, "mae_jax")
PYTHON = sorted(glob.glob(os.path.join(PACKAGE, "**", "*.py"), recursive=True))
HEAVY = {"tensorflow", "tensorflow_datasets"}
EXPORTS = ["mae_jax"] + [
    f"mae_jax.{name}" for name in ("runtime", "config", "checkpoint", "distributed", "train")
]
MAY_IMPORT_TENSORFLOW = ("runtime/tensorflow_cpu.py", "data/", "tools/prepare_imagenet/")


def imported(path):
    """All modules that a file imports, including inside functions."""
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(name):
    """`ops` for `mae_jax.ops.patches`; None for `mae_jax` itself and for other packages."""
    first, *rest = name.split(".")
    return rest[0] if first == "mae_jax" and rest else None


def test_the_root_stays_small():
    entries = {name for name in os.listdir(PACKAGE) if name != "__pycache__"}
    files = {"__init__.py", "__main__.py", "main.py", "inference.py"}
    assert entries == LAYER.keys() - {"inference", "main", "__main__"} | files


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: os.path.relpath(p, PACKAGE))
def test_imports_point_to_lower_layers(path):
    relative = os.path.relpath(path, PACKAGE)
    part = relative.split(os.sep)[0].removesuffix(".py")
    names = imported(path)
    assert not any(name.split(".")[0] in ("configs", "tests") for name in names)
    if not relative.startswith(MAY_IMPORT_TENSORFLOW):
        assert not HEAVY & {name.split(".")[0] for name in names}
    if part == "__init__":
        return
    for name in names:
        other = part_of(name)
        if other in LAYER and other != part:
            assert LAYER[other] < LAYER[part], f"{relative} imports {name}"


def test_arrays_and_modules_never_see_a_config():
    for path in PYTHON:
        relative = os.path.relpath(path, PACKAGE)
        if relative.startswith(("ops/", "models/")) and relative != "models/factory.py":
            parts = {part_of(name) for name in imported(path)} - {None}
            assert "config" not in parts, relative
            assert "ml_collections" not in imported(path), relative


def test_recipes_import_only_ml_collections_and_each_other():
    for path in glob.glob(os.path.join(REPO, "configs", "**", "*.py"), recursive=True):
        tops = {name.split(".")[0] for name in imported(path)}
        assert tops <= {"ml_collections", "configs"}, path


def test_everything_can_be_imported_without_tensorflow():
    modules = [
        os.path.relpath(p, REPO)[:-3].replace(os.sep, ".").removesuffix(".__init__") for p in PYTHON
    ]
    needs = (  # imported when data is read
        "mae_jax.runtime.tensorflow_cpu",
        "mae_jax.data.sources.tfrecord",
        "mae_jax.tools.bench.baselines.torch_mae",
        "mae_jax.tools.bench.baselines.torchvision_ops",
    )
    code = (
        "import sys\n"
        "sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
        + "".join(f"import {m}\n" for m in modules if m not in needs)
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", EXPORTS)
def test_a_package_exports_its_interface_without_importing_it(package):
    code = f"import sys, {package}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0
    module = importlib.import_module(package)
    assert [name for name in dir(module) if name in module.__all__] == sorted(module.__all__)
    for name in module.__all__:
        value = getattr(module, name)
        assert isinstance(value, str) or value.__module__.startswith(f"{package}."), name
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018
