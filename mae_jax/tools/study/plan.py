"""The runs of a study: its rows, and the stages of each.

A study is a Python file such as those in configs/ablations. `ROWS` lists what each row changes in a
pre-training recipe, `KEY` (optional) is the key whose value names the row, `PAPER` (optional) has
the paper's numbers, and `RECIPES` (optional) replaces the default recipes of the stages.
"""

import ast
import os
import re
import runpy
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl.flags import FlagValues

from mae_jax.config import flags, recipe_file
from mae_jax.config.diff import flatten
from mae_jax.config.schema import current_name, keys_of
from mae_jax.config.validate import check_name, check_value
from mae_jax.runtime.errors import UsageError

STAGES = {
    "pretrain": "configs/vit_l.py:ablation",
    "linprobe": "configs/linprobe/vit_l.py",
    "finetune": "configs/finetune/vit_l.py:ablation",
}
Recipe = str | dict[str, str]
# Keys of the encoder, which all stages share.
_ENCODER = re.compile(r"model\.(size|image_size|patch_size|channels|embed_dim|depth|num_heads|mlp)")


class Study(NamedTuple):
    """A study file.

    Attributes:
      name: file name without its suffix.
      title: first line of the docstring.
      key: config key whose value names the rows; "" if rows change several keys.
      rows: changes of each row: name -> key -> value.
      paper: the paper's numbers: stage -> row -> accuracy in percent.
      recipes: stage -> recipe, or one recipe per row.
    """

    name: str
    title: str
    key: str
    rows: dict[str, dict[str, Any]]
    paper: dict[str, dict[str, float]]
    recipes: dict[str, Recipe]


class Stage(NamedTuple):
    """One run.

    Attributes:
      name: pretrain, linprobe or finetune.
      folder: its workdir.
      words: arguments of `mae_jax.main` except --workdir.
      config: the configuration that they give.
      base: configuration of the pre-training run it starts from; None for pre-training itself.
    """

    name: str
    folder: str
    words: list[str]
    config: Any
    base: Any


class Cell(NamedTuple):
    """One row and its stages, in order."""

    row: str
    stages: list[Stage]


def load(path: str, flag: str = "--study") -> Study:
    """Loads a study file from its path or, if it does not exist, from those shipped with mae_jax.

    Raises:
      UsageError: there is no such file, it has no ROWS, or a row has an invalid key or value.
    """
    found = recipe_file.find(path, flag)
    recipe_file.provide_configs(found)
    try:
        declared = runpy.run_path(found)
    except Exception as error:  # user code may raise anything
        raise UsageError(f"{flag}={path}: {type(error).__name__}: {error}") from error
    rows = declared.get("ROWS")
    if not isinstance(rows, dict) or {type(changes) for changes in rows.values()} != {dict}:
        raise UsageError(
            f"{flag}={path} has no ROWS: a dict from row names to config changes, as in "
            "configs/ablations/mask_ratio.py"
        )
    for changes in rows.values():
        for key, value in changes.items():
            check_name(current_name(key))
            check_value(current_name(key), value)
    title = (declared.get("__doc__") or path).strip().splitlines()[0].rstrip(".")
    recipes = STAGES | declared.get("RECIPES", {})
    name = os.path.splitext(os.path.basename(path))[0]
    return Study(name, title, declared.get("KEY", ""), rows, declared.get("PAPER", {}), recipes)


def choose(study: Study, wanted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Selects rows by name or by value of the study's key; all rows if `wanted` is empty.

    Raises:
      UsageError: there is no such row.
    """
    chosen = {}
    for name in wanted or study.rows:
        if name not in study.rows and not study.key:
            raise UsageError(f"--rows={name} is not one of {', '.join(study.rows)}")
        chosen[name] = study.rows[name] if name in study.rows else {study.key: _value(name)}
    return chosen


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def cells(
    rows: dict[str, dict[str, Any]],
    *,
    recipes: dict[str, Recipe],
    overrides: dict[str, list[str]],
    workdir: str,
) -> list[Cell]:
    """All runs of a study, with validated configurations.

    A folder is named after its changes to the recipe (`base` if there are none), so that studies in
    the same workdir share identical runs. A row changes pre-training; keys that pre-training does
    not have change fine-tuning instead.

    Args:
      rows: from `choose`.
      recipes: stage -> recipe, or one recipe per row; starts with `pretrain`.
      overrides: stage -> additional arguments `--config.key=value`.
      workdir: folder of the studies.

    Raises:
      UsageError: an argument or a row is invalid.
    """
    planned = []
    for row, changes in rows.items():
        of_row = {s: r if isinstance(r, str) else r[row] for s, r in recipes.items()}
        base = flatten(_parse(of_row["pretrain"], overrides["pretrain"]))
        known = keys_of("pretrain")
        of_pretrain = {k: v for k, v in changes.items() if current_name(k) in known}
        rest = {k: v for k, v in changes.items() if k not in of_pretrain}
        same = [k for k, v in of_pretrain.items() if base.get(current_name(k)) == _plain(v)]
        of_pretrain = {k: v for k, v in of_pretrain.items() if k not in same}
        encoder = {k: v for k, v in of_pretrain.items() if _ENCODER.match(k)}
        folder = os.path.join(workdir, _label(of_pretrain) or "base")
        own = {"pretrain": of_pretrain, "linprobe": encoder, "finetune": encoder | rest}
        cell = Cell(row, [])
        for stage, recipe in of_row.items():
            words = [*overrides[stage]]
            if stage != "pretrain":
                words.append(f"--config.init_from={cell.stages[0].folder}")
            words += [f"--config.{key}={value}" for key, value in own[stage].items()]
            config = _parse(recipe, words, f"row {row}, {stage}: ")
            name = ",".join(filter(None, [stage, _label(rest) if stage == "finetune" else ""]))
            command = [f"--config={recipe}", *words]
            first = cell.stages[0].config if cell.stages else None
            _check_same_encoder(first, config, f"row {row}, {stage}: ")
            cell.stages.append(Stage(stage, os.path.join(folder, name), command, config, first))
        planned.append(cell)
    return planned


def _check_same_encoder(first: Any, config: Any, where: str) -> None:
    """Rejects a stage whose encoder differs from pre-training's, except in its image size."""
    if first is None:
        return
    trained, wanted = flatten(first), flatten(config)
    for key in filter(_ENCODER.match, wanted):
        old, new = trained[key], wanted[key]
        by_size = 0 in (old, new)  # 0: given by `model.size`, which is compared too
        if key != "model.image_size" and old != new and not by_size:
            raise UsageError(
                f"{where}--config.{key}={new}, but pre-training has {old}: choose a recipe with "
                "the same encoder, or set the key for all stages"
            )


def _plain(value: Any) -> Any:
    """The value as `flatten` returns it."""
    return list(value) if isinstance(value, tuple) else value


def _label(changes: dict[str, Any]) -> str:
    """Folder name for these changes; "" if there are none."""
    text = ",".join(f"{key}={value}" for key, value in sorted(changes.items()))
    return re.sub(r"[^\w.=,+-]+", "-", text)


def _parse(recipe: str, words: list[str], where: str = "") -> Any:
    words = [f"--config={recipe}", *words]
    values = FlagValues()
    flags.define_config(values, words)
    try:
        return flags.parse(words, values)
    except UsageError as error:
        raise UsageError(*(f"{where}{problem}" for problem in error.args)) from error
