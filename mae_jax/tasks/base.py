"""What all tasks share: the data, the length of the run and its optimiser."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from mae_jax.checkpoint import layout
from mae_jax.config.rules import LARGEST
from mae_jax.data import DataOptions, on_device, pipeline
from mae_jax.data.sampler import TrainSampler
from mae_jax.data.sources import build
from mae_jax.data.sources.folder import check_root
from mae_jax.data.tolerant import TolerantBatches
from mae_jax.distributed import sharding
from mae_jax.optim.build import make_recipe
from mae_jax.optim.schedules import num_steps
from mae_jax.runtime import environment
from mae_jax.runtime.errors import all_of, require
from mae_jax.tasks import adaptation, figures
from mae_jax.train.initial_state import check_there
from mae_jax.train.task import Evaluator

log = logging.getLogger(__name__)

FEW_STEPS = 100


def check_places(config: Any, workdir: str) -> None:
    """Whether what a run reads when it starts is where the configuration says; reads nothing yet.

    Raises:
      UsageError: names every key that leads nowhere.
    """
    checks: list[Callable[[], object]] = []
    if config.data.source == "folder":
        checks.append(lambda: check_root(config.data.root))
    # A run that continues needs neither of these any more.
    if workdir and not layout.exists(workdir):
        if config.resume:
            checks.append(lambda: _check_resume(config.resume))
        elif config.init_from:
            checks.append(lambda: check_there(config.init_from))
    all_of(*checks)


def _check_resume(path: str) -> None:
    layout.require_run(path, layout.find(path))


class ImageTask:
    """A task on images; `task.Task` says what each part is for.

    Args:
      config: the whole configuration; `adaptation` changes it where the set is small.
      workdir: folder of the run; "" when nothing is to be written.
      image_size: (H, W) that the model takes.

    Raises:
      UsageError: the data are not there.
      StorageUnavailable: their storage did not come back.
    """

    reading_error: Exception | None = None
    ema_decay = 0.0
    evaluators: dict[str, Evaluator]
    _between: Callable[[], None] | None = None

    def __init__(self, config: Any, workdir: str, *, image_size: tuple[int, int]):
        self.config, self.workdir = config, workdir
        self.image_size = image_size
        self.pixels = {"mean": tuple(config.data.mean), "std": tuple(config.data.std)}
        found = build.make_sources(
            config.data,
            image_size=image_size,
            channels=config.model.channels,
            workdir=workdir or None,
            resuming=layout.exists(workdir),
            was_there=layout.exists(workdir),
        )
        adaptation.adapt(
            config,
            num_images=len(found.train),
            holdout=found.holdout,
            num_devices=jax.device_count(),
        )
        on_devices = DataOptions.from_config(config.data).on_device
        self._feed: Any = (
            on_device.OnDeviceLoader(sharding.make_mesh(**config.mesh)) if on_devices else pipeline
        )
        self.train_source = found.train
        self.held_out: Any = found.eval or ()
        self.steps_per_epoch = len(self.train_source) / config.batch_size

    def set_length(self) -> None:
        """Number of steps, from `steps` or `epochs`.

        Raises:
          UsageError: there is not even one.
        """
        config, num_images = self.config, len(self.train_source)
        require(
            config.steps > 0 or config.epochs > 0,
            "the run has no length: set --config.epochs or --config.steps",
        )
        by_epochs = num_steps(config.epochs, num_images, config.batch_size)
        self.num_steps = config.steps or by_epochs
        require(
            0 < self.num_steps <= LARGEST,
            f"--config.epochs={config.epochs} of {num_images} images are {self.num_steps} batches "
            f"of {config.batch_size}, where 1 to {LARGEST} can be counted: change --config.epochs",
        )
        if self.num_steps < FEW_STEPS:
            log.warning("only %d updates: too few to learn anything", self.num_steps)

    def set_recipe(
        self, *, exempt: tuple[str, ...] = (), scale: Callable[[str], float] | None = None
    ) -> None:
        """Optimiser and learning rates of `config.optim`; see `optim.optimizers.adamw`."""
        self.recipe = make_recipe(
            self.config.optim,
            batch_size=self.config.batch_size,
            epochs=self.num_steps / self.steps_per_epoch,
            steps_per_epoch=self.steps_per_epoch,
            exempt=exempt,
            scale=scale,
        )
        self.tx, self.schedule = self.recipe.tx, self.recipe.schedule

    def given(self) -> dict[str, np.ndarray]:
        return {}

    def trainable(self, name: str) -> bool:
        return True

    def require_held_out(self) -> None:
        """Refuses to look at held-out images where there are none."""
        every = self.config.eval_every, self.config.figure_every
        require(
            len(self.held_out) > 0 or not any(every),
            "no held-out images: set --config.data.holdout (or both --config.eval_every=0 and "
            "--config.figure_every=0)",
        )

    def train_batches(self, start_step: int) -> Any:
        return self._feed.train_batches(
            self.train_source,
            **self._data_options(self.config.batch_size),
            seed=self.config.seed,
            start_step=start_step,
            **_this_process(),
        )

    def eval_batches(self, source: Any, *, limit: int = 0) -> Any:
        """One pass over a source, or over `limit` evenly spaced examples of it."""
        # Evaluation has no parts to accumulate over, and must fit where one part fits.
        batch_size = self.config.batch_size // self.config.grad_accum
        options = self._data_options(batch_size)
        batches = self._feed.eval_batches(source, **options, limit=limit or None, **_this_process())
        return self._with_calls(batches)

    @contextlib.contextmanager
    def between_batches(self, call: Callable[[], None]) -> Iterator[None]:
        self._between = call
        try:
            yield
        finally:
            self._between = None

    def _with_calls(self, batches: Any) -> Iterator[dict[str, Any]]:
        with contextlib.closing(TolerantBatches(batches)) as tolerant:
            for batch in tolerant:
                self.reading_error = self.reading_error or tolerant.error
                yield batch
                if self._between is not None:
                    self._between()

    def examples(self, step: int) -> list[str]:
        source, size = self.train_source, self.config.batch_size
        order = TrainSampler(len(source), seed=self.config.seed)
        _, wanted = order.at(np.int64(step - 1) * size + np.arange(size))
        return [source.describe(int(index)) for index in wanted]

    def first_held_out(self, number: int) -> dict[str, np.ndarray]:
        """The same few held-out images on every process."""
        number = min(number, len(self.held_out))
        with contextlib.closing(self.own_batches(self.held_out, number, number)) as batches:
            tolerant = TolerantBatches(batches)
            batch = next(tolerant)
        self.reading_error = self.reading_error or tolerant.error
        return {name: np.asarray(values)[:number] for name, values in batch.items()}

    def own_batches(self, source: Any, number: int, batch_size: int) -> Any:
        """Evenly spaced examples in whole batches for this process; the same on every process."""
        devices = jax.local_device_count()  # batches that are made on the devices divide by them
        options = self._data_options(-(-batch_size // devices) * devices)
        return self._feed.eval_batches(source, **options, limit=number)

    def _data_options(self, batch_size: int) -> dict[str, Any]:
        return {
            "data_config": self.config.data,
            "image_size": self.image_size,
            "channels": self.config.model.channels,
            "batch_size": batch_size,
        }

    def save_picture(self, image: np.ndarray, step: int) -> str:
        path = os.path.join(self.workdir, "pictures", f"step_{step:08d}.png")
        figures.save_png(path, image)
        return path

    def metadata(self, step: int) -> dict[str, Any]:
        config = self.config
        return {
            "task": config.task,
            "step": step,
            "epochs_seen": step / self.steps_per_epoch,
            "data": {
                **{key: list(value) for key, value in self.pixels.items()},
                "dtype": config.data.dtype,
                "source": self.train_source.fingerprint(),
            },
            "config": config.to_dict(),
            "versions": environment.versions(),
        }

    def data_facts(self) -> dict[str, Any]:
        """What a person checks before a long run: the data."""
        source, held_out = self.train_source, len(self.held_out)
        classes = f" of {len(source.classes):,} classes" if source.classes else ""
        return {
            "data": f"{source.name}: {len(source):,} images{classes}; held out {held_out:,}",
            "global batch": f"{self.config.batch_size} in {self.config.grad_accum} part(s)",
        }

    def length_facts(self) -> dict[str, Any]:
        """And the length and the learning rate."""
        recipe, per_epoch = self.recipe, self.steps_per_epoch
        return {
            "steps": f"{self.num_steps:,} = {self.num_steps / per_epoch:.4g} epochs of "
            f"{per_epoch:.6g} steps",
            "learning rate": f"{recipe.lr:.4g} (base {self.config.optim.base_lr} per 256 images), "
            f"warm-up {recipe.warmup_epochs * per_epoch:.0f} steps",
        }


def _this_process() -> dict[str, Any]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
