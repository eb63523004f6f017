"""Who may import whom."""

import ast
import glob
import os
import subprocess
import sys

import pytest

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PYTHON = sorted(glob.glob(os.path.join(REPO, "mae_jax", "**", "*.py"), recursive=True))

# What a part of the package may not import.
SERVICES = ("checkpoint", "config", "state")
ABOVE_MODELS = ("convert", "tasks", "data", "optim", "train", "tools", *SERVICES)
FORBIDDEN = {
    "ops": ("models", *ABOVE_MODELS),
    "models": ABOVE_MODELS,
    "targets": ABOVE_MODELS,
    "optim": ("models", "convert", "tasks", "data", "train", "checkpoint", "state", "tools"),
    "data": ("models", "convert", "tasks", "optim", "train", "checkpoint", "state", "ops", "tools"),
    "train": ("models", "tasks", "data", "tools"),
    "train_step": ("models", "tasks", "data", "tools"),
    "state": ("models", "tasks", "data", "optim", "tools"),
    "params": ("models", "tasks", "data", "optim", "task", "state", "tools"),
    "task": ("models", "tasks", "data", "tools"),
    "checkpoint": ("models", "convert", "tasks", "data", "optim", "train", "ops", "tools"),
    "integrity": ("models", "ops", "task", *ABOVE_MODELS),
    "step_writer": ("models", "ops", "task", *ABOVE_MODELS),
    "files": ("models", "ops", "task", *ABOVE_MODELS),
    "bucket_lock": ("models", "ops", "task", *ABOVE_MODELS),
    "growing": ("models", "ops", "task", *ABOVE_MODELS),
    "step_folders": ("models", "ops", "task", *ABOVE_MODELS),
    "stored": ("models", "convert", "tasks", "data", "optim", "train", "tools", *SERVICES),
    "start": ("models", "tasks", "data", "train", "tools"),
    "resident": ("models", "convert", "tasks", "optim", "train", "tools", *SERVICES),
    "convert": ("tasks", "data", "optim", "train", "state", "task", "tools", "config"),
    "pretrained": ("main", "train", "tools", "optim", "state"),
    "tasks": ("main", "tools", "bench"),
    "study": ("main", "tools", "tasks", "models", "data", "optim", "train", "checkpoint"),
    "bench": ("main", "tools", "convert"),
    "tools": ("main",),
}


def imported(path):
    """Modules that a file imports, anywhere in it."""
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: os.path.relpath(p, REPO))
def test_imports_go_one_way(path):
    part = os.path.relpath(path, os.path.join(REPO, "mae_jax")).split(os.sep)[0]
    part = part.removesuffix(".py")
    names = imported(path)
    for other in FORBIDDEN.get(part, ()):
        bad = [n for n in names if (n + ".").startswith(f"mae_jax.{other}.")]
        assert not bad, f"{part} imports {bad}"
    assert not any(n.split(".")[0] == "configs" for n in names)
    if part != "data":
        heavy = ("tensorflow", "tensorflow_datasets")
        assert not any(n.split(".")[0] in heavy for n in names)


def test_recipes_import_only_ml_collections_and_each_other():
    for path in glob.glob(os.path.join(REPO, "configs", "**", "*.py"), recursive=True):
        tops = {name.split(".")[0] for name in imported(path)}
        assert tops <= {"ml_collections", "configs"}, path


def test_everything_can_be_imported_without_tensorflow():
    modules = [
        os.path.relpath(p, REPO)[:-3].replace(os.sep, ".").removesuffix(".__init__") for p in PYTHON
    ]
    needs = ("mae_jax.data.tensorflow", "mae_jax.data.records")  # imported when data is read
    modules = [m for m in modules if m not in (*needs, "mae_jax.bench.torch_mae")]
    code = (
        "import sys\n"
        "sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
        + "".join(f"import {m}\n" for m in modules)
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
