"""Prepares ImageNet-1K for training from its two tar files.

Examples:
  python -m mae_jax.tools.prepare_imagenet --tars=DIR --out=DIR --dry_run
  launch/prepare_imagenet.sh --tars=DIR --out=DIR --format=tfds

The script does the same and first sets up .venv. --tars holds
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org. Both are
checked, and so is the free disk space, before anything is written.

  folders   OUT/train/n01440764/*.JPEG and OUT/val/n01440764/*.JPEG
  tfds      the TFDS data set imagenet2012 in OUT, as ArrayRecord

To continue after an interruption, run the same command again: with folders,
finished classes are kept; TFDS starts from scratch. At the end the images are
counted, and the flags to train with are printed.

Exit status: 0 done, 1 failed (disk, damaged file), 2 invalid input (flags, a
tar file missing or of the wrong size), 130 stopped by Ctrl-C.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_jax.runtime import filesystem, host
from mae_jax.runtime.cli import run_command, say, setup_logging
from mae_jax.runtime.errors import INTERRUPTED, RunError, require
from mae_jax.tools.prepare_imagenet import folders, tfds
from mae_jax.tools.prepare_imagenet.release import Release, check_tars, imagenet_2012

log = logging.getLogger(__name__)


def run(args: argparse.Namespace, release: Release) -> None:
    """Checks, makes and checks again as the flags say; prints how to train with the result."""
    folder, out = Path(args.tars), Path(args.out)
    require(args.workers >= 1, f"--workers={args.workers} must be at least 1")
    require(not out.exists() or out.is_dir(), f"--out={out} is not a folder")
    check_tars(folder, release, verify_md5=args.verify_md5)
    if args.format == "tfds":
        tfds.make_tfds(folder, out, release, dry_run=args.dry_run)
    else:
        folders.make_folders(folder, out, release, workers=args.workers, dry_run=args.dry_run)
        if not args.dry_run:
            folders.check_folders(folder, out, release)
    if args.dry_run:
        log.info("--dry_run: nothing was done")
        return
    say("train with:")
    say(f"  launch/local.sh --config=configs/vit_b.py {_flags(args.format, out)}")


def _flags(kind: str, out: Path) -> str:
    root = shlex.quote(f"--config.data.root={out.absolute()}")
    if kind == "tfds":
        return f"--config.data.source=tfds --config.data.name={tfds.NAME} {root}"
    return f"--config.data.source=folder {root}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/prepare_imagenet.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    folder: dict[str, Any] = {"type": filesystem.expand, "metavar": "DIR", "required": True}
    add("--tars", **folder, help="folder of the two tar files")
    add("--out", **folder, help="folder of the result")
    add("--format", choices=("folders", "tfds"), default="folders", help="see above")
    cores = host.usable_cpus()
    add("--workers", type=int, default=cores, help="processes, for folders (default: all cores)")
    add("--verify_md5", action="store_true", help="read both tar files first: some minutes")
    add("--dry_run", action="store_true", help="check, say what would be done, and do nothing")
    return parser


def main(argv: Sequence[str] | None = None, release: Release | None = None) -> int:
    """Runs the command; returns the exit status. Tests bring a small release of their own."""
    args = _parser().parse_args(argv)
    setup_logging()
    try:
        run(args, release or imagenet_2012())
    except KeyboardInterrupt:
        log.info("stopped; the same command goes on")
        return INTERRUPTED
    except OSError as error:  # a full disk, a broken one, no permission
        raise RunError(f"{error}; what is finished stays, the same command goes on") from error
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
