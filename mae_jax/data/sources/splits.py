"""Finds the folders of training and held-out images."""

import logging
import os
from collections.abc import Sequence

from mae_jax.data.sources.scan import EXTENSIONS, is_system_folder
from mae_jax.data.storage import is_away
from mae_jax.runtime import text
from mae_jax.runtime.errors import DataMissing, UsageError

log = logging.getLogger(__name__)

TRAIN = ("train", "training")
HELD_OUT = ("val", "validation", "valid", "dev", "test", "testing")  # the first that exists
# Folders with these names are splits whatever lies next to them, as in earlier versions.
_ALWAYS = ("train", "val", "validation")
_MAX_DEPTH = 4  # of folders around the splits; links may be circular


def is_split(name: str) -> bool:
    """Whether the name of a folder means a part of a data set rather than a class."""
    return name.casefold() in (*TRAIN, *HELD_OUT)


def find(root: str, *, split: str, eval_split: str, discover: bool) -> tuple[str, str | None]:
    """The folder of the training images and, if there is one, that of the held-out images.

    Splits are recognized by name, in upper or lower case: `Train` and `Val`, `training` and
    `testing`. They may be inside a single folder in `root`.

    Args:
      root: the data folder.
      split: name of the training split; "" is `root` itself, `train` also finds similar names.
      eval_split: name of the held-out split; "" searches for one.
      discover: False does not search.

    Raises:
      UsageError: a named split does not exist, or there are only held-out images.
    """
    root = _unwrapped(root, [path.partition("/")[0] for path in (split, eval_split)])
    folders, _ = _list_folder(root)
    train = split if split != "train" else _named(folders, TRAIN)
    if eval_split:
        held_out = eval_split
        if not os.path.isdir(os.path.join(root, eval_split)):
            place = os.path.join(root, eval_split)
            raise DataMissing(f"--config.data.eval_split={eval_split}: no folder {place}")
    else:
        held_out = _named([name for name in folders if name != split], HELD_OUT) if split else None
    if split not in ("", "train") and not os.path.isdir(os.path.join(root, split)):
        raise DataMissing(f"--config.data.split={split}: no folder {os.path.join(root, split)}")
    if split == "train" and not eval_split and not _are_splits(folders, train, held_out):
        train = held_out = None
    if train is None and held_out is not None:
        # Falling back to the root would train on the evaluation images.
        raise UsageError(
            f"{root} contains {held_out} but no folder {split}: name the folder of training images "
            "by --config.data.split="
        )
    if held_out and not eval_split and not discover:
        log.warning("%s: %s is not used, as it was not when this run began", root, held_out)
        held_out = None
    _log_choice(root, folders, train, held_out)
    train_at = os.path.join(root, train) if train else root
    return train_at, os.path.join(root, held_out) if held_out else None


def _are_splits(folders: Sequence[str], train: str | None, held_out: str | None) -> bool:
    """Whether folders named like splits are splits, rather than classes among others."""
    if train in _ALWAYS or held_out in _ALWAYS or (train and held_out):
        return True
    return all(map(is_split, folders))


def _log_choice(root: str, folders: Sequence[str], train: str | None, held_out: str | None) -> None:
    """Logs which folders are used and which are not."""
    if not train:
        log.info("training images: the folder %s itself (it contains no folder 'train')", root)
        named = [name for name in folders if is_split(name)]
        if named:
            log.warning(
                "%s: treated as a class, not a split: %s (there are other folders: %s)",
                *(root, " and ".join(named), ", ".join(n for n in folders if n not in named)),
            )
        return
    log.info("training images: the folder %s", os.path.join(root, train))
    unused = [name for name in folders if name not in (train, held_out)]
    splits = [name for name in unused if is_split(name)]
    others = [name for name in unused if not is_split(name)]
    if splits:
        more = "--config.data.eval_split= names another"
        log.info("%s: not used: %s (%s)", root, _first_names(splits), more)
    if others:
        log.warning("%s: not used, next to the folder %s: %s", root, train, _first_names(others))


def _first_names(names: Sequence[str]) -> str:
    shown = ", ".join(map(text.quoted, names[:5]))
    return f"{shown} and {len(names) - 5:,} more" if len(names) > 5 else shown


def _named(folders: Sequence[str], names: Sequence[str]) -> str | None:
    """The folder with the first possible name, ignoring case; exact matches take precedence."""
    for name in names:
        same = [folder for folder in folders if folder.casefold() == name]
        if same:
            return name if name in same else same[0]
    return None


def _unwrapped(root: str, named: Sequence[str]) -> str:
    """`root`, or the only folder in it if that one contains the splits."""
    place = root
    for _ in range(_MAX_DEPTH):
        folders, images = _list_folder(place)
        if any(is_split(name) or name in named for name in folders):
            return place
        if images or len(folders) != 1:
            break
        place = os.path.join(place, folders[0])
    return root


def _list_folder(place: str) -> tuple[list[str], bool]:
    """Sorted names of the folders in a folder, and whether it contains images, too."""
    folders, images = [], False
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                named = entry.name.lower().endswith(EXTENSIONS) and entry.name[0] != "."
                # Links named like images are not followed: there may be a million.
                if _is_dir(entry, follow=not named):
                    folders.append(entry.name)
                images |= named and entry.name not in folders[-1:]
    except OSError as error:
        if is_away(error):
            raise
        raise UsageError(f"cannot read {place}: {error.strerror}") from error
    return sorted(name for name in folders if not is_system_folder(name)), images


def _is_dir(entry: os.DirEntry, follow: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow)
    except OSError:  # a broken link
        return False
