"""Lists the commands, recipes, Python interface and documentation."""

import ast
import os
import pkgutil
from pathlib import Path

import mae_jax
from mae_jax.config import flags, recipe_file

_PYTHON = """\
In Python:
  import mae_jax
  model = mae_jax.load("clothing-96")  # small weights that come with mae_jax
  model = mae_jax.load("runs/demo")  # or a run, an official, HF or timm model
  features = model.features(model.load_images("photos"))  # [N, D]
"""


def commands() -> dict[str, str]:
    """One-line descriptions of all commands, by their NAME in `python -m mae_jax.NAME`."""
    package = Path(mae_jax.__file__).parent
    paths = {"main": package / "main.py"}
    for module in pkgutil.iter_modules([str(package / "tools")]):
        file = f"{module.name}/__main__.py" if module.ispkg else f"{module.name}.py"
        paths[f"tools.{module.name}"] = package / "tools" / file
    return {name: _first_line(path) for name, path in paths.items()}


def _first_line(path: Path) -> str:
    """First line of a module's docstring, read without importing it, which would import JAX."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def _documentation() -> list[str]:
    """Titles of the pages in docs/, which only a clone has, not an installed package."""
    folder = Path(recipe_file.ROOT, "docs")
    if not folder.is_dir():
        return ["Documentation: docs/ in the source repository; start with getting_started.md."]
    pages = sorted(folder.glob("*.md"), key=lambda p: (p.stem != "getting_started", p.stem))
    titles = [page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for page in pages]
    rows = zip((page.name for page in pages), titles, strict=True)
    return [f"Documentation, in {os.path.relpath(folder)}/:", *flags.table(rows)]


def overview() -> str:
    """The whole text, at most 80 columns wide."""
    lines = [
        f"mae_jax {mae_jax.__version__}: masked autoencoders in JAX and Flax",
        "",
        "Commands, python -m mae_jax.NAME (each has --help):",
        *flags.table(commands().items()),
        "",
        flags.recipes_and_keys(),
        "",
        _PYTHON,
        *_documentation(),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(overview())
