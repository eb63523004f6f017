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
from mae_jax.data.loader import Loader
from mae_jax.data.options import DataOptions
from mae_jax.data.sampler import TrainSampler
from mae_jax.data.transforms.image_and_label import ImageAndLabel
from mae_jax.distributed import sharding
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks import TASKS

# From a turn to (what is timed, how many images it deals with).
Work = Callable[[int], tuple[Callable[[], Any], int]]
IMAGES = 64  # of a turn; their decoded pixels lie in memory


def bench_data(config: Any, repeats: int, against: str) -> dict[str, Any]:
    """Times the stages of the training pipeline, and the whole of it.

    The stages are measured separately, not cumulatively: `read`, `decode` and `augment` (crop,
    resize, flip, colours) in one thread, each on what the one before made beforehand; `batch` is
    the whole host pipeline from source to numpy batch, in `data.workers` threads; `to_device` hands
    a batch to the devices. All take turns, so that a busy machine disturbs them alike.

    Args:
      config: a configuration of any task that trains.
      repeats: timed batches, in five turns. What is read ahead at the end of a turn is thrown away
        and counts against the pipeline: more repeats, or a smaller data.prefetch, make it less.
      against: "pil" adds a plain Pillow + NumPy loop in one thread to the turns; "" does not.

    Returns:
      For each stage, for `ours` (the same as `batch`) and for the loop: images/s by the clock, and
      by the processor time of the whole process.
    """
    if against == "pil" and config.task != "pretrain":
        raise UsageError("--against=pil knows the transforms of pre-training alone")
    if against == "pil" and config.data.augment != "crop":
        raise UsageError(
            f"--against=pil knows --config.data.augment=crop alone, not {config.data.augment}"
        )
    task = TASKS[config.task](config, "")
    turns, per_turn = min(repeats, 5), max(1, repeats // 5)
    images = per_turn * config.batch_size
    works: dict[str, Work] = {
        **Stages(task).works(),
        "to_device": to_device_work(task),
        "batch": lambda turn: (lambda: _drain(task, turn, per_turn), images),
    }
    if against == "pil":  # next to `batch`, with which it is compared
        loop = pil_images(task.data.train_source, task.model.image_size, config.data)
        works["pil"] = lambda turn: (lambda: _take(loop, images), images)
    speeds = _take_turns(works, turns)
    rates = {name: _rates(values) for name, values in speeds.items()}
    stages = {name: rates[name] for name in ("read", "decode", "augment", "batch", "to_device")}
    result: dict[str, Any] = stages | {"ours": rates["batch"]}
    if against == "pil":
        result["pil"] = rates["pil"]
        for i, key in enumerate(("speed_up", "speed_up_per_cpu_time")):
            pairs = zip(speeds["batch"], speeds["pil"], strict=True)
            result[key] = round(statistics.median(a[i] / b[i] for a, b in pairs), 3)
    return result


def _take_turns(works: dict[str, Work], turns: int) -> dict[str, list[tuple[float, float]]]:
    """Images/s of every work in every turn, by the clock and by processor time."""
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            job, images = work(turn)
            clock, processor = time.perf_counter(), time.process_time()
            job()
            clock, processor = time.perf_counter() - clock, time.process_time() - processor
            if turn:  # the first turn imports, and reads for the first time
                speeds[name].append((images / clock, images / processor))
    return speeds


def _rates(values: list[tuple[float, float]]) -> dict[str, float]:
    return {
        "images_per_s": round(statistics.median(x for x, _ in values), 1),
        "images_per_s_of_cpu_time": round(statistics.median(x for _, x in values), 1),
    }


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


class Stages:
    """Reading, decoding and augmenting the images of a turn, each in the thread that calls.

    A turn takes other images than the turn before. What a stage needs of the stages before it is
    made outside of the timed call.
    """

    def __init__(self, task: Any):
        options = DataOptions.from_config(task.config.data)
        self._source = task.data.train_source
        self._loader = Loader(self._source, options, channels=task.model.channels)
        self._order = TrainSampler(len(self._source), seed=task.config.seed)
        self._transform = ImageAndLabel(
            options,
            image_size=task.data.image_size,
            channels=task.model.channels,
            train=True,
        )

    def works(self) -> dict[str, Work]:
        return {"read": self.read, "decode": self.decode, "augment": self.augment}

    def read(self, turn: int) -> tuple[Callable[[], Any], int]:
        """The source's bytes; files that were read lately come from the system's memory."""
        indices, _ = self._readable(turn)
        return lambda: [self._source.read([index]) for index in indices], len(indices)

    def decode(self, turn: int) -> tuple[Callable[[], Any], int]:
        """Bytes to pixels of the whole image; nothing to do for sources of arrays."""
        indices, _ = self._readable(turn)
        records = self._source.read(indices)
        return lambda: [self._loader.decode(record) for record in records], len(records)

    def augment(self, turn: int) -> tuple[Callable[[], Any], int]:
        """Crop, resize, flip and color changes."""
        indices, draws = self._readable(turn)
        rows = [
            (self._loader.decode(record), record.annotation, numbers)
            for record, numbers in zip(self._source.read(indices), draws, strict=True)
        ]
        return lambda: [self._transform(*row) for row in rows], len(rows)

    def _readable(self, turn: int) -> tuple[list[int], Any]:
        """Examples and draws of a turn; replacements stand in for bad images."""
        plan = self._order.plan(
            turn, batch_size=IMAGES, rows=slice(0, IMAGES), num_draws=self._transform.num_draws
        )
        indices = [self._loader.load(candidates).used for candidates in plan.candidates]
        return indices, plan.draws


def to_device_work(task: Any) -> Work:
    """Hands one batch, made beforehand, to the devices and waits for it."""
    mesh = sharding.make_mesh(**task.config.mesh)
    batches = task.train_batches(0)
    batch = next(batches)
    batches.close()

    def job() -> None:
        jax.block_until_ready(sharding.to_device(mesh, batch))

    return lambda turn: (job, task.config.batch_size)
