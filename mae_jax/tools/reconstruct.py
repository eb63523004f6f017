"""Draws what a model makes of images with hidden patches (figures 2-4, 6).

Examples:
  python -m mae_jax.tools.reconstruct --checkpoint runs/demo --images photos \\
      --out reconstructions.png
  python -m mae_jax.tools.reconstruct --checkpoint runs/vit_l \\
      --images "photos/*.jpg" --mask_ratio 0.5 0.75 0.9 --out ratios.png

The checkpoint is a run, one of its steps, or weights of any kind that have a
decoder (docs/weights.md). Images are a folder, a list file (.txt, .csv), a
file, or a quoted glob pattern.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mae_jax import inference
from mae_jax.data import files_source, load_images
from mae_jax.ops import masking
from mae_jax.ops.patches import patch_means
from mae_jax.runtime import disk, filesystem
from mae_jax.runtime.cli import run_command, say, setup_logging
from mae_jax.runtime.errors import UsageError, require
from mae_jax.tasks import figures

_BLACK, _MOST_GREY = 48, 0.2  # edges of what is painted are grey, the rest is not


def picture(
    model: inference.Pretrained,
    files: Sequence[str],
    *,
    ratios: Sequence[float | None] = (None,),
    kinds: Sequence[str | None] = (None,),
    mask: np.ndarray | None = None,
    priority: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """uint8 [H, W, 3]: a row for each file; for each kind of mask and each ratio, what was seen and
    what was made of it.

    Args:
      model: with a decoder.
      files: image files.
      ratios, kinds: of the masks; None is what the model was trained with.
      mask, priority, seed: see `Pretrained.reconstruct`.

    Raises:
      UsageError: an image cannot be read, a ratio or mask is impossible, there is no decoder.
    """
    images = model.load_images(files)
    columns: list[tuple[str, np.ndarray]] = []
    pairs = list(itertools.product(kinds, ratios))
    for kind, ratio in pairs:
        views = model.reconstruct(
            images, mask_ratio=ratio, mask=mask, priority=priority, mask_kind=kind, seed=seed
        )
        original, masked, predicted, pasted = (
            figures.to_display(np.asarray(view), np.asarray(views.original)) for view in views
        )
        if not columns:
            columns.append(("original", original))
        columns += [(_title(model, kind, ratio, mask), masked), ("reconstruction", predicted)]
        if len(pairs) == 1:
            columns.append(("with visible", pasted))
    return figures.image_grid(columns, model.target.caption)


def _title(
    model: inference.Pretrained, kind: str | None, ratio: float | None, mask: np.ndarray | None
) -> str:
    share = mask.mean() if mask is not None else ratio or model.metadata["mask"]["ratio"]
    return f"{kind or 'masked'} {100 * share:.3g} %"


def read_mask(path: str, model: inference.Pretrained) -> np.ndarray:
    """A mask of patches from a file: 1 is hidden.

    Args:
      path: .npy with 0 and 1, of patches: [L], [rows, columns], or one for each image; or a picture
        that is white where it hides and black elsewhere. It is resized and cut as the images are,
        so that it may be painted over one of them; a patch is hidden if half of it is white.
      model: whose grid and transform count.

    Raises:
      UsageError: it cannot be read.
    """
    if path.endswith(".npy"):
        return _read_array(path, "--mask")
    picture = _read_grey(path, model)
    grey = ((picture > _BLACK) & (picture < 255 - _BLACK)).mean()
    require(
        grey < _MOST_GREY,
        f"--mask: {path} looks like a photo: a mask is white where it hides, black elsewhere "
        "(a photo can be a --priority)",
    )
    return (_of_patches(picture, model) >= 127.5).astype(np.int32)


def read_priority(path: str, model: inference.Pretrained) -> np.ndarray:
    """Numbers of patches from a file; the highest are hidden first.

    Args:
      path: .npy of numbers, in the shapes of `read_mask`; or a picture, brighter where it is to be
        hidden first. It is resized and cut as the images are; the mean of a patch counts.
      model: whose grid and transform count.

    Raises:
      UsageError: it cannot be read.
    """
    if path.endswith(".npy"):
        return _read_array(path, "--priority")
    return _of_patches(_read_grey(path, model), model)


def _read_array(path: str, flag: str) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{flag}: {path} cannot be read: {error}") from error
    numbers = np.issubdtype(array.dtype, np.number) or array.dtype == bool
    require(
        numbers and not np.iscomplexobj(array), f"{flag}: {path} holds {array.dtype}, not numbers"
    )
    return array


def _read_grey(path: str, model: inference.Pretrained) -> np.ndarray:
    """A picture, resized and cut as the images of the model: float [1, H, W, 3] from 0 to 255."""
    options = model.metadata["config"]["data"] | {"dtype": "uint8", "mean": (0.5,) * 3}
    return load_images([path], image_size=model.image_size, channels=3, data_config=options)


def _of_patches(picture: np.ndarray, model: inference.Pretrained) -> np.ndarray:
    """Mean brightness [rows, columns] of a picture [1, H, W, 3] in each patch."""
    height, width = (size // n for size, n in zip(model.image_size, model.grid, strict=True))
    means = patch_means(jnp.asarray(picture.mean(axis=3)), (height, width))
    return np.asarray(means).reshape(model.grid)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mae_jax.tools.reconstruct",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    place: dict[str, Any] = {"type": filesystem.expand}
    parser.add_argument(
        "--checkpoint", **place, required=True, help="a run, one of its steps, or weights"
    )
    parser.add_argument(
        "--images", **place, required=True, help="folder, list file, file or glob pattern"
    )
    parser.add_argument("--out", **place, required=True, help="PNG to write")
    parser.add_argument(
        "--mask_ratio",
        type=float,
        nargs="+",
        metavar="R",
        help="one or more; default: as in training",
    )
    parser.add_argument(
        "--mask_kind",
        nargs="+",
        metavar="KIND",
        help=f"one or more of {', '.join(masking.MASKS)}; default: as in training",
    )
    parser.add_argument(
        "--mask",
        **place,
        metavar="FILE",
        help=".npy of patches, 1 hides, or a picture that is white where it hides (half a patch "
        "or more), black elsewhere",
    )
    parser.add_argument(
        "--priority",
        **place,
        metavar="FILE",
        help=".npy of patches, or a picture: the highest numbers, the brightest patches are hidden "
        "first, as many as --mask_ratio says",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    parser.add_argument("--max_images", type=int, default=16, help="use the first so many (16)")
    args = parser.parse_args(argv)
    setup_logging()
    if args.mask and (args.mask_ratio or args.mask_kind or args.priority):
        raise UsageError(
            "--mask says which patches are hidden: leave out --mask_ratio, --mask_kind, --priority"
        )
    if args.priority and args.mask_kind:
        raise UsageError("--priority says which patches are hidden: leave out --mask_kind")
    endings = (".png", ".jpg", ".jpeg", ".webp")
    require(args.out.lower().endswith(endings), f"--out={args.out} must end in {endings}")
    found = files_source(args.images)
    files = [found.describe(i) for i in range(min(args.max_images, len(found)))]
    model = inference.load(args.checkpoint)
    image = picture(
        model,
        files,
        ratios=args.mask_ratio or (None,),
        kinds=args.mask_kind or (None,),
        mask=read_mask(args.mask, model) if args.mask else None,
        priority=read_priority(args.priority, model) if args.priority else None,
        seed=args.seed,
    )
    with disk.translate_errors(args.out):
        figures.save_png(args.out, image)
    more = f" of {len(found)} (--max_images)" if len(files) < len(found) else ""
    say(f"{args.out}: {len(files)} images{more}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
