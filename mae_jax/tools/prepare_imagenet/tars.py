"""One class of ImageNet out of a tar file into a folder, whole or not at all.

Names in a tar file are untrusted: only regular files with exactly the names that ImageNet uses are
read, and everything else is refused by its name before anything is written.
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

# A tar file ends with zeros up to a whole record (10,240 bytes by default). Many more are a hole.
_MAX_PADDING = 2**20
# The release has one PNG under the name of a JPEG; mae_jax.data tells them apart by their content.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


class Entry(NamedTuple):
    """A file inside a tar file: its name and which bytes of the tar file it is."""

    name: str
    offset: int
    size: int


class ClassTask(NamedTuple):
    """What to extract for a class.

    Attributes:
      tar: path of the tar file.
      wnid: the class.
      inner: training: the class's own tar file inside `tar`. None: the images are in `images`.
      images: validation: the images of the class, in `tar` itself.
      target: folder to make.
      scratch: folder to fill meanwhile, on the same disk; what it holds is deleted.
    """

    tar: str
    wnid: str
    inner: Entry | None
    images: tuple[Entry, ...]
    target: str
    scratch: str


def entries(file: IO[bytes], *, start: int, end: int, what: str) -> Iterator[Entry]:
    """The files in the tar file that takes the bytes from start to end of an open file.

    Raises:
      RunError: it is damaged or cut short, or holds something else than regular files.
    """
    file.seek(start)
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  there is nothing to close
        for member in tar:
            if not member.isreg() or member.issparse():
                raise RunError(f"{what} holds {member.name!r}, which is not a regular file")
            if member.size < 0 or member.offset_data + member.size > end:
                raise RunError(f"{what} is cut short in the middle of {member.name!r}")
            yield Entry(member.name, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise RunError(f"{what} is not a readable tar file: {error}") from error
    # tarfile takes a damaged header for the end. The true end is zeros, and not many of them.
    file.seek(tar.offset)
    rest = file.read(max(0, min(end - tar.offset, _MAX_PADDING + 1)))
    if len(rest) < tarfile.BLOCKSIZE or len(rest) > _MAX_PADDING or any(rest):
        raise RunError(f"{what} is damaged or cut short at byte {tar.offset:,} of {file.name}")


def class_tars(path: str, classes: tuple[str, ...]) -> dict[str, Entry]:
    """The tar file of each class inside the tar file of training images.

    Raises:
      RunError: damaged, other names, a class twice or not at all.
    """
    found: dict[str, Entry] = {}
    known = set(classes)
    with open(path, "rb") as file:
        for entry in entries(file, start=0, end=os.path.getsize(path), what=path):
            match = CLASS_TAR.fullmatch(entry.name)
            if not match or match[1] not in known or match[1] in found:
                raise RunError(f"{path} holds {entry.name!r}, which is no class, or one twice")
            found[match[1]] = entry
    if missing := sorted(known - found.keys()):
        raise RunError(
            f"{path} has no tar files of {len(missing)} classes, for example {missing[0]}: it is "
            "damaged or not the original, download it again"
        )
    return found


def val_images(path: str, labels: tuple[str, ...]) -> dict[str, tuple[Entry, ...]]:
    """The validation images of each class; labels[i] is the class of the image with number i + 1.

    Raises:
      RunError: damaged, other names, an image twice or not at all.
    """
    found: dict[int, Entry] = {}
    with open(path, "rb") as file:
        for entry in entries(file, start=0, end=os.path.getsize(path), what=path):
            match = VAL_IMAGE.fullmatch(entry.name)
            number = int(match[1]) if match else 0
            if not 1 <= number <= len(labels) or number in found:
                raise RunError(
                    f"{path} holds {entry.name!r}, which is none of the {len(labels):,} images, or "
                    "one twice"
                )
            found[number] = entry
    if len(found) != len(labels):
        raise RunError(
            f"{path} holds {len(found):,} of {len(labels):,} images: it is damaged or not the "
            "original, download it again"
        )
    classes: dict[str, list[Entry]] = {}
    for number, wnid in enumerate(labels, 1):
        classes.setdefault(wnid, []).append(found[number])
    return {wnid: tuple(images) for wnid, images in classes.items()}


def train_images(file: IO[bytes], wnid: str, inner: Entry) -> list[Entry]:
    """The images of a class in its tar file inside the open tar file of training images.

    Raises:
      RunError: damaged, other names, an image of another class or twice.
    """
    what = f"{inner.name} in {file.name}"
    end = inner.offset + inner.size
    images = list(entries(file, start=inner.offset, end=end, what=what))
    seen = set()
    for image in images:
        match = TRAIN_IMAGE.fullmatch(image.name)
        if not match or match[1] != wnid or image.name in seen:
            raise RunError(
                f"{what} holds {image.name!r}, which is no image of {wnid}, or one twice"
            )
        seen.add(image.name)
    return images


def extract_class(task: ClassTask) -> int:
    """Makes the folder of a class; returns the bytes written.

    The images are written to the scratch folder, flushed to the disk, and only then does the folder
    get its name: under that name it is whole, whatever happens.

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
                    f"{image.name} in {task.tar} (byte {image.offset:,}) is cut short, or neither "
                    "JPEG nor PNG: the tar file is damaged; --verify_md5 tells, download it again"
                )
            with open(os.path.join(task.scratch, image.name), "xb") as out:
                out.write(data)
    os.sync()  # once for a thousand files: fsync of each is many times slower
    os.rename(task.scratch, task.target)
    _flush_folder(os.path.dirname(task.target))
    return sum(image.size for image in images)


def _flush_folder(path: str) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
