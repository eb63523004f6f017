"""Unpacks the three zip files of COCO 2017 for detection.

Examples:
  python -m mae_jax.tools.prepare_coco --zips=DIR --out=DIR --dry_run
  launch/prepare_coco.sh --zips=DIR --out=DIR

The script runs the same command and first sets up .venv. The folder --zips must
contain train2017.zip, val2017.zip and annotations_trainval2017.zip from
cocodataset.org. They and the free disk space are checked before anything is
written: 21 GB, in addition to the zip files.

Result: OUT/train2017/*.jpg, OUT/val2017/*.jpg, and OUT/annotations/ with
instances_train2017.json and instances_val2017.json.

At the end images and annotations are counted, and the training flags are
printed. To continue after an interruption, run the same command again: files
that are complete are kept.

Exit status: 0 done, 1 failed (disk error, damaged file), 2 invalid input (bad
flags, zip file missing or of the wrong size), 130 stopped by Ctrl-C.
"""

import argparse
import concurrent.futures
import hashlib
import json
import logging
import os
import shlex
import shutil
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mae_jax.runtime import disk, filesystem, host
from mae_jax.runtime.cli import make_parser, run_command, say, setup_logging
from mae_jax.runtime.errors import INTERRUPTED, RunError, UsageError, require

log = logging.getLogger(__name__)

SCRATCH = ".unfinished"  # inside the output folder
_DISK_MARGIN = 1.02  # a photo of 160 KB wastes about half a block of 4 KB
_PROGRESS_EVERY = 10.0  # seconds


class Zip(NamedTuple):
    """A file of the release."""

    name: str
    size: int  # bytes
    md5: str


class Split(NamedTuple):
    """Training or validation images."""

    name: str
    zip: Zip
    images: int
    objects: int  # annotations, with crowds

    @property
    def annotations(self) -> str:
        """The annotation file, in the zip file and in the output folder."""
        return f"annotations/instances_{self.name}.json"


class Release(NamedTuple):
    """Contents of COCO's detection release."""

    splits: tuple[Split, ...]
    annotations: Zip


COCO_2017 = Release(
    (
        Split(
            "train2017",
            Zip("train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
            images=118_287,
            objects=860_001,
        ),
        Split(
            "val2017",
            Zip("val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80"),
            images=5_000,
            objects=36_781,
        ),
    ),
    Zip("annotations_trainval2017.zip", 252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c"),
)


class Job(NamedTuple):
    """Members of a zip file that are not in the output folder yet."""

    zip: Path
    members: list[zipfile.ZipInfo]

    @property
    def size(self) -> int:
        """Bytes to write."""
        return sum(member.file_size for member in self.members)


def run(args: argparse.Namespace, release: Release) -> None:
    """Checks the zip files, unpacks them, checks the result, and prints how to train on it."""
    folder, out = Path(args.zips), Path(args.out)
    require(args.workers >= 1, f"--workers={args.workers} must be at least 1")
    require(not out.exists() or out.is_dir(), f"--out={out} is not a folder")
    zips = [*(split.zip for split in release.splits), release.annotations]
    for item in zips:
        check_zip(folder / item.name, item, verify_md5=args.verify_md5)
    jobs = plan(folder, out, release)
    check_disk(out, jobs)
    if args.dry_run:
        log.info("--dry_run: nothing was written")
        return
    unpack(jobs, out, workers=args.workers)
    for split in release.splits:
        check_split(out, split)
    root = shlex.quote(f"--config.data.root={out.absolute()}")
    say("train with:")
    config = "configs/detection/vitdet_b.py"
    say(f"  launch/local.sh --config={config} --config.data.source=coco {root}")


def check_zip(path: Path, expected: Zip, *, verify_md5: bool) -> None:
    """Checks that a zip file exists and has the right size and, optionally, MD5 sum.

    Raises:
      UsageError: it is missing or has the wrong size.
      RunError: it has the right size but a different MD5 sum.
    """
    if not path.is_file():
        raise UsageError(
            f"{path} does not exist: get this file of {expected.size:,} bytes from "
            "https://cocodataset.org/#download, and pass its folder as --zips"
        )
    if (size := path.stat().st_size) != expected.size:
        advice = "it is not the original; download it again"
        if size < expected.size:
            advice = f"resume the download with: curl -C - -o {path} URL"
        raise UsageError(f"{path} has {size:,} bytes, not {expected.size:,}: {advice}")
    if not verify_md5:
        return
    log.info("computing the MD5 sum of %s", path)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected.md5:
        raise RunError(
            f"{path} has the right size, but its MD5 sum is {found}, not {expected.md5}: download "
            "it again"
        )


def plan(folder: Path, out: Path, release: Release) -> list[Job]:
    """What is still to unpack.

    Raises:
      RunError: a zip file is damaged, or does not contain what it should.
    """
    wanted = [split.annotations for split in release.splits]
    annotations = _members(folder / release.annotations.name)
    if missing := [name for name in wanted if name not in annotations]:
        raise RunError(f"{folder / release.annotations.name} does not contain {missing[0]}")
    contents = {folder / release.annotations.name: [annotations[name] for name in wanted]}
    for split in release.splits:
        path = folder / split.zip.name
        images = [x for name, x in _members(path).items() if _is_image(name, split)]
        if len(images) != split.images:
            raise RunError(f"{path} contains {len(images):,} images, not {split.images:,}")
        contents[path] = images
    jobs = []
    for path, members in contents.items():
        jobs.append(Job(path, [x for x in members if not _is_complete(out / x.filename, x)]))
        done = len(members) - len(jobs[-1].members)
        log.info("%s: %s files to unpack, %s done", path, f"{len(jobs[-1].members):,}", f"{done:,}")
    return jobs


def _members(path: Path) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as file:
            return {member.filename: member for member in file.infolist()}
    except zipfile.BadZipFile as error:
        raise RunError(f"{path} is damaged ({error}): download it again") from error


def _is_image(name: str, split: Split) -> bool:
    folder, _, file = name.partition("/")
    return folder == split.name and file.endswith(".jpg") and "/" not in file


def _is_complete(path: Path, member: zipfile.ZipInfo) -> bool:
    try:
        return path.stat().st_size == member.file_size
    except FileNotFoundError:
        return False


def check_disk(out: Path, jobs: Sequence[Job]) -> None:
    """Checks that the disk of `out`, which need not exist yet, has room for the files.

    Raises:
      RunError: too little free space, or too few free inodes.
    """
    needed = int(sum(job.size for job in jobs) * _DISK_MARGIN)
    free, files = disk.free_bytes(str(out)), sum(len(job.members) for job in jobs)
    log.info("disk: %s needed in %s, %s free", disk.size(needed), out, disk.size(free))
    if free < needed:
        raise RunError(
            f"too little disk space: {out} needs {disk.size(needed)}, {disk.size(free)} are free: "
            f"free another {disk.size(needed - free)}, or choose an --out on another disk"
        )
    status = os.statvfs(disk.existing(str(out)))
    if status.f_files and status.f_favail < files:  # 0: no limit
        raise RunError(
            f"the disk of {out} has room for {status.f_favail:,} more files (df -i), and {files:,} "
            "are needed: choose an --out on another disk"
        )


def unpack(jobs: Sequence[Job], out: Path, *, workers: int) -> None:
    """Writes the members of the zip files into `out`; every file appears when it is complete.

    Raises:
      RunError: a zip file is damaged.
    """
    scratch = out / SCRATCH
    scratch.mkdir(parents=True, exist_ok=True)
    progress = _Progress(sum(job.size for job in jobs))
    for job in jobs:
        for folder in {Path(member.filename).parent for member in job.members}:
            (out / folder).mkdir(exist_ok=True)
        try:
            with zipfile.ZipFile(job.zip) as file:
                _unpack_one(file, job.members, out, progress, workers)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise RunError(f"{job.zip} is damaged ({error}): download it again") from error
    shutil.rmtree(scratch)


def _unpack_one(
    file: zipfile.ZipFile,
    members: Sequence[zipfile.ZipInfo],
    out: Path,
    progress: "_Progress",
    workers: int,
) -> None:
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        futures = [pool.submit(_write, file, member, out) for member in members]
        for member, future in zip(members, futures, strict=True):
            future.result()
            progress.add(member.file_size)
    finally:  # waits for running threads, so that nothing is written after we return
        pool.shutdown(cancel_futures=True)


def _write(file: zipfile.ZipFile, member: zipfile.ZipInfo, out: Path) -> None:
    temporary = out / SCRATCH / f"{os.getpid()}.{threading.get_ident()}"
    with file.open(member) as source, open(temporary, "wb") as target:  # checks the CRC
        shutil.copyfileobj(source, target, 2**20)
    os.replace(temporary, out / member.filename)


class _Progress:
    """Logs how much is written, now and then."""

    def __init__(self, total: int):
        self._total, self._written = total, 0
        self._start = self._logged = time.monotonic()

    def add(self, size: int) -> None:
        self._written += size
        now = time.monotonic()
        if now - self._logged < _PROGRESS_EVERY:
            return
        self._logged, seconds = now, now - self._start
        left = seconds / self._written * (self._total - self._written)
        log.info(
            "%s of %s, %s/s, %.0f minutes left",
            *(disk.size(self._written), disk.size(self._total)),
            *(disk.size(int(self._written / seconds)), left / 60),
        )


def check_split(out: Path, split: Split) -> None:
    """Counts images and annotations, and checks that every annotated image exists.

    Raises:
      RunError: something is missing, or there are other images.
    """
    path = out / split.annotations
    with open(path, "rb") as file:
        content: Any = json.load(file)
    names = {entry["file_name"] for entry in content["images"]}
    files = set(os.listdir(out / split.name))
    objects = len(content["annotations"])
    log.info(
        "%s: %s images with %s annotations", out / split.name, f"{len(files):,}", f"{objects:,}"
    )
    if (len(names), objects) != (split.images, split.objects):
        raise RunError(
            f"{path} lists {len(names):,} images and {objects:,} annotations, not "
            f"{split.images:,} and {split.objects:,}: it is not the original"
        )
    if names != files:
        examples = sorted(names ^ files)[:3]
        raise RunError(
            f"{out / split.name} does not contain exactly the images of {path}: "
            f"{len(names - files):,} are missing, {len(files - names):,} are not in it "
            f"({', '.join(examples)}); remove other files and run the same command again"
        )


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("tools.prepare_coco", __doc__)
    add = parser.add_argument
    folder: dict[str, Any] = {"type": filesystem.expand, "metavar": "DIR", "required": True}
    add("--zips", **folder, help="folder with the three zip files")
    add("--out", **folder, help="folder to write the result to")
    workers = "threads that unpack (default: one per CPU core)"
    add("--workers", type=int, default=host.usable_cpus(), metavar="N", help=workers)
    md5 = "check the MD5 sums of the zip files first; takes a minute or more"
    add("--verify_md5", action="store_true", help=md5)
    add("--dry_run", action="store_true", help="check the input and show what would be done")
    return parser


def main(argv: Sequence[str] | None = None, release: Release = COCO_2017) -> int:
    """Runs the command; returns the exit status. Tests pass a small `release`."""
    args = _parser().parse_args(argv)
    setup_logging()
    try:
        run(args, release)
    except KeyboardInterrupt:
        log.info("stopped; run the same command to continue")
        return INTERRUPTED
    except OSError as error:  # full or failing disk, missing permission
        raise RunError(
            f"{error}; complete files are kept: run the same command to continue"
        ) from error
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
