"""ImageNet from its two tar files to folders of classes."""

import concurrent.futures
import contextlib
import fcntl
import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from mae_jax.runtime.errors import FAILED, RunError, UsageError
from mae_jax.tools.prepare_imagenet import tars
from mae_jax.tools.prepare_imagenet.release import Release, check_disk, gigabytes

log = logging.getLogger(__name__)

SCRATCH = ".unfinished"  # in the result's folder; hidden, so that nothing lists it as images
_DISK_MARGIN = 1.03  # files fill whole blocks of 4 KB: half a block each, of 110 KB
_PROGRESS_EVERY = 50  # classes


class Part(NamedTuple):
    """The training or the validation images, and where they go."""

    name: str
    tar: Path
    out: Path
    missing: tuple[str, ...]  # classes that are not there yet


def make_folders(
    folder: Path, out: Path, release: Release, *, workers: int, dry_run: bool = False
) -> None:
    """Makes out/train/CLASS/*.JPEG and out/val/CLASS/*.JPEG of those classes that are not there.

    Raises:
      UsageError: `out` holds other folders, or another process is at it.
      RunError: too little disk, or a damaged tar file; what was made until then is whole and stays.
    """
    parts = (
        _part("train", folder / release.train.name, out, release),
        _part("val", folder / release.val.name, out, release),
    )
    sizes = (release.train.size, release.val.size)
    counts = (release.train_images, len(release.val_labels))
    shares = [len(part.missing) / len(release.classes) for part in parts]
    for part in parts:
        done = len(release.classes) - len(part.missing)
        log.info("%s: %d classes to extract from %s, %d done", part.out, *_two(part), done)
    needed = sum(size * share for size, share in zip(sizes, shares, strict=True)) * _DISK_MARGIN
    files = sum(count * share for count, share in zip(counts, shares, strict=True))
    if dry_run or not any(shares):
        check_disk(out, needed=int(needed), files=int(files))
        return
    with _alone(out) as scratch:
        check_disk(out, needed=int(needed), files=int(files))
        tasks = [task for part in parts for task in _tasks(part, scratch, release)]
        _extract(tasks, workers)


def _two(part: Part) -> tuple[int, Path]:
    return len(part.missing), part.tar


def _part(name: str, tar: Path, out: Path, release: Release) -> Part:
    place = out / name
    there = set(_folders(place))
    if strange := sorted(there - set(release.classes)):
        raise UsageError(
            f"{place} holds the folder {strange[0]}, which is no class of ImageNet: training would "
            "take it for one; move it, or name another folder by --out"
        )
    return Part(name, tar, place, tuple(wnid for wnid in release.classes if wnid not in there))


def _folders(place: Path) -> list[str]:
    if not place.is_dir():
        return []
    with os.scandir(place) as found:
        return [item.name for item in found if item.is_dir() and not item.name.startswith(".")]


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[Path]:
    """A scratch folder of this process alone, empty at first and gone at the end."""
    scratch = out / SCRATCH
    scratch.mkdir(parents=True, exist_ok=True)
    lock = os.open(scratch, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another process is extracting into {out}: wait for it") from error
        for left in scratch.iterdir():  # of a process that was killed
            shutil.rmtree(left)
        yield scratch
        shutil.rmtree(scratch)
    finally:
        os.close(lock)


def _tasks(part: Part, scratch: Path, release: Release) -> Iterator[tars.ClassTask]:
    part.out.mkdir(exist_ok=True)
    if not part.missing:
        return
    inner, images = {}, {}
    if part.name == "train":
        inner = tars.class_tars(str(part.tar), release.classes)
    else:
        images = tars.val_images(str(part.tar), release.val_labels)
    for wnid in part.missing:
        yield tars.ClassTask(
            str(part.tar),
            wnid,
            inner=inner.get(wnid),
            images=images.get(wnid, ()),
            target=str(part.out / wnid),
            scratch=str(scratch / f"{part.name}.{wnid}"),
        )


def _extract(tasks: list[tars.ClassTask], workers: int) -> None:
    start, written = time.monotonic(), 0
    with contextlib.closing(_results(tasks, workers)) as results:
        for done, size in enumerate(results, 1):
            written += size
            if done % _PROGRESS_EVERY and done != len(tasks):
                continue
            seconds = max(time.monotonic() - start, 1e-9)
            log.info(
                "%d of %d folders, %s, %.1f MB/s, %.0f minutes left",
                *(done, len(tasks), gigabytes(written), written / seconds / 1e6),
                seconds / done * (len(tasks) - done) / 60,
            )


def _results(tasks: list[tars.ClassTask], workers: int) -> Generator[int, None, None]:
    """Bytes written for each task, as they end; the first failure ends it."""
    if min(workers, len(tasks)) <= 1:
        yield from map(tars.extract_class, tasks)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(tasks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    try:
        for future in concurrent.futures.as_completed(
            [pool.submit(tars.extract_class, task) for task in tasks]
        ):
            yield future.result()
    except BrokenProcessPool as error:
        raise RunError(
            "a worker was killed, perhaps for want of memory; the same command goes on where it "
            "stopped (--workers=1 takes least memory)"
        ) from error
    finally:  # what is being extracted is finished, so that nothing writes when we are gone
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's matter
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(FAILED)


def check_folders(folder: Path, out: Path, release: Release) -> None:
    """Counts the images in the folders and looks whether known images are in the right one.

    Raises:
      RunError: other numbers, or an image in the wrong class.
    """
    train = {wnid: _count(out / "train" / wnid) for wnid in release.classes}
    val = {wnid: _count(out / "val" / wnid) for wnid in release.classes}
    log.info("%s: %s images of %d classes", out / "train", f"{sum(train.values()):,}", len(train))
    log.info("%s: %s images of %d classes", out / "val", f"{sum(val.values()):,}", len(val))
    right = {wnid: release.val_labels.count(wnid) for wnid in release.classes}
    _compare(out / "val", val, right)
    if sum(train.values()) != release.train_images:
        path = folder / release.train.name
        inner = tars.class_tars(str(path), release.classes)
        with open(path, "rb") as file:
            right = {w: len(tars.train_images(file, w, inner[w])) for w in release.classes}
        _compare(out / "train", train, right)
        raise RunError(
            f"{path} holds {sum(train.values()):,} images, not {release.train_images:,}: it is "
            "damaged or not the original, download it again"
        )
    for name, wnid in release.known.items():
        if not (out / "val" / wnid / name).is_file():
            raise RunError(f"{name} should be of the class {wnid}, and is not in {out / 'val'}")


def _count(place: Path) -> int:
    with os.scandir(place) as files:
        return sum(item.name.endswith(".JPEG") for item in files)


def _compare(place: Path, found: dict[str, int], right: dict[str, int]) -> None:
    wrong = [wnid for wnid in right if found[wnid] != right[wnid]]
    if wrong:
        first = wrong[0]
        raise RunError(
            f"{len(wrong)} folders in {place} have the wrong number of images: "
            f"{', '.join(wrong[:5])} ({first}: {found[first]:,} instead of {right[first]:,}); "
            "remove them and give the same command again"
        )
