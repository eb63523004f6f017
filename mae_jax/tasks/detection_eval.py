"""Detections of a model in the pixels of the original images, with masks as COCO RLE."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mae_jax import convert
from mae_jax.checkpoint import reader
from mae_jax.data import Source, eval_batches
from mae_jax.data.transforms.scale_jitter import ScaleJitter
from mae_jax.distributed import collectives, sharding
from mae_jax.models import factory
from mae_jax.models.mask_rcnn import MaskRCNN
from mae_jax.ops.paste import paste_one
from mae_jax.ops.patches import to_float
from mae_jax.tasks.coco_eval import encode_mask
from mae_jax.train.evaluate import compile_eval_step, stream
from mae_jax.train.task import Batch

BATCH_SIZE = 8  # of the commands, if the user names none
_FIELDS = ("boxes", "scores", "classes", "valid", "masks", "complete")  # of `Detections`


class ImageDetections(NamedTuple):
    """The n detections of one image, best first.

    Attributes:
      index: of the image in its source.
      boxes: float32 [n, 4], x0, y0, x1, y1 in original pixels.
      scores: float32 [n].
      classes: int32 [n].
      masks: COCO RLE of each, at the original size.
      complete: whether the limit on candidates could not change the result.
    """

    index: int
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: list[dict[str, Any]]
    complete: bool


def normalize(images: jax.Array, sizes: jax.Array, pixels: dict[str, Any]) -> jax.Array:
    """Normalizes padded images and sets the padding to 0, the mean color.

    Args:
      images: [B, S, S, C], padded at the bottom and the right.
      sizes: int32 [B, 2], true (height, width).
      pixels: `mean` and `std`.
    """
    rows = jnp.arange(images.shape[1])[:, None, None] < sizes[:, 0, None, None, None]
    columns = jnp.arange(images.shape[2])[:, None] < sizes[:, 1, None, None, None]
    return jnp.where(rows & columns, to_float(images, **pixels), 0.0)


class Detector:
    """A model as a function from variables and batches to detections.

    Args:
      model: the model.
      pixels: `mean` and `std` per channel.
    """

    def __init__(self, model: MaskRCNN, pixels: dict[str, Any]):
        self.model, self._pixels = model, pixels
        self._step: Any = None

    def __call__(
        self, variables: Any, batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
    ) -> list[ImageDetections]:
        """Detects the objects of all valid images; the same list on every process.

        Args:
          variables: parameters, and batch statistics if the model has any.
          batches: evaluation batches of `ScaleJitter`.
          mesh: the devices to compute on.
        """
        mine = []
        for number, rows in enumerate(stream(self._compiled(mesh), variables, batches, mesh)):
            # Pasting masks is work for the host, so the processes share the images.
            for row in range(len(rows["index"])):
                owner = (number * len(rows["index"]) + row) % jax.process_count()
                if rows["valid_image"][row] and owner == jax.process_index():
                    mine.append(detections(rows, row, rows["original_size"][row]))
        return gather(mine)

    def rows(self, variables: Any, batch: Batch) -> Batch:
        """Detections in the padded images, for a compiled step."""
        images = normalize(batch["image"], batch["size"], self._pixels)
        found: Any = self.model.apply(variables, images, batch["size"], method="detect")
        kept = {name: getattr(found, name) for name in _FIELDS}
        sizes = {name: batch[name] for name in ("size", "original_size", "index")}
        return kept | sizes | {"valid_image": batch["valid"]}

    def _compiled(self, mesh: Mesh) -> Any:
        if self._step is None:
            self._step = compile_eval_step(self.rows, mesh)
        return self._step


def detections(rows: dict[str, np.ndarray], row: int, size: np.ndarray) -> ImageDetections:
    """One image's detections at another size; empty boxes are dropped.

    Args:
      rows: from `Detector.rows`.
      row: of the image.
      size: (height, width) to scale to, such as that of the original image.
    """
    height, width = (int(n) for n in size)
    scale = size / rows["size"][row]
    boxes = rows["boxes"][row].astype(np.float64) * np.tile(scale[::-1], 2)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height])).astype(np.float32)
    kept = rows["valid"][row] & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes, probabilities = boxes[kept], rows["masks"][row][kept]
    masks = [
        encode_mask(paste_one(probability, box, height, width))
        for probability, box in zip(probabilities, boxes, strict=True)
    ]
    return ImageDetections(
        int(rows["index"][row]),
        boxes,
        rows["scores"][row][kept],
        rows["classes"][row][kept],
        masks,
        bool(rows["complete"][row]),
    )


def gather(mine: list[ImageDetections]) -> list[ImageDetections]:
    """The detections of all processes, by the index of the image."""
    if jax.process_count() == 1:
        return sorted(mine, key=lambda image: image.index)
    everything = collectives.all_gather_bytes(json.dumps([_to_json(x) for x in mine]).encode())
    images = [_from_json(x) for part in everything for x in json.loads(part)]
    return sorted(images, key=lambda image: image.index)


def _to_json(image: ImageDetections) -> list[Any]:
    return [x.tolist() if isinstance(x, np.ndarray) else x for x in image]


def _from_json(values: list[Any]) -> ImageDetections:
    index, boxes, scores, classes, masks, complete = values
    return ImageDetections(
        index,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(classes, np.int32),
        masks,
        complete,
    )


def detect(
    model: convert.Weights, source: Source, *, batch_size: int, **options: Any
) -> list[ImageDetections]:
    """The detections of trained weights in all readable images of a source.

    Args:
      model: weights of a detector.
      source: the images; annotations are not needed.
      batch_size: images at once; rounded up to a multiple of the number of devices.
      options: of `config.data`, instead of the model's.
    """
    metadata, fields = model.metadata, model.fields
    data, channels = metadata["config"]["data"] | options, fields["channels"]
    detector = factory.build_detector(fields, dtype=metadata["config"]["model"]["dtype"])
    size, devices, mesh = fields["image_size"], jax.device_count(), sharding.make_mesh()
    batches = eval_batches(
        source,
        data_config=data,
        image_size=size,
        channels=channels,
        batch_size=-(-batch_size // devices) * devices,
        transform=ScaleJitter(data, image_size=size, train=False, channels=channels),
    )
    pixels = {key: tuple(metadata["data"][key]) for key in ("mean", "std")}
    variables = jax.device_put(model.variables(), sharding.replicated(mesh))
    return Detector(detector, pixels)(variables, batches, mesh)


def is_detector(path: str) -> bool:
    """Whether the checkpoint or file at `path` has the weights of a detector."""
    if convert.is_file(path):
        return convert.load(path).kind == "mask_rcnn"
    return reader.load_metadata(path).get("model", {}).get("kind") == "mask_rcnn"
