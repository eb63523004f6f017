"""Converts the two ImageNet-1K tar files to class folders or a TFDS dataset.

Examples:
  python -m mae_jax.tools.prepare_imagenet --tars=DIR --out=DIR --dry_run
  launch/prepare_imagenet.sh --tars=DIR --out=DIR --format=tfds

The script runs the same command and first sets up .venv. The folder --tars must
contain ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org.
Both files and the free disk space are checked before anything is written.

Formats:
  folders   OUT/train/n01440764/*.JPEG and OUT/val/n01440764/*.JPEG
  tfds      the TFDS dataset imagenet2012 in OUT, stored as ArrayRecord

At the end the images are counted and the training command is printed. To
continue after an interruption, run the same command again: finished class
folders are kept, but TFDS starts from scratch.

Exit status: 0 done, 1 failed (disk error, damaged file), 2 invalid input (bad
flags, tar file missing or of the wrong size), 130 stopped by Ctrl-C.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_jax.runtime import filesystem, host
from mae_jax.runtime.cli import make_parser, run_command, say, setup_logging
from mae_jax.runtime.errors import INTERRUPTED, RunError, require
from mae_jax.tools.prepare_imagenet import folders, tfds
from mae_jax.tools.prepare_imagenet.release import Release, check_tars, imagenet_2012

log = logging.getLogger(__name__)


def run(args: argparse.Namespace, release: Release) -> None:
    """Checks the input, converts it, checks the result, and prints how to train on it."""
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
        log.info("--dry_run: nothing was written")
        return
    say("train with:")
    say(f"  launch/local.sh --config=configs/vit_b.py {_flags(args.format, out)}")


def _flags(kind: str, out: Path) -> str:
    root = shlex.quote(f"--config.data.root={out.absolute()}")
    if kind == "tfds":
        return f"--config.data.source=tfds --config.data.name={tfds.NAME} {root}"
    return f"--config.data.source=folder {root}"


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("tools.prepare_imagenet", __doc__)
    add = parser.add_argument
    folder: dict[str, Any] = {"type": filesystem.expand, "metavar": "DIR", "required": True}
    add("--tars", **folder, help="folder with the two tar files")
    add("--out", **folder, help="folder to write the result to")
    format = "output format (default: %(default)s)"
    add("--format", choices=("folders", "tfds"), default="folders", help=format)
    workers = "processes that extract class folders (default: one per CPU core)"
    add("--workers", type=int, default=host.usable_cpus(), metavar="N", help=workers)
    md5 = "check the MD5 sums of the tar files first; takes a few minutes"
    add("--verify_md5", action="store_true", help=md5)
    add("--dry_run", action="store_true", help="check the input and show what would be done")
    return parser


def main(argv: Sequence[str] | None = None, release: Release | None = None) -> int:
    """Runs the command; returns the exit status. Tests pass a small `release`."""
    args = _parser().parse_args(argv)
    setup_logging()
    try:
        run(args, release or imagenet_2012())
    except KeyboardInterrupt:
        log.info("stopped; run the same command to continue")
        return INTERRUPTED
    except OSError as error:  # full or failing disk, missing permission
        raise RunError(
            f"{error}; finished classes are kept: run the same command to continue"
        ) from error
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
