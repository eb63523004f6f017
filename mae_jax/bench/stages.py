"""The parts of the input pipeline, one at a time, for `bench.data` to time."""

from collections.abc import Callable
from typing import Any

import jax

from mae_jax import sharding
from mae_jax.data.loader import Loader
from mae_jax.data.options import DataOptions
from mae_jax.data.order import TrainOrder
from mae_jax.data.pipeline import num_draws, row_transform

# From a turn to (what is timed, how many images it deals with).
Work = Callable[[int], tuple[Callable[[], Any], int]]
IMAGES = 64  # of a turn; their decoded pixels lie in memory


class Stages:
    """Reading, decoding and augmenting the images of a turn, each in the thread that calls.

    A turn takes other images than the turn before. What a stage needs of the stages before it is
    made outside of the timed call.
    """

    def __init__(self, task: Any):
        options = DataOptions.from_config(task.config.data)
        self._source = task.train_source
        self._loader = Loader(self._source, options, channels=task.model.channels)
        self._order = TrainOrder(len(self._source), seed=task.config.seed)
        self._transform = row_transform(options, image_size=task.image_size, train=True)

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
        """Crop, resize, flip and colours."""
        indices, draws = self._readable(turn)
        rows = [
            (self._loader.decode(record), numbers)
            for record, numbers in zip(self._source.read(indices), draws, strict=True)
        ]
        return lambda: [self._transform(pixels, numbers) for pixels, numbers in rows], len(rows)

    def _readable(self, turn: int) -> tuple[list[int], Any]:
        """Examples and draws of a turn; replacements stand in for bad images."""
        plan = self._order.plan(
            turn, batch_size=IMAGES, rows=slice(0, IMAGES), num_draws=num_draws()
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
