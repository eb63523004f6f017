"""Batches of numpy arrays from any source.

    step -> plan (order.py) -> rows -> read, decode (loader.py) -> crop, flip, colours -> batch

Everything after the plan runs in `data.workers` threads, each of which writes its own rows of the
batch. What takes time there (files, decoders, resizing) leaves the interpreter's lock to others.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mae_jax.data import decode, transforms
from mae_jax.data.loader import FAILED, Loader
from mae_jax.data.options import DataOptions
from mae_jax.data.order import EvalOrder, Plan, TrainOrder, host_rows
from mae_jax.data.source import Source
from mae_jax.errors import UsageError

Batch = dict[str, np.ndarray]
MAX_SHARE = 8  # rows that a thread takes at a time: small beside a batch, large beside a hand-over


def train_batches(
    source: Source,
    *,
    data_config: Any,
    image_size: tuple[int, int],
    channels: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> "Batches":
    """This host's rows of every global batch, from `start_step` on and without end.

    Args:
      source: the training source.
      data_config: `config.data` (see `DataOptions`).
      image_size: (H, W) of the model.
      channels: C of the model.
      batch_size: global batch.
      seed: of order and augmentation.
      start_step: batches of the run that were consumed before; costs the same for any step.
      process_index, process_count: this host among the hosts.

    Returns:
      Iterator of dicts with b = batch_size / process_count rows: `image` uint8 or float32
      [b, H, W, C], `label` int32 [b] (-1 unlabelled), `index` int64 [b], the example wanted. Where
      that one cannot be read, image and label are those of its replacement.

    Raises:
      UsageError: the batch does not divide; from the iterator: too many bad images.
    """
    options = DataOptions.from_config(data_config)
    rows = host_rows(batch_size, process_index=process_index, process_count=process_count)
    order = TrainOrder(len(source), seed=seed)
    return Batches(
        Loader(source, options, channels=channels),
        order,
        options=options,
        image_size=image_size,
        batch_size=batch_size,
        rows=rows,
        steps=(start_step, None),
        train=True,
    )


def eval_batches(
    source: Source,
    *,
    data_config: Any,
    image_size: tuple[int, int],
    channels: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
    start_step: int = 0,
) -> "Batches":
    """One pass over a source in its own order; every host yields the same number of batches.

    Arguments, result and errors are those of `train_batches`, and:

    Args:
      limit: use only this many examples, evenly spaced over the source.
      start_step: batches to leave out at the beginning.

    Returns:
      A finite iterator whose dicts also hold `valid` bool [b]: False for the rows that fill up
      the last batch (`index` -1) and for images that cannot be read (black, label -1).
    """
    options = DataOptions.from_config(data_config)
    rows = host_rows(batch_size, process_index=process_index, process_count=process_count)
    order = EvalOrder(len(source), limit=limit)
    return Batches(
        Loader(source, options, channels=channels),
        order,
        options=options,
        image_size=image_size,
        batch_size=batch_size,
        rows=rows,
        steps=(start_step, order.num_batches(batch_size)),
        train=False,
    )


def load_images(
    paths: Sequence[str | Path],
    *,
    image_size: tuple[int, int],
    channels: int,
    data_config: Any = None,
) -> np.ndarray:
    """The evaluation transform of some files: [n, H, W, C] uint8 (or float32 by `data.dtype`).

    Raises:
      UsageError: names the file that is missing or cannot be read.
    """
    options = DataOptions.from_config(data_config if data_config is not None else {})
    transform = transforms.eval_transform(options, image_size=(image_size[0], image_size[1]))
    images = np.empty((len(paths), *image_size, channels), options.dtype)
    for row, path in enumerate(paths):
        try:
            pixels = decode.to_array(
                Path(path).read_bytes(),
                channels=channels,
                dtype=options.dtype,
                exif_transpose=options.exif_transpose,
            )
            images[row] = transform(pixels, np.empty(0))
        # Decoders raise nearly any type on damaged input; the reason is kept in the message.
        except Exception as error:
            raise UsageError(f"cannot use the image {path}: {_one_line(error)}") from error
    return images


def num_draws() -> int:
    """Uniform numbers that a training row takes."""
    from mae_jax.data import augment

    return transforms.NUM_DRAWS + augment.NUM_DRAWS


def row_transform(
    options: DataOptions, *, image_size: tuple[int, int], train: bool
) -> transforms.Transform:
    """All that is done to the pixels of one row: (image [h, w, C], draws) -> [H, W, C].

    Without `train`, or with `data.augment` "none", the view of evaluation; draws are then not used.
    """
    from mae_jax.data import augment  # brings Pillow

    if not train:
        return transforms.eval_transform(options, image_size=image_size)
    crops = options.augment != "none"
    make = transforms.train_transform if crops else transforms.eval_transform
    view = make(options, image_size=image_size)
    colours = augment.after_crop(options)
    if colours is None:
        return view
    return lambda image, draws: colours(view(image, draws), draws)


class Batches(Iterator[Batch]):
    """Iterator over the batches of one host; made by `train_batches` and `eval_batches`.

    Attributes:
      bad_count: distinct examples this host could not read so far (it reads a little ahead).
    """

    def __init__(
        self,
        loader: Loader,
        order: TrainOrder | EvalOrder,
        *,
        options: DataOptions,
        image_size: tuple[int, int],
        batch_size: int,
        rows: slice,
        steps: tuple[int, int | None],
        train: bool,
    ):
        self._loader = loader
        self._order = order
        self._options = options
        self._image_size = image_size[0], image_size[1]
        self._batch_size = batch_size
        self._rows = rows
        self._next_step = steps[0]
        self._end = math.inf if steps[1] is None else steps[1]
        self._train = train
        self._transform = row_transform(options, image_size=self._image_size, train=train)
        self._num_draws = num_draws() if train else 0
        self._pool = ThreadPoolExecutor(options.num_workers, thread_name_prefix="data")
        self._ahead: deque[tuple[Batch, list[Future[None]]]] = deque()

    @property
    def bad_count(self) -> int:
        return len(self._loader.bad)

    def close(self) -> None:
        """Stops the threads. Safe to call twice."""
        self._end = 0
        self._ahead.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __next__(self) -> Batch:
        # One more than `prefetch`: the batch that is asked for now.
        while len(self._ahead) <= self._options.prefetch and self._next_step < self._end:
            self._ahead.append(self._begin(self._next_step))
            self._next_step += 1
        if not self._ahead:
            self.close()
            raise StopIteration
        batch, parts = self._ahead.popleft()
        for part in parts:
            part.result()
        self._loader.bad.check()
        used = batch.pop("used")
        if self._train and (used == FAILED).any():
            row = int(np.argmax(used == FAILED))
            reason = self._loader.bad.reason(int(batch["index"][row]))
            raise UsageError(f"an image and all its replacements cannot be read: {reason}")
        return batch if self._train else batch | {"valid": used >= 0}

    def _begin(self, step: int) -> tuple[Batch, list[Future[None]]]:
        """Has the threads fill a batch, a few rows each; the arrays are whole when all are done."""
        plan = self._order.plan(
            step, batch_size=self._batch_size, rows=self._rows, num_draws=self._num_draws
        )
        count = len(plan.wanted)
        shape = count, *self._image_size, self._loader.channels
        batch = {
            "image": np.empty(shape, self._options.dtype),
            "label": np.empty(count, np.int32),
            "index": plan.wanted,
            "used": np.empty(count, np.int64),
        }
        share = min(MAX_SHARE, -(-count // self._options.num_workers))
        parts = [range(first, min(first + share, count)) for first in range(0, count, share)]
        return batch, [self._pool.submit(self._fill, batch, plan, part) for part in parts]

    def _fill(self, batch: Batch, plan: Plan, rows: range) -> None:
        for row in rows:
            loaded = self._loader.load(plan.candidates[row])
            batch["used"][row], batch["label"][row] = loaded.used, loaded.label
            if loaded.pixels is None:
                batch["image"][row] = 0
                continue
            batch["image"][row] = self._transform(loaded.pixels, plan.draws[row])


def _one_line(error: Exception) -> str:
    """The part of an error's text that a person can use."""
    return " ".join((str(error) or type(error).__name__).split())[:300]
