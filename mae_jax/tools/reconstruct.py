"""Pictures of what a checkpoint makes of images (paper figures 2 to 4).

python -m mae_jax.tools.reconstruct --checkpoint RUN_OR_STEP --images 'DIR/*.jpg' --out FILE.png
"""

import argparse
import glob
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax import checkpoint, pictures
from mae_jax.console import run_command, setup_logging
from mae_jax.data import load_images
from mae_jax.errors import UsageError
from mae_jax.models.mae import MaskedAutoencoder
from mae_jax.ops import masking
from mae_jax.reconstruct import reconstruct
from mae_jax.rng import stream_key
from mae_jax.tasks import build


def picture(
    path: str, files: Sequence[str], *, ratios: Sequence[float] | None = None, seed: int = 0
) -> np.ndarray:
    """uint8 [H, W, 3]: a row for each file; for each ratio, what was seen and what was made of it.

    Args:
      path: checkpoint (see `checkpoint.find`).
      files: image files.
      ratios: mask ratios; None for the one the checkpoint was trained with.
      seed: of the masks; the same seed gives the same masks, image by image.

    Raises:
      UsageError: an image cannot be read, a ratio is impossible, or the checkpoint has no decoder.
    """
    metadata = checkpoint.load_metadata(path)
    if metadata["model"]["kind"] != "mae":
        raise UsageError(
            f"no decoder weights in {path} ({metadata['model']['kind']}): nothing to draw"
        )
    fields = {k: v for k, v in metadata["model"].items() if k not in ("kind", "size")}
    model = build.build_mae(fields, dtype="auto")
    data = metadata["config"]["data"]
    images = load_images(
        files, image_size=model.image_size, channels=model.channels, data_config=data
    )
    ratios = ratios or [metadata["mask"]["ratio"]]
    params = checkpoint.load_arrays(path)["params"]
    normalize = metadata["target"]["normalize"]
    columns: list[tuple[str, np.ndarray]] = []
    for ratio in ratios:
        build.visible_patches(model, ratio)
        noise = masking.random_noise(stream_key(seed, "picture_mask"), len(files), model.grid)
        views = _views(model, params, images, noise, ratio, normalize, data)
        if not columns:
            columns.append(("original", views[0]))
        columns += [(f"masked {100 * ratio:g} %", views[1]), ("reconstruction", views[2])]
        if len(ratios) == 1:
            columns.append(("with visible", views[3]))
    return pictures.grid(columns, pictures.TRUE_STATISTICS if normalize else "")


def _views(
    model: MaskedAutoencoder,
    params: Any,
    images: np.ndarray,
    noise: jax.Array,
    ratio: float,
    normalize: bool,
    data: dict[str, Any],
) -> list[np.ndarray]:
    """The four views of `Reconstruction` for display."""

    def run(params: Any, images: jax.Array) -> Any:
        hidden = masking.from_noise(noise, ratio)
        return reconstruct(
            model,
            params,
            images,
            hidden,
            normalize=normalize,
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
        )

    views = jax.device_get(jax.jit(run)(params, jnp.asarray(images)))
    return [pictures.to_display(view, views.original) for view in views]


def find_images(pattern: str) -> list[str]:
    """Files that a glob pattern names, sorted.

    Raises:
      UsageError: there are none.
    """
    files = sorted(glob.glob(pattern, recursive=True))
    if not files:
        raise UsageError(f"no image matches --images {pattern!r} (quote the pattern)")
    return files


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="mae_jax.tools.reconstruct",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, help="a run's folder or one step's")
    parser.add_argument("--images", required=True, help="glob pattern of image files")
    parser.add_argument("--out", required=True, help="PNG to write")
    parser.add_argument(
        "--mask_ratio", type=float, nargs="+", help="one or more; default: as in training"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    parser.add_argument("--max_images", type=int, default=16, help="use the first so many files")
    args = parser.parse_args(argv)
    setup_logging()
    files = find_images(args.images)[: args.max_images]
    image = picture(args.checkpoint, files, ratios=args.mask_ratio, seed=args.seed)
    pictures.save(args.out, image)
    print(f"{args.out}: {len(files)} images")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
