"""Extracts one ImageNet class from a tar file into a folder, completely or not at all.

Names in a tar file are untrusted: only regular files with exactly the names that ImageNet uses are
read. Any other name is an error, raised before anything of the class is written.
"""

import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from mae_jax.runtime.errors import RunError

CLASS_TAR = re.compile(r"(n\d{8})\.tar", re.ASCII)
TRAIN_IMAGE = re.compile(r"(n\d{8})_\d+\.JPEG", re.ASCII)
VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.ASCII)

# A tar file is padded with zeros to a whole record (10,240 bytes by default). More is a hole.
_MAX_PADDING = 2**20
# One "JPEG" of the release is a PNG; mae_jax.data tells them apart by their content.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


class Entry(NamedTuple):
    """A file inside a tar file: its name, and its byte range in the tar file."""

    name: str
    offset: int
    size: int


class ClassTask(NamedTuple):
    """What to extract for one class.

    Attributes:
      tar: path of the tar file.
      wnid: the class.
      inner: for training, the tar file of the class inside `tar`; None for validation.
      images: for validation, the images of the class in `tar`.
      target: folder to create.
      scratch: temporary folder on the same disk; anything in it is deleted.
    """

    tar: str
    wnid: str
    inner: Entry | None
    images: tuple[Entry, ...]
    target: str
    scratch: str


def entries(file: IO[bytes], *, start: int, end: int, what: str) -> Iterator[Entry]:
    """The files in the tar file that spans the bytes from start to end of an open file.

    Raises:
      RunError: it is damaged or truncated, or contains something other than regular files.
    """
    file.seek(start)
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  there is nothing to close
        for member in tar:
            if not member.isreg() or member.issparse():
                raise RunError(f"{what} contains {member.name!r}, which is not a regular file")
            if member.size < 0 or member.offset_data + member.size > end:
                raise RunError(f"{what} is truncated in the middle of {member.name!r}")
            yield Entry(member.name, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise RunError(f"{what} is not a readable tar file: {error}") from error
    # tarfile treats a damaged header as the end. The true end is a short run of zeros.
    file.seek(tar.offset)
    rest = file.read(max(0, min(end - tar.offset, _MAX_PADDING + 1)))
    if len(rest) < tarfile.BLOCKSIZE or len(rest) > _MAX_PADDING or any(rest):
        raise RunError(f"{what} is damaged or truncated at byte {tar.offset:,} of {file.name}")


def class_tars(path: str, classes: tuple[str, ...]) -> dict[str, Entry]:
    """The tar file of each class inside the tar file of training images.

    Raises:
      RunError: the file is damaged, or a name is unexpected, repeated or missing.
    """
    found: dict[str, Entry] = {}
    known = set(classes)
    with open(path, "rb") as file:
        for entry in entries(file, start=0, end=os.path.getsize(path), what=path):
            match = CLASS_TAR.fullmatch(entry.name)
            if not match or match[1] not in known or match[1] in found:
                raise RunError(f"{path} contains {entry.name!r}, an unknown or repeated class")
            found[match[1]] = entry
    if missing := sorted(known - found.keys()):
        raise RunError(
            f"{path} lacks the tar files of {len(missing)} classes, for example {missing[0]}: it "
            "is damaged or not the original; download it again"
        )
    return found


def val_images(path: str, labels: tuple[str, ...]) -> dict[str, tuple[Entry, ...]]:
    """The validation images of each class; labels[i] is the class of the image with number i + 1.

    Raises:
      RunError: the file is damaged, or a name is unexpected, repeated or missing.
    """
    found: dict[int, Entry] = {}
    with open(path, "rb") as file:
        for entry in entries(file, start=0, end=os.path.getsize(path), what=path):
            match = VAL_IMAGE.fullmatch(entry.name)
            number = int(match[1]) if match else 0
            if not 1 <= number <= len(labels) or number in found:
                raise RunError(
                    f"{path} contains {entry.name!r}, which is not one of the {len(labels):,} "
                    "images, or is repeated"
                )
            found[number] = entry
    if len(found) != len(labels):
        raise RunError(
            f"{path} contains {len(found):,} of {len(labels):,} images: it is damaged or not the "
            "original; download it again"
        )
    classes: dict[str, list[Entry]] = {}
    for number, wnid in enumerate(labels, 1):
        classes.setdefault(wnid, []).append(found[number])
    return {wnid: tuple(images) for wnid, images in classes.items()}


def train_images(file: IO[bytes], wnid: str, inner: Entry) -> list[Entry]:
    """The images of a class, from its tar file inside the open tar file of training images.

    Raises:
      RunError: the file is damaged, or an image is repeated or belongs to another class.
    """
    what = f"{inner.name} in {file.name}"
    end = inner.offset + inner.size
    images = list(entries(file, start=inner.offset, end=end, what=what))
    seen = set()
    for image in images:
        match = TRAIN_IMAGE.fullmatch(image.name)
        if not match or match[1] != wnid or image.name in seen:
            raise RunError(
                f"{what} contains {image.name!r}, which is not an image of {wnid}, or is repeated"
            )
        seen.add(image.name)
    return images


def extract_class(task: ClassTask) -> int:
    """Extracts a class; returns the number of bytes written.

    The images are written to the scratch folder and flushed to disk before the folder is renamed,
    so a folder with the final name is always complete.

    Raises:
      RunError: the tar file is damaged, or a file is neither JPEG nor PNG.
    """
    shutil.rmtree(task.scratch, ignore_errors=True)
    os.makedirs(task.scratch)
    with open(task.tar, "rb") as file:
        images = task.images
        if task.inner:
            images = train_images(file, task.wnid, task.inner)
        for image in images:
            file.seek(image.offset)
            data = file.read(image.size)
            if len(data) != image.size or not data.startswith(_MAGIC):
                raise RunError(
                    f"{image.name} in {task.tar} (byte {image.offset:,}) is truncated, or neither "
                    "JPEG nor PNG: the tar file is damaged (confirm with --verify_md5); download "
                    "it again"
                )
            with open(os.path.join(task.scratch, image.name), "xb") as out:
                out.write(data)
    os.sync()  # much faster than fsync for each of about a thousand files
    os.rename(task.scratch, task.target)
    _flush_folder(os.path.dirname(task.target))
    return sum(image.size for image in images)


def _flush_folder(path: str) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
