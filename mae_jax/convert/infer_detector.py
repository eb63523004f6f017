"""Infers a detector from the shapes of its arrays, for files of detectron2 and MIMDet."""

import math
from typing import Any

from mae_jax.convert.infer_architecture import IMAGENET
from mae_jax.convert.param_names import Arrays
from mae_jax.models.mask_rcnn import Settings
from mae_jax.models.vit import SIZES, Size
from mae_jax.models.vitdet import quarter_ends
from mae_jax.runtime.errors import UsageError

# Names of the 80 classes of COCO 2017, by increasing category id.
# fmt: off
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)
# fmt: on


def is_detector(names: Any) -> bool:
    """Whether a file's names are those of a detector of detectron2."""
    return any(name.startswith("roi_heads.") for name in names)


def describe_detector(arrays: Arrays, classes: list[str] | None = None) -> dict[str, Any]:
    """Metadata as in a checkpoint, from arrays under our names.

    Thresholds and anchors are not in the file: they are those of the released models.

    Args:
      arrays: parameters and BatchNorm statistics.
      classes: names, if known; COCO's are known by their number.

    Raises:
      UsageError: it is not a plain ViT with windows and global attention in the last block of each
        quarter, or arrays that determine the model are missing.
    """
    try:
        fields = _fields(arrays)
    except (KeyError, ValueError) as error:
        raise UsageError(f"not a detector on a plain ViT: it has no {error}") from error
    number = fields["num_classes"]
    if classes is None:
        classes = (
            list(COCO_CLASSES) if number == len(COCO_CLASSES) else list(map(str, range(number)))
        )
    if len(classes) != number:
        raise UsageError(f"{len(classes)} class names for a detector of {number} classes")
    size = Size(fields["embed_dim"], fields["depth"], fields["num_heads"])
    name = next((name for name, known in SIZES.items() if known == size), "custom")
    return {
        "task": "convert",
        "step": 0,
        "epochs_seen": None,
        "model": {"kind": "mask_rcnn", "size": name, **fields},
        "classes": classes,
        "data": IMAGENET | {"dtype": "uint8", "source": {"kind": "unknown"}},
        "config": {"model": {"dtype": "auto"}, "data": dict(IMAGENET)},
    }


def _fields(arrays: Arrays) -> dict[str, Any]:
    """Arguments of `factory.build_detector`."""
    height, width, channels, dim = arrays["backbone/patch_embed/proj/kernel"].shape
    depth = sum(name.endswith("/attn/qkv/kernel") for name in arrays)
    shared = "backbone/global_positions/table" in arrays
    grid, window, heads = (_shared_tables if shared else _own_tables)(arrays, dim, depth)
    table = math.isqrt(arrays["backbone/pos_embed"].shape[1] - 1)
    return {
        "image_size": (grid[0] * height, grid[1] * width),
        "patch_size": (height, width),
        "channels": channels,
        "embed_dim": dim,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": arrays["backbone/blocks_0/mlp/fc1/bias"].size / dim,
        "backbone": "fpn" if shared else "vitdet",
        "table_grid": (table, table),
        "drop_path": 0.0,
        "window": window,
        "width": arrays["rpn/conv0/bias"].size,
        "hidden_dim": arrays["box_head/fc1/bias"].size,
        "num_classes": arrays["box_head/scores/bias"].size - 1,
        "settings": Settings()._asdict(),
    }


def _own_tables(arrays: Arrays, dim: int, depth: int) -> tuple[tuple[int, int], int, int]:
    """(Grid, window, heads) of a model whose blocks have their own relative positions."""

    def sides(block: int) -> tuple[int, int]:
        rows, columns = (
            arrays[f"backbone/blocks_{block}/attn/rel_pos_{axis}"].shape[0] for axis in "hw"
        )
        return (rows + 1) // 2, (columns + 1) // 2

    ends = quarter_ends(depth)
    globals_ = {sides(block) for block in ends}
    windows = {sides(block) for block in range(depth) if block not in ends}
    if len(globals_) != 1 or len(windows) > 1:
        raise ValueError("global attention in the last block of each quarter only")
    (grid,), (window, _) = globals_, next(iter(windows), (1, 1))  # without windows, any will do
    return grid, window, dim // arrays["backbone/blocks_0/attn/rel_pos_h"].shape[1]


def _shared_tables(arrays: Arrays, dim: int, depth: int) -> tuple[tuple[int, int], int, int]:
    """The same for a model with one table for all windows and one for all global blocks."""
    del dim, depth
    offsets, heads = arrays["backbone/global_positions/table"].shape
    window = arrays["backbone/window_positions/table"].shape[0]
    side, window_side = ((math.isqrt(n) + 1) // 2 for n in (offsets, window))
    return (side, side), window_side, heads


def split_statistics(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """Returns (parameters, BatchNorm statistics)."""
    statistics = {n: x for n, x in arrays.items() if n.endswith(("/mean", "/var"))}
    return {n: x for n, x in arrays.items() if n not in statistics}, statistics
