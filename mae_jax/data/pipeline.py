"""Batches of numpy arrays from any source: the tf.data graph and the iterator around it.

    step -> plan (order.py) -> rows -> read (loader.py) -> decode, crop, flip, colours -> batch

Everything after the plan runs in `data.workers` threads and keeps the plan's order. Importing this
module is cheap: TensorFlow comes in with the first iterator.
"""

import atexit
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mae_jax.data.loader import FAILED, Loader, prepare
from mae_jax.data.options import DataOptions
from mae_jax.data.order import EvalOrder, TrainOrder, host_rows
from mae_jax.data.source import Source
from mae_jax.errors import UsageError

Batch = dict[str, np.ndarray]
_open_batches: "weakref.WeakSet[Batches]" = weakref.WeakSet()


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
      that one cannot be read, image and label are those of its replacement. The arrays may be
      read-only.

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
    from mae_jax.data import transforms

    options = DataOptions.from_config(data_config if data_config is not None else {})
    transform = transforms.eval_transform(options, image_size=(image_size[0], image_size[1]))
    images = np.empty((len(paths), *image_size, channels), options.dtype)
    for row, path in enumerate(paths):
        try:
            encoded, array = prepare(Path(path).read_bytes(), options, channels=channels)
            images[row] = transform(
                transforms.tf.constant(encoded), transforms.tf.constant(array), None
            )
        # Decoders raise nearly any type on damaged input; the reason is kept in the message.
        except Exception as error:
            raise UsageError(f"cannot use the image {path}: {_one_line(error)}") from error
    return images


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
        from mae_jax.data import augment, geometry, transforms

        self._loader = loader
        self._order = order
        self._options = options
        self._batch_size = batch_size
        self._rows = rows
        self._step, self._last_step = steps
        self._train = train
        crops = train and options.augment != "none"
        make = transforms.train_transform if crops else transforms.eval_transform
        self._transform = make(options, image_size=(image_size[0], image_size[1]))
        self._after_crop = augment.after_crop(options) if train else None
        self._num_draws = geometry.NUM_DRAWS + augment.NUM_DRAWS if train else 0
        self._iterator: Any = None
        self._closed = False
        _open_batches.add(self)

    @property
    def bad_count(self) -> int:
        return len(self._loader.bad)

    def close(self) -> None:
        """Stops the threads. Safe to call twice; also done when the program ends."""
        self._iterator = None
        self._closed = True

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        rows = self._next_rows()
        self._loader.bad.check()
        used = rows.pop("used")
        if self._train:
            if (used == FAILED).any():
                row = int(np.argmax(used == FAILED))
                reason = self._loader.bad.reason(int(rows["index"][row]))
                raise UsageError(f"an image and all its replacements cannot be read: {reason}")
        else:
            rows["valid"] = used >= 0
        self._step += 1
        return rows

    def _next_rows(self) -> Batch:
        import tensorflow as tf

        while True:
            if self._iterator is None:
                self._iterator = self._dataset().as_numpy_iterator()
            try:
                return next(self._iterator)
            except StopIteration:
                self.close()
                raise
            except tf.errors.OpError as error:
                # A failed op spoils the whole tf.data batch. It is rare: only a JPEG whose frame
                # is sound and whose tables are not. Find it, then restart at the same step.
                self._iterator = None
                if not self._reject_failures():
                    raise error

    def _plan(self, step: int):
        return self._order.plan(
            int(step), batch_size=self._batch_size, rows=self._rows, num_draws=self._num_draws
        )

    def _reject_failures(self) -> bool:
        """Rejects this step's examples that TensorFlow cannot decode; False if there are none."""
        import tensorflow as tf

        plan, found = self._plan(self._step), False
        for candidates, draws in zip(plan.candidates, plan.draws, strict=True):
            used, encoded, array, _ = self._loader.load(candidates)
            try:
                self._transform(tf.constant(encoded), tf.constant(array), tf.constant(draws))
            except tf.errors.OpError as error:
                self._loader.reject(int(used), _one_line(error))
                found = True
        return found

    def _dataset(self):
        import tensorflow as tf

        options = self._options
        workers = options.num_workers
        pixels = tf.as_dtype(options.dtype)

        def plan(step):
            wanted, candidates, draws = tf.numpy_function(
                self._plan, [step], [tf.int64, tf.int64, tf.float64]
            )
            rows = self._rows.stop - self._rows.start
            return (
                tf.ensure_shape(wanted, [rows]),
                tf.ensure_shape(candidates, [rows, None]),
                tf.ensure_shape(draws, [rows, self._num_draws]),
            )

        def example(wanted, candidates, draws):
            used, encoded, array, label = tf.numpy_function(
                self._loader.load, [candidates], [tf.int64, tf.string, pixels, tf.int32]
            )
            encoded = tf.ensure_shape(encoded, [])
            array = tf.ensure_shape(array, [None, None, self._loader.channels])
            image = self._transform(encoded, array, draws)
            if self._after_crop is not None:
                changed = tf.numpy_function(self._after_crop, [image, draws], tf.uint8)
                image = tf.ensure_shape(changed, image.shape)
            return {
                "image": image,
                "label": tf.ensure_shape(label, []),
                "index": wanted,
                "used": tf.ensure_shape(used, []),
            }

        last = self._last_step if self._last_step is not None else np.iinfo(np.int64).max
        dataset = tf.data.Dataset.range(self._step, last).map(plan)
        dataset = dataset.flat_map(lambda *rows: tf.data.Dataset.from_tensor_slices(rows))
        dataset = dataset.map(example, num_parallel_calls=workers, deterministic=True)
        dataset = dataset.batch(self._rows.stop - self._rows.start, drop_remainder=True)
        dataset = dataset.prefetch(options.prefetch)
        settings = tf.data.Options()
        settings.threading.private_threadpool_size = workers
        settings.autotune.enabled = False  # every number above is fixed
        return dataset.with_options(settings)


def _one_line(error: Exception) -> str:
    """The part of an error's text that a person can use."""
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300]


@atexit.register
def _close_all() -> None:
    # Threads that call back into Python while the interpreter shuts down would crash it.
    for batches in list(_open_batches):
        batches.close()
