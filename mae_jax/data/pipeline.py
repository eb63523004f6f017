"""Batches of NumPy arrays from any source: the tf.data graph and the iterator around it.

    step -> plan (sampler.py) -> read, decode (loader.py) -> transform (transforms/) -> batch

tf.data runs `data.workers` threads, keeps the order and reads ahead. Its overhead per operation is
too large for single images, so a thread fills a few rows of a batch at a time, in NumPy; the slow
parts (files, decoders, resizing) release the GIL.
Importing this module is cheap: TensorFlow is imported with the first batch.
"""

import atexit
import functools
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mae_jax.data.loader import ABSENT, FAILED, Loader
from mae_jax.data.options import DataOptions
from mae_jax.data.sampler import EvalSampler, TrainSampler, host_rows
from mae_jax.data.sources.base import Source
from mae_jax.data.storage import patiently
from mae_jax.data.tolerant import empty_batch
from mae_jax.data.transforms import crop
from mae_jax.data.transforms.base import Field, Transform, blank_rows, set_row
from mae_jax.data.transforms.decode import pixels
from mae_jax.data.transforms.image_and_label import ImageAndLabel
from mae_jax.runtime.errors import DataMissing, StorageUnavailable, UsageError, one_line
from mae_jax.runtime.filesystem import expand

Batch = dict[str, np.ndarray]
_RESERVED = {"index", "used", "valid"}  # what batches contain besides the fields of the transform
_open_batches: "weakref.WeakSet[Batches]" = weakref.WeakSet()
MAX_SHARE = 8  # rows that a thread fills at a time; more would leave threads without work


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
    transform: Transform | None = None,
) -> "Batches":
    """This host's rows of every global batch, from `start_step` on; endless.

    Args:
      source: the training source.
      data_config: `config.data` (see `DataOptions`).
      image_size: (H, W) of the images that the default transform makes.
      channels: C of the decoded images.
      batch_size: global batch.
      seed: of order and augmentation.
      start_step: number of batches consumed before; takes the same time for any step.
      process_index, process_count: this host among the hosts.
      transform: makes the rows; the default is `ImageAndLabel`, with `data.augment` and so on.

    Returns:
      Iterator of dicts with b = batch_size / process_count rows: the fields of the transform, by
      default `image` uint8 or float32 [b, H, W, C] and `label` int32 [b] (-1: unlabeled); and
      `index` int64 [b], the example that was drawn. If it cannot be read, the fields are those of
      its replacement. The arrays may be read-only.

    Raises:
      UsageError: the batch does not divide; from the iterator: too many bad images.
      StorageUnavailable: from the iterator: storage did not come back, or a stop was requested.
    """
    options = DataOptions.from_config(data_config)
    rows = host_rows(batch_size, process_index=process_index, process_count=process_count)
    order = TrainSampler(len(source), seed=seed, batch_size=batch_size)
    share = -(-len(source) // process_count)
    if transform is None:
        transform = ImageAndLabel(options, image_size=image_size, channels=channels, train=True)
    return Batches(
        Loader(source, options, channels=channels, share=share),
        order,
        options=options,
        transform=transform,
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
    transform: Transform | None = None,
) -> "Batches":
    """One pass over a source in its own order; every host yields the same number of batches.

    Arguments, result and errors as for `train_batches`; additionally:

    Args:
      limit: use only this many examples, evenly spaced over the source.
      start_step: number of batches to skip.

    Returns:
      A finite iterator whose dicts also contain `valid` bool [b]: False for rows that pad the last
      batch (`index` -1) and for unreadable images. Their fields have the fill values: black, -1.
    """
    options = DataOptions.from_config(data_config)
    rows = host_rows(batch_size, process_index=process_index, process_count=process_count)
    order = EvalSampler(len(source), limit=limit)
    share = -(-len(order.examples) // process_count)
    if transform is None:
        transform = ImageAndLabel(options, image_size=image_size, channels=channels, train=False)
    return Batches(
        Loader(source, options, channels=channels, share=share),
        order,
        options=options,
        transform=transform,
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
    """The evaluation views of image files: [n, H, W, C] uint8 (or float32, by `data.dtype`).

    Raises:
      UsageError: names the file that is missing or cannot be read.
    """
    options = DataOptions.from_config(data_config if data_config is not None else {})
    size = image_size[0], image_size[1]
    transform = crop.view_transform(options, image_size=size, train=False)
    images = np.empty((len(paths), *image_size, channels), options.dtype)
    for row, path in enumerate(paths):
        try:
            data = patiently(
                functools.partial(_bytes_of, Path(expand(str(path)))),
                what=str(path),
                limit=options.storage_wait,
                was_there=False,
            )
            image = pixels(data, options, channels=channels, name=str(path))
            images[row] = transform(image, np.empty(0))
        except StorageUnavailable:
            raise
        # Decoders raise nearly any type on damaged input; the reason is kept in the message.
        except Exception as error:
            raise UsageError(f"cannot use the image {path}: {one_line(error)}") from error
    return images


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataMissing(f"there is no file {path}") from error


class Batches(Iterator[Batch]):
    """Iterator over the batches of one host; made by `train_batches` and `eval_batches`.

    Attributes:
      bad_count: distinct examples this host could not read so far (it reads a little ahead),
        without those that it could read later.
      length: total number of batches; None if endless.
    """

    def __init__(
        self,
        loader: Loader,
        order: TrainSampler | EvalSampler,
        *,
        options: DataOptions,
        transform: Transform,
        batch_size: int,
        rows: slice,
        steps: tuple[int, int | None],
        train: bool,
    ):
        if reserved := _RESERVED & transform.fields.keys():
            raise ValueError(f"fields of a transform cannot be called {sorted(reserved)}")
        self._loader = loader
        self._order = order
        self._options = options
        self._transform = transform
        self._batch_size = batch_size
        self._rows = rows
        self._steps = steps
        self.length = None if steps[1] is None else max(steps[1] - steps[0], 0)
        self._train = train
        self._iterator: Any = None
        self._closed = False
        _open_batches.add(self)

    @property
    def bad_count(self) -> int:
        return len(self._loader.bad)

    def empty(self) -> Batch:
        """A batch without examples (`tolerant.empty_batch`)."""
        rows = self._rows.stop - self._rows.start
        return empty_batch(rows, self._transform.fields, train=self._train)

    def close(self) -> None:
        """Stops the threads. Safe to call twice; also done when the program ends."""
        # Dropping the iterator waits for its threads, which may be waiting for storage.
        self._loader.storage.close()
        self._iterator = None
        self._closed = True

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        if self._iterator is None:
            self._iterator = self._dataset().as_numpy_iterator()
        try:
            batch = next(self._iterator)
        except StopIteration:
            self.close()
            raise
        used = batch.pop("used")
        if (used == ABSENT).any():
            assert self._loader.storage.gone
            raise self._loader.storage.gone
        self._loader.bad.check()
        if self._train and (used == FAILED).any():
            row = int(np.argmax(used == FAILED))
            reason = self._loader.bad.reason(int(batch["index"][row]))
            raise UsageError(f"an image and all its replacements cannot be read: {reason}")
        return batch if self._train else batch | {"valid": used >= 0}

    def _dataset(self) -> Any:
        """tf.data: batches in shares of a few rows, which the threads fill in any order."""
        from mae_jax.runtime.tensorflow_cpu import tf

        options, count = self._options, self._rows.stop - self._rows.start
        limit = min(MAX_SHARE, -(-count // options.num_workers))
        share = max(n for n in range(1, limit + 1) if count % n == 0)
        shares = count // share
        fields = {**self._transform.fields, "index": Field((), "int64"), "used": Field((), "int64")}

        def fill(part: Any) -> dict[str, Any]:
            types = [tf.as_dtype(field.dtype) for field in fields.values()]
            arrays = tf.numpy_function(lambda n: self._fill(int(n), share), [part], types)
            named = zip(fields.items(), arrays, strict=True)
            return {k: tf.ensure_shape(x, (share, *field.shape)) for (k, field), x in named}

        def join(parts: dict[str, Any]) -> dict[str, Any]:
            return {k: tf.reshape(parts[k], (count, *field.shape)) for k, field in fields.items()}

        first, last = self._steps
        end = np.iinfo(np.int64).max if last is None else last * shares
        dataset = tf.data.Dataset.range(first * shares, max(end, first * shares))
        dataset = dataset.map(fill, num_parallel_calls=options.num_workers, deterministic=True)
        dataset = dataset.batch(shares, drop_remainder=True).map(join).prefetch(options.prefetch)
        settings = tf.data.Options()
        settings.threading.private_threadpool_size = options.num_workers
        settings.autotune.enabled = False  # every number above is fixed
        return dataset.with_options(settings)

    def _fill(self, part: int, share: int) -> tuple[np.ndarray, ...]:
        """The fields, the index and the candidate used of each row of a share of a batch."""
        step, place = divmod(part, (self._rows.stop - self._rows.start) // share)
        start = self._rows.start + place * share
        plan = self._order.plan(
            step,
            batch_size=self._batch_size,
            rows=slice(start, start + share),
            num_draws=self._transform.num_draws,
        )
        batch = blank_rows(self._transform.fields, share)
        used = np.empty(share, np.int64)
        for row, candidates in enumerate(plan.candidates):
            used[row], image, annotation = self._loader.load(candidates)
            if image is not None:
                set_row(batch, row, self._transform(image, annotation, plan.draws[row]))
        return *batch.values(), plan.wanted, used


@atexit.register
def _close_all() -> None:
    # Threads that call Python during interpreter shutdown would crash it.
    for batches in list(_open_batches):
        batches.close()
