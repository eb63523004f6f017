"""The training and held-out images of a task, and their batches."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mae_jax.checkpoint import layout
from mae_jax.data import DataOptions, Transform, on_device, pipeline
from mae_jax.data.sampler import TrainSampler
from mae_jax.data.sources import build
from mae_jax.data.tolerant import TolerantBatches
from mae_jax.data.transforms.base import Field
from mae_jax.data.transforms.image_and_label import ImageAndLabel
from mae_jax.distributed import sharding
from mae_jax.runtime.errors import require
from mae_jax.tasks import adaptation
from mae_jax.tasks.batch_size import MakeTask
from mae_jax.train.task import OnBatch, ignore_batch


class ImageData:
    """Training and held-out images of a run, and their batches.

    Args:
      config: the whole configuration; changed in place if the data set is small (`adaptation`).
      workdir: folder of the run; "" to write nothing.
      image_size: (H, W) of the model's input.
      make_task: the task of a configuration and a workdir, to choose a batch size.
      transforms: of a task on objects: makes the rows of training batches (True) and of evaluation
        batches (False), from images with boxes and masks. None: images and labels.

    Attributes:
      train_source, eval_source: the images; `eval_source` is empty if none are held out.
      image_size: (H, W) of the batches.
      pixels: `mean` and `std` of the pixels, per channel.
      steps_per_epoch: may be fractional.
      reading_error: why an evaluation or a figure got empty batches, or None.

    Raises:
      UsageError: there is no such data, or the configuration does not match it.
      StorageUnavailable: the storage of the data did not recover in time.
    """

    def __init__(
        self,
        config: Any,
        workdir: str,
        *,
        image_size: tuple[int, int],
        make_task: MakeTask,
        transforms: Mapping[bool, Transform] | None = None,
    ):
        self.image_size, self._config, self._transforms = image_size, config, transforms
        self.pixels = {"mean": tuple(config.data.mean), "std": tuple(config.data.std)}
        self.reading_error: Exception | None = None
        sources = build.make_sources(
            config.data,
            image_size=image_size,
            channels=config.model.channels,
            workdir=workdir or None,
            resuming=layout.exists(workdir),
            was_there=layout.exists(workdir),
            objects=transforms is not None,
        )
        adaptation.adapt(
            config,
            num_images=len(sources.train),
            holdout=sources.holdout,
            num_devices=jax.device_count(),
            make_task=make_task,
        )
        on_devices = DataOptions.from_config(config.data).on_device
        self._feed: Any = (
            on_device.OnDeviceLoader(sharding.make_mesh(**config.mesh)) if on_devices else pipeline
        )
        self.train_source = sources.train
        self.eval_source: Any = sources.eval or ()
        self.steps_per_epoch = len(self.train_source) / config.batch_size

    @property
    def fields(self) -> Mapping[str, Field]:
        """The arrays of a row of a training batch, besides `index`."""
        if self._transforms:
            return self._transforms[True].fields
        options = DataOptions.from_config(self._config.data)
        size, channels = self.image_size, self._config.model.channels
        return ImageAndLabel(options, image_size=size, channels=channels, train=True).fields

    def require_held_out(self) -> None:
        """Raises UsageError if held-out images are to be evaluated or drawn but there are none."""
        every = self._config.eval_every, self._config.figure_every
        require(
            len(self.eval_source) > 0 or not any(every),
            "no held-out images: set --config.data.holdout (or both --config.eval_every=0 and "
            "--config.figure_every=0)",
        )

    def train_batches(self, start_step: int) -> Any:
        """This process's rows of each batch after `start_step`: see `pipeline.train_batches`."""
        return self._feed.train_batches(
            self.train_source,
            **self.options(self._config.batch_size, train=True),
            seed=self._config.seed,
            start_step=start_step,
            **_this_process(),
        )

    def eval_batches(
        self, source: Any, *, limit: int = 0, on_batch: OnBatch = ignore_batch
    ) -> Iterator[dict[str, Any]]:
        """One pass over a source, or over `limit` evenly spaced examples of it.

        Batches that cannot be read are empty and set `reading_error`. `on_batch` is called after
        each batch has been used.
        """
        # Evaluation does not accumulate over micro-batches, so its batch is one micro-batch.
        options = self.options(self._config.batch_size // self._config.grad_accum)
        batches = self._feed.eval_batches(source, **options, limit=limit or None, **_this_process())
        with contextlib.closing(TolerantBatches(batches)) as tolerant:
            for batch in tolerant:
                self.reading_error = self.reading_error or tolerant.error
                yield batch
                on_batch()

    def replicated_batches(self, source: Any, number: int, batch_size: int) -> Any:
        """Whole batches of `number` evenly spaced examples, the same on every process."""
        devices = jax.local_device_count()  # must divide batches that are made on the devices
        options = self.options(-(-batch_size // devices) * devices)
        return self._feed.eval_batches(source, **options, limit=number)

    def first_held_out(self, number: int) -> dict[str, np.ndarray]:
        """A batch of up to `number` evenly spaced held-out images, the same on every process."""
        number = min(number, len(self.eval_source))
        batches = self.replicated_batches(self.eval_source, number, number)
        with contextlib.closing(batches):
            tolerant = TolerantBatches(batches)
            batch = next(tolerant)
        self.reading_error = self.reading_error or tolerant.error
        return {name: np.asarray(values)[:number] for name, values in batch.items()}

    def describe_batch(self, step: int) -> list[str]:
        """Origins of the examples in the global batch of a step (from 1), such as their paths."""
        source, size = self.train_source, self._config.batch_size
        sampler = TrainSampler(len(source), seed=self._config.seed)
        _, indices = sampler.at(np.int64(step - 1) * size + np.arange(size))
        return [source.describe(int(index)) for index in indices]

    def options(self, batch_size: int, *, train: bool = False) -> dict[str, Any]:
        """Arguments of `pipeline.train_batches` or, without `train`, of `eval_batches`."""
        return {
            "data_config": self._config.data,
            "image_size": self.image_size,
            "channels": self._config.model.channels,
            "batch_size": batch_size,
            "transform": self._transforms[train] if self._transforms else None,
        }

    def metadata(self) -> dict[str, Any]:
        """The entry `data` of a checkpoint's metadata."""
        return {
            **{key: list(value) for key, value in self.pixels.items()},
            "dtype": self._config.data.dtype,
            "source": self.train_source.fingerprint(),
        }

    def summary(self) -> dict[str, Any]:
        """Lines logged at the start of a run, by name."""
        source, held_out, config = self.train_source, len(self.eval_source), self._config
        classes = f" of {len(source.classes):,} classes" if source.classes else ""
        return {
            "data": f"{source.name}: {len(source):,} images{classes}; held out {held_out:,}",
            "global batch": f"{config.batch_size} in {config.grad_accum} part(s)",
        }


def _this_process() -> dict[str, Any]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
