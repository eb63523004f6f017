"""What ImageNet (ILSVRC 2012) consists of, and the checks before it is unpacked.

The classes and the labels of the validation images are those that tensorflow_datasets comes with.
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
    """What a release of ImageNet holds.

    Attributes:
      train, val: the tar files.
      classes: names of the classes.
      val_labels: class of each validation image, by its number.
      train_images: number of training images.
      known: class of some validation images, to check `val_labels` by.
    """

    train: Tar
    val: Tar
    classes: tuple[str, ...]
    val_labels: tuple[str, ...]
    train_images: int
    known: dict[str, str]


def imagenet_2012() -> Release:
    """The release of 2012, as everybody trains on it.

    Raises:
      RunError: the package tensorflow_datasets is missing or keeps its lists somewhere else.
    """
    spec = importlib.util.find_spec(
        "tensorflow_datasets"
    )  # found, not imported: that takes seconds
    if spec is None or not spec.origin:
        raise RunError("the package tensorflow-datasets, which has the labels, is not installed")
    folder = Path(spec.origin).parent / "datasets" / "imagenet2012"
    try:
        classes = tuple((folder / "labels.txt").read_text().split())
        labels = tuple((folder / "validation_labels.txt").read_text().split())
    except OSError as error:
        raise RunError(f"tensorflow-datasets has no labels of ImageNet: {error}") from error
    if len(set(classes)) != 1000 or len(labels) != 50_000 or set(labels) != set(classes):
        raise RunError(f"the lists in {folder} are not those of 1000 classes and 50,000 images")
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
    """Checks that both tar files are there and have the right sizes and, if asked, contents.

    Raises:
      UsageError: missing, or of another size.
      RunError: right size, other contents.
    """
    for tar in (release.train, release.val):
        path = folder / tar.name
        if not path.is_file():
            raise UsageError(
                f"{path} is not there: a file of {tar.size:,} bytes, from "
                "https://image-net.org/download-images after registration; --tars names its folder"
            )
        if (size := path.stat().st_size) != tar.size:
            way_out = "it is not the original, download it again"
            if size < tar.size:
                way_out = f"resume the download with: curl -C - -o {path} URL"
            raise UsageError(f"{path} has {size:,} bytes, not {tar.size:,}: {way_out}")
    for tar in (release.train, release.val) if verify_md5 else ():
        log.info("reading %s for its md5 sum", folder / tar.name)
        with open(folder / tar.name, "rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != tar.md5:
            raise RunError(
                f"{folder / tar.name} has the right size, but its md5 sum is {found}, not "
                f"{tar.md5}: download it again"
            )


def check_disk(out: Path, *, needed: int, files: int) -> None:
    """Checks that the disk of `out`, which need not exist yet, has room.

    Raises:
      RunError: too few bytes, or too few files that it can still hold.
    """
    free = disk.free_bytes(str(out))
    log.info("disk: %s needed in %s, %s free", gigabytes(needed), out, gigabytes(free))
    if free < needed:
        raise RunError(
            f"too little disk: {gigabytes(needed)} are needed in {out}, {gigabytes(free)} are "
            f"free: make room for {gigabytes(needed - free)}, or name another disk by --out"
        )
    status = os.statvfs(disk.existing(str(out)))
    # Some file systems have no such limit and report 0.
    if status.f_files and status.f_favail < files:
        raise RunError(
            f"the disk of {out} can hold {status.f_favail:,} more files and {files:,} are needed "
            "(df -i): name another disk by --out, or use --format=tfds, which makes few files"
        )


def gigabytes(size: float) -> str:
    """A number of bytes, for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"
