"""Converts the two ImageNet tar files to a TFDS dataset, stored as ArrayRecord."""

import logging
from pathlib import Path
from typing import Any

from mae_jax.runtime.errors import RunError
from mae_jax.tools.prepare_imagenet.release import Release, check_disk

log = logging.getLogger(__name__)

NAME = "imagenet2012"
# TFDS writes all examples of a split to a thousand temporary files, then sorts each into the final
# files and deletes it, so the disk never contains much more than one copy.
_DISK_FACTOR = 1.1


def make_tfds(folder: Path, out: Path, release: Release, *, dry_run: bool = False) -> None:
    """Prepares imagenet2012 in the TFDS data directory `out`, unless it exists.

    After an interruption TFDS starts from scratch. A dataset with the final name is complete.

    Raises:
      RunError: too little disk space, or a wrong number of images.
    """
    if not dry_run:
        builder = _builder(out)
        if not builder.data_path.exists():
            _prepare(builder, folder, out, release)
        else:
            log.info("%s exists: nothing to prepare", builder.data_path)
        _check(builder, release)
        return
    done = sorted((out / NAME).glob("*/dataset_info.json"))
    if done:
        log.info("%s exists: nothing to prepare", done[-1].parent)
        return
    log.info("%s would be prepared from the tar files in %s", out / NAME, folder)
    check_disk(out, needed=_needed(release), files=0)


def _needed(release: Release) -> int:
    return int((release.train.size + release.val.size) * _DISK_FACTOR)


def _builder(out: Path) -> Any:
    from mae_jax.runtime.tensorflow_cpu import tf  # noqa: F401  sets TensorFlow up before TFDS loads it

    import tensorflow_datasets as tfds  # isort: skip

    return tfds.builder(NAME, data_dir=str(out), file_format="array_record")


def _prepare(builder: Any, folder: Path, out: Path, release: Release) -> None:
    import tensorflow_datasets as tfds

    for leftover in sorted((out / NAME).glob("*incomplete*")):
        log.warning("%s was left by an interrupted command; you can remove it", leftover)
    check_disk(out, needed=_needed(release), files=0)
    config = tfds.download.DownloadConfig(manual_dir=str(folder.absolute()))
    builder.download_and_prepare(download_config=config)


def _check(builder: Any, release: Release) -> None:
    expected = {"train": release.train_images, "validation": len(release.val_labels)}
    for split, number in expected.items():
        found = builder.info.splits[split].num_examples if split in builder.info.splits else 0
        log.info("%s: %s images in %s", builder.data_path, f"{found:,}", split)
        if found != number:
            raise RunError(
                f"{builder.data_path} has {found:,} images in {split}, not {number:,}: remove it "
                "and run the same command again (--verify_md5 detects damaged tar files)"
            )
