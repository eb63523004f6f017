"""The ImageNet release (ILSVRC 2012), and the checks that run before it is unpacked.

The class names and validation labels are those that ship with tensorflow_datasets.
"""

import hashlib
import importlib.util
import logging
import os
from pathlib import Path
from typing import NamedTuple

from mae_jax.runtime import disk
from mae_jax.runtime.errors import RunError, UsageError

log = logging.getLogger(__name__)


class Tar(NamedTuple):
    """A file of the release."""

    name: str
    size: int  # bytes
    md5: str


class Release(NamedTuple):
    """Contents of an ImageNet release.

    Attributes:
      train, val: the tar files.
      classes: names of the classes.
      val_labels: class of each validation image, by its number.
      train_images: number of training images.
      known: class of a few validation images, to check the result against.
    """

    train: Tar
    val: Tar
    classes: tuple[str, ...]
    val_labels: tuple[str, ...]
    train_images: int
    known: dict[str, str]


def imagenet_2012() -> Release:
    """The 2012 release.

    Raises:
      RunError: tensorflow_datasets is not installed, or its label files have moved.
    """
    # Located rather than imported: importing takes seconds.
    spec = importlib.util.find_spec("tensorflow_datasets")
    if spec is None or not spec.origin:
        raise RunError("tensorflow-datasets, which has the labels, is not installed")
    folder = Path(spec.origin).parent / "datasets" / "imagenet2012"
    try:
        classes = tuple((folder / "labels.txt").read_text().split())
        labels = tuple((folder / "validation_labels.txt").read_text().split())
    except OSError as error:
        raise RunError(f"tensorflow-datasets has no ImageNet labels: {error}") from error
    if len(set(classes)) != 1000 or len(labels) != 50_000 or set(labels) != set(classes):
        raise RunError(f"the lists in {folder} do not have 1000 classes and 50,000 labels")
    return Release(
        train=Tar("ILSVRC2012_img_train.tar", 147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e"),
        val=Tar("ILSVRC2012_img_val.tar", 6_744_924_160, "29b22e2961454d5413ddabcf34fc5622"),
        classes=classes,
        val_labels=labels,
        train_images=1_281_167,
        known={
            "ILSVRC2012_val_00000001.JPEG": "n01751748",
            "ILSVRC2012_val_00000002.JPEG": "n09193705",
            "ILSVRC2012_val_00000003.JPEG": "n02105855",
            "ILSVRC2012_val_00000004.JPEG": "n04263257",
            "ILSVRC2012_val_00000005.JPEG": "n03125729",
        },
    )


def check_tars(folder: Path, release: Release, *, verify_md5: bool = False) -> None:
    """Checks that both tar files exist and have the right size and, optionally, MD5 sum.

    Raises:
      UsageError: a file is missing or has the wrong size.
      RunError: a file has the right size but a different MD5 sum.
    """
    for tar in (release.train, release.val):
        path = folder / tar.name
        if not path.is_file():
            raise UsageError(
                f"{path} does not exist: get this file of {tar.size:,} bytes from "
                "https://image-net.org/download-images (registration required), and pass its "
                "folder as --tars"
            )
        if (size := path.stat().st_size) != tar.size:
            advice = "it is not the original; download it again"
            if size < tar.size:
                advice = f"resume the download with: curl -C - -o {path} URL"
            raise UsageError(f"{path} has {size:,} bytes, not {tar.size:,}: {advice}")
    for tar in (release.train, release.val) if verify_md5 else ():
        log.info("computing the MD5 sum of %s", folder / tar.name)
        with open(folder / tar.name, "rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != tar.md5:
            raise RunError(
                f"{folder / tar.name} has the right size, but its MD5 sum is {found}, not "
                f"{tar.md5}: download it again"
            )


def check_disk(out: Path, *, needed: int, files: int) -> None:
    """Checks that the disk of `out`, which need not exist yet, has enough space.

    Raises:
      RunError: too little free space, or too few free inodes.
    """
    free = disk.free_bytes(str(out))
    log.info("disk: %s needed in %s, %s free", gigabytes(needed), out, gigabytes(free))
    if free < needed:
        raise RunError(
            f"too little disk space: {out} needs {gigabytes(needed)}, {gigabytes(free)} are free: "
            f"free another {gigabytes(needed - free)}, or choose an --out on another disk"
        )
    status = os.statvfs(disk.existing(str(out)))
    # File systems without a limit on the number of files report 0.
    if status.f_files and status.f_favail < files:
        raise RunError(
            f"the disk of {out} has room for {status.f_favail:,} more files (df -i), and {files:,} "
            "are needed: choose an --out on another disk, or --format=tfds, which writes few files"
        )


def gigabytes(size: float) -> str:
    """A number of bytes as text."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"
