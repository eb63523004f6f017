"""Table of parameter names: ours, those of the official code and timm, and Hugging Face's.

Layouts differ too. PyTorch stores a linear layer as [out, in], we use [in, out]; the patch
convolution is [D, C, ph, pw] there and [ph, pw, C, D] here; Hugging Face stores queries, keys and
values separately. Conversion only copies values, so a round trip is exact.
"""

import collections
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]

TOKEN, NORM, LINEAR, CONV, STATISTICS = "token", "norm", "linear", "conv", "statistics"
# Our leaf name -> PyTorch's, for each type of module.
LEAVES = {
    TOKEN: {"": ""},
    NORM: {"/scale": ".weight", "/bias": ".bias"},
    LINEAR: {"/kernel": ".weight", "/bias": ".bias"},
    CONV: {"/kernel": ".weight", "/bias": ".bias"},
    STATISTICS: {"/mean": ".running_mean", "/var": ".running_var"},
}


class Module(NamedTuple):
    """One row of the table.

    Attributes:
      ours: our name.
      official: the official code's, and timm's.
      hugging_face: written by transformers 4 and read by all versions; three names where queries,
        keys and values are separate; "" if it does not exist.
      kind: determines the names and layout of the leaves.
      others: other accepted names (one for each name of `hugging_face`).
    """

    ours: str
    official: str
    hugging_face: str | tuple[str, str, str]
    kind: str
    others: tuple[str | tuple[str, str, str], ...] = ()


MODULES = (
    Module("cls_token", "cls_token", "vit.embeddings.cls_token", TOKEN),
    Module("pos_embed", "pos_embed", "vit.embeddings.position_embeddings", TOKEN),
    Module(
        "patch_embed/proj", "patch_embed.proj", "vit.embeddings.patch_embeddings.projection", CONV
    ),
    Module("norm", "norm", "vit.layernorm", NORM),
    Module("fc_norm", "fc_norm", "", NORM),
    # Official probes have a BatchNorm, head.0, before their linear layer, head.1.
    Module("head", "head", "classifier", LINEAR, ("head.1",)),
    Module("batch_norm", "head.0", "", STATISTICS),
    Module("mask_token", "mask_token", "decoder.mask_token", TOKEN),
    Module("encoder_mask_token", "encoder_mask_token", "", TOKEN),  # only ours
    Module("decoder_pos_embed", "decoder_pos_embed", "decoder.decoder_pos_embed", TOKEN),
    Module(
        "decoder_embed",
        "decoder_embed",
        "decoder.decoder_embed",
        LINEAR,
        ("encoder_to_decoder",),
    ),
    Module("decoder_norm", "decoder_norm", "decoder.decoder_norm", NORM, ("decoder.norm",)),
    Module("decoder_pred", "decoder_pred", "decoder.decoder_pred", LINEAR, ("decoder.head",)),
)
BLOCK = (
    Module("norm1", "norm1", "layernorm_before", NORM),
    Module("norm2", "norm2", "layernorm_after", NORM),
    Module(
        "attn/qkv",
        "attn.qkv",
        ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        LINEAR,
        (
            ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        ),  # transformers 5, in memory
    ),
    Module("attn/proj", "attn.proj", "attention.output.dense", LINEAR, ("attention.o_proj",)),
    Module("mlp/fc1", "mlp.fc1", "intermediate.dense", LINEAR),
    Module("mlp/fc2", "mlp.fc2", "output.dense", LINEAR),
)
# Prefixes of blocks: ours, official, Hugging Face (transformers 4), others.
STACKS = (
    ("blocks_{}/", "blocks.{}.", "vit.encoder.layer.{}.", ("vit.layers.{}.",)),
    (
        "decoder_blocks_{}/",
        "decoder_blocks.{}.",
        "decoder.decoder_layers.{}.",
        ("decoder.decoder_encoder.layer.{}.", "decoder.blocks.{}."),  # files of transformers 5
    ),
)
_LONGEST = 300  # longest name in which a wrapper's prefix is searched
_SHOWN = 5  # names in a message
# Arrays of libraries that do not affect our models.
HARMLESS = re.compile(r"(.*\.)?(pooler\.dense\.(weight|bias)|num_batches_tracked)")
PARTS = ("query", "key", "value")
_BLOCK_NUMBER = re.compile(r"(?:^|[./])(?:\w+_)?(?:blocks|layers?)[._](\d{1,3})[./]")


class Place(NamedTuple):
    """Destination of an array: our name, and which third of that array (None: all)."""

    name: str
    part: int | None
    kind: str


class Read(NamedTuple):
    """A file's arrays under our names and in our layout.

    Attributes:
      arrays: by our name, float32.
      unused: names in the file that no masked autoencoder or classifier has.
      incomplete: our names for which some parts were missing.
    """

    arrays: Arrays
    unused: list[str]
    incomplete: list[str]


def to_ours(file: Mapping[str, np.ndarray]) -> Read:
    """Renames and reshapes the arrays of any file with known names.

    Raises:
      ValueError: two arrays have the same destination, an array has the wrong number of axes, or
        most names are unknown.
    """
    places = _places(_depth(file))
    prefix = _prefix(file, places)
    whole: Arrays = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    unused = []
    for name, array in file.items():
        place = places.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if place is None:
            if not HARMLESS.fullmatch(name):
                unused.append(name)
            continue
        array = _from_torch(name, np.asarray(array), place)
        if place.name in whole or (place.part in parts.get(place.name, {})):
            raise ValueError(f"{name} is present twice, under two names")
        if place.part is None:
            whole[place.name] = array
        else:
            parts.setdefault(place.name, {})[place.part] = array
    incomplete = []
    for name, found in parts.items():
        if set(found) == {0, 2} and name.endswith("bias"):
            # BEiT's blocks omit it: a bias of the keys does not change attention.
            found[1] = np.zeros_like(found[0])
        if len(found) == len(PARTS):
            whole[name] = np.concatenate([found[i] for i in range(len(PARTS))], axis=-1)
        else:
            incomplete.append(name)
    return Read(whole, unused, incomplete)


def _prefix(file: Iterable[str], places: Mapping[str, Place]) -> str:
    """The prefix that wrappers add to the names: the one with which most names are known.

    Raises:
      ValueError: there is a patch embedding, but less than half of the names belong to its model,
        as in a file with two models.
    """
    names = [name for name in file if not HARMLESS.fullmatch(name)]
    known = collections.Counter(
        name[:cut]
        for name in names
        if len(name) <= _LONGEST
        for cut in (0, *(dot.end() for dot in re.finditer(r"\.", name)))
        if name[cut:] in places
    )
    prefix = max(known, key=lambda p: (known[p], -len(p)), default="")
    embedded = any(
        name.endswith(("patch_embed.proj.weight", "patch_embeddings.projection.weight"))
        for name in names
    )
    if embedded and 2 * known[prefix] <= len(names):
        raise ValueError(
            f"only {known[prefix]} of its {len(names)} names are those of a ViT after the most "
            f"common prefix, {prefix!r}; the first are {', '.join(names[:_SHOWN])}"
        )
    return prefix


def to_official(ours: Mapping[str, np.ndarray]) -> Arrays:
    """Our arrays, including BatchNorm statistics, with official names and PyTorch's layout."""
    after_norm = "batch_norm/mean" in ours
    out = {}
    for module, ours_name, official, _ in _rows(_depth(ours)):
        if after_norm and module.ours == "head":
            official = "head.1"
        for leaf, torch_leaf in LEAVES[module.kind].items():
            if ours_name + leaf in ours:
                out[official + torch_leaf] = _to_torch(ours[ours_name + leaf], module.kind)
    return out


def to_hugging_face(ours: Mapping[str, np.ndarray], *, prefix: str = "vit.") -> Arrays:
    """Our arrays with Hugging Face's names, as transformers 4 writes them.

    Args:
      ours: by our names.
      prefix: of the encoder's names; a bare `ViTModel` has none.

    Raises:
      ValueError: an array has no counterpart there.
    """
    out = {}
    for module, ours_name, _, names in _rows(_depth(ours)):
        for leaf, torch_leaf in LEAVES[module.kind].items():
            if ours_name + leaf not in ours:
                continue
            if not module.hugging_face:
                raise ValueError(f"Hugging Face's models have no {ours_name}")
            array = _to_torch(ours[ours_name + leaf], module.kind)
            for name, part in zip(names, np.split(array, len(names)), strict=True):
                if name.startswith("vit."):
                    name = prefix + name.removeprefix("vit.")
                out[name + torch_leaf] = np.ascontiguousarray(part)
    return out


def _rows(depth: int) -> Iterator[tuple[Module, str, str, tuple[str, ...]]]:
    """Yields (module, our name, official name, Hugging Face's names) for `depth` blocks."""
    for module in MODULES:
        yield module, module.ours, module.official, _several(module.hugging_face)
    for ours, official, hugging_face, _ in STACKS:
        for i in range(depth):
            for module in BLOCK:
                names = tuple(hugging_face.format(i) + n for n in _several(module.hugging_face))
                yield (
                    module,
                    ours.format(i) + module.ours,
                    official.format(i) + module.official,
                    names,
                )


def _places(depth: int) -> dict[str, Place]:
    """All accepted names of models with up to `depth` blocks."""
    places: dict[str, Place] = {}

    def add(module: Module, ours: str, names: tuple[str, ...]) -> None:
        for part, name in enumerate(names):
            for leaf, torch_leaf in LEAVES[module.kind].items():
                place = Place(ours + leaf, part if len(names) > 1 else None, module.kind)
                places[name + torch_leaf] = place
                if name.startswith("vit."):  # a bare ViTModel
                    places[name.removeprefix("vit.") + torch_leaf] = place

    for module in MODULES:
        spellings = (
            module.official,
            f"encoder.{module.official}",
            module.hugging_face,
            *module.others,
        )
        for spelling in filter(None, spellings):
            add(module, module.ours, _several(spelling))
    for ours, official, hugging_face, others in STACKS:
        for i in range(depth):
            for stack in (official, f"encoder.{official}", hugging_face, *others):
                before = stack.format(i)
                for module in BLOCK:
                    for spelling in (module.official, module.hugging_face, *module.others):
                        names = tuple(before + name for name in _several(spelling))
                        add(module, ours.format(i) + module.ours, names)
                for part, name in ((0, "attn.q_bias"), (2, "attn.v_bias")):  # BEiT's blocks
                    places[before + name] = Place(ours.format(i) + "attn/qkv/bias", part, LINEAR)
    return places


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(names, tuple):
        return names
    return (names,)


def _depth(names: Mapping[str, np.ndarray]) -> int:
    """The highest block number in any of the names, plus one."""
    numbers = [int(n) for name in names for n in _BLOCK_NUMBER.findall(name)]
    return max(numbers, default=-1) + 1


def _from_torch(name: str, array: np.ndarray, place: Place) -> np.ndarray:
    kernel = place.name.endswith("/kernel")
    wanted = {CONV: 4, LINEAR: 2}[place.kind] if kernel else {TOKEN: 3}.get(place.kind, 1)
    if array.ndim != wanted:
        raise ValueError(f"{name} has shape {array.shape}, but {wanted} axes are expected")
    array = array.astype(np.float32)
    if kernel:
        return array.transpose(2, 3, 1, 0) if place.kind == CONV else array.T
    return array


def _to_torch(array: np.ndarray, kind: str) -> np.ndarray:
    if kind == CONV and array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif kind == LINEAR and array.ndim == 2:
        array = array.T
    return np.ascontiguousarray(array)
