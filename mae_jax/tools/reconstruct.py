"""Pictures of what a model makes of images with hidden patches (paper figures 2 to 4).

python -m mae_jax.tools.reconstruct --checkpoint X --images 'DIR/*.jpg' --out FILE.png

X is a run, one of its steps, or weights of any kind with a decoder (docs/weights.md).
"""

import argparse
import glob
import os
import sys
from collections.abc import Sequence

import numpy as np

from mae_jax import pictures, pretrained
from mae_jax.config import require
from mae_jax.console import run_command, setup_logging
from mae_jax.data import load_images
from mae_jax.errors import UsageError
from mae_jax.ops import masking

_BLACK, _MOST_GREY = 48, 0.2  # edges of what is painted are grey, the rest is not


def picture(
    model: pretrained.Pretrained,
    files: Sequence[str],
    *,
    ratios: Sequence[float | None] = (None,),
    mask: np.ndarray | None = None,
    mask_kind: str | None = None,
    seed: int = 0,
) -> np.ndarray:
    """uint8 [H, W, 3]: a row for each file; for each ratio, what was seen and what was made of it.

    Args:
      model: with a decoder.
      files: image files.
      ratios: mask ratios; None is the one the model was trained with.
      mask, mask_kind, seed: see `Pretrained.reconstruct`.

    Raises:
      UsageError: an image cannot be read, a ratio or mask is impossible, there is no decoder.
    """
    images = model.load_images(files)
    columns: list[tuple[str, np.ndarray]] = []
    for ratio in ratios:
        views = model.reconstruct(
            images, mask_ratio=ratio, mask=mask, mask_kind=mask_kind, seed=seed
        )
        original, masked, predicted, pasted = (
            pictures.to_display(np.asarray(view), np.asarray(views.original)) for view in views
        )
        if not columns:
            columns.append(("original", original))
        columns += [(_title(model, ratio, mask), masked), ("reconstruction", predicted)]
        if len(ratios) == 1:
            columns.append(("with visible", pasted))
    return pictures.grid(columns, model.target.caption)


def _title(model: pretrained.Pretrained, ratio: float | None, mask: np.ndarray | None) -> str:
    share = mask.mean() if mask is not None else ratio or model.metadata["mask"]["ratio"]
    return f"masked {100 * share:.3g} %"


def read_mask(path: str, model: pretrained.Pretrained) -> np.ndarray:
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
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(f"--mask: {path} cannot be read: {error}") from error
    height, width = model.image_size
    options = model.metadata["config"]["data"] | {"dtype": "uint8", "mean": (0.5,) * 3}
    picture = load_images([path], image_size=(height, width), channels=3, data_config=options)
    grey = ((picture > _BLACK) & (picture < 255 - _BLACK)).mean()
    require(
        grey < _MOST_GREY,
        f"--mask: {path} looks like a photo: a mask is white where it hides, black elsewhere",
    )
    rows, columns = model.grid
    cells = picture[0].mean(axis=2).reshape(rows, height // rows, columns, width // columns)
    return (cells.mean(axis=(1, 3)) >= 127.5).astype(np.int32)


def find_images(pattern: str) -> list[str]:
    """Files that a glob pattern names, sorted.

    Raises:
      UsageError: there are none.
    """
    files = sorted(f for f in glob.glob(pattern, recursive=True) if os.path.isfile(f))
    if not files:
        hint = f"it is a folder: '{pattern}/*.jpg'" if os.path.isdir(pattern) else "quote it"
        raise UsageError(f"no image matches the pattern --images {pattern!r} ({hint})")
    return files


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="mae_jax.tools.reconstruct",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, help="a run, one of its steps, or weights")
    parser.add_argument("--images", required=True, help="glob pattern of image files")
    parser.add_argument("--out", required=True, help="PNG to write")
    parser.add_argument(
        "--mask_ratio", type=float, nargs="+", help="one or more; default: as in training"
    )
    parser.add_argument(
        "--mask_kind", choices=sorted(masking.NOISE), help="default: as in training"
    )
    parser.add_argument(
        "--mask",
        metavar="FILE",
        help=".npy of patches, 1 hides, or a picture that is white where it hides (half a patch "
        "or more), black elsewhere",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    parser.add_argument("--max_images", type=int, default=16, help="use the first so many (16)")
    args = parser.parse_args(argv)
    setup_logging()
    if args.mask and (args.mask_ratio or args.mask_kind):
        raise UsageError(
            "--mask says which patches are hidden: leave out --mask_ratio, --mask_kind"
        )
    endings = (".png", ".jpg", ".jpeg", ".webp")
    require(args.out.lower().endswith(endings), f"--out={args.out} must end in {endings}")
    found = find_images(args.images)
    files = found[: args.max_images]
    model = pretrained.load(args.checkpoint)
    image = picture(
        model,
        files,
        ratios=args.mask_ratio or (None,),
        mask=read_mask(args.mask, model) if args.mask else None,
        mask_kind=args.mask_kind,
        seed=args.seed,
    )
    pictures.save(args.out, image)
    more = f" of {len(found)} (--max_images)" if len(files) < len(found) else ""
    print(f"{args.out}: {len(files)} images{more}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
