"""Draws reconstructions of masked images, as in figures 2-4 and 6 of the paper.

Examples:
  python -m mae_jax.tools.reconstruct --checkpoint runs/demo --images photos \\
      --out reconstructions.png
  python -m mae_jax.tools.reconstruct --checkpoint runs/vit_l \\
      --images "photos/*.jpg" --mask_ratio 0.5 0.75 0.9 --out ratios.png

The checkpoint is a run, one of its steps, or any weights with a decoder
(docs/weights.md). --images takes a folder, a list file (.txt, .csv), an image
file, or a quoted glob pattern. The output has one row per image: the original,
the masked image, and the reconstruction, which is predicted where patches are
hidden and the original elsewhere. If the model does not predict pixels, the
true target is shown too.

A mask FILE is a .npy array with one value per patch, 1 for hidden, or an image
that is white where patches are hidden and black elsewhere; a patch is hidden if
at least half of it is white. A priority FILE is an array or image of the same
kind: the patches with the highest values, or the brightest, are hidden first,
up to --mask_ratio.
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
from mae_jax.models.reconstruct import Reconstruction
from mae_jax.ops import masking
from mae_jax.ops.patches import patch_means
from mae_jax.runtime import disk, filesystem
from mae_jax.runtime.cli import make_parser, run_command, say, setup_logging
from mae_jax.runtime.errors import UsageError, require
from mae_jax.tasks import figures

_BLACK, _MAX_GRAY = 48, 0.2  # in a painted mask only edges are gray


def draw(
    model: inference.Pretrained,
    files: Sequence[str],
    *,
    ratios: Sequence[float | None] = (None,),
    kinds: Sequence[str | None] = (None,),
    mask: np.ndarray | None = None,
    priority: np.ndarray | None = None,
    seed: int = 0,
    raw: bool = False,
) -> np.ndarray:
    """Draws one row per file: original, then the masked input and the reconstruction for each mask.

    Args:
      model: with a decoder.
      files: image files.
      ratios, kinds: of the masks, in all combinations; None means as in training.
      mask, priority, seed: see `Pretrained.reconstruct`.
      raw: also show the decoder's output for all patches, as for models trained to predict all.

    Returns:
      uint8 [H, W, 3].

    Raises:
      UsageError: an image cannot be read, a ratio or mask is invalid, or there is no decoder.
    """
    images = model.load_images(files)
    trained = model.metadata["mask"]
    default = "given" if mask is not None else "priority" if priority is not None else None
    caption, raw = model.target.caption, raw or model.predicts_visible
    shown: dict[str, Reconstruction] = {}
    for kind, ratio in itertools.product(kinds, ratios):
        name = kind or default or str(trained["kind"])
        views = model.reconstruct(
            images, mask_ratio=ratio, mask=mask, priority=priority, mask_kind=kind, seed=seed
        )
        shown[f"{name} {100 * (ratio or trained['ratio']):.3g} %"] = views
    if len(shown) > 1:
        return figures.reconstruction_grid(shown, caption, raw=raw)
    return figures.reconstruction_grid(views, caption, mask_kind=name, raw=raw)


def read_mask(path: str, model: inference.Pretrained) -> np.ndarray:
    """Reads a mask of patches from a file; 1 is hidden.

    Args:
      path: .npy of 0 and 1 for each patch: [L], [rows, columns], or one such array per image; or an
        image that is white where patches are hidden and black elsewhere. It is resized and cropped
        like the input images, so it can be painted over one of them; a patch is hidden if at least
        half of it is white.
      model: gives the patch grid and the image transform.

    Raises:
      UsageError: the file cannot be read, or the image is not black and white.
    """
    if path.endswith(".npy"):
        return _read_array(path, "--mask")
    image = _read_image(path, model)
    gray = ((image > _BLACK) & (image < 255 - _BLACK)).mean()
    require(
        gray < _MAX_GRAY,
        f"--mask: {path} looks like a photo: a mask is white where patches are hidden, black "
        "elsewhere (a photo can be used as a --priority)",
    )
    return (_patch_brightness(image, model) >= 127.5).astype(np.int32)


def read_priority(path: str, model: inference.Pretrained) -> np.ndarray:
    """Reads a number for each patch from a file; patches with the highest are hidden first.

    Args:
      path: .npy of numbers, in the shapes of `read_mask`; or an image whose brightest patches are
        hidden first. It is resized and cropped like the input images.
      model: gives the patch grid and the image transform.

    Raises:
      UsageError: the file cannot be read.
    """
    if path.endswith(".npy"):
        return _read_array(path, "--priority")
    return _patch_brightness(_read_image(path, model), model)


def _read_array(path: str, flag: str) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{flag}: {path} cannot be read: {error}") from error
    numbers = np.issubdtype(array.dtype, np.number) or array.dtype == bool
    require(
        numbers and not np.iscomplexobj(array),
        f"{flag}: {path} contains {array.dtype}, not numbers",
    )
    return array


def _read_image(path: str, model: inference.Pretrained) -> np.ndarray:
    """An image, resized and cropped as for the model: uint8 [1, H, W, 3]."""
    options = model.metadata["config"]["data"] | {"dtype": "uint8", "mean": (0.5,) * 3}
    return load_images([path], image_size=model.image_size, channels=3, data_config=options)


def _patch_brightness(image: np.ndarray, model: inference.Pretrained) -> np.ndarray:
    """Mean brightness [rows, columns] of each patch of an image [1, H, W, 3]."""
    height, width = (size // n for size, n in zip(model.image_size, model.grid, strict=True))
    means = patch_means(jnp.asarray(image.mean(axis=3)), (height, width))
    return np.asarray(means).reshape(model.grid)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("tools.reconstruct", __doc__)
    add = parser.add_argument
    path: dict[str, Any] = {"type": filesystem.expand}
    checkpoint = "a run, RUN:best, one of its steps, or weights with a decoder"
    add("--checkpoint", **path, required=True, metavar="PATH", help=checkpoint)
    add("--images", **path, required=True, help="folder, list file, image file or glob pattern")
    add("--out", **path, required=True, metavar="IMAGE", help="image file to write, such as a .png")
    ratio = "fraction of patches to hide, one or more values (default: as in training)"
    add("--mask_ratio", type=float, nargs="+", metavar="R", help=ratio)
    kind = f"one or more of {', '.join(masking.MASKS)} (default: as in training)"
    add("--mask_kind", nargs="+", metavar="KIND", help=kind)
    add("--mask", **path, metavar="FILE", help="hide exactly the patches given in this file")
    add("--priority", **path, metavar="FILE", help="hide patches in the order given in this file")
    add("--seed", type=int, default=0, metavar="N", help="seed of the masks (default: 0)")
    raw = "also draw the decoder's output in visible patches, which most models never train"
    add("--raw", action="store_true", help=raw)
    first = "use only the first N images (default: %(default)s)"
    add("--max_images", type=int, default=16, metavar="N", help=first)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = _parser().parse_args(argv)
    setup_logging()
    if args.mask and (args.mask_ratio or args.mask_kind or args.priority):
        raise UsageError(
            "--mask sets which patches are hidden: leave out --mask_ratio, --mask_kind, --priority"
        )
    if args.priority and args.mask_kind:
        raise UsageError("--priority sets which patches are hidden: leave out --mask_kind")
    endings = (".png", ".jpg", ".jpeg", ".webp")
    require(args.out.lower().endswith(endings), f"--out={args.out} must end in {endings}")
    source = files_source(args.images)
    files = [source.describe(i) for i in range(min(args.max_images, len(source)))]
    model = inference.load(args.checkpoint)
    image = draw(
        model,
        files,
        ratios=args.mask_ratio or (None,),
        kinds=args.mask_kind or (None,),
        mask=read_mask(args.mask, model) if args.mask else None,
        priority=read_priority(args.priority, model) if args.priority else None,
        seed=args.seed,
        raw=args.raw,
    )
    with disk.translate_errors(args.out):
        figures.save_png(args.out, image)
    more = f" of {len(source)} (--max_images)" if len(files) < len(source) else ""
    say(f"{args.out}: {len(files)} images{more}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
