"""Which runs a study needs: its rows, and the stages of each.

A study is a file of configs/ablations: `ROWS` names what each row changes in a pre-training recipe,
`KEY` (where there is one) the key whose value is the row's name, `PAPER` what the paper prints,
`RECIPES` other recipes of the stages than ours.
"""

import ast
import os
import re
import runpy
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

from mae_jax.config import flags as command_line
from mae_jax.config import recipe_file
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
# What of the model all stages share: the encoder.
_ENCODER = re.compile(r"model\.(size|image_size|patch_size|channels|embed_dim|depth|num_heads|mlp)")


class Study(NamedTuple):
    """What a file declares.

    Attributes:
      name: of the file.
      title: first line of its documentation.
      key: key whose value the rows are named after; "" where rows change several.
      rows: what each row changes: name -> key -> value.
      paper: what the paper prints: stage -> row -> accuracy in percent.
      recipes: stage -> the paper's recipe, or one for each row.
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
      words: arguments of `mae_jax.main`, the workdir left out.
      config: what they mean.
      base: those of the pre-training that it begins with; None for pre-training itself.
    """

    name: str
    folder: str
    words: list[str]
    config: Any
    base: Any


class Cell(NamedTuple):
    """One row: its stages, in their order."""

    row: str
    stages: list[Stage]


def load(path: str, flag: str = "--study") -> Study:
    """The study that a file declares: one where the path says, or else one that ships with mae_jax.

    Raises:
      UsageError: there is no such file, it declares none, or a row's key or value is impossible.
    """
    found = recipe_file.find(path, flag)
    recipe_file.provide_configs(found)
    try:
        declared = runpy.run_path(found)
    except Exception as error:  # it is somebody's program, and may fail in any way
        raise UsageError(f"{flag}={path}: {type(error).__name__}: {error}") from error
    rows = declared.get("ROWS")
    if not isinstance(rows, dict) or {type(changes) for changes in rows.values()} != {dict}:
        raise UsageError(
            f"{flag}={path} has no ROWS: a dict of names and of what they change, as in "
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
    """The rows of that name, or of that value of the study's key; all for none wanted.

    Raises:
      UsageError: there is no such row.
    """
    chosen = {}
    for name in wanted or study.rows:
        if name not in study.rows and not study.key:
            raise UsageError(f"--rows={name} is none of {', '.join(study.rows)}")
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
    """All runs of a study, each checked.

    A folder is named after what differs from the recipe (`base` where nothing does), so that the
    studies of one workdir share the runs they have in common. Rows change pre-training; what
    pre-training has no key for, they change in fine-tuning.

    Args:
      rows: from `choose`.
      recipes: stage -> recipe, or one for each row; the first is that of `pretrain`.
      overrides: stage -> further arguments, `--config.key=value`.
      workdir: folder of the studies.

    Raises:
      UsageError: an argument or a row is impossible.
    """
    found = []
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
        found.append(cell)
    return found


def _check_same_encoder(first: Any, config: Any, where: str) -> None:
    """Refuses a stage with another encoder than pre-training; images may have another size."""
    if first is None:
        return
    trained, wanted = flatten(first), flatten(config)
    for key in filter(_ENCODER.match, wanted):
        old, new = trained[key], wanted[key]
        by_size = 0 in (old, new)  # then `model.size` tells
        if key != "model.image_size" and old != new and not by_size:
            raise UsageError(
                f"{where}--config.{key}={new}, but pre-training has {old}: choose a recipe of the "
                "same encoder, or set it for all stages"
            )


def _plain(value: Any) -> Any:
    """As `flatten` has values."""
    return list(value) if isinstance(value, tuple) else value


def _label(changes: dict[str, Any]) -> str:
    """A folder's name for what is changed; "" for nothing."""
    text = ",".join(f"{key}={value}" for key, value in sorted(changes.items()))
    return re.sub(r"[^\w.=,+-]+", "-", text)


def _parse(recipe: str, words: list[str], where: str = "") -> Any:
    words = [f"--config={recipe}", *words]
    values = flags.FlagValues()
    command_line.define_config(values, words)
    try:
        return command_line.parse(words, values)
    except UsageError as error:
        raise UsageError(f"{where}{error}") from error
