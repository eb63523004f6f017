"""Speed of the input pipeline; the command is `mae_jax.tools.bench`."""

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
from mae_jax.errors import UsageError
from mae_jax.tasks import TASKS


def bench_data(config: Any, repeats: int, against: str) -> dict[str, Any]:
    """Times batches of the training pipeline.

    Args:
      config: a configuration of any task that trains.
      repeats: timed batches, in five turns. What is read ahead at the end of a turn is thrown away
        and counts against the pipeline: more repeats, or a smaller data.prefetch, make it less.
      against: "pil" alternates, turn by turn, with a plain Pillow + NumPy loop in one thread; ""
        does not.

    Returns:
      For each: images/s by the clock, and by the processor time of the whole process.
    """
    if against == "pil" and config.task != "pretrain":
        raise UsageError("--against=pil knows the transforms of pre-training alone")
    task = TASKS[config.task](config, "")
    works: dict[str, Callable[[int], None]] = {"ours": lambda turn: _drain(task, turn, per_turn)}
    if against == "pil":
        loop = pil_images(task.train_source, task.model.image_size, config.data)
        works["pil"] = lambda turn: _take(loop, per_turn * config.batch_size)
    turns, per_turn = min(repeats, 5), max(1, repeats // 5)
    for work in works.values():
        work(0)  # imports, first reads
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for turn in range(1, turns + 1):
        for name, work in works.items():
            clock, processor = time.perf_counter(), time.process_time()
            work(turn)
            images = per_turn * config.batch_size
            clock, processor = time.perf_counter() - clock, time.process_time() - processor
            speeds[name].append((images / clock, images / processor))
    result: dict[str, Any] = {
        name: {
            "images_per_s": round(statistics.median(x for x, _ in values), 1),
            "images_per_s_of_cpu_time": round(statistics.median(x for _, x in values), 1),
        }
        for name, values in speeds.items()
    }
    if against == "pil":
        for i, key in enumerate(("speed_up", "speed_up_per_cpu_time")):
            pairs = zip(speeds["ours"], speeds["pil"], strict=True)
            result[key] = round(statistics.median(a[i] / b[i] for a, b in pairs), 3)
    return result


def _drain(task: Any, turn: int, batches: int) -> None:
    """Reads some batches; opening the pipeline anew keeps its threads from working out of turn."""
    iterator = task.train_batches(turn * batches)
    for _ in range(batches):
        jax.block_until_ready(next(iterator))  # it may be made on the devices
    iterator.close()


def _take(loop: Iterator[np.ndarray], images: int) -> None:
    for _ in range(images):
        next(loop)


def pil_images(source: Source, image_size: tuple[int, int], data: Any) -> Iterator[np.ndarray]:
    """What a PyTorch loader does for the official code, in one thread: uint8 [H, W, 3] for ever.

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
