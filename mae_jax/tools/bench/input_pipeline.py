"""Benchmark of the input pipeline: `mae_jax.tools.bench data`."""

import io
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image

from mae_jax.data import Source
from mae_jax.data.loader import Loader
from mae_jax.data.options import DataOptions
from mae_jax.data.sampler import TrainSampler
from mae_jax.data.transforms.image_and_label import ImageAndLabel
from mae_jax.distributed import sharding
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks import TASKS

# Prepares a round, outside the timed call: number of the round -> (timed call, number of images).
Workload = Callable[[int], tuple[Callable[[], Any], int]]
IMAGES = 64  # per round of a stage; their decoded pixels are in memory


def bench_data(config: Any, repeats: int, against: str) -> dict[str, Any]:
    """Times each stage of the training pipeline, and the pipeline as a whole.

    The stages are measured separately, not cumulatively. `read`, `decode` and `augment` (crop,
    resize, flip, color) run in one thread on precomputed inputs; `batch` is the whole host pipeline
    from source to NumPy batch, in `data.workers` threads; `to_device` copies a batch to the
    devices. They are interleaved, so that other load on the machine affects all of them alike.

    Args:
      config: a configuration of any task that trains.
      repeats: timed batches, in five rounds. Batches prefetched at the end of a round are discarded
        and count against the pipeline; more repeats or a smaller data.prefetch reduce the effect.
      against: "pil" also times a plain single-threaded Pillow and NumPy loop; "" does not.

    Returns:
      For each stage, for `ours` (the same as `batch`) and for the loop: images per second of wall
      time, and per second of CPU time of the whole process.
    """
    if against == "pil" and config.task != "pretrain":
        raise UsageError("--against=pil supports only the transforms of pre-training")
    if against == "pil" and config.data.augment != "crop":
        raise UsageError(
            f"--against=pil supports only --config.data.augment=crop, not {config.data.augment}"
        )
    task = TASKS[config.task](config, "")
    rounds, batches = min(repeats, 5), max(1, repeats // 5)
    images = batches * config.batch_size
    workloads: dict[str, Workload] = {
        **Stages(task).workloads(),
        "to_device": to_device_workload(task),
        "batch": lambda number: (lambda: _read_batches(task, number, batches), images),
    }
    if against == "pil":  # next to `batch`, with which it is compared
        loop = pil_images(task.data.train_source, task.model.image_size, config.data)
        workloads["pil"] = lambda number: (lambda: _take(loop, images), images)
    speeds = _interleave(workloads, rounds)
    rates = {name: _rates(values) for name, values in speeds.items()}
    stages = {name: rates[name] for name in ("read", "decode", "augment", "batch", "to_device")}
    result: dict[str, Any] = stages | {"ours": rates["batch"]}
    if against == "pil":
        result["pil"] = rates["pil"]
        for i, key in enumerate(("speed_up", "speed_up_per_cpu_time")):
            pairs = zip(speeds["batch"], speeds["pil"], strict=True)
            result[key] = round(statistics.median(a[i] / b[i] for a, b in pairs), 3)
    return result


def _interleave(
    workloads: dict[str, Workload], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Images per second of wall time and of CPU time, for each workload in each round."""
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in workloads}
    for number in range(rounds + 1):
        for name, prepare in workloads.items():
            run, images = prepare(number)
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if number:  # round 0 warms up: imports, and first reads
                speeds[name].append((images / wall, images / cpu))
    return speeds


def _rates(values: list[tuple[float, float]]) -> dict[str, float]:
    return {
        "images_per_s": round(statistics.median(x for x, _ in values), 1),
        "images_per_s_of_cpu_time": round(statistics.median(x for _, x in values), 1),
    }


def _read_batches(task: Any, number: int, batches: int) -> None:
    """Reads some batches from a new pipeline: an open one would prefetch during other workloads."""
    iterator = task.train_batches(number * batches)
    for _ in range(batches):
        jax.block_until_ready(next(iterator))  # it may be an array on the devices
    iterator.close()


def _take(loop: Iterator[np.ndarray], images: int) -> None:
    for _ in range(images):
        next(loop)


def pil_images(source: Source, image_size: tuple[int, int], data: Any) -> Iterator[np.ndarray]:
    """An endless stream of training images uint8 [H, W, 3], as the official PyTorch loader does.

    Raises:
      UsageError: the source has no encoded images.
    """
    rng = np.random.default_rng(0)
    while True:
        for index in rng.permutation(len(source)):
            record = source.read([int(index)])[0].data
            if not isinstance(record, bytes):
                raise UsageError(f"--against=pil needs image files; {source.name} has arrays")
            image = Image.open(io.BytesIO(record)).convert("RGB")
            image = image.crop(_random_box(rng, image.width, image.height, data))
            image = image.resize((image_size[1], image_size[0]), Image.Resampling.BICUBIC)
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            yield np.asarray(image)


def _random_box(
    rng: np.random.Generator, width: int, height: int, data: Any
) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop: (left, top, right, bottom)."""
    low, high = data.crop_ratio
    for _ in range(10):
        area = width * height * rng.uniform(*data.crop_scale)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


class Stages:
    """Workloads that read, decode and augment images in the calling thread.

    Each round uses different images. Outputs of earlier stages are computed outside the timed call.
    """

    def __init__(self, task: Any):
        options = DataOptions.from_config(task.config.data)
        self._source = task.data.train_source
        self._loader = Loader(self._source, options, channels=task.model.channels)
        self._sampler = TrainSampler(len(self._source), seed=task.config.seed)
        self._transform = ImageAndLabel(
            options,
            image_size=task.data.image_size,
            channels=task.model.channels,
            train=True,
        )

    def workloads(self) -> dict[str, Workload]:
        return {"read": self.read, "decode": self.decode, "augment": self.augment}

    def read(self, number: int) -> tuple[Callable[[], Any], int]:
        """Reads records from the source; recently read files come from the page cache."""
        indices, _ = self._readable(number)
        return lambda: [self._source.read([index]) for index in indices], len(indices)

    def decode(self, number: int) -> tuple[Callable[[], Any], int]:
        """Decodes whole images; does nothing for sources of arrays."""
        indices, _ = self._readable(number)
        records = self._source.read(indices)
        return lambda: [self._loader.decode(record) for record in records], len(records)

    def augment(self, number: int) -> tuple[Callable[[], Any], int]:
        """Crops, resizes, flips and changes color."""
        indices, draws = self._readable(number)
        rows = [
            (self._loader.decode(record), record.annotation, numbers)
            for record, numbers in zip(self._source.read(indices), draws, strict=True)
        ]
        return lambda: [self._transform(*row) for row in rows], len(rows)

    def _readable(self, number: int) -> tuple[list[int], Any]:
        """Examples and random draws of a round; unreadable images are replaced."""
        plan = self._sampler.plan(
            number, batch_size=IMAGES, rows=slice(0, IMAGES), num_draws=self._transform.num_draws
        )
        indices = [self._loader.load(candidates).used for candidates in plan.candidates]
        return indices, plan.draws


def to_device_workload(task: Any) -> Workload:
    """Copies one prepared batch to the devices, and waits for it."""
    mesh = sharding.make_mesh(**task.config.mesh)
    batches = task.train_batches(0)
    batch = next(batches)
    batches.close()

    def copy() -> None:
        jax.block_until_ready(sharding.to_device(mesh, batch))

    return lambda number: (copy, task.config.batch_size)
