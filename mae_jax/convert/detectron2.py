"""Parameter names and layouts of detectron2's Mask R-CNN on a plain ViT, in both directions.

| ours | detectron2's |
|---|---|
| `backbone/...` | `backbone.net.*` |
| `pyramid/p2/...` to `pyramid/p5/...` | `backbone.simfp_2.*` to `backbone.simfp_5.*` |
| `rpn/{conv0,conv1,objectness,deltas}` | `proposal_generator.rpn_head.*` |
| `box_head/{conv0..3,norm0..3,fc1}` | `roi_heads.box_head.*` |
| `box_head/{scores,deltas}` | `roi_heads.box_predictor.*` |
| `mask_head/{conv0..3,norm0..3,deconv,predictor}` | `roi_heads.mask_head.*` |

The paper's own protocol (`models.fpn`), as implemented by hustvl/MIMDet, has `backbone.bottom_up.*`
for the ViT and the adaptor, and `backbone.fpn_{lateral,output}{2..5}` for the pyramid.

PyTorch stores convolutions as [out, in, h, w], transposed ones as [in, out, h, w], and linear
layers as [out, in]; ours are [h, w, in, out] and [in, out]. The first linear layer of the box head
reads a map that PyTorch flattens as (C, 7, 7), we as (7, 7, C). Conversion only copies values, so a
round trip is exact. Whole names are matched: by suffix, the final norm of an autoencoder could end
up in the norms of a head.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from mae_jax.convert.param_names import BLOCK, CONV, LEAVES, LINEAR, NORM, STATISTICS, Arrays

# Kinds besides those of `param_names`.
ARRAY, DECONV, FLATTENED, BATCH_NORM = "array", "deconv", "flattened", "batch norm"
POOLED = 7  # side of the map that the box head flattens
_LEAVES = LEAVES | {
    ARRAY: {"": ""},
    DECONV: LEAVES[CONV],
    FLATTENED: LEAVES[LINEAR],
    BATCH_NORM: LEAVES[NORM] | LEAVES[STATISTICS],
}
_AXES = {CONV: 4, DECONV: 4, LINEAR: 2, FLATTENED: 2}  # of kernels
_RPN, _ROI = "proposal_generator.rpn_head", "roi_heads"
_HEADS = (
    ("rpn/conv0", f"{_RPN}.conv.conv0", CONV),
    ("rpn/conv1", f"{_RPN}.conv.conv1", CONV),
    ("rpn/objectness", f"{_RPN}.objectness_logits", CONV),
    ("rpn/deltas", f"{_RPN}.anchor_deltas", CONV),
    ("box_head/fc1", f"{_ROI}.box_head.fc1", FLATTENED),
    ("box_head/scores", f"{_ROI}.box_predictor.cls_score", LINEAR),
    ("box_head/deltas", f"{_ROI}.box_predictor.bbox_pred", LINEAR),
    ("mask_head/deconv", f"{_ROI}.mask_head.deconv", DECONV),
    ("mask_head/predictor", f"{_ROI}.mask_head.predictor", CONV),
)
_SINGLE_RPN_CONV = ("rpn/conv0", f"{_RPN}.conv", CONV)  # without a number when there is only one
_SIMPLE_PYRAMID = (
    ("p2/deconv0", "simfp_2.0", DECONV),
    ("p2/norm0", "simfp_2.1", NORM),
    ("p2/deconv1", "simfp_2.3", DECONV),
    ("p3/deconv0", "simfp_3.0", DECONV),
)
_SIMPLE_CONVS = {"p2": (4, 5), "p3": (1, 2), "p4": (0, 1), "p5": (1, 2)}  # lateral, output
_ADAPTOR = (
    ("p2_deconv0", "0.0", DECONV),
    ("p2_norm", "0.1", NORM),
    ("p2_deconv1", "0.3", DECONV),
    ("p3_deconv", "1", DECONV),
)
# Buffers that are not parameters.
_HARMLESS = re.compile(
    r"pixel_(mean|std)|.*\.num_batches_tracked|.*\.relative_position_index"
    r"|proposal_generator\.anchor_generator\.cell_anchors\.\d+"
)
_BLOCK_NUMBER = re.compile(r"[./]blocks[._](\d{1,3})[./]")
_SHOWN = 5  # names in a message
_Row = tuple[str, str, str]  # our name, theirs, kind


class Names(NamedTuple):
    """A file's arrays under our names and in our layout.

    Attributes:
      arrays: by our name, float32; running statistics of BatchNorm are the leaves `mean` and `var`.
      unused: names in the file that the model does not have.
    """

    arrays: Arrays
    unused: list[str]


def to_ours(file: Mapping[str, np.ndarray]) -> Names:
    """Renames and transposes the arrays of a file.

    Raises:
      ValueError: an array has another number of axes than its layer.
    """
    depth = _depth(file)
    rows = (*_rows(depth, paper=False), *_rows(depth, paper=True), _SINGLE_RPN_CONV)
    places = {theirs: (ours, kind) for ours, theirs, kind in _leaves(rows)}
    arrays, unused = {}, []
    for name, array in file.items():
        if name in places:
            ours, kind = places[name]
            arrays[ours] = _from_torch(name, np.asarray(array, np.float32), kind)
        elif not _HARMLESS.fullmatch(name):
            unused.append(name)
    return Names(arrays, unused)


def to_detectron2(ours: Mapping[str, np.ndarray]) -> Arrays:
    """Our arrays, statistics included, under detectron2's names and in PyTorch's layout.

    Raises:
      ValueError: an array has no counterpart there.
    """
    rows = list(_rows(_depth(ours), paper="backbone/global_positions/table" in ours))
    if "rpn/conv1/kernel" not in ours:
        rows.append(_SINGLE_RPN_CONV)
    names = {name: (theirs, kind) for name, theirs, kind in _leaves(rows)}
    unknown = sorted(set(ours) - set(names))
    if unknown:
        raise ValueError(f"detectron2's models have no {', '.join(unknown[:_SHOWN])}")
    out = {}
    for name, array in ours.items():
        theirs, kind = names[name]
        out[theirs] = np.ascontiguousarray(_to_torch(np.asarray(array), kind))
    return out


def _rows(depth: int, *, paper: bool) -> Iterator[_Row]:
    """All modules; `paper` chooses the ViT and pyramid of the paper's own protocol."""
    net = "backbone.bottom_up" if paper else "backbone.net"
    yield "backbone/pos_embed", f"{net}.pos_embed", ARRAY
    yield "backbone/patch_embed/proj", f"{net}.patch_embed.proj", CONV
    for i in range(depth):
        ours, theirs = f"backbone/blocks_{i}/", f"{net}.blocks.{i}."
        for module in BLOCK:
            yield ours + module.ours, theirs + module.official, module.kind
        for axis in "hw":
            yield f"{ours}attn/rel_pos_{axis}", f"{theirs}attn.rel_pos_{axis}", ARRAY
    yield from _paper_pyramid() if paper else _simple_pyramid()
    yield from _HEADS
    for head, conv in (("box_head", "conv"), ("mask_head", "mask_fcn")):
        for i in range(4):
            theirs = f"{_ROI}.{head}.{conv}{i + 1}"
            yield f"{head}/conv{i}", theirs, CONV
            yield f"{head}/norm{i}", f"{theirs}.norm", BATCH_NORM


def _simple_pyramid() -> Iterator[_Row]:
    for ours, theirs, kind in _SIMPLE_PYRAMID:
        yield f"pyramid/{ours}", f"backbone.{theirs}", kind
    for level, numbers in _SIMPLE_CONVS.items():
        for part, number in zip(("lateral", "output"), numbers, strict=True):
            theirs = f"backbone.simfp_{level[1]}.{number}"
            yield f"pyramid/{level}/{part}/conv", theirs, CONV
            yield f"pyramid/{level}/{part}/norm", f"{theirs}.norm", NORM


def _paper_pyramid() -> Iterator[_Row]:
    for ours, theirs in (("window", "windowed"), ("global", "global")):
        table = f"backbone.bottom_up.{theirs}_rel_pos_bias.relative_position_bias_table"
        yield f"backbone/{ours}_positions/table", table, ARRAY
    for ours, theirs, kind in _ADAPTOR:
        yield f"pyramid/adaptor/{ours}", f"backbone.bottom_up.ms_adaptor.{theirs}", kind
    for level in range(2, 6):
        for part in ("lateral", "output"):
            theirs = f"backbone.fpn_{part}{level}"
            yield f"pyramid/{part}{level}/conv", theirs, CONV
            yield f"pyramid/{part}{level}/norm", f"{theirs}.norm", BATCH_NORM


def _leaves(rows: Iterable[_Row]) -> Iterator[_Row]:
    """(our name, theirs, kind) of every array."""
    for ours, theirs, kind in rows:
        for leaf, torch_leaf in _LEAVES[kind].items():
            yield ours + leaf, theirs + torch_leaf, kind


def _depth(names: Iterable[str]) -> int:
    numbers = [int(n) for name in names for n in _BLOCK_NUMBER.findall(name)]
    return max(numbers, default=-1) + 1


def _from_torch(name: str, array: np.ndarray, kind: str) -> np.ndarray:
    if kind not in _AXES or name.endswith(".bias"):
        return array
    if array.ndim != _AXES[kind]:
        raise ValueError(f"{name} has shape {array.shape}, but {_AXES[kind]} axes are expected")
    if kind == FLATTENED:
        array = array.reshape(len(array), -1, POOLED, POOLED).transpose(0, 2, 3, 1)
        return array.reshape(len(array), -1).T
    return array.transpose({CONV: (2, 3, 1, 0), DECONV: (2, 3, 0, 1), LINEAR: (1, 0)}[kind])


def _to_torch(array: np.ndarray, kind: str) -> np.ndarray:
    if kind not in _AXES or array.ndim == 1:
        return array
    if kind == FLATTENED:
        array = array.T.reshape(array.shape[1], POOLED, POOLED, -1).transpose(0, 3, 1, 2)
        return array.reshape(len(array), -1)
    return array.transpose({CONV: (3, 2, 0, 1), DECONV: (2, 3, 0, 1), LINEAR: (1, 0)}[kind])
