"""The weights of a model, the metadata needed to use them, and the report of loading them."""

import dataclasses
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax

from mae_jax.convert.param_names import Arrays
from mae_jax.models import factory, mae, mask_rcnn, vit
from mae_jax.ops.patches import grid_size
from mae_jax.ops.trees import flatten, unflatten
from mae_jax.runtime.errors import UsageError


class LoadReport(NamedTuple):
    """How well arrays match a model. Names are ours; those of `unused` are the file's.

    Attributes:
      kind: type of the file.
      matched, wanted: number of parameters that match, and that the model has.
      missing: names of parameters that are absent.
      wrong: parameters of another shape, as "name is (1, 2), needed (1, 3)".
      unused: names of arrays that the model does not have.
      notes: what was assumed or guessed.
    """

    kind: str
    matched: int
    wanted: int
    missing: list[str]
    wrong: list[str]
    unused: list[str]
    notes: list[str]

    def lines(self) -> list[str]:
        """The report as text."""
        lines = [f"matched {self.matched} of {self.wanted} parameters ({self.kind})"]
        for text, names in (
            ("missing", self.missing),
            ("other shape", self.wrong),
            ("unused", self.unused),
        ):
            if names:
                lines.append(f"{text}: {len(names)}: {', '.join(names)}")
        return lines + [f"note: {note}" for note in self.notes]

    def check(self, *, allow_missing: Sequence[str] = (), allow_unused: Sequence[str] = ()) -> None:
        """Raises UsageError for mismatches, except for names that match an allowed pattern."""
        missing = _others(self.missing, allow_missing)
        unused = _others(self.unused, allow_unused)
        if missing or unused or self.wrong:
            advice = (
                "; `python -m mae_jax.tools.convert` accepts them with --allow_missing PATTERN and "
                "--allow_unused PATTERN"
            )
            raise UsageError(
                f"the weights do not fit: missing {missing}, other shape {self.wrong}, unused "
                f"{unused}{'' if self.wrong else advice}"
            )


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights under our names and in our layout.

    Attributes:
      params: by name, float32.
      statistics: of BatchNorm, such as `batch_norm/mean` and `batch_norm/var` of a probe, or {}.
      metadata: as in a checkpoint; `model` describes the model, `missing` lists omitted parameters.
      report: how the weights matched the model.
      target: arrays of an autoencoder's target, or {}.
      run: folder of the run they belong to, or "".
      averaged: whether the run or file also has averaged weights.
    """

    params: Arrays
    statistics: Arrays
    metadata: dict[str, Any]
    report: LoadReport
    target: Arrays = dataclasses.field(default_factory=dict)
    run: str = ""
    averaged: bool = False

    def variables(self) -> dict[str, Any]:
        """First argument of the Flax module's `apply`."""
        state = {"batch_stats": unflatten(self.statistics)} if self.statistics else {}
        return {"params": unflatten(self.params), **state}

    @property
    def kind(self) -> str:
        """ "mae", "vit" or "mask_rcnn"."""
        return self.metadata["model"]["kind"]

    @property
    def predicts_pixels(self) -> bool:
        """Whether the decoder it has, or was trained with, predicts pixels."""
        return self.metadata.get("target", {}).get("kind", "pixel") == "pixel"

    @property
    def fields(self) -> dict[str, Any]:
        """Constructor arguments of the model, except for those chosen at run time."""
        return fields(self.metadata)


def fields(metadata: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments of the model described by a checkpoint's metadata."""
    model = metadata["model"]
    sizes = {name: tuple(model[name]) for name in ("image_size", "patch_size")}
    return {k: v for k, v in model.items() if k not in ("kind", "size")} | sizes


def expected_shapes(metadata: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the model described by metadata, by name."""
    kind, arguments = metadata["model"]["kind"], fields(metadata)
    if kind == "mae":
        model: Any = mae.MaskedAutoencoder(**arguments)
        init: Any = mae.init_params
    elif kind == "mask_rcnn":
        model = factory.build_detector(arguments, dtype="float32")
        init = mask_rcnn.init_variables
    else:
        model, init = vit.VisionTransformer(**arguments), vit.init_variables
    shapes = jax.eval_shape(lambda: init(model, jax.random.key(0)))
    return {name: x.shape for name, x in flatten(shapes if kind == "mae" else shapes[0]).items()}


def table_shapes(metadata: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of an autoencoder's position tables, which are constants in our model."""
    model = fields(metadata)
    rows = 1 + math.prod(grid_size(model["image_size"], model["patch_size"]))
    return {
        "pos_embed": (1, rows, model["embed_dim"]),
        "decoder_pos_embed": (1, rows, model["decoder_embed_dim"]),
    }


def make_report(
    params: Arrays,
    metadata: dict[str, Any],
    *,
    kind: str,
    unused: Sequence[str] = (),
    notes: Sequence[str] = (),
    tables: bool = False,
) -> LoadReport:
    """Compares parameters with those of the model described by `metadata`.

    Args:
      params: by our names.
      metadata: as in a checkpoint.
      kind, unused, notes: see `LoadReport`.
      tables: also require an autoencoder's fixed position tables, as files of other projects have
        them; without them some libraries use random ones.
    """
    wanted = expected_shapes(metadata)
    if tables and metadata["model"]["kind"] == "mae":
        wanted |= table_shapes(metadata)
    wrong = [
        f"{name} is {params[name].shape}, needed {shape}"
        for name, shape in wanted.items()
        if name in params and params[name].shape != shape
    ]
    missing = [name for name in wanted if name not in params]
    left = sorted(params.keys() - wanted.keys())
    return LoadReport(
        kind,
        matched=len(wanted) - len(missing) - len(wrong),
        wanted=len(wanted),
        missing=missing,
        wrong=wrong,
        unused=[*unused, *left],
        notes=list(notes),
    )


def _others(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [n for n in names if not any(fnmatchcase(n, pattern) for pattern in patterns)]
