"""The default transform: an augmented image and its label, for pre-training and classification."""

from typing import Any

import numpy as np

from mae_jax.data.options import DataOptions
from mae_jax.data.sources.base import Annotation, label_of
from mae_jax.data.transforms import crop
from mae_jax.data.transforms.base import Field


class ImageAndLabel:
    """Crop, resize, flip and color changes (a `Transform`).

    Its fields are `image` [H, W, C] in the type of `data.dtype` and `label` int32, -1 for none.

    Args:
      options: `config.data`.
      image_size: (H, W).
      channels: C.
      train: False takes the evaluation view.
    """

    def __init__(
        self, options: DataOptions, *, image_size: tuple[int, int], channels: int, train: bool
    ):
        from mae_jax.data.transforms import rand_augment  # imports Pillow

        size = image_size[0], image_size[1]
        self.fields = {
            "image": Field((*size, channels), options.dtype),
            "label": Field((), "int32", fill=-1),
        }
        self.num_draws = crop.NUM_DRAWS + rand_augment.NUM_DRAWS if train else 0
        self._view = crop.view_transform(options, image_size=size, train=train)
        self._change_colors = rand_augment.after_crop(options) if train else None

    def __call__(
        self, image: np.ndarray, annotation: Annotation, draws: np.ndarray
    ) -> dict[str, Any]:
        image = self._view(image, draws)
        if self._change_colors is not None:
            image = self._change_colors(image, draws)
        return {"image": image, "label": label_of(annotation)}
