"""Folders of images."""

from pathlib import Path

import numpy as np
from PIL import Image


def two_classes(root: Path) -> Path:
    """Writes 12 images of each of the classes "dark" and "light" into a folder; returns it."""
    for shade, name in enumerate(("dark", "light")):
        (root / name).mkdir()
        for i in range(12):
            image = np.full((20, 20, 3), 200 * shade + i, np.uint8)
            Image.fromarray(image).save(root / name / f"{i}.png")
    return root
