"""Fixtures for the tests of the input pipeline."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.helpers import MemorySource, encode, jpeg, picture

PARITY = Path(__file__).parent.parent / "parity" / "resize.npz"


@pytest.fixture(scope="session")
def parity():
    """Photos, crop boxes and Pillow's resized pixels (see README of the reference numbers)."""
    with np.load(PARITY) as file:
        return dict(file)


@pytest.fixture(scope="session")
def pictures():
    """23 images of different sizes, as JPEG files, PNG files and arrays in turn."""
    data = []
    for i in range(23):
        image = picture(i, 30 + 3 * i, 70 - 2 * i)
        png = encode(Image.fromarray(image), "PNG")
        data.append((jpeg(image), png, image)[i % 3])
    return MemorySource(data)


@pytest.fixture
def image_folder(tmp_path):
    """train/{cat,dog}/ and val/{cat,dog}/ with 6 and 2 JPEGs each."""
    root = tmp_path / "images"
    for split, count in (("train", 6), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.jpg").write_bytes(jpeg(picture(100 * label + i)))
    return root
