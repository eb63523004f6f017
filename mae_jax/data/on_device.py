"""Image sets that are kept on the devices, where the batches are made, too.

The host decodes every image once and then only plans the crops of each batch: the same order, boxes
and flips as in `data.pipeline`, and the same pixels up to the rounding of sums. Evaluation views do
not change, so the host makes them once: their pixels are exactly those of `data.pipeline`.
No TensorFlow.
"""

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from mae_jax.data import DataOptions, Source
from mae_jax.data.on_device_images import plan_rows, read_images
from mae_jax.data.sampler import EvalSampler, TrainSampler, host_rows
from mae_jax.data.tolerant import empty_batch
from mae_jax.data.transforms import crop
from mae_jax.data.transforms.base import Transform
from mae_jax.data.transforms.crop import NUM_DRAWS
from mae_jax.data.transforms.image_and_label import ImageAndLabel
from mae_jax.distributed import sharding
from mae_jax.ops.crop import crop_and_resize
from mae_jax.runtime import host
from mae_jax.runtime.errors import UsageError
from mae_jax.runtime.host import available_memory

log = logging.getLogger(__name__)

# Float32 pixels that a device processes at once; a larger batch is processed in turns.
WORKING_BYTES = 2**28
FIELDS = ("label", "index", "valid")  # of a batch; other rows describe how to make its images


class OnDeviceLoader:
    """Replaces the module `data.pipeline`: the same two functions with the same arguments.

    Images are read when they are first needed, and stay on the devices of this process: whole
    images for random crops, views for evaluation.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._sets: dict[Any, OnDeviceImages] = {}

    def train_batches(
        self, source: Source, *, seed: int, batch_size: int, **options: Any
    ) -> "OnDeviceBatches":
        """As `pipeline.train_batches`, but the batches are already on the devices.

        Raises:
          UsageError: also when the set is too large for the devices.
        """
        order = TrainSampler(len(source), seed=seed, batch_size=batch_size)
        return self._batches(source, order, train=True, batch_size=batch_size, **options)

    def eval_batches(
        self, source: Source, *, limit: int | None = None, **options: Any
    ) -> "OnDeviceBatches":
        """As `pipeline.eval_batches`, but the batches are already on the devices."""
        order = EvalSampler(len(source), limit=limit)
        return self._batches(source, order, train=False, **options)

    def _batches(
        self,
        source: Source,
        order: TrainSampler | EvalSampler,
        *,
        data_config: Any,
        channels: int,
        image_size: tuple[int, int],
        train: bool,
        process_count: int = 1,
        transform: Transform | None = None,
        **options: Any,
    ) -> "OnDeviceBatches":
        if transform is not None:
            raise UsageError(
                "--config.data.on_device=True works for images and their labels only: set it to "
                "False for this task"
            )
        settings = DataOptions.from_config(data_config)
        local = sharding.local_mesh(self._mesh)
        if train and settings.augment != "none":
            key: Any = source
            part: dict[str, Any] = {}
        else:
            indices = order.examples if isinstance(order, EvalSampler) else np.arange(len(source))
            view = crop.view_transform(settings, image_size=image_size, train=train)
            key = source, tuple(image_size), len(indices)
            part = {"indices": indices, "view": view, "min_size": image_size}
        if key not in self._sets:
            self._sets[key] = OnDeviceImages(
                source, settings, channels=channels, mesh=local, **part
            )
        # Either part of a global batch, or rows that every process makes for itself.
        mesh = self._mesh if process_count == jax.process_count() else local
        return OnDeviceBatches(
            self._sets[key],
            order,
            options=settings,
            mesh=mesh,
            image_size=image_size,
            train=train,
            process_count=process_count,
            **options,
        )


class OnDeviceImages:
    """Images of a source, once on each device of this process; `part` as in `read_images`.

    Attributes:
      examples: what the host needs to know about them.
      channels: C.
    """

    def __init__(
        self, source: Source, options: DataOptions, *, channels: int, mesh: Mesh, **part: Any
    ):
        began = time.perf_counter()
        count = len(part.get("indices", source))
        log.info("data.on_device: decoding %s images of %s", f"{count:,}", source.name)
        check = functools.partial(_check_room, options=options, room=free_bytes(mesh))
        images, self.examples = read_images(
            source, options, channels=channels, check_shape=check, **part
        )
        sizes = self.examples.sizes[self.examples.readable]
        pixels = sizes.prod(axis=1).sum() / images[..., 0].size
        log.info(
            "data.on_device: %s on each device for images of up to %d x %d (%.0f %% of it pixels, "
            "the rest is padding of smaller images), read in %.1f s",
            _size(images.nbytes), *images.shape[1:3], 100 * pixels, time.perf_counter() - began,
        )  # fmt: skip
        self.channels = channels
        self._mesh = mesh
        self._images = jax.device_put(images, sharding.replicated(mesh))

    def views(
        self, rows: dict[str, np.ndarray], *, image_size: tuple[int, int], antialias: bool
    ) -> jax.Array:
        """Images [b, H, W, C], split over the devices of this process; rows of `plan_rows`."""
        make = _compile_views(self._mesh, image_size, antialias)
        return make(self._images, jax.device_put(rows, sharding.batch_sharding(self._mesh)))


class OnDeviceBatches(Iterator[dict[str, jax.Array]]):
    """Iterator over batches made on the devices; arguments as `pipeline.train_batches`.

    Attributes:
      bad_count: distinct examples of the set that cannot be read.
      length: total number of batches; None if endless.
    """

    def __init__(
        self,
        images: OnDeviceImages,
        order: TrainSampler | EvalSampler,
        *,
        options: DataOptions,
        mesh: Mesh,
        image_size: tuple[int, int],
        batch_size: int,
        train: bool,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        rows = host_rows(batch_size, process_index=process_index, process_count=process_count)
        self._images, self._options, self._mesh = images, options, mesh
        self._rows = rows.stop - rows.start
        self._image_size, self._train = (image_size[0], image_size[1]), train
        self._plan: Callable[..., Any] = functools.partial(
            order.plan, batch_size=batch_size, rows=rows, num_draws=NUM_DRAWS
        )
        self._step = start_step
        self._last = None if isinstance(order, TrainSampler) else order.num_batches(batch_size)
        self.length = None if self._last is None else max(self._last - start_step, 0)
        self.bad_count = len(images.examples.bad)

    def empty(self) -> dict[str, jax.Array]:
        """A batch without examples (`data.tolerant.empty_batch`)."""
        fields = ImageAndLabel(
            self._options,
            image_size=self._image_size,
            channels=self._images.channels,
            train=self._train,
        ).fields
        batch = empty_batch(self._rows, fields, train=self._train)
        return sharding.to_device(self._mesh, batch)

    def close(self) -> None:
        """Ends the iterator; there are no threads to stop."""
        self._last = self._step

    def __next__(self) -> dict[str, jax.Array]:
        if self._last is not None and self._step >= self._last:
            raise StopIteration
        rows = plan_rows(
            self._plan(self._step),
            self._images.examples,
            self._options,
            image_size=self._image_size,
            train=self._train,
        )
        self._step += 1
        fields = {name: rows.pop(name) for name in FIELDS if name in rows}
        antialias = self._options.resize_antialias
        image = self._images.views(rows, image_size=self._image_size, antialias=antialias)
        return {"image": sharding.join(self._mesh, image), **sharding.to_device(self._mesh, fields)}


@functools.cache
def _compile_views(mesh: Mesh, image_size: tuple[int, int], antialias: bool) -> Any:
    """Function (images on every device, rows split over them) -> views, split in the same way.

    The mesh covers one process and nothing is communicated, so processes need not run these
    programs in the same order relative to others.
    """

    def view(images: jax.Array, row: dict[str, jax.Array]) -> jax.Array:
        place = row.pop("place")
        image = images[jnp.maximum(place, 0)]
        if row:  # a crop; without one the images are views already
            crops = jax.tree.map(lambda x: x[None], row)
            (image,) = crop_and_resize(image[None], **crops, out=image_size, antialias=antialias)
        return jnp.where(place >= 0, image, 0)

    def views(images: jax.Array, rows: dict[str, jax.Array]) -> jax.Array:
        at_once = max(1, WORKING_BYTES // (4 * images[0].size))
        one = functools.partial(view, images)
        if len(rows["place"]) <= at_once:
            return jax.vmap(one)(rows)
        return jax.lax.map(one, rows, batch_size=at_once)

    specs = (PartitionSpec(), sharding.BATCH)
    return jax.jit(jax.shard_map(views, mesh=mesh, in_specs=specs, out_specs=sharding.BATCH))


def free_bytes(mesh: Mesh) -> int:
    """Room for a set on each device: its memory, but at most half of the host's memory."""
    # The other half is for the images before they are joined, and everything else.
    copies = mesh.size if mesh.devices.flat[0].platform == "cpu" else 1
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in mesh.devices.flat]
    room = host.share(available_memory() // 2) // copies
    return min([room, *(limit for limit in limits if limit)])


def _check_room(shape: tuple[int, int, int, int], *, options: DataOptions, room: int) -> None:
    needed = math.prod(shape) * np.dtype(options.dtype).itemsize
    if needed > room:
        raise UsageError(
            f"--config.data.on_device=True: {shape[0]:,} images of up to {shape[1]} x {shape[2]} "
            f"take {_size(needed)} on each device, but there is only room for {_size(room)}; "
            "set it to False, or make the images smaller beforehand"
        )


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
