"""Image bytes, folders and sources for the tests of the input pipeline."""

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image

from mae_jax.data import make_sources
from mae_jax.data.sources.base import Record


class MemorySource:
    """Records kept in a list."""

    name = "memory"
    classes = None

    def __init__(self, data, labels=None):
        self.data = data
        self.labels = labels if labels is not None else range(len(data))

    def __len__(self):
        return len(self.data)

    def read(self, indices):
        return [Record(self.data[i], {"label": int(self.labels[i])}) for i in indices]

    def describe(self, index):
        return f"memory#{index}"

    def fingerprint(self):
        return {"kind": "memory", "count": len(self)}


def jpeg(image: np.ndarray, **options) -> bytes:
    return encode(Image.fromarray(image), "JPEG", quality=90, **options)


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def picture(seed: int, height: int = 40, width: int = 50) -> np.ndarray:
    """A smooth random image, uint8 [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def deep_png(image: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG of uint16 [h, w, S], gray or RGB, with alpha or without."""
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[image.shape[2]]
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 16, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, png_chunk(b"IEND", b"")])


JPEG = jpeg(picture(0, 8, 8))


def sources(root, workdir=None, **config):
    """Training and evaluation source of a folder or a list file."""
    return make_sources(
        {"source": "folder", "root": str(root), **config},
        image_size=(8, 8),
        channels=3,
        workdir=str(workdir) if workdir else None,
    )


def write(root, *names):
    """Writes small JPEG files below a folder, and creates subfolders."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG)


def labels(source):
    return [record.label for record in source.read(range(len(source)))]


def paths(source, root):
    return [os.path.relpath(source.describe(i), root) for i in range(len(source))]
