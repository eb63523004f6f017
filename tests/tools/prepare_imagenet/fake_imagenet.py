"""A synthetic release of ImageNet: tiny images in tar files with the structure of the real ones."""

import io
import tarfile

import numpy as np
from PIL import Image

from mae_jax.tools.prepare_imagenet.release import Release, Tar

# The classes of the first five real validation images, so that TFDS's own labels fit too.
LABELS = ("n01751748", "n09193705", "n02105855", "n04263257", "n03125729")
PNG = "n02105855_2933.JPEG"  # a PNG in the real release, too


def image(seed, kind="JPEG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def tar_of(files):
    """Bytes of a tar file of {name: content or TarInfo}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def images(*, classes=LABELS, per_class=3, per_class_val=1):
    """The images of training, {class: {name: bytes}}, and of validation, {name: bytes}."""
    train, seed = {}, 0
    for wnid in classes:
        names = [f"{wnid}_{100 + 7 * i}.JPEG" for i in range(per_class)]
        if wnid == PNG[:9]:
            names[0] = PNG
        train[wnid] = {}
        for name in names:
            train[wnid][name] = image(seed, "PNG" if name == PNG else "JPEG")
            seed += 1
    val = {
        f"ILSVRC2012_val_{i + 1:08d}.JPEG": image(10_000 + i)
        for i in range(len(classes) * per_class_val)
    }
    return train, val


def write(folder, train, val, *, classes=LABELS, train_images=None, inner=None, known=None):
    """Writes both tar files; returns the `Release` they should match.

    inner: {class: bytes} that replace the tar files of classes.
    """
    folder.mkdir(exist_ok=True)
    tars = {f"{wnid}.tar": (inner or {}).get(wnid) or tar_of(train[wnid]) for wnid in train}
    (folder / "train.tar").write_bytes(tar_of(dict(reversed(tars.items()))))
    (folder / "val.tar").write_bytes(tar_of(dict(reversed(val.items()))))  # real ones are unordered
    return release(folder, train, val, classes=classes, train_images=train_images, known=known)


def release(folder, train, val, *, classes=LABELS, train_images=None, known=None, names=None):
    train_tar, val_tar = names or ("train.tar", "val.tar")
    labels = tuple(classes[i % len(classes)] for i in range(len(val)))
    return Release(
        train=Tar(train_tar, (folder / train_tar).stat().st_size, "0" * 32),
        val=Tar(val_tar, (folder / val_tar).stat().st_size, "0" * 32),
        classes=tuple(sorted(classes)),
        val_labels=labels,
        train_images=train_images or sum(map(len, train.values())),
        known=known or {name: labels[i] for i, name in enumerate(sorted(val)[:2])},
    )
