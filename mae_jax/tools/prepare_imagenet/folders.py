"""Extracts the two ImageNet tar files into one folder per class."""

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

SCRATCH = ".unfinished"  # inside the output folder; hidden, so it is never listed as a class
_DISK_MARGIN = 1.03  # a file of 110 KB wastes about half a block of 4 KB
_PROGRESS_EVERY = 50  # classes


class Part(NamedTuple):
    """The training or validation images, and their output folder."""

    name: str
    tar: Path
    out: Path
    missing: tuple[str, ...]  # classes still to extract


def make_folders(
    folder: Path, out: Path, release: Release, *, workers: int, dry_run: bool = False
) -> None:
    """Extracts the missing classes to out/train/CLASS/*.JPEG and out/val/CLASS/*.JPEG.

    Raises:
      UsageError: `out` contains other folders, or another process is extracting into it.
      RunError: too little disk space, or a damaged tar file; classes finished so far are complete
        and stay.
    """
    parts = (
        _part("train", folder / release.train.name, out, release),
        _part("val", folder / release.val.name, out, release),
    )
    sizes = (release.train.size, release.val.size)
    counts = (release.train_images, len(release.val_labels))
    shares = [len(part.missing) / len(release.classes) for part in parts]
    for part in parts:
        missing = len(part.missing)
        done = len(release.classes) - missing
        log.info("%s: %d classes to extract from %s, %d done", part.out, missing, part.tar, done)
    needed = sum(size * share for size, share in zip(sizes, shares, strict=True)) * _DISK_MARGIN
    files = sum(count * share for count, share in zip(counts, shares, strict=True))
    if dry_run or not any(shares):
        check_disk(out, needed=int(needed), files=int(files))
        return
    with _locked_scratch(out) as scratch:
        check_disk(out, needed=int(needed), files=int(files))
        tasks = [task for part in parts for task in _tasks(part, scratch, release)]
        _extract(tasks, workers)


def _part(name: str, tar: Path, out: Path, release: Release) -> Part:
    folder = out / name
    existing = set(_folders(folder))
    if unknown := sorted(existing - set(release.classes)):
        raise UsageError(
            f"{folder} contains the folder {unknown[0]}, which is not an ImageNet class: training "
            "would take it for one; move it, or choose another --out"
        )
    return Part(name, tar, folder, tuple(wnid for wnid in release.classes if wnid not in existing))


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as items:
        return [item.name for item in items if item.is_dir() and not item.name.startswith(".")]


@contextlib.contextmanager
def _locked_scratch(out: Path) -> Iterator[Path]:
    """An empty scratch folder, locked by this process and removed at the end."""
    scratch = out / SCRATCH
    scratch.mkdir(parents=True, exist_ok=True)
    lock = os.open(scratch, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another process is extracting into {out}: wait for it") from error
        for leftover in scratch.iterdir():  # of a process that was killed
            shutil.rmtree(leftover)
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
    """Bytes written by each task, as tasks finish; the first failure stops the rest."""
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
            "a worker was killed, perhaps because memory ran out; run the same command to continue "
            "(--workers=1 takes the least memory)"
        ) from error
    finally:  # waits for running tasks, so that nothing is written after we return
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(FAILED)


def check_folders(folder: Path, out: Path, release: Release) -> None:
    """Counts the images in each folder, and checks that known images are in the right class.

    Raises:
      RunError: a wrong count, or an image in the wrong class.
    """
    train = {wnid: _count(out / "train" / wnid) for wnid in release.classes}
    val = {wnid: _count(out / "val" / wnid) for wnid in release.classes}
    log.info("%s: %s images of %d classes", out / "train", f"{sum(train.values()):,}", len(train))
    log.info("%s: %s images of %d classes", out / "val", f"{sum(val.values()):,}", len(val))
    expected = {wnid: release.val_labels.count(wnid) for wnid in release.classes}
    _compare(out / "val", val, expected)
    if sum(train.values()) != release.train_images:
        path = folder / release.train.name
        inner = tars.class_tars(str(path), release.classes)
        with open(path, "rb") as file:
            expected = {w: len(tars.train_images(file, w, inner[w])) for w in release.classes}
        _compare(out / "train", train, expected)
        raise RunError(
            f"{path} contains {sum(train.values()):,} images, not {release.train_images:,}: it is "
            "damaged or not the original; download it again"
        )
    for name, wnid in release.known.items():
        if not (out / "val" / wnid / name).is_file():
            raise RunError(f"{name} is missing from its class folder {out / 'val' / wnid}")


def _count(folder: Path) -> int:
    with os.scandir(folder) as files:
        return sum(item.name.endswith(".JPEG") for item in files)


def _compare(folder: Path, counts: dict[str, int], expected: dict[str, int]) -> None:
    wrong = [wnid for wnid in expected if counts[wnid] != expected[wnid]]
    if wrong:
        first = wrong[0]
        raise RunError(
            f"{len(wrong)} folders in {folder} have the wrong number of images: "
            f"{', '.join(wrong[:5])} ({first}: {counts[first]:,} instead of {expected[first]:,}); "
            "remove them and run the same command again"
        )
