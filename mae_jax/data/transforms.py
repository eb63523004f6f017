"""Crop, resize and flip one image, with torchvision's geometry and Pillow's pixels."""

from collections.abc import Callable

import numpy as np

from mae_jax.data.geometry import NUM_DRAWS, choose_view
from mae_jax.data.options import DataOptions
from mae_jax.data.resize import mirrored, resize

Transform = Callable[[np.ndarray, np.ndarray], np.ndarray]


def view_transform(options: DataOptions, *, image_size: tuple[int, int], train: bool) -> Transform:
    """Shows of an image what `geometry.choose_view` says: (image [h, w, C], draws) -> [H, W, C]."""

    exact = options.exact_resize(train=train)

    def transform(image, draws):
        numbers = draws[:NUM_DRAWS].tolist()
        height, width = image.shape[:2]
        view = choose_view(height, width, numbers, options=options, target=image_size, train=train)
        (top, left), (h, w) = view.start, view.size
        crop = image[top : top + h, left : left + w]
        result = resize(crop, view.full, antialias=options.resize_antialias, exact=exact)
        top, left = view.offset
        result = result[top : top + image_size[0], left : left + image_size[1]]
        return mirrored(result) if view.mirror else result

    return transform
